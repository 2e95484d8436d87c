"""The p50 of the whole way beside pyperf's and a plain loop's, round by round.

Input: boards and models. Output: a row a model, with the medians and the paired ratios.
In every round each way times each model once on the same board, in a process of its own and in
random order, so that what disturbs the machine for seconds disturbs all three. A bar takes the
median of the rounds' ratios: one round in which a core was slow for one way moves it little. The
ratio of 10th percentiles stands beside it, which a busy machine disturbs less.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
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
MOST_APART = 0.02
SETTLED = 0.01
"""Half the width of a ratio's interval at which rounds end, from the least number of them on."""

Row = dict[str, Any]
Round = Mapping[str, Mapping[str, Sequence[int]]]
"""network → way → latencies in ns."""


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
        rng = random.Random(f"{SEED}:{number}")  # noqa: S311 - an order, not a secret
        found: dict[str, dict[str, Sequence[int]]] = {}
        for model in self.models:
            ways = rng.sample(WAYS, len(WAYS))
            found[model.name] = {way: self._latency_ns(way, model, number) for way in ways}
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
