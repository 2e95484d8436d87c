"""A designer taught within a budget of judged shapes, most of them where its answers will lie.

Input: measured boards, the proxy accuracy as a callable, a budget and the bound of later designs.
Output: a trained Designer that knows the true proxy accuracy of designs around that bound.

A part of the budget goes to random shapes, for a model of accuracy everywhere, and as much to the
optimizer's own designs; what is left, half of it at least, to searches for boards unlike each
other, whose results are near the best for whatever board lies between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compiler.amortised.accuracy import LEAST_SHAPES, AccuracyModel, fit_accuracy
from compiler.amortised.designer import Designer
from compiler.amortised.optimizer import Effort, Watch
from compiler.amortised.predictor import KnownDevices, pair_ms
from compiler.amortised.shapes import ShapeCosts
from compiler.amortised.spread import Spread, simulate
from compiler.pruning.judge import Accuracy, SearchSettings, as_widths
from compiler.pruning.search import search
from compiler.pruning.widths import PruneSpace, Widths
from compiler.sampling import sample_widths

MOST_APART = 64
"""Random shapes that are judged, and designs: a quarter of the budget each, and no more than so."""
SEARCHES = 12
"""For the measured boards and as many simulated ones as are missing. Each begins at the shapes that
are the best for it so far, so the first needs most: each may spend half of what is left."""
STARTS = 3
GENERATIONS = 60
BOARDS = 64
"""Simulated boards whose designs are judged."""

Tell = Callable[[str, int, int, str], None]
"""As fine_tuning.Observe."""


@dataclass(frozen=True)
class Budget:
    """n_judged: calls of the proxy accuracy in all. max_drop: of it, that designs will be allowed,
    a fraction. n_classes: of the data, for the accuracy of guessing.
    """

    n_judged: int
    max_drop: float
    n_classes: int


def teach(
    space: PruneSpace,
    known: KnownDevices,
    accuracy: Accuracy,
    budget: Budget,
    effort: Effort,
    seed: int,
    tell: Tell,
) -> Designer:
    """The same arguments teach the same designer. Raises CompilerError for too small a budget."""
    title = f"judge shapes of {space.network}"
    judged: dict[Widths, float] = {}

    def judge(shapes: Sequence[Widths]) -> None:
        for widths in shapes:
            judged[widths] = accuracy(widths)
            tell(title, len(judged), budget.n_judged, f"{judged[widths]:.1%}")

    judge([space.dense_widths])
    dense = judged[space.dense_widths]
    apart = min(MOST_APART, budget.n_judged // 4)
    judge(list(sample_widths(space, max(min(LEAST_SHAPES, budget.n_judged), apart), seed))[1:])
    for number, costs in enumerate(_unlike(known, seed)):
        n = -(-(budget.n_judged - apart - len(judged)) // 2)
        _search(space, costs, judged, judge, n, dense - budget.max_drop, seed + 100 + number)

    def model() -> AccuracyModel:
        shapes, values = list(judged), list(judged.values())
        return fit_accuracy(space, shapes, values, dense, budget.n_classes, seed)

    watch = _watch(f"design {space.network}", tell)
    designer = Designer(space, known, model(), Spread(), judged).train(effort, seed, watch)
    n = budget.n_judged - len(judged)
    judge(_designs(designer, dense - budget.max_drop, n, seed + 10))
    return designer.learn_accuracy(model(), judged, effort, seed, watch)


def _unlike(known: KnownDevices, seed: int) -> Tensor:
    """Costs of boards to search for, (SEARCHES, 1 + n_features): measured ones, then simulated."""
    _, simulated = simulate(known, Spread(), SEARCHES, seed + 99)
    return torch.cat([known.costs, simulated])[:SEARCHES]


def _search(
    space: PruneSpace,
    costs: Tensor,
    judged: Mapping[Widths, float],
    judge: Callable[[Sequence[Widths]], None],
    n: int,
    least_accuracy: float,
    seed: int,
) -> None:
    """One board's search, of which only the shapes that it judges are kept, n new ones at most."""
    shapes = ShapeCosts(space)
    most = len(judged) + n

    def latency(rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        ms = np.asarray(pair_ms(costs[None], shapes.exact(torch.tensor(rows))).numpy())
        return ms, np.zeros(len(rows))

    def accuracy(widths: Widths) -> float:
        if widths not in judged:
            if len(judged) >= most:
                return 0.0  # spent: what nobody has judged is refused
            judge([widths])
        return judged[widths]

    good = [widths for widths, found in judged.items() if found >= least_accuracy]
    ms, _ = latency(np.asarray(good, dtype=np.int64))
    search(
        space,
        latency,
        accuracy,
        settings=SearchSettings(
            max_accuracy_drop=judged[space.dense_widths] - least_accuracy,
            generations=GENERATIONS,
            spread_penalty=0.0,
        ),
        seed=seed,
        starts=[good[place] for place in np.argsort(ms, kind="stable")[:STARTS]],
    )


def _designs(designer: Designer, least_accuracy: float, n: int, seed: int) -> list[Widths]:
    """At most n designs of simulated boards, not judged yet, as near the bound as there are.

    Board by board and round by round, so that all kinds of boards are served.
    """
    vectors, _ = simulate(designer.known, designer.spread, BOARDS, seed)
    lists = [_nearest(designer, vector, least_accuracy) for vector in vectors.numpy()]
    found: dict[Widths, None] = {}
    for place in range(max(map(len, lists))):
        for of_board in lists:
            if place < len(of_board) and len(found) < n:
                found[of_board[place]] = None
    return list(found)


def _nearest(
    designer: Designer, vector: NDArray[np.float64], least_accuracy: float
) -> list[Widths]:
    rows = designer.candidates(vector)
    away = np.abs(designer.accuracy_of(rows) - least_accuracy)
    ordered = [as_widths(rows[place]) for place in np.argsort(away, kind="stable")]
    return [widths for widths in ordered if widths not in designer.judged]


def _watch(title: str, tell: Tell) -> Watch:
    def watch(done: int, total: int, loss: float) -> None:
        if done % 100 == 0 or done == total:
            tell(title, done, total, f"loss {loss:.4g}")

    return watch
