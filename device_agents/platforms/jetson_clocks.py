"""Whether jetson_clocks holds a Jetson at its power mode's highest clocks.

Input: what ``jetson_clocks --show`` prints, which needs root. Output: bool; None when it does not
say. Source: NVIDIA Jetson Linux Developer Guide, "jetson_clocks".
"""

from __future__ import annotations

import re
from typing import Optional

_UNIT = re.compile(
    r"^[ \t]*(cpu[0-9]{1,3}|GPU)\b[^\r\n]*?\bMinFreq=([0-9]{1,12})[ \t]+MaxFreq=([0-9]{1,12})\b",
    re.MULTILINE,
)


def parse_locked(text: Optional[str]) -> Optional[bool]:
    """True when no CPU or GPU that it names has any room between its lowest and highest clock.

    The memory's clock is not asked: on some releases it has no room at any time.
    """
    units = _UNIT.findall(text or "")
    if not units:
        return None
    return all(int(lowest) == int(highest) for _, lowest, highest in units)
