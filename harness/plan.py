"""What a campaign will do and how long it will take, before any board is asked.

Input: a Campaign, and records of earlier runs where there are some. Output: Plan.
Pure: no network, no file. What is assumed for want of records is said in words.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from device_agents.contract import Condition, MeasurementRecord, RunSpec
from harness.campaign import Campaign
from harness.campaign_axes import is_canary, stretch_of
from harness.executor import MAX_WORKERS
from harness.inventory import Board

ASSUMED_LOAD_S = 1.0
"""Loading a model and reading the clock, in a run of which nothing is known: an assumption."""

_EVIDENCE = (
    "the same cell on the same board",
    "the same cell under another condition on the same board",
    "the same cell on another board",
    "the stopping rule",
)
_BY_RULE = len(_EVIDENCE) - 1


@dataclass(frozen=True)
class Span:
    """A duration that is known within bounds, in s; low_s <= high_s."""

    low_s: float = 0.0
    high_s: float = 0.0

    def __add__(self, other: Span) -> Span:
        return Span(self.low_s + other.low_s, self.high_s + other.high_s)


@dataclass(frozen=True)
class PlannedCell:
    """One cell on all boards. runs: on all of them together, stored ones included."""

    model: str
    runtime: str
    precision: str
    threads: int
    condition: Condition
    canary: bool
    boards: int
    runs: int


@dataclass(frozen=True)
class PlannedBoard:
    """One board's part. stored: of its runs, those that are not measured again."""

    board: Board
    runs: int
    stored: int
    span: Span


@dataclass(frozen=True)
class Plan:
    """cells in the campaign's order of models. assumed: sentences for a person."""

    campaign_id: str
    cells: tuple[PlannedCell, ...]
    boards: tuple[PlannedBoard, ...]
    wall_clock: Span
    assumed: tuple[str, ...]


class History:
    """How long earlier runs took, and the pauses before them.

    records: in the order in which they were measured on each board. A run lasts from its first
    state to its last, on the board's own monotonic clock; what comes between two neighbours of one
    session is the pause, in which the next run's condition is reached.
    """

    def __init__(self, records: Iterable[MeasurementRecord] = ()) -> None:
        self._runs: dict[Hashable, list[float]] = defaultdict(list)
        self._pauses: dict[Hashable, list[float]] = defaultdict(list)
        self._reached: dict[Hashable, bool] = {}
        last: dict[str, MeasurementRecord] = {}
        for record in records:
            before = last.pop(record.spec.board_id, None)
            if record.error is None or record.error.kind == "condition":
                for board_id in (record.spec.board_id, None):
                    self._reached[board_id, stretch_of(record.spec.condition)] = not record.error
            if record.error is not None or len(record.states) < 2:
                continue
            start_ns, end_ns = record.states[0].monotonic_ns, record.states[-1].monotonic_ns
            for key in _likeness(record.spec):
                self._runs[key].append((end_ns - start_ns) / 1e9)
            last[record.spec.board_id] = record
            if before is not None and _are_neighbours(before, record):
                pause_s = (start_ns - before.states[-1].monotonic_ns) / 1e9
                changed = is_waited_for(before.spec, record.spec)
                self._pauses[changed, record.spec.board_id].append(pause_s)
                self._pauses[changed].append(pause_s)

    def run_s(self, spec: RunSpec) -> tuple[float | None, int]:
        """The median duration of the runs that are most alike, and how alike (_EVIDENCE)."""
        for evidence, key in enumerate(_likeness(spec)):
            if key in self._runs:
                return median(self._runs[key]), evidence
        return None, _BY_RULE

    def reached(self, spec: RunSpec) -> bool | None:
        """Whether this heat and charge were reached last time, on this board or else on any."""
        stretch = stretch_of(spec.condition)
        return self._reached.get((spec.board_id, stretch), self._reached.get((None, stretch)))

    def pause_s(self, board_id: str, *, changed: bool) -> float | None:
        """The median pause before a run, on this board or else on any."""
        found = self._pauses.get((changed, board_id)) or self._pauses.get(changed)
        return median(found) if found else None


def _likeness(spec: RunSpec) -> tuple[Hashable, ...]:
    """What a run shares with others, the closest first."""
    cell = (spec.model_sha256, spec.runtime, spec.precision, spec.threads, spec.stopping)
    return (
        (spec.board_id, cell, spec.condition, spec.operators),
        (spec.board_id, cell),
        cell,
    )


def _are_neighbours(earlier: MeasurementRecord, later: MeasurementRecord) -> bool:
    return (
        earlier.spec.campaign_id == later.spec.campaign_id
        and earlier.boot_id == later.boot_id
        and earlier.states[-1].monotonic_ns <= later.states[0].monotonic_ns
    )


def has_band(condition: Condition) -> bool:
    """Whether heat or charge is asked for, which a board reaches by waiting."""
    c = condition
    bounds = (c.temp_c_min, c.temp_c_max, c.battery_pct_min, c.battery_pct_max)
    return bounds != (None, None, None, None)


def is_waited_for(before: RunSpec | None, spec: RunSpec) -> bool:
    """Whether the board must get warmer, cooler, fuller or emptier than the last run left it."""
    if not has_band(spec.condition):
        return False
    return before is None or stretch_of(before.condition) != stretch_of(spec.condition)


def make_plan(campaign: Campaign, stored: Collection[str], history: History) -> Plan:
    """The plan of all that is not stored. stored: run_ids."""
    by_board: dict[str, list[RunSpec]] = defaultdict(list)
    for spec in campaign.specs:
        by_board[spec.board_id].append(spec)
    estimate = _Estimate(history)
    boards = []
    for board in campaign.boards:
        specs = by_board[board.board_id]
        pending = [spec for spec in specs if spec.run_id not in stored]
        boards.append(
            PlannedBoard(board, len(specs), len(specs) - len(pending), estimate.of_runs(pending))
        )
    return Plan(
        campaign.campaign_id,
        _cells(campaign),
        tuple(boards),
        _wall_clock(boards),
        (*estimate.assumed(), *_about_the_rack(boards)),
    )


def _cells(campaign: Campaign) -> tuple[PlannedCell, ...]:
    names = campaign.model_names()
    order = {model.sha256: index for index, model in enumerate(campaign.models)}
    runs: Counter[Hashable] = Counter()
    boards: dict[Hashable, set[str]] = defaultdict(set)
    cells: dict[Hashable, RunSpec] = {}
    for spec in campaign.specs:
        key = (is_canary(spec), *_axes(spec))
        cells.setdefault(key, spec)
        runs[key] += 1
        boards[key].add(spec.board_id)
    planned = [
        PlannedCell(
            model=names[spec.model_sha256],
            runtime=spec.runtime,
            precision=spec.precision,
            threads=spec.threads,
            condition=spec.condition,
            canary=is_canary(spec),
            boards=len(boards[key]),
            runs=runs[key],
        )
        for key, spec in sorted(
            cells.items(),
            key=lambda item: (
                is_canary(item[1]),
                order[item[1].model_sha256],
                *(str(axis) for axis in _axes(item[1])),
            ),
        )
    ]
    return tuple(planned)


def _axes(spec: RunSpec) -> tuple[Hashable, ...]:
    return spec.model_sha256, spec.runtime, spec.precision, spec.threads, spec.condition


class _Estimate:
    """Adds up durations, and keeps count of what they rest on."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._runs_by_evidence: Counter[int] = Counter()
        self._changes = 0
        self._in_unknown_band = 0
        self._in_unreached_band = 0
        self._longest_run_s = 0.0
        self._longest_timeout_s = 0.0

    def of_runs(self, specs: Sequence[RunSpec]) -> Span:
        """Of one board's runs, one after the other."""
        span = Span()
        before: RunSpec | None = None
        for spec in specs:
            span += self._of_run(spec)
            span += self._of_pause(spec, changed=is_waited_for(before, spec))
            before = spec
        return span

    def _of_run(self, spec: RunSpec) -> Span:
        run_s, evidence = self._history.run_s(spec)
        self._runs_by_evidence[evidence] += 1
        if run_s is None:
            longest_s = min(spec.timeout_s, ASSUMED_LOAD_S + 2 * spec.stopping.max_seconds)
            self._longest_run_s = max(self._longest_run_s, longest_s)
            span = Span(min(ASSUMED_LOAD_S, longest_s), longest_s)
        else:
            span = Span(run_s, run_s)
        reached = self._history.reached(spec)
        if reached or not has_band(spec.condition):
            return span
        # Every run of a stretch tries anew to reach its band, within its own timeout_s.
        self._in_unknown_band += reached is None
        self._in_unreached_band += reached is False
        self._longest_timeout_s = max(self._longest_timeout_s, spec.timeout_s)
        return Span(span.low_s, max(span.high_s, spec.timeout_s))

    def _of_pause(self, spec: RunSpec, *, changed: bool) -> Span:
        pause_s = self._history.pause_s(spec.board_id, changed=changed)
        if pause_s is None:
            return Span()
        self._changes += changed
        return Span(pause_s, pause_s)

    def assumed(self) -> list[str]:
        """What the durations rest on, a sentence each."""
        unknown = self._runs_by_evidence[_BY_RULE]
        counted = [
            *(
                (self._runs_by_evidence[evidence], f"runs: as long as {words} was in the median")
                for evidence, words in enumerate(_EVIDENCE[:_BY_RULE])
            ),
            (
                unknown,
                f"runs, never measured with this stopping rule: {ASSUMED_LOAD_S:g} s to load, and "
                f"warm-up and timed loop up to max_seconds each ({self._longest_run_s:g} s in all "
                "at most)",
            ),
            (self._changes, "changes of heat or charge: the median of earlier ones"),
            (
                self._in_unknown_band,
                "runs in a band of heat or charge in which no board ever was: up to timeout_s "
                f"each, where it cannot be reached ({self._longest_timeout_s:g} s at most)",
            ),
            (
                self._in_unreached_band,
                "runs under a condition that was not reached last time: up to timeout_s "
                f"each ({self._longest_timeout_s:g} s at most)",
            ),
        ]
        return [f"{count} {words}" for count, words in counted if count]


def _about_the_rack(boards: Sequence[PlannedBoard]) -> list[str]:
    said = []
    groups = Counter(b.board.exclusive_group for b in boards if b.board.exclusive_group)
    shared = [name for name, count in groups.items() if count > 1]
    if shared:
        said.append(f"boards of one exclusive_group one after another ({', '.join(shared)})")
    if len(boards) > MAX_WORKERS:
        said.append(f"{MAX_WORKERS} boards at once")
    return [*said, "connecting, sending models and measuring again (--tries) are not counted"]


def _wall_clock(boards: Sequence[PlannedBoard]) -> Span:
    """Groups one board at a time, all else at once, as far as there are workers."""
    units: dict[Hashable, Span] = {}
    for planned in boards:
        unit = planned.board.exclusive_group or (planned.board.board_id,)
        units[unit] = units.get(unit, Span()) + planned.span
    lows, highs = [0.0] * MAX_WORKERS, [0.0] * MAX_WORKERS
    for span in units.values():
        heapq.heapreplace(lows, lows[0] + span.low_s)
        heapq.heapreplace(highs, highs[0] + span.high_s)
    return Span(max(lows), max(highs))
