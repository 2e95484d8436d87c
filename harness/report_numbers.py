"""Numbers as a person reads them: sensible digits, a unit, and a dash for what is unknown.

Input: a number in the document's unit, or None. Output: text.
"""

from __future__ import annotations

import math
import re
from datetime import datetime

UNKNOWN = "\u2013"  # a dash: not measured
MINUS, TIMES = "\u2212", "\u00d7"
NARROW = "\u202f"  # a narrow space that does not break, between number and unit
Natural = tuple[tuple[int, int, str], ...]
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def digits(value: float | None, significant: int = 3) -> str:
    """The value with so many significant digits, more before the point, none in exponent form."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    decimals = max(significant - 1 - math.floor(math.log10(abs(value))), 0)
    # Rounding first: 9.996 is 10.0 with three digits, not 10.00.
    rounded = round(value, decimals)
    if rounded:
        decimals = significant - 1 - math.floor(math.log10(abs(rounded)))
    text = f"{rounded:,.{max(decimals, 0)}f}".replace(",", NARROW)
    return text.replace("-", MINUS)


def ms(value: float | None) -> str:
    return UNKNOWN if value is None else f"{digits(value)}{NARROW}ms"


def interval(bounds: tuple[float, float] | None) -> str:
    """Low to high, without a unit: it stands beside the value."""
    return "" if bounds is None else f"{digits(bounds[0])} to {digits(bounds[1])}"


def percent(fraction: float | None) -> str:
    return UNKNOWN if fraction is None else f"{100 * fraction:.1f}{NARROW}%"


def points(before: float | None, after: float | None) -> str:
    """The difference of two fractions in percentage points, with its sign."""
    if before is None or after is None:
        return UNKNOWN
    return f"{_signed(100 * (after - before))} points"


def deviation(predicted: float | None, measured: float | None) -> str:
    """How far the prediction was off, signed, in percent of what was measured."""
    if predicted is None or measured is None:
        return UNKNOWN
    return f"{_signed(100 * (predicted / measured - 1))}{NARROW}%"


def times(factor: float | None) -> str:
    return UNKNOWN if factor is None else f"{digits(factor, 2)}{TIMES}"


def ratio(value: float | None) -> str:
    """A ratio near one, where the second decimal tells boards apart."""
    return UNKNOWN if value is None else f"{value:.2f}{TIMES}"


def count(value: int | None) -> str:
    """A whole number; from ten thousand on with three digits and k, M or G."""
    return UNKNOWN if value is None else _scaled(value, 10_000, ("", "k", "M", "G", "T"))


def size(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else _scaled(size_bytes, 1000, ("B", "kB", "MB", "GB"))


def error(value: float | None) -> str:
    """A small error, as a mantissa and a power of ten below a thousandth."""
    if value is None:
        return UNKNOWN
    if value == 0 or 0.001 <= value < 1000:
        return digits(value, 2)
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}{NARROW}{TIMES}{NARROW}10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{digits(seconds)}{NARROW}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest if not hours else 0, "s"))
    return " ".join(f"{n}{NARROW}{unit}" for n, unit in parts if n)


def moment(iso: str) -> str:
    """An ISO 8601 time to the second, or the text itself where it is none."""
    try:
        return datetime.fromisoformat(iso).isoformat(" ", "seconds").replace("+00:00", " UTC")
    except ValueError:
        return iso


def plural(n: int, noun: str) -> str:
    return f"{n:,}".replace(",", NARROW) + f" {noun}{'' if n == 1 else 's'}"


def natural(text: str) -> Natural:
    """A sorting key that puts board-2 before board-10."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", text)
    return tuple((0, int(n), "") if n else (1, 0, word) for n, word in parts)


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def _scaled(value: int, from_value: int, units: tuple[str, ...]) -> str:
    if value < from_value:
        return f"{value}{NARROW}{units[0]}".rstrip()
    power = min(int(math.log10(value)) // 3, len(units) - 1)
    return f"{digits(value / 1000**power)}{NARROW}{units[power]}"
