"""Whether a run's latencies count, from what was observed around and during them.

Input: the spec's condition, states and samples of one run. Output: Verdict.

- THROTTLED when the board is throttled during or after and was not before. A board that is capped
  throughout, by a low battery or its firmware, is in a state that the fleet knows and may be
  measured in; a cap that comes during the run makes one number of two states.
- CLOCK_DRIFTED when the *measured* clock before and after the timed loop differs by more than 5 %.
  The reported one is not asked: it is what was requested.
- UNDER_VOLTAGE when the supply was too weak at any reading: no state that anybody asks for.
- LEFT_BAND when a reading of the timed loop lies outside the heat or charge that the spec asked
  for, or the power source or mode is another one. Readings while the loop stood still, for the
  heat to be brought back, do not count.
- NOT_STEADY when warm-up did not settle and the samples' own halves differ by more than 10 %.
  Either alone happens to good runs: a noisy warm-up before a calm loop, or a slow drift that
  heat explains.
- FOREIGN_LOAD when the threads that measure waited for a CPU for more than 10 % of the timed loop
  (and more than 20 ms, a few time slices), or when others kept more than a quarter of a CPU busy
  meanwhile (and more than 50 ms, for /proc/stat counts in steps of 10).
- REBOOTED when the board's boot_id is another one than at the start of the worker.
- RUNTIME_FELL_BACK when another provider ran the operators than the one asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

from device_agents.contract import BoardState, Condition, Reason, Verdict
from device_agents.stopping import halves_differ
from device_agents.timed_loop import Timed

CLOCK_DRIFT_FRACTION = 0.05
HALVES_FRACTION = 0.10
WAIT_SHARE = 0.10
WAIT_NS_LEAST = 20_000_000
OTHERS_SHARE = 0.25
OTHERS_NS_LEAST = 50_000_000


@dataclass(frozen=True)
class Observed:
    """One run as seen. before: ahead of the load. warm: between warm-up and the timed loop.

    threads: that the runtime was given. cpu_own_ns, cpu_wait_ns: CPU time of the processes that
    measure and their wait for a CPU in the timed loop; None where unknown.
    """

    before: BoardState
    warm: BoardState
    during: Tuple[BoardState, ...]
    after: BoardState
    warmup_steady: Optional[bool]
    timed: Timed
    threads: int = 1
    cpu_own_ns: Optional[int] = None
    cpu_wait_ns: Optional[int] = None
    rebooted: bool = False
    fell_back: bool = False

    @property
    def states(self) -> Tuple[BoardState, ...]:
        return (self.before, self.warm, *self.during, self.after)


def judge(condition: Condition, run: Observed) -> Verdict:
    """Every reason that holds, in the order of Reason."""
    found = {
        Reason.THROTTLED: run.before.throttled is not True
        and any(state.throttled for state in run.states[1:]),
        Reason.CLOCK_DRIFTED: drifted(run.warm.effective_freq_khz, run.after.effective_freq_khz),
        Reason.UNDER_VOLTAGE: any(state.under_voltage for state in run.states),
        Reason.LEFT_BAND: any(_outside(condition, state) for state in _while_timing(run)),
        Reason.NOT_STEADY: run.warmup_steady is not True
        and halves_differ(run.timed.latency_ns, HALVES_FRACTION),
        Reason.FOREIGN_LOAD: _waited(run) or _others_ran(run),
        Reason.REBOOTED: run.rebooted,
        Reason.RUNTIME_FELL_BACK: run.fell_back,
    }
    reasons = tuple(reason for reason in Reason if found[reason])
    return Verdict(valid=not reasons, reasons=reasons)


def drifted(before_khz: Optional[int], after_khz: Optional[int]) -> bool:
    """False where either cannot be measured: nothing was seen."""
    if before_khz is None or after_khz is None:
        return False
    return abs(after_khz - before_khz) > CLOCK_DRIFT_FRACTION * before_khz


def _while_timing(run: Observed) -> List[BoardState]:
    pauses = run.timed.pauses
    return [
        state
        for state in run.states[1:]
        if not any(begin <= state.monotonic_ns <= end for begin, end in pauses)
    ]


def _outside(condition: Condition, state: BoardState) -> bool:
    return (
        _off(state.temp_c(), condition.temp_c_min, condition.temp_c_max)
        or _off(state.battery_pct, condition.battery_pct_min, condition.battery_pct_max)
        or _another(state.power_source, condition.power_source)
        or _another(state.power_mode, condition.power_mode)
    )


def _off(value: Optional[float], low: Optional[float], high: Optional[float]) -> bool:
    if value is None:
        return False
    return (low is not None and value < low) or (high is not None and value > high)


def _another(found: Optional[str], asked: Optional[str]) -> bool:
    return found is not None and asked is not None and found != asked


def _waited(run: Observed) -> bool:
    if run.cpu_wait_ns is None:
        return False
    share_ns = WAIT_SHARE * run.timed.timed_ns * run.threads
    return run.cpu_wait_ns > max(share_ns, WAIT_NS_LEAST)


def _others_ran(run: Observed) -> bool:
    """From the first reading of the timed loop to the last, as all CPUs counted."""
    counts = [
        (state.monotonic_ns, state.cpu_busy_ns)
        for state in run.during
        if state.cpu_busy_ns is not None
    ]
    # While the loop stands still the board is heated on purpose.
    if run.cpu_own_ns is None or len(counts) < 2 or run.timed.pauses:
        return False
    (begin_ns, busy_before_ns), (end_ns, busy_after_ns) = counts[0], counts[-1]
    others_ns = busy_after_ns - busy_before_ns - run.cpu_own_ns
    return others_ns > max(OTHERS_SHARE * (end_ns - begin_ns), OTHERS_NS_LEAST)
