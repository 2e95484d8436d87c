"""Ridge whose strength, and the shares of several blocks of columns, are weighed by the evidence.

Input: blocks of columns and a few targets. Output: predictions of any row. Ten targets are too few
to choose a strength by leave-one-out errors; the marginal likelihood uses all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NOISES = np.logspace(-5, 1, 13)
"""Variance of a measurement over that of a coefficient."""
ROUNDS = 1
"""Of weights. Each costs a whole fit, and on measured boards the second changed little."""


@dataclass(frozen=True)
class EvidenceRidge:
    """``y = mean + Σ_b block_b · w_b``. coefficients: (d_b,) of each block."""

    mean: float
    coefficients: tuple[FloatArray, ...]

    def predict(self, blocks: Sequence[FloatArray]) -> FloatArray:
        """(n,) in y's unit, for the blocks (n, d_b) in the order of the fit."""
        parts = zip(blocks, self.coefficients, strict=True)
        return np.asarray(self.mean + sum(block @ weights for block, weights in parts))


def fit_evidence(
    blocks: Sequence[FloatArray], shares: Sequence[Sequence[float]], y: FloatArray
) -> EvidenceRidge:
    """Bayesian linear regression, averaged over how much each block may explain and the noise.

    Coefficients of block b have the prior variance ``share_b / d_b``, times a scale that is
    integrated out as the mean is; every choice of shares and noise counts by its marginal
    likelihood (MacKay 1992, "Bayesian interpolation"). An average over choices is again linear, so
    it costs nothing at prediction; with few targets it is better than the likeliest choice alone.

    A disturbed measurement must not bend the rest: targets that the others put more than 1.345
    spreads elsewhere are weighted down (Huber).

    blocks: (m, d_b) each, columns of about unit deviation. shares: the choices, a figure ≥ 0 for
    each block. y: (m,), m ≥ 2.
    """
    weight = np.ones(len(y))
    for _ in range(ROUNDS):
        _, left_out = _fit_weighted(blocks, shares, y, weight)
        apart = np.abs(left_out)
        limit = max(1.345 * 1.4826 * float(np.median(apart)), 1e-9)
        weight = limit / np.maximum(apart, limit)
    return _fit_weighted(blocks, shares, y, weight)[0]


def _fit_weighted(
    blocks: Sequence[FloatArray],
    shares: Sequence[Sequence[float]],
    y: FloatArray,
    weight: FloatArray,
) -> tuple[EvidenceRidge, FloatArray]:
    """The fit, and (m,) each target less what the others say of it. weight: (m,), 1/variance."""
    root = np.sqrt(weight)
    scaled = [block * (root / np.sqrt(max(block.shape[1], 1)))[:, None] for block in blocks]
    kernels = np.stack([block @ block.T for block in scaled])
    costs, means, duals, residuals = [], [], [], []
    for share in shares:
        values, vectors = np.linalg.eigh(np.tensordot(np.asarray(share), kernels, axes=1))
        total = np.maximum(values, 0) + NOISES[:, None]  # (n_noises, m)
        ones, seen = vectors.T @ root, vectors.T @ (root * y)
        precision = (ones * ones / total).sum(axis=1)
        mean = (ones * seen / total).sum(axis=1) / precision
        rest = seen - mean[:, None] * ones
        fit = np.maximum((rest * rest / total).sum(axis=1), 1e-300)
        costs.append((len(y) - 1) * np.log(fit) + np.log(total).sum(axis=1) + np.log(precision))
        means.append(mean)
        duals.append((rest / total) @ vectors.T)
        # Left-out residuals of a Gaussian process with a free mean: P y over P's diagonal.
        level = (ones / total) @ vectors.T
        diagonal = (1 / total) @ (vectors * vectors).T - level * level / precision[:, None]
        residuals.append(duals[-1] / np.maximum(diagonal, 1e-300))
    cost = np.array(costs)  # (n_shares, n_noises)
    chance = np.exp((cost.min() - cost) / 2)
    chance /= chance.sum()
    by_share = np.einsum("sl,slm->sm", chance, np.array(duals))
    coefficients = tuple(
        np.asarray(
            block.T @ (np.asarray(shares)[:, b] @ by_share) / np.sqrt(max(block.shape[1], 1))
        )
        for b, block in enumerate(scaled)
    )
    left_out = np.einsum("sl,slm->m", chance, np.array(residuals)) / root
    return EvidenceRidge(float((chance * np.array(means)).sum()), coefficients), left_out
