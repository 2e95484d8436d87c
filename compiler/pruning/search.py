"""The fastest shape for the fleet that keeps its accuracy: negatively correlated search.

Input: a PruneSpace, predicted fleet latency and accuracy as callables, settings and a seed.
Output: SearchResult; the same arguments give the same result.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from compiler.pruning.baselines import judge_uniform, uniform
from compiler.pruning.judge import (
    Accuracy,
    FleetLatency,
    Judge,
    Progress,
    SearchError,
    SearchResult,
    SearchSettings,
    as_widths,
    within_macs,
)
from compiler.pruning.ncs import NegativelyCorrelatedSearch
from compiler.pruning.refine import refine
from compiler.pruning.widths import PruneSpace
from compiler.sampling import decode

__all__ = [
    "Accuracy",
    "FleetLatency",
    "Progress",
    "SearchError",
    "SearchResult",
    "SearchSettings",
    "search",
    "uniform",
]

FloatArray = NDArray[np.float64]

MAX_DRAWS = 40
"""Populations drawn at most until a first feasible shape is met."""


def search(
    space: PruneSpace,
    fleet_ms: FleetLatency,
    accuracy: Accuracy,
    *,
    settings: SearchSettings,
    seed: int,
    progress: Callable[[Progress], None] | None = None,
) -> SearchResult:
    """Lowest ``mean_ms + spread_penalty · spread_ms`` under the constraints of the settings.

    Never worse than the dense shape or the uniform ones: they are judged first, and everything
    begins at them. accuracy is asked only of shapes that would otherwise be accepted, once each.
    Raises SearchError where max_macs excludes the dense shape and neither a uniform nor a random
    shape within it keeps the accuracy.
    """
    rng = np.random.default_rng(seed)
    judge = Judge(space, fleet_ms, accuracy, settings)
    x = _starts(space, judge, settings, rng)
    ncs = NegativelyCorrelatedSearch(
        x,
        judge.objective(decode(space, x)),
        rng,
        generations=settings.generations,
        sigma=settings.sigma,
        epoch=settings.epoch,
        step_factor=settings.step_factor,
    )
    history: list[Progress] = []
    while ncs.generation < settings.generations and not judge.exhausted:
        trials = within_macs(space, judge, ncs.ask())
        widths = decode(space, trials)
        fitness = judge.objective(widths)
        worth = ncs.worth(trials, fitness) | (fitness < judge.best_objective_ms)
        accepted = [
            bool(wanted) and judge.feasible(as_widths(row), float(value))
            for wanted, row, value in zip(worth, widths, fitness, strict=True)
        ]
        ncs.tell(trials, fitness, np.asarray(accepted))
        best_ms = judge.mean_ms(judge.best_widths)
        history.append(Progress(ncs.generation, best_ms, judge.n_accuracy_evaluations))
        if progress is not None:
            progress(history[-1])
    refine(
        space,
        judge.best_widths,
        judge.objective,
        lambda rows: judge.within_macs(rows) & judge.enough_macs(rows),
        judge.feasible,
        patience=settings.refine_patience,
        seed=seed,
    )
    return judge.result(tuple(history))


def _starts(
    space: PruneSpace, judge: Judge, settings: SearchSettings, rng: np.random.Generator
) -> FloatArray:
    """The first population, all feasible: the best shape known, and random ones drawn to it.

    Where no uniform shape is feasible, random ones are drawn until one is, MAX_DRAWS times at most.
    A random vector that loses too much accuracy goes half way towards the best shape, up to four
    times. Half of the evaluations at most are spent here.
    """
    judge_uniform(space, judge)
    dense = np.asarray(space.dense_widths, dtype=np.float64)
    random = rng.uniform(0, 1, (settings.population, len(dense)))
    for _ in range(MAX_DRAWS):
        if judge.has_best or judge.exhausted:
            break
        draw = rng.uniform(0, 1, (settings.population, len(dense)))
        for row in within_macs(space, judge, draw):
            _judge_one(space, judge, row)
    base = np.asarray(judge.best_widths) / dense
    rows = [base]
    for row in random[1:]:
        share, point = 1.0, base
        while share > 1 / 16 and judge.n_accuracy_evaluations < (
            settings.max_accuracy_evaluations / 2
        ):
            share /= 2
            candidate = within_macs(space, judge, (base + share * (row - base))[None])[0]
            if _judge_one(space, judge, candidate):
                point = candidate
                break
        rows.append(point)
    return np.stack(rows)


def _judge_one(space: PruneSpace, judge: Judge, kept: FloatArray) -> bool:
    widths = decode(space, kept[None])
    return judge.feasible(as_widths(widths[0]), float(judge.objective(widths)[0]))
