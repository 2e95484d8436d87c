"""The battery's charge and the power source: looked at and waited for, never switched.

Input: a platform, what is asked for. Output: the board is in it, or RunFailedError ("condition").
A band is waited for only while the battery's own status says that it moves there: a charger that
is to be plugged in is a person's work, and said at once.
"""

from __future__ import annotations

import time
from typing import Callable, Optional

from device_agents.errors import RunFailedError
from device_agents.platforms import Linux

_POLL_S = 1.0


def check_source(platform: Linux, wanted: Optional[str]) -> None:
    """wanted: "mains", "battery" or None. A board without a battery runs from the mains."""
    if wanted is None:
        return
    source = platform.power_source()
    if source is None and not platform.has_battery():
        source = "mains"
    if source != wanted:
        raise _unmet(
            f"the board runs from {source or 'an unknown source'}, asked for {wanted[:40]!r}",
            "unplug its supply, then measure again"
            if wanted == "battery" and source == "mains"
            else "plug in its supply, then measure again"
            if wanted == "mains"
            else "leave power_source out for this board",
        )


def await_charge(
    platform: Linux,
    low_pct: Optional[float],
    high_pct: Optional[float],
    deadline_s: float,
    wait: Callable[[float], None],
) -> None:
    """Return once the charge lies in the band. deadline_s: on time.monotonic()."""
    if low_pct is None and high_pct is None:
        return
    while True:
        charge_pct = platform.battery_pct()
        if charge_pct is None:
            raise _unmet("no battery can be read", "leave battery_pct out for this board")
        is_low = low_pct is not None and charge_pct < low_pct
        if not is_low and (high_pct is None or charge_pct <= high_pct):
            return
        status = platform.battery_status()
        fact = (
            f"the battery is at {charge_pct:g} %, asked for {_bound(low_pct)}..{_bound(high_pct)} %"
        )
        if status != ("Charging" if is_low else "Discharging"):
            raise _unmet(
                f"{fact}, and is {(status or 'of unknown status').lower()}",
                f"{'plug in' if is_low else 'unplug'} its supply, then measure again",
            )
        if time.monotonic() >= deadline_s:
            raise _unmet(
                f"{fact}, and is still {status.lower()}",
                "raise timeout_s, or ask for a band nearer to its charge",
            )
        wait(_POLL_S)


def _bound(pct: Optional[float]) -> str:
    return "" if pct is None else f"{pct:g}"


def _unmet(fact: str, next_step: str) -> RunFailedError:
    return RunFailedError("condition", fact, next_step)
