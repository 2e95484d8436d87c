"""A Jetson's power modes: what nvpmodel, its list and its state say.

Input: text. Output: names and numbers; None or nothing for what is in no known form.
Numbers are a board's own: 0 is the strongest mode of one and the second of the next.
Source: NVIDIA Jetson Linux Developer Guide, "Platform Power and Performance"; the list is
/etc/nvpmodel.conf, the state /var/lib/nvpmodel/status.
"""

from __future__ import annotations

import re
from typing import Dict, Optional

_QUERY = re.compile(r"NV Power Mode:[ \t]*(\S[^\r\n]*?)[ \t]*\r?$", re.MULTILINE)
_MODEL = re.compile(
    r"^[ \t]*<[ \t]*POWER_MODEL[ \t]+ID=([0-9]{1,3})[ \t]+NAME=([^\s>]+)[ \t]*>", re.MULTILINE
)
_STATE = re.compile(r"(?:^|\s)pmode:([0-9]{1,9})(?:\s|$)")
_REBOOT = re.compile(r"reboot required|to reboot now", re.IGNORECASE)


def parse_query(text: Optional[str]) -> Optional[str]:
    """The active mode's name from ``nvpmodel -q``, warnings and other lines left aside."""
    found = _QUERY.search(text or "")
    return found.group(1) if found else None


def parse_modes(text: Optional[str]) -> Dict[str, int]:
    """Name → number, in order of the list. A name that comes twice is the later one's."""
    return {name: int(number) for number, name in _MODEL.findall(text or "")}


def parse_state(text: Optional[str]) -> Optional[int]:
    """The active mode's number from ``pmode:0002 fmode:quiet``."""
    found = _STATE.search(text or "")
    return int(found.group(1)) if found else None


def needs_reboot(text: str) -> bool:
    """Whether nvpmodel says that a mode is only reached by a reboot."""
    return _REBOOT.search(text) is not None
