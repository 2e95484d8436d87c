import os
import platform
import sys

import pytest

from device_agents.contract import DeviceProfile, decode, encode
from device_agents.probe import (
    assignments,
    core_count,
    isa_features,
    memory_bytes,
    probe,
    runtime_versions,
)

# Raspberry Pi 4, Raspberry Pi OS bookworm, aarch64: the form of the kernel's arm64 cpuinfo
PI4 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41

processor\t: 1
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid

Revision\t: c03115
Model\t\t: Raspberry Pi 4 Model B Rev 1.5
"""


def test_a_raspberry_pi(tree):
    tree.put(tree.cpufreq).put(
        {
            "proc/cpuinfo": PI4,
            "proc/meminfo": "MemTotal:        3885396 kB\nMemFree:  1 kB\n",
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
            "proc/device-tree/compatible": "raspberrypi,4-model-b\0brcm,bcm2711\0",
            "proc/sys/kernel/hostname": "pi4-07\n",
            "proc/sys/kernel/osrelease": "6.6.31+rpt-rpi-v8\n",
            "proc/sys/kernel/random/boot_id": "0b5f\n",
            "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
        }
    )
    profile = probe(tree.root)
    assert profile.hostname == "pi4-07"
    assert profile.model == "Raspberry Pi 4 Model B Rev 1.5"
    assert profile.soc == "brcm,bcm2711"
    assert profile.isa_features == ("asimd",)
    assert profile.cores == 2
    assert profile.opp_freqs_khz == (600000, 1000000, 1500000)
    assert profile.memory_bytes == 3885396 * 1024
    assert profile.kernel == "6.6.31+rpt-rpi-v8"
    assert profile.os == "Debian GNU/Linux 12 (bookworm)"
    assert profile.boot_id == "0b5f"
    assert profile.python == platform.python_version()
    assert not profile.simulated
    assert decode(DeviceProfile, encode(profile)) == profile


def test_an_empty_root_falls_back_on_uname(tree):
    profile = probe(tree.root)
    assert profile.hostname == os.uname().nodename
    assert profile.kernel == os.uname().release
    assert profile.machine == os.uname().machine
    assert profile.cores >= 1
    assert (profile.model, profile.soc, profile.os, profile.boot_id) == (None, None, None, None)
    assert profile.memory_bytes is None
    assert profile.opp_freqs_khz == ()
    assert profile.isa_features == ()


@pytest.mark.parametrize(
    ("text", "simulated"),
    [
        ("DEPLOYMENT=simulated\n", True),
        ("CHASSIS=embedded\nDEPLOYMENT='Simulated'\n", True),
        ("DEPLOYMENT=production\n", False),
        ("#DEPLOYMENT=simulated\n", False),
        ("", False),
    ],
)
def test_a_stand_in_says_so(tree, text, simulated):
    tree.put({"etc/machine-info": text})
    assert probe(tree.root).simulated is simulated


def test_a_clock_without_a_list_has_its_limits(tree):
    tree.put(
        {
            f"{tree.policy}/cpuinfo_min_freq": "400000",
            f"{tree.policy}/cpuinfo_max_freq": "3800000",
        }
    )
    assert probe(tree.root).opp_freqs_khz == (400000, 3800000)


def test_features_are_those_that_every_core_has():
    big_little = "Features : asimd asimddp i8mm sve\nFeatures : asimd asimddp\n"
    assert isa_features(big_little) == ("asimd", "asimddp")
    assert isa_features("flags : fpu AVX2 avx2 amx_tile junk\n") == ("avx2", "amx_tile")
    assert isa_features("garbage") == ()


def test_broken_files():
    assert core_count("processor\t: x\nprocessor") == 0
    assert memory_bytes("MemTotal: lots kB") is None
    assert memory_bytes("MemTotal: 5 MB") is None
    assert assignments("A=1\nB='2'\n=3\nlower=4\nC\n") == {"A": "1", "B": "2"}


@pytest.mark.parametrize("folder", ["Tflite_Runtime-2.14.0.dist-info", "tflite_runtime-2.14.0"])
def test_a_runtime_is_known_by_its_metadata(tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir()
    metadata = "Metadata-Version: 2.1\nName: tflite-runtime\nVersion: 2.14.0\n"
    (tmp_path / folder / "METADATA").write_text(metadata, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "absent.zip")])
    is_metadata = folder.endswith(".dist-info")
    assert runtime_versions() == ((("tflite-runtime", "2.14.0"),) if is_metadata else ())
