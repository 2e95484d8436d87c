"""The ways of transfer, weighed by what a target's own few measurements say of each.

Input: a Pool, which of its models were measured on the target and their latencies. Output: ms of
any of its models with an interval, and in words how much each way counts and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls
from sklearn.base import BaseEstimator

from compiler.surrogates import order_statistic
from compiler.transfer.estimators import METHODS, NEED_FEATURES, Estimator, checked
from compiler.transfer.pool import Pool
from compiler.transfer.rank import RankCorrelation, TransferError, rank_correlation

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RAW = "raw proxy"
FAVOURITE = "mixture"
"""It holds the others but the adapter as its limits and weighs them by the evidence, which ten
samples allow and cross-validation among them hardly does."""
TRUST = 10.0
"""What the favourite is trusted beforehand, in samples: about as many as settle nothing yet."""
LEAST_WEIGHT = 0.01
"""Less changes no order."""
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
    """METHODS weighed by cross-validation on the target's own samples.

    Stacking (Breiman 1996, "Stacked regressions"): weights that sum to 1, none negative, with which
    the logarithms of left-out predictions come nearest to what was measured; beforehand all weight
    is the favourite's.

    methods: keys of METHODS, the raw proxy among them; those that need features are left out where
    the pool has none. coverage: 0..1, of the intervals. n_folds: for more than 25 samples; of
    fewer each is left out alone. seed: of the folds.

    Intervals are CV+ (Barber et al. 2021, "Predictive inference with the jackknife+"), as the
    surrogates'. The weights saw the same samples, which the theorem does not cover. n samples
    cannot give more coverage than n/(n + 1): see coverage_.

    After fit: weights_, by method; method_, the same in words; decision_, with the reason; errors_,
    LeftOut by method; left_out_, of the weighted mean; correlation_, of its predictions with what
    was measured; coverage_; pool_, rows_, y_ms_, as given.
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
        self.weights_ = self._weigh()
        self._estimators = {name: METHODS[name]().fit(pool, at, ms) for name in self.weights_}
        self.left_out_ = _left_out(
            self._weighted({name: self.errors_[name].predicted_ms for name in self.weights_}), ms
        )
        self.coverage_ = min(self.coverage, len(at) / (len(at) + 1))
        self.correlation_: RankCorrelation = rank_correlation(self.left_out_.predicted_ms, ms)
        self.method_ = " + ".join(
            name if len(self.weights_) == 1 else f"{weight:.2f} {name}"
            for name, weight in sorted(self.weights_.items(), key=lambda item: -item[1])
        )
        self.decision_ = self._reason()
        return self

    def predict(self, rows: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(median, lower, upper) ms, each (n_rows,). lower ≤ median ≤ upper."""
        at = np.asarray(rows, dtype=np.int64)
        median = self._weighted({name: e.predict(at) for name, e in self._estimators.items()})
        by_fold = np.log(
            np.stack(
                [
                    self._weighted({name: e.predict(at) for name, e in of_fold.items()})
                    for of_fold in self._by_fold
                ]
            )
        )
        around = by_fold[self._fold_of_sample]  # (n_samples, n_rows)
        error = self.left_out_.error[:, None]
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
        self._by_fold: list[dict[str, Estimator]] = [{} for _ in range(n_folds)]
        for name in self._judged_methods():
            left_out = np.empty(n)
            for fold in range(n_folds):
                out = self._fold_of_sample == fold
                estimator = METHODS[name]().fit(self.pool_, self.rows_[~out], self.y_ms_[~out])
                left_out[out] = estimator.predict(self.rows_[out])
                self._by_fold[fold][name] = estimator
            self.errors_[name] = _left_out(left_out, self.y_ms_)

    def _judged_methods(self) -> list[str]:
        if len(self.rows_) < LEAST_JUDGED:
            return [RAW]
        bare = not self.pool_.x.shape[1]
        return [name for name in self.methods if not (bare and name in NEED_FEATURES)]

    def _weigh(self) -> dict[str, float]:
        """Least squares, robust (Huber), with TRUST samples more, whose error is the spread of the
        favourite's own and grows with what is taken from it. Below LEAST_WEIGHT is left out.
        """
        names = list(self.errors_)
        favourite = FAVOURITE if FAVOURITE in names else RAW
        errors = np.stack([np.log(e.predicted_ms / self.y_ms_) for e in self.errors_.values()], 1)
        # A disturbed sample must decide neither the weights nor how sure the favourite is.
        apart = self.errors_[favourite].error
        spread = max(1.4826 * float(np.median(apart)), 1e-9)
        trusted = np.sqrt(1.345 * spread / np.maximum(apart, 1.345 * spread))
        own = np.array([name == favourite for name in names], dtype=np.float64)
        pull = np.sqrt(TRUST) * spread
        sum_to_one = 1e3 * max(float(np.abs(errors).max()), spread)
        design = np.vstack(
            [
                errors * trusted[:, None],
                pull * np.eye(len(names)),
                np.full((1, len(names)), sum_to_one),
            ]
        )
        weights, _ = nnls(design, np.concatenate([np.zeros(len(errors)), pull * own, [sum_to_one]]))
        weights[weights < LEAST_WEIGHT * weights.sum()] = 0
        shares = (weights / weights.sum()).tolist()
        return {name: share for name, share in zip(names, shares, strict=True) if share}

    def _weighted(self, ms_by_method: Mapping[str, FloatArray]) -> FloatArray:
        """The weighted geometric mean."""
        logs = (weight * np.log(ms_by_method[name]) for name, weight in self.weights_.items())
        return np.asarray(np.exp(sum(logs)))

    def _reason(self) -> str:
        n = len(self.rows_)
        if n < LEAST_JUDGED:
            return f"{RAW}: {n} samples cannot judge anything else"
        alone = {name: float(e.error.mean()) for name, e in self.errors_.items()}
        said = ", ".join(f"{name} {error:.1%}" for name, error in alone.items())
        return (
            f"{self.method_}: error on samples left out {self.left_out_.error.mean():.1%} ({said})"
        )


def _left_out(predicted_ms: FloatArray, y_ms: FloatArray) -> LeftOut:
    return LeftOut(predicted_ms, np.abs(np.log(predicted_ms / y_ms)))
