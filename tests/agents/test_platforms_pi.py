"""Raspberry Pi: sysfs trees, and vcgencmd's answers where a test stands in for it."""

import pytest

from device_agents.contract import BoardState
from device_agents.platforms import select
from device_agents.platforms.raspberry_pi import GET_THROTTLED, RaspberryPi
from device_agents.platforms.tools import Tools

THERMAL = "sys/class/thermal"
VOLT = "sys/class/hwmon/hwmon1"


def firmware(**answers: str) -> Tools:
    """vcgencmd that knows these commands, and counts how often it was asked."""
    return Tools(lambda argv: answers.get("_".join(argv[1:])), lambda argv: None, lambda n: None)


@pytest.mark.parametrize(
    ("text", "throttled"),
    [
        ("0", False),
        ("50000", False),  # has occurred, is not now
        ("50005", True),
        ("0x50004", True),  # as vcgencmd writes it
        ("8", True),  # soft temperature limit now
        ("1", False),  # under-voltage alone caps nothing
        ("E0008", True),
    ],
)
def test_raspberry_pi_throttling(tree, text, throttled):
    tree.put({GET_THROTTLED: text + "\n"})
    board = select(tree.root)
    assert isinstance(board, RaspberryPi)
    assert board.throttled() is throttled


def test_raspberry_pi_falls_back_on_the_kernel(tree):
    tree.put(
        {
            "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
            f"{THERMAL}/cooling_device0/type": "cpufreq-cpu0",
            f"{THERMAL}/cooling_device0/cur_state": "1",
        }
    )
    assert select(tree.root).name == "raspberry_pi"
    assert select(tree.root).throttled() is True


@pytest.mark.parametrize(
    ("bits", "alarm", "low"),
    [
        ("1", None, True),
        ("10000", None, False),  # it was too low once
        ("0", "1", True),
        (None, "1", True),
        (None, "0", False),
        (None, "?", None),
        (None, None, None),
        ("e", None, False),
    ],
)
def test_under_voltage(tree, bits, alarm, low):
    if bits is not None:
        tree.put({GET_THROTTLED: f"{bits}\n"})
    if alarm is not None:
        tree.put({f"{VOLT}/name": "rpi_volt\n", f"{VOLT}/in0_lcrit_alarm": f"{alarm}\n"})
    assert RaspberryPi(tree.root).observe().under_voltage is low


def test_another_sensors_alarm_is_not_the_supplys(tree):
    tree.put({f"{VOLT}/name": "ina219\n", f"{VOLT}/in0_lcrit_alarm": "1\n"})
    assert RaspberryPi(tree.root).observe().under_voltage is None


def test_what_occurs_between_two_samples_counts_and_what_occurred_before_does_not(tree):
    tree.put({GET_THROTTLED: "20000\n"})
    board = RaspberryPi(tree.root)
    watch = board.watching(tree.root)
    assert watch.observe().throttled is False
    tree.put({GET_THROTTLED: "70000\n"})
    assert board.observe().throttled is False
    state = watch.observe()
    assert (state.throttled, state.under_voltage) == (True, True)
    assert watch.observe().throttled is False
    # The kernel's driver clears what has occurred; occurring again is seen again.
    tree.put({GET_THROTTLED: "0\n"})
    assert watch.observe().throttled is False
    tree.put({GET_THROTTLED: "40000\n"})
    assert watch.observe().throttled is True
    assert board.watching(tree.root).observe().throttled is False


# Form of `vcgencmd pmic_read_adc` on a Pi 5: jeffgeerling.com, "Overclocking and Underclocking the
# Raspberry Pi 5", and the forms that ml-energy/zeus tests its parser with; figures changed.
PMIC = """ 3V7_WL_SW_A current(0)=0.10000000A
  VDD_CORE_A current(7)=2.00000000A
   3V3_DAC_A current(17)=0.00000000A
 3V7_WL_SW_V volt(8)=3.70000000V
  VDD_CORE_V volt(15)=0.75000000V
   3V3_DAC_V volt(20)=3.31000000V
     EXT5V_V volt(24)=5.09000000V
      BATT_V volt(25)=0.00000000V
"""


def test_reading_fully_asks_the_firmware(tree):
    tools = firmware(
        pmic_read_adc=PMIC,
        measure_clock_arm="frequency(0)=2400033792\n",
        get_throttled="throttled=0x50005\n",
    )
    board = RaspberryPi(tree.root, tools)
    state = board.observe_fully()
    assert state.power_mw_by_rail == (("3V7_WL_SW", 370), ("VDD_CORE", 1500), ("3V3_DAC", 0))
    assert state.power_mw is None  # the rails are not the board
    assert state.effective_freq_khz == 2400033
    assert (state.throttled, state.under_voltage) == (True, True)
    assert board.observe_fully(1_800_000).effective_freq_khz == 1_800_000


def test_sampling_asks_no_program(tree):
    def refuse(argv):
        raise AssertionError(argv)

    assert isinstance(RaspberryPi(tree.root, Tools(refuse, refuse, refuse)).observe(), BoardState)


def test_the_bits_of_sysfs_go_before_the_programs(tree):
    tree.put({GET_THROTTLED: "0\n"})
    state = RaspberryPi(tree.root, firmware(get_throttled="throttled=0xf")).observe_fully()
    assert (state.throttled, state.under_voltage) == (False, False)


def test_no_program_at_all(tree):
    state = RaspberryPi(tree.root).observe_fully()
    assert (state.throttled, state.under_voltage, state.effective_freq_khz) == (None, None, None)
    assert state.power_mw_by_rail == ()
