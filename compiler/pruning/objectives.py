"""What a fleet wants of a shape: a low mean, a low 95th percentile, or many boards within an SLO.

Input: each cluster's latency, (n_shapes, n_clusters), and how its boards compare with it. Output:
one number a shape, lower is better; and the three figures by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

ObjectiveName = Literal["mean", "p95", "slo"]

SLO_BAND = 0.01
"""Half the width, as a fraction, in which the search counts a board as partly within the SLO:
less than surrogates err, and a share without steps can be descended."""
SLO_TIE_BREAK = 0.01
"""What the mean counts beside the share: 1 % of the boards outweighs a whole SLO of mean."""


@dataclass(frozen=True)
class Objective:
    """A scalar to be minimised, in ms, with the mean that every search tells beside it.

    name and slo_ms say which one it is: they are part of what identifies a search. value, mean_ms:
    latencies of the clusters (n, n_clusters) → (n,).
    """

    name: str
    value: Callable[[FloatArray], FloatArray]
    mean_ms: Callable[[FloatArray], FloatArray]
    slo_ms: float | None = None


def _as_it_is(ms: FloatArray) -> FloatArray:
    return ms


MEAN_GIVEN = Objective("mean", _as_it_is, _as_it_is)
"""Of latencies (n,) that are the fleet's mean already."""


class BoardRatios:
    """The boards of a fleet, cluster by cluster, as factors on their cluster's latency.

    ratios: for each cluster those of its boards, > 0, in any order. Every board counts alike. Of
    10⁵ boards a thousand shapes take below a second: nothing here is of boards × shapes.
    Raises ValueError for a cluster without boards, and for ratios that are not positive numbers.
    """

    def __init__(self, ratios: Sequence[FloatArray]) -> None:
        self._ratios = [np.sort(np.asarray(r, dtype=np.float64)) for r in ratios]
        if not self._ratios or any(
            not len(r) or not np.isfinite(r[-1]) or r[0] <= 0 for r in self._ratios
        ):
            raise ValueError("every cluster has boards, and their ratios are positive numbers")
        self._sums = [np.concatenate([[0.0], np.cumsum(r)]) for r in self._ratios]
        self.n_boards = sum(len(r) for r in self._ratios)
        self._mean_weights = np.array([s[-1] for s in self._sums]) / self.n_boards

    def mean_ms(self, ms: FloatArray) -> FloatArray:
        """(n, n_clusters) → (n,): mean over the boards of ratio × their cluster's latency."""
        # Not a product of matrices: its rounding depends on how many rows there are.
        return np.asarray((ms * self._mean_weights).sum(axis=1))

    def p95_ms(self, ms: FloatArray) -> FloatArray:
        """(n, n_clusters) → (n,): the least latency that 95 % of the boards do not exceed.

        Nearest rank, so it is some board's latency; inf where a cluster's is.
        """
        value = np.full(len(ms), np.inf)
        finite = np.isfinite(ms).all(axis=1)
        if finite.any():
            value[finite] = self._p95_finite(ms[finite])
        return value

    def _p95_finite(self, ms: FloatArray) -> FloatArray:
        rank = math.ceil(0.95 * self.n_boards)
        own = [r[math.ceil(0.95 * len(r)) - 1] for r in self._ratios]
        # A percentile of all lies between the clusters' own ones.
        low, high = (ms * own).min(axis=1), (ms * own).max(axis=1)
        # Just below the least: low stays a latency that too few boards keep.
        low = low * (1 - 1e-9)
        while np.any(high - low > 1e-12 * high):
            middle = (low + high) / 2
            enough = self._boards_within(ms, middle) >= rank
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return high

    def slo_share(self, ms: FloatArray, slo_ms: float) -> FloatArray:
        """(n, n_clusters) → (n,): the share of boards at or below slo_ms, 0..1."""
        return self._boards_within(ms, np.full(len(ms), slo_ms)) / self.n_boards

    def slo_ramp(self, ms: FloatArray, slo_ms: float) -> FloatArray:
        """As slo_share, but a board counts ``(slo·(1 + b) - ms)/(2·b·slo)``, cut to 0..1.

        b is SLO_BAND: half a board at the SLO, a whole one 1 % below it, none 1 % above.
        """
        total = np.zeros(len(ms))
        least, most = slo_ms * (1 - SLO_BAND), slo_ms * (1 + SLO_BAND)
        for ratios, sums, cluster_ms in zip(self._ratios, self._sums, ms.T, strict=True):
            whole = np.searchsorted(ratios, least / cluster_ms, side="right")
            partly = np.searchsorted(ratios, most / cluster_ms, side="right")
            some = np.where(
                partly > whole,
                most * (partly - whole)
                - np.where(np.isfinite(cluster_ms), cluster_ms, 0) * (sums[partly] - sums[whole]),
                0,
            )
            total += whole + some / (most - least)
        return total / self.n_boards

    def _boards_within(self, ms: FloatArray, limit_ms: FloatArray) -> FloatArray:
        """(n,): how many boards take limit_ms (n,) at most."""
        counts = [
            np.searchsorted(ratios, limit_ms / cluster_ms, side="right")
            for ratios, cluster_ms in zip(self._ratios, ms.T, strict=True)
        ]
        return np.sum(counts, axis=0, dtype=np.float64)


def make_objective(
    name: ObjectiveName, boards: BoardRatios, slo_ms: float | None = None
) -> Objective:
    """The objective of that name over the boards.

    mean and p95 are what they say, in ms. slo is
    ``slo_ms · (1 - ramp) + SLO_TIE_BREAK · mean_ms`` with BoardRatios.slo_ramp: the share of boards
    first, the mean among equals, and where no board is near its SLO the mean shows the way. slo_ms:
    > 0, for slo alone. Raises ValueError.
    """
    if name == "mean":
        return Objective(name, boards.mean_ms, boards.mean_ms)
    if name == "p95":
        return Objective(name, boards.p95_ms, boards.mean_ms)
    if slo_ms is None or not 0 < slo_ms < math.inf:
        raise ValueError(f"an SLO of {slo_ms} ms: the objective slo needs a positive one")
    limit_ms = slo_ms

    def shortfall_ms(ms: FloatArray) -> FloatArray:
        ramp = boards.slo_ramp(ms, limit_ms)
        return np.asarray(limit_ms * (1 - ramp) + SLO_TIE_BREAK * boards.mean_ms(ms))

    return Objective(name, shortfall_ms, boards.mean_ms, slo_ms)
