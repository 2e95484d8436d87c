"""Whether a run's latencies count, from what was observed around and during them.

Input: the spec's condition, states and samples of one run. Output: Verdict.

- THROTTLED when the board is throttled during or after and was not before. A board that is capped
  throughout, by a low battery or its firmware, is in a state that the fleet knows and may be
  measured in; a cap that comes during the run makes one number of two states.
- CLOCK_DRIFTED when the *measured* clock before and after the timed loop differs by more than 5 %.
  The reported one is not asked: it is what was requested.
- LEFT_BAND when any reading of the heat or charge lies outside the band the spec asked for.
- NOT_STEADY when warm-up did not settle and the samples' own halves differ by more than 10 %.
  Either alone happens to good runs: a noisy warm-up before a calm loop, or a slow drift that
  heat explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

from device_agents.contract import BoardState, Condition, Reason, Verdict
from device_agents.stopping import halves_differ

CLOCK_DRIFT_FRACTION = 0.05
HALVES_FRACTION = 0.10


@dataclass(frozen=True)
class Observed:
    """One run as seen. before: ahead of the load. warm: between warm-up and the timed loop."""

    before: BoardState
    warm: BoardState
    during: Tuple[BoardState, ...]
    after: BoardState
    warmup_steady: Optional[bool]
    latency_ns: Tuple[int, ...]

    @property
    def states(self) -> Tuple[BoardState, ...]:
        return (self.before, self.warm, *self.during, self.after)


def judge(condition: Condition, run: Observed) -> Verdict:
    """Every reason that holds, in the order of Reason."""
    reasons: List[Reason] = []
    if run.before.throttled is not True and any(s.throttled for s in run.states[1:]):
        reasons.append(Reason.THROTTLED)
    if drifted(run.warm.effective_freq_khz, run.after.effective_freq_khz):
        reasons.append(Reason.CLOCK_DRIFTED)
    if any(_outside(condition, state) for state in run.states[1:]):
        reasons.append(Reason.LEFT_BAND)
    if run.warmup_steady is not True and halves_differ(run.latency_ns, HALVES_FRACTION):
        reasons.append(Reason.NOT_STEADY)
    return Verdict(valid=not reasons, reasons=tuple(reasons))


def drifted(before_khz: Optional[int], after_khz: Optional[int]) -> bool:
    """False where either cannot be measured: nothing was seen."""
    if before_khz is None or after_khz is None:
        return False
    return abs(after_khz - before_khz) > CLOCK_DRIFT_FRACTION * before_khz


def _outside(condition: Condition, state: BoardState) -> bool:
    return _off(state.temp_c(), condition.temp_c_min, condition.temp_c_max) or _off(
        state.battery_pct, condition.battery_pct_min, condition.battery_pct_max
    )


def _off(value: Optional[float], low: Optional[float], high: Optional[float]) -> bool:
    if value is None:
        return False
    return (low is not None and value < low) or (high is not None and value > high)
