"""The fastest shape for the fleet that keeps its accuracy: negatively correlated search.

Input: a PruneSpace, predicted fleet latency and accuracy as callables, settings and a seed.
Output: SearchResult; the same arguments give the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from compiler.pruning.baselines import judge_knapsack, judge_uniform
from compiler.pruning.importance import Scores
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
from compiler.pruning.objectives import MEAN_GIVEN, Objective
from compiler.pruning.refine import refine
from compiler.pruning.resume import SearchCheckpoint, SearchFile, Snapshot, identity
from compiler.pruning.widths import PruneSpace, Widths
from compiler.sampling import decode

__all__ = [
    "Accuracy",
    "FleetLatency",
    "Progress",
    "SearchError",
    "SearchResult",
    "SearchSettings",
    "search",
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
    objective: Objective = MEAN_GIVEN,
    starts: Sequence[Widths] = (),
    scores: Scores | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: SearchCheckpoint | None = None,
) -> SearchResult:
    """Lowest objective of ``ms + spread_penalty · spread_ms`` under the settings' constraints.

    Never worse than the dense shape or the uniform ones: they are judged first, and everything
    begins at them, or at one of starts, legal shapes judged next, or where there are scores of the
    channels at the knapsack's shapes (baselines.py), all within the same budget. accuracy is asked
    only of shapes that would otherwise be accepted, once each.

    checkpoint: killed and called again with the same arguments, the search goes on from its file
    and ends in the result of an unbroken one; progress is then told of the rest. Raises SearchError
    where max_macs excludes the dense shape and neither a uniform nor a random shape within it keeps
    the accuracy.
    """
    file = None
    if checkpoint is not None:
        begins = [list(map(list, starts)), scores]
        which = identity(space, fleet_ms, settings, objective, seed, checkpoint.accuracy_of, begins)
        file = SearchFile(checkpoint, which)
        accuracy = file.remembering(accuracy)
    run = _Run(space, Judge(space, fleet_ms, accuracy, settings, objective), settings, seed)
    if file is not None and file.snapshot is not None:
        run.restore(file.snapshot, file.paid)
    else:
        run.begin(starts, scores)
    while not run.finished:
        run.generation()
        if file is not None and file.due(run.ncs.generation, run.finished):
            file.save(run.snapshot())
        if progress is not None:
            progress(run.history[-1])
    judge = run.judge
    refine(
        space,
        judge.best_widths,
        judge.objective,
        lambda rows: judge.within_macs(rows) & judge.enough_macs(rows),
        judge.feasible,
        patience=settings.refine_patience,
        seed=seed,
    )
    return judge.result(tuple(run.history))


class _Run:
    """The generations of one search."""

    def __init__(
        self, space: PruneSpace, judge: Judge, settings: SearchSettings, seed: int
    ) -> None:
        self.space = space
        self.judge = judge
        self.settings = settings
        self.rng = np.random.default_rng(seed)
        self.history: list[Progress] = []

    def begin(self, starts: Sequence[Widths], scores: Scores | None) -> None:
        for widths in starts:
            value = float(self.judge.objective(np.asarray([widths], dtype=np.int64))[0])
            self.judge.feasible(widths, value)
        if scores is not None:
            judge_knapsack(self.space, self.judge, scores)
        x = _starts(self.space, self.judge, self.settings, self.rng)
        self.ncs = self._optimiser(x, self.judge.objective(decode(self.space, x)))

    def restore(self, snapshot: Snapshot, accuracies: Mapping[Widths, float]) -> None:
        self.judge.restore(snapshot.judge, accuracies)
        nowhere = np.zeros((self.settings.population, len(self.space.groups)))
        self.ncs = self._optimiser(nowhere, nowhere[:, 0])
        self.ncs.restore(snapshot.optimiser)
        self.rng.bit_generator.state = dict(snapshot.random)
        self.history = [Progress(**point) for point in snapshot.history]

    def snapshot(self) -> Snapshot:
        return Snapshot(
            judge=self.judge.state,
            optimiser=self.ncs.state,
            random=dict(self.rng.bit_generator.state),
            history=tuple(asdict(point) for point in self.history),
        )

    @property
    def finished(self) -> bool:
        return self.ncs.generation >= self.settings.generations or self.judge.exhausted

    def generation(self) -> None:
        judge, ncs = self.judge, self.ncs
        trials = within_macs(self.space, judge, ncs.ask())
        widths = decode(self.space, trials)
        fitness = judge.objective(widths)
        worth = ncs.worth(trials, fitness) | (fitness < judge.best_objective_ms)
        accepted = [
            bool(wanted) and judge.feasible(as_widths(row), float(value))
            for wanted, row, value in zip(worth, widths, fitness, strict=True)
        ]
        ncs.tell(trials, fitness, np.asarray(accepted))
        best_ms = judge.mean_ms(judge.best_widths)
        self.history.append(Progress(ncs.generation, best_ms, judge.n_accuracy_evaluations))

    def _optimiser(self, x: FloatArray, fitness: FloatArray) -> NegativelyCorrelatedSearch:
        return NegativelyCorrelatedSearch(
            x,
            fitness,
            self.rng,
            generations=self.settings.generations,
            sigma=self.settings.sigma,
            epoch=self.settings.epoch,
            step_factor=self.settings.step_factor,
        )


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
