"""Accuracy of any shape from a few judged ones: smooth, and never better for less width.

Input: width vectors and their accuracies, by whatever proxy. Output: AccuracyModel: accuracy of
kept fractions, with gradients, and how far it is off on shapes that it did not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import spearmanr
from torch import Tensor

from compiler.errors import CompilerError
from compiler.pruning.widths import PruneSpace, Widths

FloatArray = NDArray[np.float64]

POWERS = (1, 2, 4)
"""Of the share of channels that a group loses: the first cost little, the last much."""
N_FOLDS = 5
LEAST_SHAPES = 20


@dataclass(frozen=True)
class AccuracyModel:
    """``accuracy = floor + (dense - floor) · exp(-Σ_g Σ_p a_gp · (1 - kept_g)^p)``, a ≥ 0.

    dense, floor: accuracy of the dense network and of guessing, fractions 0..1. loss: (n_groups,
    len(POWERS)). cv_error, cv_srcc: mean absolute error, and Spearman's correlation, of shapes
    left out of its five folds.
    """

    dense: float
    floor: float
    loss: tuple[tuple[float, ...], ...]
    cv_error: float
    cv_srcc: float

    def log_loss(self, kept: Tensor) -> Tensor:
        """(n, n_groups) fractions of the dense widths → (n,): the exponent, ≥ 0, negated."""
        gone = (1 - kept).clamp(min=0)
        terms = torch.stack([gone**power for power in POWERS], dim=2)
        loss = torch.tensor(self.loss, dtype=kept.dtype, device=kept.device)
        return (terms * loss).sum(dim=(1, 2))

    def accuracy(self, kept: Tensor) -> Tensor:
        """(n, n_groups) fractions of the dense widths → (n,), floor..dense."""
        return self.floor + (self.dense - self.floor) * torch.exp(-self.log_loss(kept))


def fit_accuracy(
    space: PruneSpace,
    widths: Sequence[Widths],
    accuracies: Sequence[float],
    dense_accuracy: float,
    n_classes: int,
    seed: int,
) -> AccuracyModel:
    """Least squares with coefficients ≥ 0 on the exponent (Lawson and Hanson's NNLS).

    Each shape weighs by the slope of its accuracy: what a small error of the exponent costs.
    Raises CompilerError for fewer than LEAST_SHAPES shapes.
    """
    if len(widths) < LEAST_SHAPES or len(widths) != len(accuracies):
        raise CompilerError(
            f"{space.network}: {len(accuracies)} accuracies of {len(widths)} shapes; "
            f"{LEAST_SHAPES} are needed. Next: allow more search.max_accuracy_evaluations"
        )
    kept = np.asarray(widths, dtype=np.float64) / np.asarray(space.dense_widths)
    design = np.concatenate([(1 - kept) ** power for power in POWERS], axis=1)
    floor = 1 / n_classes
    span = max(dense_accuracy - floor, 1e-6)
    left = np.clip((np.asarray(accuracies) - floor) / span, 1e-2, 1.0)

    def fitted(rows: NDArray[np.bool_]) -> FloatArray:
        weight = left[rows][:, None]
        solution, _ = nnls(
            np.vstack([design[rows] * weight, 1e-3 * np.eye(design.shape[1])]),
            np.concatenate([-np.log(left[rows]) * weight[:, 0], np.zeros(design.shape[1])]),
        )
        return np.asarray(solution)

    fold = np.random.default_rng(seed).permutation(len(design)) % N_FOLDS
    out = np.empty(len(design))
    for number in range(N_FOLDS):
        out[fold == number] = np.exp(-design[fold == number] @ fitted(fold != number))
    whole = fitted(np.ones(len(design), dtype=bool)).reshape(len(POWERS), -1).T
    return AccuracyModel(
        dense=dense_accuracy,
        floor=floor,
        loss=tuple(tuple(map(float, row)) for row in whole),
        cv_error=float(np.mean(np.abs(out - left)) * span),
        cv_srcc=float(spearmanr(out, left).statistic),
    )
