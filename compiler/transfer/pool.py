"""The models that a new board is asked about, and all that is known of them before it is measured.

Input: latencies on other boards and features. Output: Pool, with both as an estimator sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FEATURES_SHARE = 0.1
"""Of features beside the other boards in what makes a new board differ: most of it, boards that
were measured have shown already."""


@dataclass(frozen=True, eq=False)
class Pool:
    """n models. proxies_ms: (n, n_proxies), > 0, each of the other boards' latencies.

    x: (n, n_features), finite, as features.physics_features; without columns where nothing but
    latencies is known. names: (n_proxies,). Raises ValueError where these do not hold.
    """

    proxies_ms: FloatArray
    x: FloatArray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        ms, x = self.proxies_ms, self.x
        if ms.ndim != 2 or x.ndim != 2 or len(ms) != len(x) or ms.shape[1] != len(self.names):
            raise ValueError(f"proxies {ms.shape}, {len(self.names)} names, features {x.shape}")
        if not ms.size:
            raise ValueError("no model or no proxy")
        if not (np.isfinite(ms) & (ms > 0)).all() or not np.isfinite(x).all():
            raise ValueError("a proxy's latency is not > 0, or a feature is not finite")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: IntArray) -> Pool:
        """The models of these rows alone."""
        return Pool(self.proxies_ms[rows], self.x[rows], self.names)

    @cached_property
    def log_boards(self) -> FloatArray:
        """(n, n_proxies): log latencies, each board's with mean 0 and deviation 1 over the pool."""
        return standardised(np.log(self.proxies_ms))

    @cached_property
    def features(self) -> FloatArray:
        """(n, n_features): each with mean 0 and deviation 1 over the pool."""
        return standardised(self.x)


def standardised(columns: FloatArray) -> FloatArray:
    """Each of the columns (n, p) less its mean, over its deviation; 0 where it never varies."""
    centred = columns - columns.mean(axis=0)
    spread = centred.std(axis=0)
    flat = spread <= 1e-12 * np.maximum(np.abs(columns).max(axis=0), 1)
    return np.asarray(np.where(flat, 0.0, centred / np.where(flat, 1.0, spread)))
