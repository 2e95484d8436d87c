"""Verdicts beside the truth: runs that physics throttled, and runs that it left alone.

Input: boards of little heat capacity and small batteries. Output: rows and bars.
The truth is what the boards' physics did to their clock, read from the page that slows them down,
not from anything that the agent sees; and whether the host itself ran at one speed, told by a probe
of our own on the same CPU (a neighbour on a cloud machine's core costs a third, and then a run that
physics left alone has two speeds all the same). Heat and charge are set before each run so that the
trip, or the firmware's cap for a weak battery, comes while the run lasts: when exactly is chance.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.measurement_boards import SEED, Boards, ModelFile
from benchmarks.measurement_samples import keep, kept
from benchmarks.result import Bar
from device_agents.contract import MeasurementRecord, RunSpec, StoppingRule
from harness.virtual import rack
from harness.virtual.clock import ClockPage
from harness.virtual.spec import BatterySpec, RackSpec, VirtualBoardSpec

_CAP_PCT = 15.0
_FULL_WH = 0.1
_PCT_PER_BUSY_S = 5.5 / 3600 / _FULL_WH * 100


def _board(number: int) -> VirtualBoardSpec:
    """From 31 °C to its trip in two busy seconds, and cool again as soon."""
    return VirtualBoardSpec(
        f"hot-{number}",
        base_stretch=1.0,
        thermal_resistance_c_per_w=12.0,
        heat_capacity_j_per_c=0.25,
        idle_power_w=0.5,
        core_power_w=5.0,
        soft_trip_c=60.0,
        hard_trip_c=120.0,
        battery=BatterySpec(
            charge_pct=90.0, energy_full_wh=_FULL_WH, cap_below_pct=_CAP_PCT, cap_freq_khz=750_000
        ),
    )


RACK = RackSpec(boards=tuple(_board(n) for n in range(1, 4)), seed=SEED)
"""Three, so that two cool down while one is measured."""

SAMPLES = 1800
STOPPING = StoppingRule(
    warmup_min=10, warmup_max=50, samples_min=SAMPLES, samples_max=SAMPLES, max_seconds=50.0
)
"""About two busy seconds, however busy the machine is with other work."""

HEAT, BATTERY, CLEAN = "heat", "battery", "clean"
POLL_S = 0.01
FULL_CLOCK = 1.0 + 1e-6
LEAST_MARKED = 1.0
MOST_WRONGLY = 0.02

DURING, THROUGHOUT, NEAR, NEVER = "during", "throughout", "near", "never"
"""Of a run's clock: lowered in the timed loop and not all along; lowered all along; lowered only
outside the loop; never lowered."""

HOST_MOVED = "never, but the host's speed moved"
PROBE_EVERY_S = 0.02
PROBE_SIDE, PROBE_PRODUCTS = 64, 8
"""A probe multiplies so many times two square matrices that fit the first cache: some 0.05 ms."""
HOST_PARTS = 8
HOST_CHANGE = 0.15
"""Between the slowest and the fastest of so many parts of a loop: a neighbour costs a third, and
the probe alone scatters by a tenth, for the caches are the board's."""

Row = dict[str, Any]
Span = tuple[int, int]
"""From and to, in ns of CLOCK_MONOTONIC."""


@dataclass(frozen=True)
class Judged:
    """One run. planted: what it was set up for. truth: what physics did. reasons: the verdict's."""

    planted: str
    truth: str
    valid: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class HostLog:
    """Probes of the host's speed. at_ns: CLOCK_MONOTONIC; took_ns: of each."""

    at_ns: list[int]
    took_ns: list[int]

    def moved(self, loop: Span) -> bool:
        """Whether the medians of a loop's parts are HOST_CHANGE apart. False with few probes."""
        inside = [
            took_ns
            for at_ns, took_ns in zip(self.at_ns, self.took_ns, strict=True)
            if loop[0] <= at_ns <= loop[1]
        ]
        if len(inside) < 3 * HOST_PARTS:
            return False
        parts = [float(np.median(part)) for part in np.array_split(inside, HOST_PARTS)]
        return max(parts) > (1 + HOST_CHANGE) * min(parts)


class PhysicsLog:
    """A board's slowness over time, as its physics sets it, and the host's. A context manager.

    slow: spans of time in which the clock was below full. begun_ns: since when it is watched.
    """

    def __init__(self, page: Path) -> None:
        self._page = ClockPage(page)
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=watch, name="physics-log", daemon=True)
            for watch in (self._watch, self._watch_host)
        ]
        self.slow: list[Span] = []
        self.host = HostLog([], [])
        self.begun_ns = time.monotonic_ns()

    def __enter__(self) -> PhysicsLog:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._page.close()

    def _watch_host(self) -> None:
        a = np.random.default_rng(SEED).random((PROBE_SIDE, PROBE_SIDE), dtype=np.float32)
        while not self._ended.wait(PROBE_EVERY_S):
            a @ a  # the caches are the board's
            began_ns = time.monotonic_ns()
            for _ in range(PROBE_PRODUCTS):
                a @ a
            self.host.at_ns.append(began_ns)
            self.host.took_ns.append(time.monotonic_ns() - began_ns)

    def _watch(self) -> None:
        since_ns: int | None = None
        while True:
            ended = self._ended.wait(POLL_S)
            now_ns = time.monotonic_ns()
            slow = self._page.stretch > FULL_CLOCK
            if slow and since_ns is None:
                since_ns = now_ns
            if since_ns is not None and (ended or not slow):
                self.slow.append((since_ns, now_ns))
                since_ns = None
            if ended:
                return


def truth_of(slow: Sequence[Span], run: Span, loop: Span) -> str:
    """What physics did to a run. run: all of it; loop: its timed loop, inside."""
    in_loop = any(start < loop[1] and end > loop[0] for start, end in slow)
    if any(start <= run[0] and end >= loop[1] for start, end in slow):
        return THROUGHOUT
    if in_loop:
        return DURING
    return NEAR if any(start < run[1] and end > run[0] for start, end in slow) else NEVER


def spans_of(record: MeasurementRecord) -> tuple[Span, Span]:
    """The run and its timed loop. States are before, warm, during (the first as the loop begins)
    and after.
    """
    times_ns = [state.monotonic_ns for state in record.states]
    length_ns = record.timed_ns or sum(record.latency_ns)
    return (times_ns[0], times_ns[-1]), (times_ns[2], min(times_ns[2] + length_ns, times_ns[-1]))


def plan(throttled: int, clean: int) -> list[str]:
    """What each run is set up for, in random order: heat and battery by turns."""
    kinds = [HEAT if n % 2 == 0 else BATTERY for n in range(throttled)] + [CLEAN] * clean
    random.Random(SEED).shuffle(kinds)  # noqa: S311 - an order, not a secret
    return kinds


def next_kind(planned: Sequence[str], runs: Sequence[Judged], wanted: int) -> str | None:
    """What to set up next: the plan, then more of heat and battery until ``wanted`` runs were
    throttled while they were timed. None at the end, also where planting does not succeed.
    """
    if len(runs) < len(planned):
        return planned[len(runs)]
    lacking = wanted > sum(run.truth == DURING for run in runs)
    if not lacking or len(runs) >= len(planned) + wanted:
        return None
    return HEAT if len(runs) % 2 == 0 else BATTERY


def measured(boards: Boards, model: ModelFile, number: int, kind: str) -> Judged:
    """One run in a session of its own, or as it is stored. Raises HarnessError."""
    path = boards.folder / "throttling" / f"{number:03d}.json.z"
    board_id = RACK.boards[number % len(RACK.boards)].board_id
    first = RunSpec(
        campaign_id=f"throttling-{number}",
        board_id=board_id,
        model_sha256=model.sha256,
        runtime="ort",
        stopping=STOPPING,
    )
    if (stored := kept(path)) is None:
        stored = _watched(boards, model, first, kind, random.Random(f"{SEED}:{number}"))  # noqa: S311
        keep(path, stored)
    (record,) = boards.measure([replace(first, repeat=stored["repeat"])], [model])
    slow = [(start, end) for start, end in stored["slow"]]
    return judged(kind, slow, HostLog(**stored["host"]), record)


def _watched(
    boards: Boards, model: ModelFile, first: RunSpec, kind: str, rng: random.Random
) -> dict[str, Any]:
    """Of the first repeat that was watched from its begin: a killed benchmark may leave others."""
    for repeat in itertools.count():
        _set_up(boards.rack, first.board_id, kind, rng)
        with PhysicsLog(boards.clock_page(first.board_id)) as log:
            (record,) = boards.measure([replace(first, repeat=repeat)], [model])
        if not record.states or record.states[0].monotonic_ns >= log.begun_ns:
            break
    host = {"at_ns": log.host.at_ns, "took_ns": log.host.took_ns}
    return {"repeat": repeat, "slow": log.slow, "host": host}


def judged(kind: str, slow: Sequence[Span], host: HostLog, record: MeasurementRecord) -> Judged:
    verdict = record.verdict
    if verdict is None:
        raise RuntimeError(f"run {record.run_id}: {record.error}")
    run, loop = spans_of(record)
    truth = truth_of(slow, run, loop)
    if truth == NEVER and host.moved(loop):
        truth = HOST_MOVED
    return Judged(kind, truth, verdict.valid, tuple(reason.value for reason in verdict.reasons))


def _set_up(folder: Path, board_id: str, kind: str, rng: random.Random) -> None:
    """A warm room, a battery about to be weak, or neither. The start takes a busy second."""
    ambient_c = rng.uniform(25.0, 36.0) if kind == HEAT else -20.0
    charge_pct = 90.0
    if kind == BATTERY:
        charge_pct = _CAP_PCT + rng.uniform(1.2, 2.8) * _PCT_PER_BUSY_S
    rack.set_environment(folder, board_id, ambient_c=ambient_c, charge_pct=charge_pct)


def throttling_rows(part: str, runs: Sequence[Judged]) -> list[Row]:
    """A row for each plant and truth that occurred."""
    rows: list[Row] = []
    for planted, truth in sorted({(run.planted, run.truth) for run in runs}):
        those = [run for run in runs if (run.planted, run.truth) == (planted, truth)]
        reasons = Counter(reason for run in those for reason in run.reasons)
        rows.append(
            {
                "part": part,
                "planted": planted,
                "clock_lowered": truth,
                "runs": len(those),
                "invalid": sum(not run.valid for run in those),
                "reasons": dict(reasons.most_common()),
            }
        )
    return rows


def throttled_bar(where: str, runs: Sequence[Judged]) -> Bar:
    """Of the runs whose clock physics lowered in the timed loop."""
    those = [run for run in runs if run.truth == DURING]
    share = _invalid(those) if those else 0.0
    what = f"{where}: {len(those)} runs throttled in the timed loop: marked invalid"
    return Bar(what, share, ">=", LEAST_MARKED)


def clean_bar(where: str, runs: Sequence[Judged]) -> Bar:
    """Of the runs whose clock physics left alone."""
    those = [run for run in runs if run.truth in (NEVER, HOST_MOVED)]
    share = _invalid(those) if those else 1.0
    what = f"{where}: {len(those)} runs never throttled: wrongly marked invalid"
    return Bar(what, share, "<=", MOST_WRONGLY)


def _invalid(runs: Sequence[Judged]) -> float:
    return sum(not run.valid for run in runs) / len(runs)
