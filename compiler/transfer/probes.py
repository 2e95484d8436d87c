"""Which models to measure on a new board: those that say most about all the others.

Input: a Pool, how many, and which are known already. Output: positions in it, most telling first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compiler.transfer.pool import FEATURES_SHARE, Pool

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_PROBES = 10
NOISE = 0.1
"""Variance of what neither another board nor a feature explains, over that of what they do."""


def choose_probes(pool: Pool, n: int = MOST_PROBES, known: ArrayLike = ()) -> IntArray:
    """Greedy reduction of the mean predictive variance over the pool (A-optimal design).

    A new board is taken for what the estimators take it for (estimators.Mixture): a level, a
    random mixture of the known boards' log-latencies and, with a smaller variance, of the
    features. What counts is the variance left on average over the pool once the probes are known
    (Cohn 1996, "Neural network exploration using optimal experiment design"), not that of the next
    probe itself, which is largest for odd models that say nothing of the others. Latencies of the
    target are not needed, so all probes can be measured at once.

    known: (m,) positions measured already. Returns (n,) distinct others. Raises ValueError for
    n < 1 or more than are left.
    """
    seen = np.asarray(known, dtype=np.int64)
    if not 1 <= n <= len(pool) - len(seen):
        raise ValueError(f"{n} probes of {len(pool)} models, {len(seen)} of them known")
    points = _points(pool)
    second_moment = points.T @ points / len(points)
    covariance = np.eye(points.shape[1])
    for row in seen.tolist():
        covariance = _given(covariance, points[row])
    taken = seen.tolist()
    for _ in range(n):
        along = points @ covariance
        variance = (along * points).sum(axis=1)
        gain = ((along @ second_moment) * along).sum(axis=1) / (NOISE + variance)
        gain[taken] = -1.0
        taken.append(int(np.argmax(gain)))
        covariance = _given(covariance, points[taken[-1]])
    return np.array(taken[len(seen) :], dtype=np.int64)


def _given(covariance: FloatArray, point: FloatArray) -> FloatArray:
    """Covariance of the coefficients once the latency at this point is measured as well."""
    along = covariance @ point
    return np.asarray(covariance - np.outer(along, along) / (NOISE + point @ along))


def _points(pool: Pool) -> FloatArray:
    """(n, d): models as coefficients of variance 1 see them; d ≤ n_proxies + n_features + 1.

    Left singular vectors times singular values have the columns' own covariance between models,
    in no more dimensions than there are.
    """
    blocks = [np.ones((len(pool), 1)), pool.log_boards / np.sqrt(len(pool.names))]
    if pool.x.shape[1]:
        blocks.append(pool.features * np.sqrt(FEATURES_SHARE / pool.x.shape[1]))
    left, singular, _ = np.linalg.svd(np.hstack(blocks), full_matrices=False)
    return np.asarray((left * singular)[:, singular > 1e-9 * singular[0]])
