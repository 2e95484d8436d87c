"""Shapes that a search must beat, found under the same judge and the same settings.

Input: as search.py takes, and scores of the channels where a baseline goes by importance. Output:
SearchResult of each baseline, without a history.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.pruning.importance import Scores
from compiler.pruning.judge import (
    Accuracy,
    FleetLatency,
    Judge,
    SearchResult,
    SearchSettings,
    as_widths,
    within_macs,
)
from compiler.pruning.objectives import MEAN_GIVEN, Objective
from compiler.pruning.widths import PruneSpace
from compiler.sampling import decode

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LEVELS = 64
"""Uniform fractions, and thresholds of importance, among which the smallest allowed is sought."""
STRIDES = (1, 2, 4)
"""Legal widths that the knapsack may take from a group at once: one may save no time by itself."""
DRAWS_PER_GENERATION = 64


def uniform(
    space: PruneSpace,
    fleet_ms: FleetLatency,
    accuracy: Accuracy,
    *,
    settings: SearchSettings,
    objective: Objective = MEAN_GIVEN,
) -> SearchResult:
    """The same fraction of every group, as small as the constraints allow.

    Bisects 64 levels, so it assumes that accuracy falls with the fraction; of the feasible shapes
    met on the way the best is the result. Raises SearchError where none is.
    """
    judge = Judge(space, fleet_ms, accuracy, settings, objective)
    judge_uniform(space, judge)
    return judge.result(())


def random_shapes(
    space: PruneSpace,
    fleet_ms: FleetLatency,
    accuracy: Accuracy,
    *,
    settings: SearchSettings,
    seed: int,
    objective: Objective = MEAN_GIVEN,
) -> SearchResult:
    """The best of random shapes: one level for all groups and a deviation of up to 0.3 for each.

    For every generation of the search 64 are drawn; accuracy is asked only of those whose objective
    beats the best so far, up to the same number of evaluations. Raises SearchError where no
    feasible one is met.
    """
    rng = np.random.default_rng(seed)
    judge = Judge(space, fleet_ms, accuracy, settings, objective)
    for _ in range(settings.generations):
        if judge.exhausted:
            break
        level = rng.uniform(0, 1, (DRAWS_PER_GENERATION, 1))
        own = rng.uniform(-0.3, 0.3, (DRAWS_PER_GENERATION, len(space.groups)))
        widths = decode(space, within_macs(space, judge, np.clip(level + own, 0, 1)))
        for row, value in zip(widths, judge.objective(widths), strict=True):
            if not judge.has_best or value < judge.best_objective_ms:
                judge.feasible(as_widths(row), float(value))
    return judge.result(())


def global_threshold(
    space: PruneSpace,
    fleet_ms: FleetLatency,
    accuracy: Accuracy,
    *,
    scores: Scores,
    settings: SearchSettings,
    objective: Objective = MEAN_GIVEN,
) -> SearchResult:
    """One threshold on the importance of all channels; the widths follow from it.

    With scores of importance.magnitude and norm 1 the global L1 pruning of 1608.08710. Bisects 64
    thresholds that cut equal shares of the channels. Raises SearchError, and ValueError for scores
    of another space.
    """
    ranked = _ranked(space, scores)
    judge = Judge(space, fleet_ms, accuracy, settings, objective)
    every = np.sort(np.concatenate(ranked))[::-1]
    thresholds = every[np.linspace(0, len(every) - 1, LEVELS).astype(int)]
    kept = np.stack([(group[None] >= thresholds[:, None]).mean(axis=1) for group in ranked], axis=1)
    _bisect(judge, decode(space, kept))
    return judge.result(())


def knapsack(
    space: PruneSpace,
    fleet_ms: FleetLatency,
    accuracy: Accuracy,
    *,
    scores: Scores,
    settings: SearchSettings,
    objective: Objective = MEAN_GIVEN,
) -> SearchResult:
    """The most importance within a budget of latency (HALP, 2110.10811), for every budget at once.

    Greedy from the dense shape: the group that loses the least importance per ms saved gives
    channels, the savings predicted anew after each step, for they depend on the neighbours'
    widths. That path holds a shape for each latency; the smallest that the constraints allow is
    found by bisection, as for the others. Raises SearchError, and ValueError for scores of another
    space.
    """
    judge = Judge(space, fleet_ms, accuracy, settings, objective)
    judge_knapsack(space, judge, scores)
    return judge.result(())


def judge_uniform(space: PruneSpace, judge: Judge) -> None:
    """Judge uniform shapes, the largest fraction first and then ever closer to the border."""
    levels = np.linspace(0, 1, LEVELS + 1)[1:]
    _bisect(judge, decode(space, np.repeat(levels[:, None], len(space.groups), axis=1)))


def judge_knapsack(space: PruneSpace, judge: Judge, scores: Scores) -> None:
    """Judge the knapsack's shapes, those of most latency first. Raises ValueError."""
    _bisect(judge, _greedy_path(space, judge, _ranked(space, scores))[::-1])


def _bisect(judge: Judge, shapes: IntArray) -> None:
    """Judge shapes (n, n_groups), ascending in size, towards the smallest that is feasible."""
    shapes = shapes[judge.within_macs(shapes)]
    objectives = judge.objective(shapes)
    low, high = -1, len(shapes) - 1
    if high < 0 or not judge.feasible(as_widths(shapes[high]), float(objectives[high])):
        return
    while high - low > 1:
        middle = (low + high) // 2
        if judge.feasible(as_widths(shapes[middle]), float(objectives[middle])):
            high = middle
        else:
            low = middle


def _ranked(space: PruneSpace, scores: Scores) -> list[FloatArray]:
    """Each group's scores, the most important channel first."""
    if [len(group) for group in scores] != [group.channels for group in space.groups]:
        raise ValueError(f"scores do not fit the groups of {space.network}")
    return [np.sort(np.asarray(group, dtype=np.float64))[::-1] for group in scores]


def _greedy_path(space: PruneSpace, judge: Judge, ranked: list[FloatArray]) -> IntArray:
    """From the dense shape down to the last that is predicted: (n, n_groups).

    A large space is walked in strides, so that no group takes many more than 64 steps.
    """
    legal = [np.array(w[:: -max(1, len(w) // LEVELS)]) for w in space.widths_by_group]
    importance = [np.concatenate([[0.0], np.cumsum(scores)]) for scores in ranked]
    places = [0] * len(legal)
    path = [np.array([widths[0] for widths in legal])]
    here_ms = float(judge.penalised_mean_ms(path[0][None])[0])
    while moves := _moves(legal, places):
        here = path[-1]
        options = np.repeat(here[None], len(moves), axis=0)
        lost = np.empty(len(moves))
        for row, (group, place) in enumerate(moves):
            options[row, group] = legal[group][place]
            lost[row] = importance[group][here[group]] - importance[group][options[row, group]]
        ms = judge.penalised_mean_ms(options)
        # What saves nothing comes last, the least important first; what nobody predicts, never.
        saved_ms = np.maximum(here_ms - ms, 1e-9 * here_ms)
        price = np.where(np.isfinite(ms), lost / saved_ms, np.inf)
        best = int(np.argmin(price))
        if not np.isfinite(price[best]):
            break
        group, place = moves[best]
        places[group] = place
        path.append(options[best])
        here_ms = float(ms[best])
    return np.stack(path)


def _moves(legal: Sequence[IntArray], places: Sequence[int]) -> list[tuple[int, int]]:
    """(group, its new place) for every stride down that a group can take."""
    return [
        (group, place + stride)
        for group, place in enumerate(places)
        for stride in STRIDES
        if place + stride < len(legal[group])
    ]
