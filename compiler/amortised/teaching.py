"""A designer taught within a budget of judged shapes, half of them where its answers will lie.

Input: measured boards, the proxy accuracy as a callable, a budget and the bound of later designs.
Output: a trained Designer that knows the true proxy accuracy of designs around that bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.amortised.accuracy import LEAST_SHAPES, AccuracyModel, fit_accuracy
from compiler.amortised.designer import Designer
from compiler.amortised.optimizer import Effort, Watch
from compiler.amortised.predictor import KnownDevices
from compiler.amortised.spread import Spread, simulate
from compiler.pruning.judge import Accuracy, as_widths
from compiler.pruning.widths import PruneSpace, Widths
from compiler.sampling import sample_widths

ROUNDS = 2
"""Of judging designs and learning from them, each from half of what is left of the budget."""
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

    def judge(shapes: list[Widths]) -> None:
        for widths in shapes:
            judged[widths] = accuracy(widths)
            tell(title, len(judged), budget.n_judged, f"{judged[widths]:.1%}")

    judge([space.dense_widths])
    dense = judged[space.dense_widths]
    first = max(min(LEAST_SHAPES, budget.n_judged), budget.n_judged // 2)
    judge(list(sample_widths(space, first, seed))[1:])

    def model() -> AccuracyModel:
        shapes, values = list(judged), list(judged.values())
        return fit_accuracy(space, shapes, values, dense, budget.n_classes, seed)

    watch = _watch(f"design {space.network}", tell)
    designer = Designer(space, known, model(), Spread(), judged).train(effort, seed, watch)
    for number in range(ROUNDS):
        n = (budget.n_judged - len(judged)) // (ROUNDS - number)
        judge(_designs(designer, dense - budget.max_drop, n, seed + 10 + number))
        designer.learn_accuracy(model(), judged, effort, seed, watch)
    return designer


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
