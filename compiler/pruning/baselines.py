"""Shapes that a search must beat, found under the same judge and the same settings.

Input: as search.py takes. Output: SearchResult of each baseline.
"""

from __future__ import annotations

import numpy as np

from compiler.pruning.judge import (
    Accuracy,
    FleetLatency,
    Judge,
    SearchResult,
    SearchSettings,
    as_widths,
)
from compiler.pruning.widths import PruneSpace
from compiler.sampling import decode


def uniform(
    space: PruneSpace,
    fleet_ms: FleetLatency,
    accuracy: Accuracy,
    *,
    settings: SearchSettings,
) -> SearchResult:
    """The baseline: the same fraction of every group, as small as the constraints allow.

    Bisects 64 levels, so it assumes that accuracy falls with the fraction; of the feasible shapes
    met on the way the fastest is the result. Raises SearchError where none is.
    """
    judge = Judge(space, fleet_ms, accuracy, settings)
    judge_uniform(space, judge)
    return judge.result(())


def judge_uniform(space: PruneSpace, judge: Judge) -> None:
    """Judge uniform shapes, the largest fraction first and then ever closer to the border."""
    levels = np.linspace(0, 1, 65)[1:]
    shapes = decode(space, np.repeat(levels[:, None], len(space.groups), axis=1))
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
