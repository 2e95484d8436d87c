"""The p50 of the whole way beside pyperf's and a plain loop's, round by round.

Input: boards and models. Output: a row a model, with the medians and the paired ratios.
In every round each way times each model once on the same board, in a process of its own and in
random order. A bar takes the median of the ratios of rounds in which the host itself stayed the
same, told by a probe before and after each way; the ratio over all rounds stands beside it, and
that of 10th percentiles, which a busy machine disturbs less.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks import measurement_peers
from benchmarks.measurement_boards import SEED, Boards, ModelFile
from benchmarks.measurement_samples import keep, kept, ratio_interval
from benchmarks.result import Bar
from device_agents.contract import RunSpec, StoppingRule

VALUES = {"digits_mobilenet": 400, "digits_resnet": 400, "mobilenet_v2": 80}
"""Networks and how often a round times each: about half a second."""

WARMUPS = 20
WAYS = ("fleetcut", "pyperf", "loop")
PROBE = "probe"
PROBES = 15
CALM = 0.05
"""Probes of one round within this of each other: the host ran alike for all the ways."""

MOST_APART = 0.02
SETTLED = 0.01
"""Half the width of a ratio's interval at which rounds end, from the least number of them on."""

Row = dict[str, Any]
Round = Mapping[str, Mapping[str, Sequence[int]]]
"""network → way → latencies in ns; and under PROBE the host's, between the ways."""


class Probe:
    """How fast the host is just now: p50 in ns of a network in this process, on this CPU.

    A neighbour on the host's core slows a vCPU by a third for seconds, and no counter of the guest
    tells. Asked before and after each way, it tells rounds in which the ways met another host.
    """

    def __init__(self, model: ModelFile) -> None:
        self._session = measurement_peers.session(model.path)
        self._feed = measurement_peers.feed(self._session)

    def __call__(self) -> int:
        latency_ns = measurement_peers.timed_ns(self._session, self._feed, PROBES // 5, PROBES)
        return round(median(latency_ns))


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    """Binds this process and those it starts: a probe tells of the CPU that the ways are on."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True)
class P50Part:
    """What part one needs. board_id: a board at the host's own clock."""

    boards: Boards
    board_id: str
    models: tuple[ModelFile, ...]
    probes: tuple[Probe, ...]

    def round(self, number: int) -> Round:
        """One round, or what is stored of it. Raises HarnessError."""
        path = self.boards.folder / "p50" / f"{number:03d}.json.z"
        if (stored := kept(path)) is not None:
            return stored  # type: ignore[no-any-return]
        rng = random.Random(f"{SEED}:{number}")  # noqa: S311 - an order, not a secret
        found: dict[str, dict[str, Sequence[int]]] = {}
        for model, probe in zip(self.models, self.probes, strict=True):
            ways: dict[str, Sequence[int]] = {}
            probe_ns = [probe()]
            for way in rng.sample(WAYS, len(WAYS)):
                ways[way] = self._latency_ns(way, model, number)
                probe_ns.append(probe())
            found[model.name] = {**ways, PROBE: probe_ns}
        keep(path, found)
        return found

    def _latency_ns(self, way: str, model: ModelFile, number: int) -> Sequence[int]:
        count = VALUES[model.name]
        if way != "fleetcut":
            argv = ["python3", measurement_peers.__file__, way, str(model.path.resolve())]
            argv += ["--warmups", str(WARMUPS), "--values", str(count)]
            found: list[int] = json.loads(self.boards.run(self.board_id, argv))
            return found
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
        return record.latency_ns


def calm(ways: Mapping[str, Sequence[int]]) -> bool:
    """Whether the host was the same before, between and after the ways of one network."""
    return max(ways[PROBE]) <= (1 + CALM) * min(ways[PROBE])


def p50_rows(rounds: Sequence[Round]) -> list[Row]:
    """A row a model: p50 of each way, and fleetcut's over each peer's, medians over calm rounds.

    over_*_all: over all rounds, calm or not. Ratios are None where no round was calm.
    """
    rows: list[Row] = []
    for network in rounds[0]:
        every = [one[network] for one in rounds]
        those = [ways for ways in every if calm(ways)]
        row: Row = {"part": "p50", "network": network, "rounds": len(every), "calm": len(those)}
        for way in WAYS:
            row[f"{way}_ms"] = _typical([median(ways[way]) / 1e6 for ways in those])
        for peer in WAYS[1:]:
            row[f"over_{peer}"] = _typical(_ratios(those, peer, median))
            row[f"p10_over_{peer}"] = _typical(_ratios(those, peer, _p10))
            row[f"over_{peer}_interval"] = ratio_interval(
                [ways[peer] for ways in those], [ways[WAYS[0]] for ways in those]
            )
            row[f"over_{peer}_all"] = _typical(_ratios(every, peer, median))
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


def _ratios(
    rounds: Sequence[Mapping[str, Sequence[int]]],
    peer: str,
    typical: Callable[[Sequence[int]], float],
) -> list[float]:
    return [typical(ways[WAYS[0]]) / typical(ways[peer]) for ways in rounds]


def _typical(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _p10(latency_ns: Sequence[int]) -> float:
    return sorted(latency_ns)[len(latency_ns) // 10]


def p50_bars(rows: Sequence[Row]) -> list[Bar]:
    """Each model's p50 within 2 % of each peer's."""
    return [
        Bar(
            f"{row['network']}: p50 off {peer}'s, median of {row['calm']} calm rounds",
            math.inf if row[f"over_{peer}"] is None else abs(row[f"over_{peer}"] - 1),
            "<=", MOST_APART,
        )
        for row in rows
        for peer in WAYS[1:]
    ]  # fmt: skip
