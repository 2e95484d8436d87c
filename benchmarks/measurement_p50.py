"""The p50 of the whole way beside pyperf's and a plain loop's, round by round.

Input: boards and models. Output: a row a model, with the medians and the paired ratios.
In every round all ways time a model at once, on one CPU and in turns of 100 ms, each in a process
of its own, and only latencies of the time in which all were in their loops count: what disturbs
the machine for seconds disturbs all three alike, and what a turn interrupts is one inference of
many. A bar takes the median of the rounds' ratios. The ratio of 10th percentiles stands beside it,
which a busy machine disturbs less.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks import measurement_peers
from benchmarks.measurement_boards import Boards, ModelFile
from benchmarks.measurement_peers import Timed
from benchmarks.measurement_samples import keep, kept, ratio_interval
from benchmarks.result import Bar
from device_agents.contract import RunSpec, StoppingRule

VALUES = {"digits_mobilenet": 6000, "digits_resnet": 6000, "mobilenet_v2": 1000}
"""Networks and how often a round times each: about six seconds."""

HEAD_START_S = 0.7
"""Of fleetcut's way: each step of a connection and a session would wait for turns of the peers.
It synchronises nothing: ``together`` counts what ran together, and refuses a round without it."""

WARMUPS = 20
WAYS = ("fleetcut", "pyperf", "loop")
MOST_APART = 0.02
SETTLED = 0.01
"""Half the width of a ratio's interval at which rounds end, from the least number of them on."""

Row = dict[str, Any]
Round = Mapping[str, Mapping[str, Sequence[int]]]
"""network → way → latencies in ns."""


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    """Binds this process and those it starts to the last CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def in_turns() -> Iterator[None]:
    """Those on one CPU take turns of the kernel's SCHED_RR, 100 ms (sched(7)); that needs root.

    Without it the kernel's usual slices, of some milliseconds, interrupt more inferences.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        print("p50: not root, so without turns of 100 ms", file=sys.stderr)
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@dataclass(frozen=True)
class P50Part:
    """What part one needs. board_id: a board at the host's own clock."""

    boards: Boards
    board_id: str
    models: tuple[ModelFile, ...]

    def round(self, number: int) -> Round:
        """One round, or what is stored of it. Raises HarnessError."""
        path = self.boards.folder / "p50" / f"{number:03d}.json.z"
        if (stored := kept(path)) is not None:
            return stored  # type: ignore[no-any-return]
        found: dict[str, dict[str, list[int]]] = {}
        with ThreadPoolExecutor(len(WAYS)) as threads:
            for model in self.models:
                timing = {way: threads.submit(self._timed, way, model, number) for way in WAYS}
                found[model.name] = together({way: one.result() for way, one in timing.items()})
        keep(path, found)
        return found

    def _timed(self, way: str, model: ModelFile, number: int) -> Timed:
        count = VALUES[model.name]
        if way != "fleetcut":
            time.sleep(HEAD_START_S)
            argv = ["python3", measurement_peers.__file__, way, str(model.path.resolve())]
            argv += ["--warmups", str(WARMUPS), "--values", str(count)]
            return Timed(**json.loads(self.boards.run(self.board_id, argv)))
        spec = RunSpec(
            campaign_id=f"p50-{model.name}-{number}",
            board_id=self.board_id,
            model_sha256=model.sha256,
            runtime="ort",
            stopping=StoppingRule(
                warmup_min=WARMUPS,
                warmup_max=WARMUPS,
                samples_min=count,
                samples_max=count,
                max_seconds=60.0,
            ),
        )
        (record,) = self.boards.measure([spec], [model])
        if not record.latency_ns:
            raise RuntimeError(f"{model.name}: {record.error}")
        loop_begins = record.states[2]  # after those before and between warm-up and loop
        return Timed(loop_begins.monotonic_ns, list(record.latency_ns))


def together(timed: Mapping[str, Timed]) -> dict[str, list[int]]:
    """Of each way the latencies that lie wholly in the time in which all ways were in their loops.

    They follow each other without a gap: a turn of another is inside one of them.
    """
    ends_ns = {way: one.began_ns + np.cumsum(one.latency_ns) for way, one in timed.items()}
    first_ns = max(one.began_ns for one in timed.values())
    last_ns = min(int(ends[-1]) for ends in ends_ns.values())
    found = {
        way: [
            int(ns)
            for ns, end_ns in zip(one.latency_ns, ends_ns[way], strict=True)
            if end_ns - ns >= first_ns and end_ns <= last_ns
        ]
        for way, one in timed.items()
    }
    if not all(found.values()):
        raise RuntimeError("the ways were not in their loops at the same time")
    return found


def p50_rows(rounds: Sequence[Round]) -> list[Row]:
    """A row a model: p50 of each way, median over rounds, and fleetcut's over each peer's."""
    rows: list[Row] = []
    for network in rounds[0]:
        row: Row = {"part": "p50", "network": network, "rounds": len(rounds)}
        by_round = [one[network] for one in rounds]
        for way in WAYS:
            row[f"{way}_ms"] = median(median(ways[way]) for ways in by_round) / 1e6
        for peer in WAYS[1:]:
            for name, typical in ((f"over_{peer}", median), (f"p10_over_{peer}", _p10)):
                row[name] = median(typical(w[WAYS[0]]) / typical(w[peer]) for w in by_round)
            row[f"over_{peer}_interval"] = ratio_interval(
                [ways[peer] for ways in by_round], [ways[WAYS[0]] for ways in by_round]
            )
        rows.append(row)
    return rows


def settled(rounds: Sequence[Round]) -> bool:
    """Whether each ratio's interval is within SETTLED of its median: more rounds tell no more.

    Asked of the interval's width alone, so it does not choose what the ratio comes to.
    """
    for row in p50_rows(rounds):
        for peer in WAYS[1:]:
            interval = row[f"over_{peer}_interval"]
            if interval is None or interval[1] - interval[0] > 2 * SETTLED:
                return False
    return True


def _p10(latency_ns: Sequence[int]) -> float:
    return sorted(latency_ns)[len(latency_ns) // 10]


def p50_bars(rows: Sequence[Row]) -> list[Bar]:
    """Each model's p50 within 2 % of each peer's."""
    return [
        Bar(
            f"{row['network']}: p50 off {peer}'s, median of {row['rounds']} rounds "
            f"(ratio {row[f'over_{peer}']:.4f})",
            abs(row[f"over_{peer}"] - 1), "<=", MOST_APART,
        )
        for row in rows
        for peer in WAYS[1:]
    ]  # fmt: skip
