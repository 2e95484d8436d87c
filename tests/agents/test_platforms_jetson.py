"""Jetson: trees of JetPack 4, 5 and 6, and NVIDIA's programs where a test stands in for them."""

import errno

import pytest

from device_agents import checks
from device_agents.errors import RunFailedError
from device_agents.platforms import select
from device_agents.platforms.jetson import Jetson
from device_agents.platforms.tools import NOBODY, Tools

INA = "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"


def rail(number: int, label: str, millivolts: str, milliamperes: str) -> dict[str, str]:
    return {
        f"{INA}/in{number}_label": f"{label}\n",
        f"{INA}/in{number}_input": f"{millivolts}\n",
        f"{INA}/curr{number}_input": f"{milliamperes}\n",
    }


def jetson(tree) -> Jetson:
    tree.put({"proc/device-tree/compatible": "nvidia,p3767-0000\0nvidia,tegra234\0"})
    board = select(tree.root)
    assert isinstance(board, Jetson)
    return board


def test_jetson_total_rail(tree):
    # Orin Nano, JetPack 6: VDD_IN feeds the others
    tree.put(rail(1, "VDD_IN", "5032", "1096") | rail(2, "VDD_CPU_GPU_CV", "5024", "200"))
    assert jetson(tree).power_mw() == 5515


def test_jetson_without_a_total_is_the_sum_without_nc(tree):
    tree.put(
        rail(1, "GPU", "5000", "100") | rail(2, "CPU", "5000", "300") | rail(3, "NC", "1", "1")
    )
    assert jetson(tree).power_mw() == 2000


def test_jetson_part_of_a_sum_is_no_draw(tree):
    tree.put(rail(1, "GPU", "5000", "100") | rail(2, "CPU", "5000", "EAGAIN"))
    assert jetson(tree).power_mw() is None


def test_jetson_of_jetpack_4(tree):
    iio = "sys/bus/i2c/devices/6-0040/iio:device0"
    tree.put(
        {
            f"{iio}/rail_name_0": "POM_5V_IN",
            f"{iio}/in_voltage0_input": "4900",
            f"{iio}/in_current0_input": "500",
            f"{iio}/rail_name_1": "POM_5V_GPU",
        }
    )
    assert jetson(tree).power_mw() == 2450


def test_jetson_without_sensors(tree):
    assert jetson(tree).power_mw() is None


def test_rails_are_told_apart(tree):
    tree.put(rail(1, "VDD_IN", "5000", "1000") | rail(2, "VDD_SOC", "5000", "EINVAL"))
    state = jetson(tree).observe()
    assert state.power_mw_by_rail == (("VDD_IN", 5000), ("VDD_SOC", None))
    assert state.power_mw == 5000


def test_a_current_below_zero_is_a_rail_at_rest(tree):
    tree.put(rail(1, "VDD_IN", "5000", "-8"))
    assert jetson(tree).power_mw() == 0


def test_a_power_file_of_jetpack_4_stands_in(tree):
    iio = "sys/bus/i2c/devices/6-0040/iio:device0"
    tree.put({f"{iio}/rail_name_0": "POM_5V_IN", f"{iio}/in_power0_input": "2100"})
    assert jetson(tree).power_mw() == 2100


def test_gpu_and_memory_clocks(tree):
    # Orin: the node is "gpu"; the display's and the video engine's devfreq are no GPU.
    freq = "sys/class/devfreq"
    tree.put(
        {
            f"{freq}/15340000.vic/device/of_node/name": "vic\0",
            f"{freq}/15340000.vic/cur_freq": "115200000\n",
            f"{freq}/17000000.gpu/device/of_node/name": "gpu\0",
            f"{freq}/17000000.gpu/cur_freq": "306000000\n",
            "sys/kernel/debug/bpmp/debug/clk/emc/rate": "2133000000\n",
        }
    )
    assert jetson(tree).observe().freq_khz_by_device == (("gpu", 306000), ("emc", 2133000))
    tree.put({f"{freq}/17000000.gpu/cur_freq": "0\n"})
    assert jetson(tree).freq_khz_by_device()[0] == ("gpu", None)


@pytest.mark.parametrize("folder", ["57000000.gpu", "17000000.gv11b", "17000000.ga10b"])
def test_a_gpu_without_a_node_is_told_by_its_folder(tree, folder):
    tree.put({f"sys/class/devfreq/{folder}/cur_freq": "921600000\n"})
    assert jetson(tree).freq_khz_by_device() == (("gpu", 921600),)


def test_over_current_alarms_are_counts(tree):
    alarm = "sys/class/hwmon/hwmon2"
    tree.put({f"{alarm}/name": "soctherm_oc\n", f"{alarm}/oc1_event_cnt": "0\n"})
    tree.put({f"{alarm}/oc3_event_cnt": "1234\n", "sys/class/hwmon/hwmon3/oc1_event_cnt": "9\n"})
    assert jetson(tree).observe().over_current_counts == (("oc1", 0), ("oc3", 1234))


def test_throttle_alerts_of_the_cpu_count(tree):
    device = "sys/class/thermal/cooling_device4"
    tree.put({f"{device}/type": "cpu-throttle-alert\n", f"{device}/cur_state": "1\n"})
    assert jetson(tree).throttled() is True
    tree.put({f"{device}/type": "gpu-throttle-alert\n"})
    assert jetson(tree).throttled() is None


# Form of an Orin NX on JetPack 6: github.com/rbonghi/jetson_stats/issues/624; figures changed.
LINE = (
    "05-15-2025 18:30:28 RAM 6982/7620MB (lfb 5x1MB) SWAP 2640/16384MB (cached 202MB) CPU "
    "[97%@1984,off] EMC_FREQ 18%@3199 GR3D_FREQ 84%@[713] NVENC 1%@115 NVJPG off APE 174 "
    "cpu@65.5C tj@66.25C cv0@-256C VDD_IN 17000mW/15000mW VDD_SOC 3900mW/3500mW\n"
)


def test_reading_fully_asks_tegrastats_where_files_are_missing(tree):
    tools = Tools(lambda argv: None, {("tegrastats", "--interval", "100"): LINE}.get, print)
    state = Jetson(tree.root, tools).observe_fully()
    assert state.power_mw == 17000
    assert state.power_mw_by_rail == (("VDD_IN", 17000), ("VDD_SOC", 3900))
    assert state.temp_c() == 66.25
    assert state.freq_khz_by_device == (("emc", 3199000), ("gpu", 713000))


def test_files_go_before_tegrastats(tree):
    tree.put(rail(1, "VDD_IN", "5000", "1000"))
    tree.put({"sys/class/devfreq/57000000.gpu/cur_freq": "76800000\n"})
    tools = Tools(lambda argv: None, lambda argv: LINE, print)
    state = Jetson(tree.root, tools).observe_fully()
    assert state.power_mw == 5000
    assert dict(state.freq_khz_by_device) == {"emc": 3199000, "gpu": 76800}


def test_sampling_asks_no_program(tree):
    def refuse(argv):
        raise AssertionError(argv)

    assert Jetson(tree.root, Tools(refuse, refuse, refuse)).observe().power_mode is None


# Form of /etc/nvpmodel.conf: github.com/OE4T/meta-tegra (tegra-nvpmodel) and NVIDIA's guide.
CONF = """# comments and the parameters' own sections come first
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online

< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1

< PM_CONFIG DEFAULT=0 >
"""
# What nvpmodel said on an Orin whose prompt was answered no: figures of viam-modules' test.
REBOOT = (
    "NVPM WARN: Golden image context is already created NVPM WARN: Reboot required for changing "
    "to this power mode: 2 NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm: "
    "NVPM ERROR: optMask is 1, no request for power mode"
)


class Nvpmodel:
    """A board's nvpmodel: sets its own state, unless it is told to refuse or to pretend."""

    def __init__(self, tree, refusal: OSError | None = None, pretends: bool = False) -> None:
        self.tree, self.refusal, self.pretends = tree, refusal, pretends
        self.numbers: list[str] = []
        tree.put({"etc/nvpmodel.conf": CONF, "var/lib/nvpmodel/status": "pmode:0000 fmode:cool\n"})

    def set_mode(self, number: str) -> None:
        self.numbers.append(number)
        if self.refusal:
            raise self.refusal
        if not self.pretends:
            self.tree.put({"var/lib/nvpmodel/status": f"pmode:{int(number):04d} fmode:cool\n"})

    def board(self) -> Jetson:
        return Jetson(self.tree.root, Tools(lambda argv: None, lambda argv: None, self.set_mode))


def test_a_mode_is_set_by_its_boards_own_number_and_read_back(tree):
    nvpmodel = Nvpmodel(tree)
    board = nvpmodel.board()
    assert board.power_modes() == ("15W", "MAXN_SUPER")
    assert board.power_mode() == board.observe().power_mode == "15W"
    board.set_power_mode("MAXN_SUPER")
    assert nvpmodel.numbers == ["2"]
    assert board.power_mode() == "MAXN_SUPER"


def refused(board: Jetson, name: str) -> RunFailedError:
    with pytest.raises(RunFailedError) as caught:
        board.set_power_mode(name)
    assert caught.value.error.kind == "condition"
    return caught.value


def test_a_mode_that_there_is_not(tree):
    nvpmodel = Nvpmodel(tree)
    error = refused(nvpmodel.board(), "10W").error
    assert (error.fact, error.next_step) == (
        "there is no power mode '10W'",
        "use one of 15W, MAXN_SUPER",
    )
    assert nvpmodel.numbers == []


def test_a_mode_that_needs_a_reboot_is_refused(tree):
    error = refused(Nvpmodel(tree, OSError(errno.EIO, REBOOT)).board(), "MAXN_SUPER").error
    assert error.fact == "power mode MAXN_SUPER is only reached by a reboot"
    assert "sudo nvpmodel -m 2" in error.next_step


def test_a_mode_that_this_user_may_not_set(tree):
    board = Nvpmodel(tree, PermissionError(errno.EACCES, "Permission denied")).board()
    error = refused(board, "MAXN_SUPER").error
    assert error.fact == "power mode MAXN_SUPER cannot be set (Permission denied)"
    assert "fleetcut check" in error.next_step


def test_a_mode_that_does_not_stay(tree):
    board = Nvpmodel(tree, pretends=True).board()
    assert "is 15W after it was set to MAXN_SUPER" in refused(board, "MAXN_SUPER").error.fact


def test_a_captured_tree_sets_no_machines_mode(tree):
    Nvpmodel(tree)
    assert "no machine's own" in refused(Jetson(tree.root, NOBODY), "MAXN_SUPER").error.fact


def test_nvpmodel_goes_before_its_state(tree):
    Nvpmodel(tree)
    tools = Tools({("nvpmodel", "-q"): "NV Power Mode: MODE_30W\n2\n"}.get, print, print)
    board = Jetson(tree.root, tools)
    assert board.power_mode() == board.observe_fully().power_mode == "MODE_30W"


@pytest.mark.parametrize(("lowest", "names"), [("1479000", ["jetson_clocks"]), ("102000", [])])
def test_check_tells_of_locked_clocks(tree, lowest, names):
    shown = f"cpu0: Online=1 Governor=schedutil MinFreq={lowest} MaxFreq=1479000 CurrentFreq=1"
    board = Jetson(tree.root, Tools({("jetson_clocks", "--show"): shown}.get, print, print))
    found = checks._locked_clocks(board)
    assert [check.name for check in found if not check.ok] == names


def test_locked_clocks(tree):
    shown = "cpu0: Online=1 Governor=schedutil MinFreq=1479000 MaxFreq=1479000 CurrentFreq=1479000"
    tools = Tools({("jetson_clocks", "--show"): shown}.get, print, print)
    assert Jetson(tree.root, tools).clocks_are_locked() is True
    assert Jetson(tree.root).clocks_are_locked() is None
