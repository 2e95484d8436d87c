"""What state a board is asked for, what state it is seen in, and what that says of a run.

Input: nothing. Output: Condition (requested), BoardState (observed), Reason and Verdict.
Requested and observed are separate types on purpose: one is never a default for the other.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class Condition:
    """The state a run asks for. ``None`` asks for nothing: the board stays as it is.

    governor: a cpufreq governor's name. freq_khz: a fixed CPU clock, > 0.
    temp_c_min, temp_c_max: the band of the hottest CPU zone, °C.
    battery_pct_min, battery_pct_max: the band of the charge, 0..100.
    power_source: "mains" or "battery". power_mode: the name of an nvpmodel mode.
    """

    governor: Optional[str] = None
    freq_khz: Optional[int] = None
    temp_c_min: Optional[float] = None
    temp_c_max: Optional[float] = None
    battery_pct_min: Optional[float] = None
    battery_pct_max: Optional[float] = None
    power_source: Optional[str] = None
    power_mode: Optional[str] = None


@dataclass(frozen=True)
class BoardState:
    """One observation of a board. ``None`` is unreadable, never 0 or -1.

    monotonic_ns: CLOCK_MONOTONIC of the board when the reading began.
    temp_c_by_zone: (zone type, °C) in the kernel's order of zones.
    freq_khz_by_policy: (policy name, kHz) as cpufreq *reports* it.
    freq_khz_by_device: (GPU or memory, kHz) as devfreq reports it.
    effective_freq_khz: what a calibrated loop *measured*, or the firmware where there is no loop
    for the machine; None where neither was asked.
    power_mw: the board's own draw. throttled: True when the firmware or kernel caps the clock now.
    under_voltage: True when the firmware or a sensor sees too low a supply voltage now.
    power_mw_by_rail: (rail, mW) where a power monitor names its rails.
    power_mode: the active nvpmodel mode. power_source: "mains" or "battery".
    cpu_busy_ns: time that all CPUs together have worked since boot, for whomever.
    battery_temp_c: the battery's own. over_current_counts: (alarm, events since boot), for
    differences: some climb under any load.
    """

    monotonic_ns: int
    temp_c_by_zone: Tuple[Tuple[str, Optional[float]], ...] = ()
    freq_khz_by_policy: Tuple[Tuple[str, Optional[int]], ...] = ()
    effective_freq_khz: Optional[int] = None
    governor: Optional[str] = None
    battery_pct: Optional[float] = None
    power_mw: Optional[int] = None
    throttled: Optional[bool] = None
    under_voltage: Optional[bool] = None
    power_mw_by_rail: Tuple[Tuple[str, Optional[int]], ...] = ()
    power_mode: Optional[str] = None
    power_source: Optional[str] = None
    cpu_busy_ns: Optional[int] = None
    battery_temp_c: Optional[float] = None
    freq_khz_by_device: Tuple[Tuple[str, Optional[int]], ...] = ()
    over_current_counts: Tuple[Tuple[str, Optional[int]], ...] = ()

    def temp_c(self) -> Optional[float]:
        """The hottest readable zone in °C; None when no zone can be read."""
        readable = [temp_c for _, temp_c in self.temp_c_by_zone if temp_c is not None]
        return max(readable) if readable else None

    def freq_khz(self) -> Optional[int]:
        """The highest reported clock of any policy in kHz; None when none can be read."""
        readable = [khz for _, khz in self.freq_khz_by_policy if khz is not None]
        return max(readable) if readable else None


class Reason(str, enum.Enum):
    """Why a run's numbers are not to be trusted."""

    THROTTLED = "throttled"
    CLOCK_DRIFTED = "clock_drifted"
    UNDER_VOLTAGE = "under_voltage"
    LEFT_BAND = "left_band"
    NOT_STEADY = "not_steady"
    FOREIGN_LOAD = "foreign_load"
    REBOOTED = "rebooted"
    RUNTIME_FELL_BACK = "runtime_fell_back"


@dataclass(frozen=True)
class Verdict:
    """Whether a run counts. ``reasons`` is empty exactly when ``valid``."""

    valid: bool
    reasons: Tuple[Reason, ...] = ()

    def __post_init__(self) -> None:
        if self.valid != (not self.reasons):
            raise ValueError(
                f"verdict: valid={self.valid} contradicts reasons={[r.value for r in self.reasons]}"
            )
