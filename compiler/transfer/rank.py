"""How alike two boards, runtimes or states rank the same models: Spearman's rho and its interval.

Input: latencies of the same models twice. Output: RankCorrelation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import spearmanr
from scipy.stats import t as student

from compiler.errors import CompilerError

LEAST_MODELS = 4
"""Fewer leave the interval's variance undefined."""


class TransferError(CompilerError):
    """A question to other boards' latencies that they cannot answer; names the next step."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho, -1..1, and the interval that covers the true one with ``coverage``.

    n: models in both rankings.
    """

    value: float
    lower: float
    upper: float
    n: int
    coverage: float

    def __str__(self) -> str:
        return f"SRCC {self.value:.2f} [{self.lower:.2f}, {self.upper:.2f}]"


def rank_correlation(a: ArrayLike, b: ArrayLike, coverage: float = 0.95) -> RankCorrelation:
    """Of two quantities (n,) of the same models; ties share their mean rank.

    The interval is Fisher's z with the variance ``(1 + rho²/2)/(n - 3)`` (Bonett and Wright 2000,
    "Sample size requirements for estimating Pearson, Kendall and Spearman correlations") and
    Student's t of n - 3: on measured boards the normal quantile held in 89 to 95 of 100 draws of
    10 or 20 models, this one in 93 to 97. Where the sample's order agrees fully, z counts as if rho
    were halfway to the next lower value that n ranks can take: 1 itself would give an interval
    without width. Fewer than 4 models say nothing: -1..1. Where one side is all equal there is no
    order to agree with: rho 0, -1..1. Raises
    ValueError for other shapes, what is not finite, or a coverage outside 0..1.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not 0 < coverage < 1:
        raise ValueError(f"rank correlation of {x.shape} and {y.shape}, coverage {coverage}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("rank correlation of what is not finite")
    n = len(x)
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return RankCorrelation(0.0, -1.0, 1.0, n, coverage)
    rho = float(np.clip(spearmanr(x, y).statistic, -1, 1))
    if n < LEAST_MODELS:
        return RankCorrelation(rho, -1.0, 1.0, n, coverage)
    most = 1 - 6 / (n * (n * n - 1))
    z = math.atanh(min(max(rho, -most), most))
    spread = math.sqrt((1 + rho * rho / 2) / (n - 3))
    half = float(student.ppf((1 + coverage) / 2, n - 3)) * spread
    return RankCorrelation(
        rho, min(rho, math.tanh(z - half)), max(rho, math.tanh(z + half)), n, coverage
    )
