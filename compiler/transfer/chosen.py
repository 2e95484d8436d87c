"""The way of transfer that a target's own few measurements show to be best, with its reasons.

Input: a Pool, which of its models were measured on the target and their latencies. Output: ms of
any of its models with an interval, and in words what was chosen and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student
from sklearn.base import BaseEstimator

from compiler.surrogates import order_statistic
from compiler.transfer.estimators import METHODS, NEED_FEATURES, Estimator, checked
from compiler.transfer.pool import Pool
from compiler.transfer.rank import RankCorrelation, TransferError, rank_correlation

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RAW = "raw proxy"
FAVOURITE = "mixture"
"""It holds the others as its limits and weighs them by the evidence, which ten samples allow and
cross-validation among them hardly does: choosing the simplest within a standard error instead lost
0.02 of rank correlation at the median over fifteen public devices."""
CHANCE = 0.05
"""Of leaving the favourite for another method that is no better."""
LEAST_JUDGED = 4
"""Fewer samples cannot be split into what is learned from and what judges."""
LEAVE_ONE_OUT = 25
"""Up to so many samples each is left out by itself: fewer folds would be a matter of luck."""


@dataclass(frozen=True)
class LeftOut:
    """What one method says of samples that it did not learn from.

    predicted_ms: (n,). error: (n,), absolute, of the logarithm, about a fraction.
    """

    predicted_ms: FloatArray
    error: FloatArray


class ChosenTransfer(BaseEstimator):
    """One of METHODS, by cross-validation on the target's own samples.

    methods: keys of METHODS, the raw proxy among them; those that need features are left out where
    the pool has none. coverage: 0..1, of the intervals. n_folds: for more than 25 samples; of
    fewer each is left out alone. seed: of the folds.

    Intervals are CV+ (Barber et al. 2021, "Predictive inference with the jackknife+"), as the
    surrogates'. The choice among the methods saw the same samples, which the theorem does not
    cover. n samples cannot give more coverage than n/(n + 1): see coverage_.

    After fit: method_; decision_, the choice and its reason in words; errors_, LeftOut by method;
    correlation_, of the chosen method's left-out predictions with what was measured; coverage_;
    pool_, rows_, y_ms_, as given.
    """

    def __init__(
        self,
        methods: Sequence[str] = tuple(METHODS),
        coverage: float = 0.9,
        n_folds: int = 10,
        seed: int = 0,
    ) -> None:
        self.methods = methods
        self.coverage = coverage
        self.n_folds = n_folds
        self.seed = seed

    def fit(self, pool: Pool, rows: ArrayLike, y_ms: ArrayLike) -> ChosenTransfer:
        """rows: (n,) positions in the pool; y_ms: (n,), > 0. Raises TransferError for n < 2."""
        if RAW not in self.methods or set(self.methods) - set(METHODS):
            raise ValueError(f"methods {self.methods}: choose from {', '.join(METHODS)}")
        at, ms = checked(pool, rows, y_ms)
        if len(at) < 2:
            raise TransferError(
                f"{len(at)} models measured on the target: 2 are needed, 10 are better. "
                "Next: measure those that choose_probes names"
            )
        self.pool_, self.rows_, self.y_ms_ = pool, at, ms
        self._judge()
        self.method_ = self._choose()
        self._estimator = METHODS[self.method_]().fit(pool, at, ms)
        self.coverage_ = min(self.coverage, len(at) / (len(at) + 1))
        self.correlation_: RankCorrelation = rank_correlation(
            self.errors_[self.method_].predicted_ms, ms
        )
        self.decision_ = self._reason()
        return self

    def predict(self, rows: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(median, lower, upper) ms, each (n_rows,). lower ≤ median ≤ upper."""
        at = np.asarray(rows, dtype=np.int64)
        median = self._estimator.predict(at)
        by_fold = np.log(np.stack([e.predict(at) for e in self._by_fold[self.method_]]))
        around = by_fold[self._fold_of_sample]  # (n_samples, n_rows)
        error = self.errors_[self.method_].error[:, None]
        alpha = 1 - self.coverage_
        lower = np.exp(order_statistic(around - error, alpha, upper=False))
        upper = np.exp(order_statistic(around + error, alpha, upper=True))
        return median, np.minimum(lower, median), np.maximum(upper, median)

    def _judge(self) -> None:
        """What each method says of each sample without having seen it."""
        n = len(self.rows_)
        n_folds = n if n <= LEAVE_ONE_OUT else self.n_folds
        order = np.random.default_rng(self.seed).permutation(n)
        self._fold_of_sample = np.empty(n, dtype=np.int64)
        self._fold_of_sample[order] = np.arange(n) % n_folds
        self.errors_: dict[str, LeftOut] = {}
        self._by_fold: dict[str, list[Estimator]] = {}
        for name in self._judged_methods():
            left_out = np.empty(n)
            self._by_fold[name] = []
            for fold in range(n_folds):
                out = self._fold_of_sample == fold
                estimator = METHODS[name]().fit(self.pool_, self.rows_[~out], self.y_ms_[~out])
                left_out[out] = estimator.predict(self.rows_[out])
                self._by_fold[name].append(estimator)
            self.errors_[name] = LeftOut(left_out, np.abs(np.log(left_out / self.y_ms_)))

    def _judged_methods(self) -> list[str]:
        if len(self.rows_) < LEAST_JUDGED:
            return [RAW]
        bare = not self.pool_.x.shape[1]
        return [name for name in self.methods if not (bare and name in NEED_FEATURES)]

    def _choose(self) -> str:
        """The favourite, unless another one's error is clearly less; of those the least.

        Clearly: by a paired t-test of the errors on samples left out, at CHANCE over all the rivals
        together (Bonferroni).
        """
        first = FAVOURITE if FAVOURITE in self.errors_ else RAW
        own = self.errors_[first].error
        chance = CHANCE / max(len(self.errors_) - 1, 1)
        better = [name for name, e in self.errors_.items() if _less(e.error, own, chance)]
        return min(better, key=lambda m: float(self.errors_[m].error.mean()), default=first)

    def _reason(self) -> str:
        n, raw = len(self.rows_), self.errors_[RAW]
        if n < LEAST_JUDGED:
            return f"raw proxy: {n} samples cannot judge anything else"
        said = f"error on samples left out {self.errors_[self.method_].error.mean():.1%}"
        if self.method_ == RAW:
            others = {name: e.error.mean() for name, e in self.errors_.items() if name != RAW}
            if not others:
                return f"raw proxy: {said}"
            best = min(others, key=lambda name: float(others[name]))
            return f"raw proxy as it is: {said}, {best} {others[best]:.1%}"
        return f"{self.method_}: {said}, raw proxy {raw.error.mean():.1%}"


def _less(error: FloatArray, other: FloatArray, chance: float) -> bool:
    """Whether the mean is less, but for this chance. error, other: (n,), n ≥ 2, paired."""
    apart = other - error
    n = len(apart)
    return bool(apart.mean() > student.ppf(1 - chance, n - 1) * apart.std(ddof=1) / np.sqrt(n))
