"""Trees in the forms of the kernel's ABI documents and of vendors' guides, odd ones included."""

import os

import pytest

from device_agents.checks import run_checks
from device_agents.home import Home
from device_agents.platforms import Linux, select

THERMAL = "sys/class/thermal"
SUPPLY = "sys/class/power_supply"


def zones(*temps: str) -> dict[str, str]:
    files = {f"{THERMAL}/thermal_zone{i}/type": f"zone-{i}\n" for i in range(len(temps))}
    return files | {f"{THERMAL}/thermal_zone{i}/temp": t for i, t in enumerate(temps)}


def test_an_empty_board_is_unreadable_and_not_zero(tree):
    state = Linux(tree.root).observe()
    assert state.temp_c() is None
    assert state.freq_khz() is None
    assert state.governor is None
    assert state.battery_pct is None
    assert state.power_mw is None
    assert state.throttled is None
    assert state.effective_freq_khz is None
    assert state.monotonic_ns > 0


def test_one_bad_zone_drops_no_other(tree):
    # Orin Nano's offline CV zones answer EAGAIN; others give -256 °C; one file is empty.
    tree.put(zones("45500\n", "-256000\n", "", "51000\n"))
    tree.put({f"{THERMAL}/thermal_zone4/type": "cv0-thermal\n"})
    tree.unreadable(f"{THERMAL}/thermal_zone4/temp")
    assert Linux(tree.root).temp_c_by_zone() == (
        ("zone-0", 45.5),
        ("zone-1", None),
        ("zone-2", None),
        ("zone-3", 51.0),
        ("cv0-thermal", None),
    )
    assert Linux(tree.root).observe().temp_c() == 51.0


def test_a_zone_without_a_type_has_its_folders_name(tree):
    tree.put({f"{THERMAL}/thermal_zone3/temp": "40000"})
    assert Linux(tree.root).temp_c_by_zone() == (("thermal_zone3", 40.0),)


def test_the_hardwares_clock_goes_before_the_request(tree):
    tree.put(tree.cpufreq)
    assert Linux(tree.root).freq_khz_by_policy() == (("policy0", 1500000),)
    tree.put({f"{tree.policy}/cpuinfo_cur_freq": "1200000\n"})
    assert Linux(tree.root).freq_khz_by_policy() == (("policy0", 1200000),)
    tree.put({f"{tree.policy}/cpuinfo_cur_freq": "<unknown>\n"})
    assert Linux(tree.root).freq_khz_by_policy() == (("policy0", 1500000),)


def test_a_clock_of_zero_is_unreadable(tree):
    tree.put({f"{tree.policy}/scaling_cur_freq": "0\n"})
    assert Linux(tree.root).freq_khz_by_policy() == (("policy0", None),)


def test_boards_without_policies_have_cpufreq_below_the_cpu(tree):
    tree.put({"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "800000"})
    assert Linux(tree.root).freq_khz_by_policy() == (("cpu0", 800000),)


def test_policies_that_differ_are_all_named(tree):
    other = tree.policy.replace("policy0", "policy4")
    tree.put(tree.cpufreq).put({f"{other}/scaling_governor": "performance"})
    assert Linux(tree.root).governor() == "ondemand+performance"


def test_a_battery(tree):
    tree.put(
        {
            f"{SUPPLY}/BAT0/type": "Battery\n",
            f"{SUPPLY}/BAT0/capacity": "63\n",
            f"{SUPPLY}/BAT0/status": "Discharging\n",
            f"{SUPPLY}/BAT0/voltage_now": "3868000\n",
            f"{SUPPLY}/BAT0/current_now": "-650000\n",
            # 0.1 °C: 31.2 °C, never a zone of 312 °C
            f"{SUPPLY}/BAT0/temp": "312\n",
            f"{SUPPLY}/hid-mouse/type": "Battery\n",
            f"{SUPPLY}/hid-mouse/scope": "Device\n",
            f"{SUPPLY}/hid-mouse/capacity": "5\n",
        }
    )
    board = Linux(tree.root)
    state = board.observe()
    assert state.battery_pct == 63.0
    assert state.power_mw == 2514
    assert state.temp_c() is None
    assert state.battery_temp_c == 31.2
    assert state.power_source == "battery"
    assert board.battery_status() == "Discharging"


@pytest.mark.parametrize("capacity", ["-1", "101", "", "Unknown"])
def test_a_charge_that_is_none(tree, capacity):
    tree.put({f"{SUPPLY}/BAT0/type": "Battery", f"{SUPPLY}/BAT0/capacity": capacity})
    assert Linux(tree.root).battery_pct() is None
    assert Linux(tree.root).has_battery()


def test_a_charging_current_is_no_draw(tree):
    tree.put(
        {
            f"{SUPPLY}/BAT0/type": "Battery",
            f"{SUPPLY}/BAT0/status": "Charging",
            f"{SUPPLY}/BAT0/voltage_now": "4000000",
            f"{SUPPLY}/BAT0/current_now": "1000000",
        }
    )
    assert Linux(tree.root).power_mw() is None
    assert Linux(tree.root).power_source() == "mains"


def test_mains_that_are_on_and_off(tree):
    tree.put({f"{SUPPLY}/AC/type": "Mains", f"{SUPPLY}/AC/online": "1"})
    assert Linux(tree.root).power_source() == "mains"
    tree.put({f"{SUPPLY}/AC/online": "0"})
    assert Linux(tree.root).power_source() is None


def test_the_boards_input_sensor_and_not_a_part_of_it(tree):
    hwmon = "sys/class/hwmon"
    tree.put(
        {
            f"{hwmon}/hwmon0/name": "amdgpu",
            f"{hwmon}/hwmon0/power1_input": "90000000",
            f"{hwmon}/hwmon1/name": "ina219",
            f"{hwmon}/hwmon1/in1_label": "VDD_CPU",
            f"{hwmon}/hwmon1/power1_input": "1000000",
        }
    )
    assert Linux(tree.root).power_mw() is None
    tree.put(
        {
            f"{hwmon}/hwmon2/name": "ina219",
            f"{hwmon}/hwmon2/in1_label": "VDD_IN",
            f"{hwmon}/hwmon2/power1_input": "4250000",
        }
    )
    assert Linux(tree.root).power_mw() == 4250


@pytest.mark.parametrize("temp", ["-2560", "99999", "31.2", ""])
def test_a_batterys_temperature_that_is_none(tree, temp):
    tree.put({f"{SUPPLY}/BAT0/type": "Battery", f"{SUPPLY}/BAT0/temp": temp})
    assert Linux(tree.root).battery_temp_c() is None


def test_a_usb_supply_of_a_kind_is_mains(tree):
    # Up to Linux 4.18 the type itself names the kind: USB_PD, USB_DCP.
    tree.put({f"{SUPPLY}/tcpm/type": "USB_PD", f"{SUPPLY}/tcpm/online": "1"})
    assert Linux(tree.root).observe().power_source == "mains"


def test_only_a_cpus_cooling_device_is_throttling(tree):
    tree.put(
        {
            f"{THERMAL}/cooling_device0/type": "pwm-fan",
            f"{THERMAL}/cooling_device0/cur_state": "3",
            f"{THERMAL}/cooling_device1/type": "cpufreq-cpu0",
            f"{THERMAL}/cooling_device1/cur_state": "0",
        }
    )
    assert Linux(tree.root).throttled() is False
    tree.put({f"{THERMAL}/cooling_device1/cur_state": "2"})
    assert Linux(tree.root).throttled() is True
    tree.put({f"{THERMAL}/cooling_device1/cur_state": "?"})
    assert Linux(tree.root).throttled() is None


def test_work_of_all_cpus_is_counted(tree):
    # Form: docs.kernel.org/filesystems/proc.html; figures made up.
    tree.put({"proc/stat": "cpu  100 5 20 9000 7 1 2 50 9 0\ncpu0 1 1 1 1 1 1 1 0 0 0\nintr 5\n"})
    board = Linux(tree.root)
    assert board.observe().cpu_busy_ns == 128 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def test_reading_fully_is_the_same_where_no_vendor_has_a_program(tree):
    tree.put(tree.cpufreq)
    board = Linux(tree.root)
    assert board.observe_fully(7).freq_khz_by_policy == board.observe(7).freq_khz_by_policy
    assert board.observe_fully(7).effective_freq_khz == 7
    assert (board.power_mode(), board.power_modes()) == (None, ())


def test_what_hangs_is_given_up_when_the_board_is_first_seen(tree, tmp_path):
    tree.put(zones("45500\n", "", "51000\n"))
    (tree.path / f"{THERMAL}/thermal_zone1/temp").unlink()
    os.mkfifo(tree.path / f"{THERMAL}/thermal_zone1/temp")  # opening it waits for a writer
    state = select(tree.root).observe()
    assert state.temp_c_by_zone == (("zone-0", 45.5), ("zone-1", None), ("zone-2", 51.0))
    (check,) = [c for c in run_checks(Home(tmp_path), tree.root) if c.name == "telemetry"]
    assert "µs of CPU" in check.fact
    assert "thermal_zone1/temp hangs and is not read" in check.fact


def test_any_other_board_is_linux(tree):
    assert select(tree.root).name == "linux"
