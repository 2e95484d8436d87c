"""How long the CPUs have worked, from /proc/stat.

Input: its text. Output: nanoseconds since boot over all CPUs; None where it says nothing.
Source: https://docs.kernel.org/filesystems/proc.html, section 1.7.
"""

from __future__ import annotations

import re
from typing import Optional

# user nice system idle iowait irq softirq …: guest is counted in user already, steal is the time
# of other machines on the same hardware.
_CPU = re.compile(r"cpu +([0-9]{1,18}(?: [0-9]{1,18}){3,9})\s*")
_WORKING = (0, 1, 2, 5, 6)


def parse_busy_ns(text: Optional[str], ticks_per_s: int) -> Optional[int]:
    """ticks_per_s: USER_HZ, > 0. Resolution is one tick, as a rule 10 ms."""
    found = _CPU.fullmatch((text or "").split("\n", 1)[0])
    if found is None:
        return None
    ticks = [int(word) for word in found.group(1).split()]
    return sum(ticks[i] for i in _WORKING if i < len(ticks)) * 1_000_000_000 // ticks_per_s
