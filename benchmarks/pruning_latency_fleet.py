"""One plan for a fleet whose boards differ in more than a scale factor, beside each board's own.

Input: a Bench. Output: rows, a plan each, judged on the fleet's mean and 95th percentile. Three
kinds of boards: a slower clock, a memory-bandwidth-bound one (both SIMULATED by the virtual
rack's clockshim around real inferences of onnxruntime), and this machine with LiteRT.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pruning_latency_search import BATCH, SAMPLE_ROUNDS, Bench, Board, Study
from benchmarks.result import Bar
from benchmarks.stopwatch_worker import StopwatchWorker
from compiler.pruning.objectives import BoardRatios, make_objective
from compiler.pruning.widths import Widths
from harness.virtual.clock import PAGE_ENV, ClockPage, build_shim, require_touched_pages

FloatArray = NDArray[np.float64]

CLOCK_STRETCH = 1.6
MEMORY_BYTES_PER_S = 4_000_000_000
CACHE_BYTES = 1 * 1024**2
"""A board with a small last-level cache and one channel of memory."""
KINDS = {"clock-bound (simulated)": 0.4, "memory-bound (simulated)": 0.3, "LiteRT": 0.3}
"""Share of the fleet."""
BOARDS = 400
SPREAD = 0.05
"""Standard deviation between boards of one kind, of the logarithm (simulated)."""
ROUNDS = 41
ELITE_ROUNDS = 4
"""For each plan: five plans learn from what all measured."""


def fleet_contest(bench: Bench, seed: int, quick: bool) -> tuple[list[dict[str, Any]], list[Bar]]:
    """The plans for the fleet's mean and p95, and the best plan of each kind of board alone."""
    ratios = fleet_ratios(seed)
    fleet = BoardRatios(list(ratios.values()))
    with boards(bench) as kinds:
        study = Study(bench, kinds, seed=seed, rounds=ELITE_ROUNDS, quick=quick)
        plans: dict[str, Widths] = {"dense": bench.space.dense_widths}
        for position, kind in enumerate(kinds):
            plans[f"best for {kind}"] = study.find_shape(only(position)).widths
        plans["fleet mean"] = study.find_shape(make_objective("mean", fleet)).widths
        plans["fleet p95"] = study.find_shape(make_objective("p95", fleet)).widths
        shapes = list(plans.values())
        ms = np.stack([final_p50_ms(board, shapes) for board in kinds.values()], axis=1)
    mean, p95 = fleet.mean_ms(ms), fleet.p95_ms(ms)
    rows = [
        {
            "network": bench.network,
            "runtime": "mixed fleet",
            "contender": name,
            "gmacs": bench.space.macs(widths) / 1e9,
            "fleet_mean_ms": float(mean[i]),
            "fleet_p95_ms": float(p95[i]),
            "p50_ms_by_kind": dict(zip(kinds, ms[i].tolist(), strict=True)),
            "widths": list(widths),
            "seed": seed,
        }
        for i, (name, widths) in enumerate(plans.items())
    ]
    return rows, _bars(bench.network, rows)


def _bars(network: str, rows: Sequence[Mapping[str, Any]]) -> list[Bar]:
    by_name = {row["contender"]: row for row in rows}
    single = [row for name, row in by_name.items() if name.startswith("best for")]
    return [
        Bar(
            f"{network}, mixed fleet: {figure} of the fleet's plan over the best single board's",
            by_name[plan][figure] / min(row[figure] for row in single),
            "<=",
            1.0,
        )
        for plan, figure in (("fleet mean", "fleet_mean_ms"), ("fleet p95", "fleet_p95_ms"))
    ]


def fleet_ratios(seed: int) -> dict[str, FloatArray]:
    """Each kind's boards as factors on its latency; simulated."""
    rng = np.random.default_rng(seed)
    return {
        kind: np.exp(rng.normal(0, SPREAD, round(share * BOARDS))) for kind, share in KINDS.items()
    }


def only(position: int) -> Any:
    """The mean of one kind of board alone."""
    from compiler.pruning.objectives import Objective

    def its(ms: FloatArray) -> FloatArray:
        return np.asarray(ms[:, position])

    return Objective(f"only board {position + 1}", its, its)


@contextmanager
def boards(bench: Bench) -> Iterator[dict[str, Board]]:
    """The kinds of KINDS as stopwatches, each in a process under its own conditions."""
    require_touched_pages()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleetcut-bench-")))
        shim = build_shim(folder)

        def kind(name: str, runtime: str, stretch: float, memory: int | None) -> Board:
            page = ClockPage(folder / f"{name}.page")
            stack.callback(page.close)
            page.stretch = stretch
            page.set_shape(memory_bytes_per_s=memory, cache_bytes=CACHE_BYTES, malloc_ns=0)
            env = {**os.environ, "LD_PRELOAD": str(shim), PAGE_ENV: str(page.path)}
            worker = stack.enter_context(StopwatchWorker(env))

            def p50_ms(shapes: Sequence[Widths]) -> FloatArray:
                parts = []
                for at in range(0, len(shapes), BATCH):
                    models = [bench.model(runtime, widths) for widths in shapes[at : at + BATCH]]
                    ms = bench.quiet(
                        lambda models=models: worker.interleaved_ms(  # type: ignore[misc]
                            runtime, [*models, bench.canary(runtime)], SAMPLE_ROUNDS
                        ),
                        name,
                    )
                    parts.append(np.median(ms, axis=0))
                return np.concatenate(parts)

            return p50_ms

        names = list(KINDS)
        yield {
            names[0]: kind("clock", "ort", CLOCK_STRETCH, None),
            names[1]: kind("memory", "ort", 1.0, MEMORY_BYTES_PER_S),
            names[2]: kind("litert", "litert", 1.0, None),
        }


def final_p50_ms(board: Board, shapes: Sequence[Widths]) -> FloatArray:
    """(n_shapes,): the median of several measurements, none of which chose the plans."""
    return np.asarray(np.median([board(shapes) for _ in range(ROUNDS // SAMPLE_ROUNDS)], axis=0))
