"""Raspberry Pi: the firmware's own word on throttling, read in-process.

Input: a sysfs Root. Output: as Linux, with throttled from the firmware's live bits.
Source: raspberrypi.com/documentation, "vcgencmd get_throttled"; the sysfs twin holds the same.
"""

from __future__ import annotations

import re
from typing import Optional

from device_agents.platforms.linux import Linux

GET_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"

# Live bits: 1 ARM frequency capped, 2 throttled, 3 soft temperature limit. Bit 0, under-voltage,
# caps nothing by itself; 16-19 are "has occurred", and the kernel's rpi_volt driver clears them.
_CAPPED_NOW = 0b1110

_HEX = re.compile(r"(0[xX])?[0-9a-fA-F]{1,8}")


class RaspberryPi(Linux):
    """No vcgencmd: each call is a process, and 50 a second slow the board several times."""

    name = "raspberry_pi"

    def throttled(self) -> Optional[bool]:
        bits = parse_throttled(self.root.read_text(GET_THROTTLED))
        by_kernel = super().throttled()
        if bits is None:
            return by_kernel
        return bool(bits & _CAPPED_NOW) or bool(by_kernel)


def parse_throttled(text: Optional[str]) -> Optional[int]:
    """The bits from bare hexadecimal, with or without 0x; None for anything else."""
    if text is None or not _HEX.fullmatch(text):
        return None
    return int(text, 16)
