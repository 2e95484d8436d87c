"""What a board is.

Input: a sysfs Root. Output: DeviceProfile. What the root does not hold is asked of os.uname();
what neither knows is None. Runtimes are looked up by their metadata, never imported.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Dict, List, Optional, Set, Tuple

from device_agents.contract import DeviceProfile
from device_agents.sysfs import Root

RUNTIME_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "ai-edge-litert",
    "tflite-runtime",
)

# Of the hundred flags of /proc/cpuinfo those that decide which kernel an inference takes.
ISA_FEATURES = (
    # Arm: https://docs.kernel.org/arch/arm64/elf_hwcaps.html
    "neon", "vfpv4", "asimd", "asimdhp", "fphp", "asimddp", "asimdrdm", "asimdfhm",
    "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16", "sme", "sme2",
    # x86
    "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw",
    "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip

_QUOTED_VALUE = re.compile(r"""^([A-Z_]+)=["']?(.*?)["']?$""")


def probe(root: Root) -> DeviceProfile:
    """Read the board below ``root``."""
    uname = os.uname()
    cpuinfo = root.read_text("proc/cpuinfo") or ""
    return DeviceProfile(
        hostname=root.read_text("proc/sys/kernel/hostname") or uname.nodename,
        machine=uname.machine,
        model=_model(root),
        soc=_soc(root, cpuinfo),
        isa_features=isa_features(cpuinfo),
        cores=core_count(cpuinfo) or os.cpu_count() or 1,
        opp_freqs_khz=opp_freqs_khz(root),
        memory_bytes=memory_bytes(root.read_text("proc/meminfo") or ""),
        kernel=root.read_text("proc/sys/kernel/osrelease") or uname.release,
        os=assignments(root.read_text("etc/os-release") or "").get("PRETTY_NAME"),
        glibc=glibc(),
        python=sys.version.split()[0],
        runtime_versions=runtime_versions(),
        boot_id=boot_id(root),
        simulated=is_simulated(root),
    )


def boot_id(root: Root) -> Optional[str]:
    return root.read_text("proc/sys/kernel/random/boot_id")


def is_simulated(root: Root) -> bool:
    """Whether the board says of itself that it is a stand-in."""
    info = assignments(root.read_text("etc/machine-info") or "")
    return info.get("DEPLOYMENT", "").lower() == "simulated"


def isa_features(cpuinfo: str) -> Tuple[str, ...]:
    """Those of ISA_FEATURES that every core has, in that order."""
    common = None
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("Features", "flags"):
            flags = set(value.split())
            common = flags if common is None else common & flags
    return tuple(feature for feature in ISA_FEATURES if feature in (common or set()))


def core_count(cpuinfo: str) -> int:
    """Numbered processors; 0 when none is listed."""
    return len(re.findall(r"^processor\s*:\s*\d+\s*$", cpuinfo, re.MULTILINE))


def opp_freqs_khz(root: Root) -> Tuple[int, ...]:
    """Operating points of all policies, ascending; the two limits where no list is given."""
    folders = root.glob("sys/devices/system/cpu/cpufreq/policy[0-9]*") or root.glob(
        "sys/devices/system/cpu/cpu[0-9]*/cpufreq"
    )
    found: Set[int] = set()
    for folder in folders:
        listed = root.read_ints(f"{folder}/scaling_available_frequencies")
        boost = root.read_ints(f"{folder}/scaling_boost_frequencies")
        limits = [root.read_int(f"{folder}/cpuinfo_{end}_freq") for end in ("min", "max")]
        found.update(listed + boost or [khz for khz in limits if khz is not None])
    return tuple(sorted(khz for khz in found if khz > 0))


def memory_bytes(meminfo: str) -> Optional[int]:
    match = re.search(r"^MemTotal:\s*(\d+)\s*kB\s*$", meminfo, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def runtime_versions() -> Tuple[Tuple[str, str], ...]:
    """(distribution, version) of what is installed, in the order of RUNTIME_DISTRIBUTIONS."""
    if not any(map(_may_hold_a_runtime, sys.path)):
        return ()
    # With all that it imports a fifth of the agent's start: only where it finds something.
    import importlib.metadata

    found: List[Tuple[str, str]] = []
    for name in RUNTIME_DISTRIBUTIONS:
        try:
            found.append((name, str(importlib.metadata.version(name))))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def glibc() -> Optional[str]:
    """The version of this process's C library, None for another library."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (OSError, ValueError):  # musl knows no such name
        return None
    return version if name == "glibc" and version else None


def assignments(text: str) -> Dict[str, str]:
    """KEY=value lines of os-release(5) and machine-info(5), quotes removed."""
    matches = [_QUOTED_VALUE.match(line.strip()) for line in text.splitlines()]
    return {match.group(1): match.group(2) for match in matches if match}


def _model(root: Root) -> Optional[str]:
    for path in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        text = root.read_text(path)
        if text is not None:
            return text
    return None


def _soc(root: Root, cpuinfo: str) -> Optional[str]:
    """The last, most general, word of the device tree; else what /proc/cpuinfo calls the CPU."""
    compatible = root.read_text("proc/device-tree/compatible")
    if compatible is not None:
        return compatible.split("\0")[-1]
    match = re.search(r"^(?:Hardware|model name)\s*:\s*(.+?)\s*$", cpuinfo, re.MULTILINE)
    return match.group(1) if match else None


def _may_hold_a_runtime(entry: str) -> bool:
    """Whether something in this folder of sys.path is called like a runtime's metadata.

    They are <name>-<version>.dist-info or .egg-info, any - of the name perhaps written as _
    (https://packaging.python.org/en/latest/specifications/recording-installed-packages/).
    """
    try:
        names = os.listdir(entry or ".")
    except OSError:  # no folder, or not ours to read
        return False
    return any(name.lower().replace("_", "-").startswith(RUNTIME_DISTRIBUTIONS) for name in names)
