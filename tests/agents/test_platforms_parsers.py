"""Parsers of what vendors' programs print: every form that is known, and broken ones.

Where a form was seen stands beside it. Figures are changed; "made up" is of nobody's machine.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agents.platforms import jetson_clocks, nvpmodel, procstat, tegrastats, vcgencmd
from device_agents.platforms.tools import ask, ask_line

# --- vcgencmd: raspberrypi.com/documentation/computers/os.html


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("throttled=0x50000\n", 0x50000),  # raspberrypi.com, get_throttled
        ("throttled=0x0", 0),
        ("0\n", 0),  # sysfs, without 0x
        ("E0008", 0xE0008),
        ("0x50005", 0x50005),
        *[
            (broken, None)  # made up
            for broken in (None, "", "\n", "-1", "0x", "throttled=", "throttled", "g", "1_0")
        ],
        ("123456789", None),  # made up: more than 32 bits
        ("٣", None),  # made up: a digit, and no ASCII one
        ('error=1 error_msg="Command not registered"', None),  # an older firmware's answer
        ("VCHI initialization failed", None),  # a user who is not in the group video
    ],
)
def test_throttled(text, bits):
    assert vcgencmd.parse_throttled(text) == bits


@pytest.mark.parametrize(
    ("earlier", "now", "live"),
    [
        (0x0, 0x0, 0),
        (0x50000, 0x50000, 0),  # long ago
        (0x0, 0x50000, 0b0101),  # since
        (0x50000, 0x50002, 0b0010),
        (0x50000, 0x0, 0),  # cleared by the kernel
        (0x10000, 0x70005, 0b0111),
    ],
)
def test_sticky_bits_count_by_difference_only(earlier, now, live):
    assert vcgencmd.since(earlier, now) == live


@pytest.mark.parametrize(
    ("text", "khz"),
    [
        ("frequency(48)=1500398464\n", 1500398),  # Pi 4: raspberrypi.com, measure_clock
        ("frequency(0)=2400033792", 2400033),  # Pi 5
        ("frequency(48)=0", None),
        ("frequency(48)=", None),
        ("frequency(48)=-5", None),
        ("frequency=600000000", None),
        ("frequency(48)=600000000 Hz", None),
        (None, None),
    ],
)
def test_clock(text, khz):
    assert vcgencmd.parse_clock_khz(text) == khz


@pytest.mark.parametrize(
    ("text", "rails"),
    [
        # Pi 5: channel numbers pair nothing, and HDMI has both halves apart
        (
            " HDMI_A current(22)=0.02000000A\n  DDR_VDDQ_A current(4)=0.00000000A\n"
            "      HDMI_V volt(23)=5.00000000V\n  DDR_VDDQ_V volt(12)=0.60000000V\n",
            (("HDMI", 100), ("DDR_VDDQ", 0)),
        ),
        (" EXT5V_V volt(24)=5.09066000V\n", ()),  # the input has no current
        (" VDD_CORE_A current(7)=1.0A\n", ()),  # made up: cut short
        (" VDD_CORE_A current(7)=1.0A\n VDD_CORE_V volt(15)=0.8", ()),  # made up: no unit
        (" VDD_CORE_A current(7)=-1.0A\n VDD_CORE_V volt(15)=0.8V", ()),  # made up
        (" VDD_CORE_A volt(7)=1.0V\n VDD_CORE_V volt(15)=0.8V", ()),  # made up: kinds crossed
        (" X_A current(7)=nanA\n X_V volt(15)=0.8V", ()),  # made up
        ("Command not registered", ()),  # Pi 4 has no such converter
        (None, ()),
    ],
)
def test_power_rails(text, rails):
    assert vcgencmd.parse_rails_mw(text) == rails


# --- tegrastats

TX1 = (  # JetPack 3, L4T 28.1: github.com/hordiales/jetson-tx1-dev, SCRIPTS.md
    "RAM 3468/3983MB (lfb 48x4MB) SWAP 873/8192MB (cached 295MB) cpu [17%,13%,29%,5%]@408 "
    "EMC 1%@408 APE 25 GR3D 3%@76"
)
TX2 = (  # JetPack 4: github.com/FindHao/tx-utils/issues/3 and rbonghi/jetson_stats/issues/187
    "RAM 2020/7852MB (lfb 1164x4MB) CPU [9%@345,off,off,3%@345] EMC_FREQ 0% GR3D_FREQ 0% "
    "PLL@42.5C PMIC@100C GPU@41C VDD_SYS_GPU 153/158 VDD_4V0_WIFI 633/527 VDD_IN 3140/3208"
)
XAVIER = (  # JetPack 4: NVIDIA's guide, r32.5, AppendixTegraStats; rails without a prefix
    "RAM 1745/31919MB (lfb 6811x4MB) SWAP 0/15959MB (cached 0MB) CPU [5%@1190,3%@1190] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@1377 APE 150 MTS fg 0% bg 0% AO@44.5C GPU@46C Tdiode@49.25C "
    "GPU 0/0 CPU 311/311 CV 0/0 SYS5V 1396/1396"
)
AGX_ORIN = (  # JetPack 6: github.com/GDWR/jetson_exporter/issues/14
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) "
    "CPU [0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305,407] VIC_FREQ 729 APE 174 "
    "CV0@-256C CPU@44.562C VDD_GPU_SOC 2340mW/2340mW NC 0mW/0mW VDD_CPU_CV 390mW/400mW"
)
IDLE_ENGINES = (  # NVIDIA's guide, r36: a clock without a load; an engine that is off
    "CPU [1%@729,off] EMC_FREQ 1%@2133 GR3D_FREQ @[510,510,508] NVENC off NVDLA0_FREQ @1600 "
    "VIC_FREQ off cpu@52.875C"
)


@pytest.mark.parametrize(
    ("line", "cpus", "clocks", "temps", "power"),
    [
        (
            TX1,
            ((17, 408000), (13, 408000), (29, 408000), (5, 408000)),
            {"emc": 408000, "gpu": 76000},
            {},
            {},
        ),
        (
            TX2,
            ((9, 345000), None, None, (3, 345000)),
            {},
            {"PLL": 42.5, "PMIC": 100.0, "GPU": 41.0},
            {"VDD_SYS_GPU": 153, "VDD_4V0_WIFI": 633, "VDD_IN": 3140},
        ),
        (
            XAVIER,
            ((5, 1190000), (3, 1190000)),
            {"emc": 2133000, "gpu": 1377000},
            {"AO": 44.5, "GPU": 46.0, "Tdiode": 49.25},
            {"GPU": 0, "CPU": 311, "CV": 0, "SYS5V": 1396},
        ),
        (
            AGX_ORIN,
            ((0, 729000), (0, 729000)),
            {"emc": 2133000, "gpu": 407000},
            {"CV0": None, "CPU": 44.562},
            {"VDD_GPU_SOC": 2340, "VDD_CPU_CV": 390},
        ),
        (
            IDLE_ENGINES,
            ((1, 729000), None),
            {"emc": 2133000, "gpu": 510000},
            {"cpu": 52.875},
            {},
        ),
        ("", (), {}, {}, {}),
        ("CPU [off,off]", (None, None), {}, {}, {}),  # made up
        ("CPU [] GR3D_FREQ 5%@ EMC_FREQ @", (), {}, {}, {}),  # made up
        ("CPU [5%@729,0%@72", (), {}, {}, {}),  # made up: cut short
        ("CPU [5%@729] GR3D_FREQ 5%@[300,", ((5, 729000),), {}, {}, {}),  # made up: cut short
        ("VDD_IN 5000mW/49", (), {}, {}, {"VDD_IN": 5000}),  # made up: cut in the average
        ("VDD_IN 5000mW/ x@45.5 y@C z@-5.25C", (), {}, {"z": -5.25}, {}),  # made up
        ("VDD_IN -5mW/5mW CPU [-3%@729,٣%@729]", (None, None), {}, {}, {}),  # made up
    ],
)
def test_tegrastats(line, cpus, clocks, temps, power):
    stats = tegrastats.parse_line(line)
    assert stats.cpus == cpus
    assert dict(stats.freq_khz_by_device) == clocks
    assert dict(stats.temp_c_by_zone) == temps
    assert dict(stats.power_mw_by_rail) == power


# --- nvpmodel


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),  # JetPack 6: anduril/jetpack-nixos, pull 460
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n", "MAXN"),  # Nano, JetPack 4
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n", "MODE_15W_6CORE"),  # Xavier
        (  # --verbose, Xavier
            "NVPM VERB: Config file: /etc/nvpmodel.conf\nNVPM VERB: Current mode: NV Power Mode: "
            "MODE_15W\n2\nNVPM VERB: PARAM CPU_ONLINE: ARG CORE_0: PATH /sys/x: REAL_VAL: 1\n",
            "MODE_15W",
        ),
        ("NV Power Mode: MAXN SUPER\r\n2\r\n", "MAXN SUPER"),  # made up
        ("NV Power Mode:\n0\n", None),  # made up
        ("NV Power Mode", None),  # made up: cut short
        ("NVPM ERROR: failed to read PARAM GPU: ARG GPU_PWR_CNTL_EN", None),
        (None, None),
    ],
)
def test_the_active_mode(text, name):
    assert nvpmodel.parse_query(text) == name


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        (
            "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n<POWER_MODEL ID=8 NAME=MAXN>\n"
            "< PM_CONFIG DEFAULT=0 >\n< FAN_CONFIG DEFAULT=quiet >\n",
            {"15W": 0, "MAXN": 8},
        ),
        ("# < POWER_MODEL ID=1 NAME=10W >\n", {}),  # made up: a comment
        ("< POWER_MODEL ID=x NAME=10W >\n< POWER_MODEL ID=1 NAME= >\n", {}),  # made up
        ("< POWER_MODEL ID=-1 NAME=10W >\n< POWER_MODEL ID=2 NAME=7W", {}),  # made up
        (None, {}),
    ],
)
def test_the_list_of_modes(text, modes):
    assert nvpmodel.parse_modes(text) == modes


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("pmode:0002 fmode:quiet\n", 2),  # JetPack 4.3
        ("pmode:0000", 0),  # JetPack 6
        ("fmode:cool pmode:0010", 10),
        ("pmode:", None),
        ("pmode:-1", None),
        ("xpmode:0001", None),
        (None, None),
    ],
)
def test_the_state_of_nvpmodel(text, number):
    assert nvpmodel.parse_state(text) == number


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("NVPM WARN: Reboot required for changing to this power mode: 1", True),
        ("NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:", True),
        ("NVPM ERROR: bad input!", False),
        ("", False),
    ],
)
def test_modes_that_need_a_reboot(text, needs):
    assert nvpmodel.needs_reboot(text) is needs


# --- jetson_clocks --show

ORIN_CLOCKS = """SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano
Online CPUs: 0-5
cpu0:  Online=1 Governor=schedutil MinFreq={0} MaxFreq=1344000 CurrentFreq=729600 IdleStates: WFI=1
GPU MinFreq={1} MaxFreq=918000000 CurrentFreq=306000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=69
NV Power Mode: 25W
"""
TX1_CLOCKS = """SOC family:tegra210  Machine:jetson_tx1
cpu0: Gonvernor=interactive MinFreq=1734000 MaxFreq=1734000 CurrentFreq=1734000
GPU MinFreq=998400000 MaxFreq=998400000 CurrentFreq=998400000
EMC MinFreq=12750000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=1
"""


@pytest.mark.parametrize(
    ("text", "locked"),
    [
        (ORIN_CLOCKS.format(729600, 306000000), False),  # JetPack 6, Orin Nano
        (ORIN_CLOCKS.format(1344000, 306000000), False),
        (ORIN_CLOCKS.format(1344000, 918000000), True),
        (TX1_CLOCKS, True),  # JetPack 3, with the spelling of its time
        ("cpu0: MinFreq= MaxFreq=5", None),  # made up
        ("Error: Please run as root!", None),
        (None, None),
    ],
)
def test_locked_clocks(text, locked):
    assert jetson_clocks.parse_locked(text) is locked


# --- /proc/stat


@pytest.mark.parametrize(
    ("text", "busy_ns"),
    [
        ("cpu  1 2 4 8 16 32 64 128 256 512\ncpu0 1", (1 + 2 + 4 + 32 + 64) * 10**7),
        ("cpu  1 2 4 8\n", 7 * 10**7),  # Linux 2.4
        ("cpu0 1 2 4 8\n", None),
        ("cpu  1 2 x 8\n", None),
        ("cpu  -1 2 4 8\n", None),
        ("cpu  1 2\n", None),
        (None, None),
    ],
)
def test_busy_time(text, busy_ns):
    assert procstat.parse_busy_ns(text, 100) == busy_ns


# --- whatever comes


SAMPLES = (TX1, TX2, XAVIER, AGX_ORIN, IDLE_ENGINES, ORIN_CLOCKS, TX1_CLOCKS, "cpu  1 2 4 8\n")
PARSERS = (
    vcgencmd.parse_throttled,
    vcgencmd.parse_clock_khz,
    vcgencmd.parse_rails_mw,
    tegrastats.parse_line,
    nvpmodel.parse_query,
    nvpmodel.parse_modes,
    nvpmodel.parse_state,
    nvpmodel.needs_reboot,
    jetson_clocks.parse_locked,
    lambda text: procstat.parse_busy_ns(text, 100),
)


@given(st.text())
def test_no_text_raises(text):
    for parse in PARSERS:
        parse(text)


@given(st.sampled_from(SAMPLES), st.data())
def test_no_damaged_output_raises(sample, data):
    at = data.draw(st.integers(0, len(sample)))
    until = data.draw(st.integers(at, len(sample)))
    damaged = sample[:at] + data.draw(st.text(max_size=5)) + sample[until:]
    for parse in PARSERS:
        parse(damaged)


# --- programs


def test_a_program_that_ends(tmp_path):
    assert ask(("echo", "NV Power Mode: MAXN")) == "NV Power Mode: MAXN\n"
    assert ask(("false",)) is None
    assert ask((str(tmp_path / "missing"),)) is None
    assert ask(("sleep", "60"), timeout_s=0.01) is None


def test_the_first_line_of_a_program_that_goes_on(tmp_path):
    assert ask_line(("yes", "RAM 1/2MB")) == "RAM 1/2MB"
    assert ask_line(("true",)) is None
    assert ask_line((str(tmp_path / "missing"),)) is None
    assert ask_line(("sleep", "60"), timeout_s=0.01) is None
