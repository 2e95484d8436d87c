"""One line of a Jetson's tegrastats.

Input: the line. Output: TegraStats; what is missing or in no known form is left out of it.
Source: NVIDIA Jetson Linux Developer Guide, "Tegrastats Utility". Its fields changed from release
to release: EMC or EMC_FREQ, units or none, one clock or one a cluster, "off" for what is off.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional, Tuple

from device_agents.platforms.ina3221 import NO_RAILS

_CPUS = re.compile(r"\bCPU \[([^\]]*)\](?:@([0-9]{1,5}))?", re.IGNORECASE)
_CPU = re.compile(r"([0-9]{1,3})%(?:@([0-9]{1,5}))?")
_CLOCK = re.compile(
    r"(?:^|\s)(EMC|GR3D)(?:_FREQ)? (?:[0-9]{1,3}%)?"
    r"@(?:\[([0-9]{1,5}(?:,[0-9]{1,5})*)\]|([0-9]{1,5}))(?=\s|$)"
)
_TEMP = re.compile(r"(?:^|\s)([A-Za-z]\S*?)@(-?[0-9]{1,3}(?:\.[0-9]{1,6})?)C(?=\s|$)")
_POWER = re.compile(
    r"(?:^|\s)([A-Za-z][A-Za-z0-9_.]*) ([0-9]{1,7})(?:mW)?/[0-9]{1,7}(?:mW)?(?=\s|$)"
)
_DEVICES = {"GR3D": "gpu", "EMC": "emc"}
# What a sensor says that is switched off.
_OFF_C = -256.0


@dataclass(frozen=True)
class TegraStats:
    """cpus: (load in %, kHz) a core, None for one that is off. Rails as their sensors name them."""

    cpus: Tuple[Optional[Tuple[int, Optional[int]]], ...] = ()
    freq_khz_by_device: Tuple[Tuple[str, Optional[int]], ...] = ()
    temp_c_by_zone: Tuple[Tuple[str, Optional[float]], ...] = ()
    power_mw_by_rail: Tuple[Tuple[str, Optional[int]], ...] = ()


def parse_line(text: Optional[str]) -> TegraStats:
    """Never raises; a line that is cut short gives what stands before the cut."""
    line = text or ""
    return TegraStats(
        cpus=_cpus(line),
        freq_khz_by_device=tuple(
            (_DEVICES[name], max(int(mhz) for mhz in (several or one).split(",")) * 1000)
            for name, several, one in _CLOCK.findall(line)
        ),
        temp_c_by_zone=tuple(
            (zone, None if float(temp) <= _OFF_C else float(temp))
            for zone, temp in _TEMP.findall(line)
        ),
        power_mw_by_rail=tuple(
            (rail, int(mw)) for rail, mw in _POWER.findall(line) if rail not in NO_RAILS
        ),
    )


def _cpus(line: str) -> Tuple[Optional[Tuple[int, Optional[int]]], ...]:
    found = _CPUS.search(line)
    if found is None or not found.group(1).strip():
        return ()
    shared_mhz = found.group(2)
    cores = []
    for word in found.group(1).split(","):
        core = _CPU.fullmatch(word.strip())
        mhz = (core.group(2) or shared_mhz) if core else None
        cores.append((int(core.group(1)), int(mhz) * 1000 if mhz else None) if core else None)
    return tuple(cores)
