"""What the Raspberry Pi's firmware says, by sysfs or by vcgencmd.

Input: text. Output: bits, kHz, mW; None or nothing for what is in no known form.
Source: raspberrypi.com/documentation/computers/os.html, "vcgencmd".
"""

from __future__ import annotations

import re
from typing import Dict, Optional, Tuple

UNDER_VOLTAGE_NOW = 0b0001
# 1 ARM frequency capped, 2 throttled, 3 soft temperature limit.
CAPPED_NOW = 0b1110
# Bits 16 to 19 are the same four, "has occurred".
_STICKY_SHIFT = 16
_NOW = 0b1111

_BITS = re.compile(r"(?:throttled=)?(?:0[xX])?([0-9a-fA-F]{1,8})")
_CLOCK = re.compile(r"frequency\([0-9]+\)=([0-9]{1,12})")
_ADC = re.compile(r"(\S+)_([AV])\s+(current|volt)\([0-9]+\)=([0-9]{1,4}(?:\.[0-9]{1,12})?)([AV])")


def parse_throttled(text: Optional[str]) -> Optional[int]:
    """The bits: bare hexadecimal as sysfs has it, or vcgencmd's throttled=0x50000."""
    found = _BITS.fullmatch(text.strip()) if text is not None else None
    return int(found.group(1), 16) if found else None


def since(earlier_bits: int, bits: int) -> int:
    """The live bits of what occurred since an earlier reading, and of what is now.

    A sticky bit that was set before says nothing of when; the kernel's rpi_volt driver clears some.
    """
    occurred = (bits & ~earlier_bits) >> _STICKY_SHIFT
    return (bits | occurred) & _NOW


def parse_clock_khz(text: Optional[str]) -> Optional[int]:
    """measure_clock's frequency(48)=1500398464, in Hz; 0 is a clock that is off."""
    found = _CLOCK.fullmatch(text.strip()) if text is not None else None
    khz = int(found.group(1)) // 1000 if found else 0
    return khz or None


def parse_rails_mw(text: Optional[str]) -> Tuple[Tuple[str, Optional[int]], ...]:
    """pmic_read_adc's rails that have a current and a voltage, in order of their currents.

    The numbers in brackets are the converter's channels and pair nothing. Of the board's input
    only the voltage is measured: the rails' sum is less than the board draws.
    """
    amperes: Dict[str, float] = {}
    volts: Dict[str, float] = {}
    for line in (text or "").splitlines():
        found = _ADC.fullmatch(line.strip())
        if found is None:
            continue
        rail, kind, quantity, number, unit = found.groups()
        if (kind, quantity, unit) == ("A", "current", "A"):
            amperes[rail] = float(number)
        elif (kind, quantity, unit) == ("V", "volt", "V"):
            volts[rail] = float(number)
    return tuple((r, round(amperes[r] * volts[r] * 1e3)) for r in amperes if r in volts)
