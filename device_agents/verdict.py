"""Whether a run's latencies count, from what was observed around and during them.

Input: the spec's condition, states and samples of one run. Output: Verdict.

- THROTTLED when the board is throttled during or after and was not before. A board that is capped
  throughout, by a low battery or its firmware, is in a state that the fleet knows and may be
  measured in; a cap that comes during the run makes one number of two states.
- CLOCK_DRIFTED when the *measured* clock moved by more than 5 % from before to after the timed loop
  and the latencies moved with it: after a fall the loop's last quarter is slower than its first by
  2.5 %, after a rise it is faster by half of the rise. A reading is of some milliseconds: turbo
  takes a step down for as long, and other work lowers it, so that alone it is no proof that the
  samples are of two clocks. The reported clock is not asked: it is what was requested.
- UNDER_VOLTAGE when the supply was too weak at any reading: no state that anybody asks for, and
  one that comes and goes with the load (raspberrypi.com/documentation, "vcgencmd get_throttled").
- LEFT_BAND when a reading of the timed loop lies outside the heat that the spec asked for, or one
  from warm-up on outside the charge, or is of another power source, power mode or governor; also
  where nobody asked for one of these and it changed. Readings while the loop stood still, for the
  heat to be brought back, are not among those of the loop.
- NOT_STEADY when warm-up did not settle and the samples' own halves differ by more than 10 %.
  Either alone happens to good runs: a noisy warm-up before a calm loop, or a slow drift that
  heat explains.
- FOREIGN_LOAD by either of two signs (docs/adr/0009): the threads that measure waited for a CPU for
  more than 10 % of the timed loop each, and 20 ms, some time slices; or others kept more than a
  quarter of one CPU busy meanwhile, and 50 ms, for /proc/stat counts in steps of 10.
- REBOOTED when the board's boot_id is another one than at the start of the worker.
- RUNTIME_FELL_BACK when another provider ran the operators than the one asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Optional, Sequence, Tuple

from device_agents.contract import BoardState, Condition, Reason, Verdict
from device_agents.stopping import halves_differ

CLOCK_DRIFT_FRACTION = 0.05
HALVES_FRACTION = 0.10
WAIT_SHARE = 0.10
WAIT_NS_LEAST = 20_000_000
OTHERS_SHARE = 0.25
OTHERS_NS_LEAST = 50_000_000


@dataclass(frozen=True)
class Observed:
    """One run as seen. before: ahead of the load. warm: between warm-up and the timed loop.

    during: in the timed loop, where it did not stand still. timed_ns: its length. cpu_own_ns,
    cpu_wait_ns: CPU time in it of the processes that measure, and their wait for a CPU.
    cpu_busy_ns: of all CPUs in it, for whomever. None is unknown, or no sign on this board.
    threads: that the runtime was given.
    """

    before: BoardState
    warm: BoardState
    during: Tuple[BoardState, ...]
    after: BoardState
    warmup_steady: Optional[bool]
    latency_ns: Tuple[int, ...]
    timed_ns: int
    threads: int = 1
    cpu_own_ns: Optional[int] = None
    cpu_wait_ns: Optional[int] = None
    cpu_busy_ns: Optional[int] = None
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
        Reason.CLOCK_DRIFTED: _clock_moved(run),
        Reason.UNDER_VOLTAGE: any(state.under_voltage for state in run.states),
        Reason.LEFT_BAND: _left_heat(condition, run)
        or _left_power(condition, run.states[1:])
        or _changed(run),
        Reason.NOT_STEADY: run.warmup_steady is not True
        and halves_differ(run.latency_ns, HALVES_FRACTION),
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


def _clock_moved(run: Observed) -> bool:
    """Other work can only lower a reading: a rise needs the stronger witness."""
    warm_khz, after_khz = run.warm.effective_freq_khz, run.after.effective_freq_khz
    if warm_khz is None or after_khz is None or not drifted(warm_khz, after_khz):
        return False
    quarter = max(1, len(run.latency_ns) // 4)
    first_ns, last_ns = (
        median(part) for part in (run.latency_ns[:quarter], run.latency_ns[-quarter:])
    )
    if after_khz < warm_khz:
        return last_ns / first_ns - 1 >= CLOCK_DRIFT_FRACTION / 2
    return first_ns / last_ns - 1 >= (after_khz / warm_khz - 1) / 2


def _left_heat(condition: Condition, run: Observed) -> bool:
    low_c, high_c = condition.temp_c_min, condition.temp_c_max
    return any(_off(state.temp_c(), low_c, high_c) for state in run.during)


def _left_power(condition: Condition, states: Sequence[BoardState]) -> bool:
    low_pct, high_pct = condition.battery_pct_min, condition.battery_pct_max
    return any(
        _off(state.battery_pct, low_pct, high_pct)
        or _another(state.power_source, condition.power_source)
        or _another(state.power_mode, condition.power_mode)
        or _another(state.governor, condition.governor)
        for state in states
    )


def _changed(run: Observed) -> bool:
    """Before and after are read alike, also where a vendor's program names the mode."""
    before, after = run.before, run.after
    return (
        _another(after.power_source, before.power_source)
        or _another(after.power_mode, before.power_mode)
        or _another(after.governor, before.governor)
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
    return run.cpu_wait_ns > max(WAIT_SHARE * run.timed_ns * run.threads, WAIT_NS_LEAST)


def _others_ran(run: Observed) -> bool:
    if run.cpu_own_ns is None or run.cpu_busy_ns is None:
        return False
    others_ns = run.cpu_busy_ns - run.cpu_own_ns
    return others_ns > max(OTHERS_SHARE * run.timed_ns, OTHERS_NS_LEAST)
