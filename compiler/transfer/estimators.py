"""Five ways to predict a new board's latency from a few of its own measurements, simplest first.

Input: a Pool, which of its models were measured and their latencies. Output: ms of any of its
models. Each has fit(pool, rows, y_ms) and predict(rows).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV

from compiler.surrogates import FAMILIES
from compiler.transfer.evidence import fit_evidence
from compiler.transfer.pool import Pool

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Estimator(Protocol):
    """rows: (m,) positions in the pool, m ≥ 2; y_ms: (m,), > 0."""

    def fit(self, pool: Pool, rows: IntArray, y_ms: FloatArray) -> Estimator: ...

    def predict(self, rows: IntArray) -> FloatArray:
        """(n_rows,) ms, > 0."""
        ...


class RawProxy(BaseEstimator):
    """The one board that ranks the measured models most alike, times one factor.

    After fit: proxy_, its position in pool.names; factor_, the median of target over proxy.
    """

    def fit(self, pool: Pool, rows: IntArray, y_ms: FloatArray) -> RawProxy:
        """Of boards that rank alike, as is common among ten models, the one of least error."""
        ratio = y_ms[:, None] / pool.proxies_ms[rows]
        factor = np.median(ratio, axis=0)
        error = np.abs(np.log(ratio / factor)).mean(axis=0)
        rho = proxy_correlations(pool, rows, y_ms)
        self.proxy_ = int(np.lexsort((error, -rho.round(9)))[0])
        self.factor_ = float(factor[self.proxy_])
        self._pool = pool
        return self

    def predict(self, rows: IntArray) -> FloatArray:
        return np.asarray(self.factor_ * self._pool.proxies_ms[rows, self.proxy_])


def proxy_correlations(pool: Pool, rows: IntArray, y_ms: FloatArray) -> FloatArray:
    """(n_proxies,) Spearman's rho with the target over the measured models; 0 where undefined."""
    ranks = rankdata(pool.proxies_ms[rows], axis=0)
    ranks -= ranks.mean(axis=0)
    own = rankdata(y_ms) - (len(rows) + 1) / 2
    scale = np.sqrt((ranks**2).sum(axis=0) * (own**2).sum())
    rho = np.zeros(ranks.shape[1])
    return np.asarray(np.divide(own @ ranks, scale, out=rho, where=scale > 0))


class Adapter(BaseEstimator):
    """The raw proxy and a sparse linear correction of it by features: arXiv 2111.01203, section 4.

    Fitted to the relative error, as all else here, instead of the paper's to ms; its strength by
    cross-validation. Under four measured models there is nothing to choose it by: the raw proxy.
    """

    def fit(self, pool: Pool, rows: IntArray, y_ms: FloatArray) -> Adapter:
        self._raw = RawProxy().fit(pool, rows, y_ms)
        self._features = pool.features
        self._lasso = None
        error = y_ms / self._raw.predict(rows) - 1
        if len(rows) >= 4 and np.ptp(error) > 1e-9:
            folds = min(5, len(rows) // 2)
            lasso = LassoCV(alphas=12, eps=0.02, cv=folds, tol=1e-2)
            with warnings.catch_warnings():
                # Features say much the same, so coefficients wander long after the fit is good.
                warnings.simplefilter("ignore", ConvergenceWarning)
                self._lasso = lasso.fit(self._features[rows], error)
        return self

    def predict(self, rows: IntArray) -> FloatArray:
        ms = self._raw.predict(rows)
        if self._lasso is None:
            return ms
        # A correction beyond these is no correction, and below -1 no latency.
        return np.asarray(ms * (1 + np.clip(self._lasso.predict(self._features[rows]), -0.9, 9)))


class FeatureRidge(BaseEstimator):
    """From scratch: ridge on the features alone, the surrogates' family of that name."""

    def fit(self, pool: Pool, rows: IntArray, y_ms: FloatArray) -> FeatureRidge:
        self._x = pool.x
        self._predictor = FAMILIES["ridge"].fit(pool.x[rows], y_ms, 0)
        return self

    def predict(self, rows: IntArray) -> FloatArray:
        return self._predictor(self._x[rows])


class BoardRidge(BaseEstimator):
    """Ridge on the other boards' log-latencies: a new board is a weighted mean of known ones."""

    def fit(self, pool: Pool, rows: IntArray, y_ms: FloatArray) -> BoardRidge:
        self._log_ms = _LogRidge((pool.log_boards,), [(1.0,)], rows, y_ms)
        return self

    def predict(self, rows: IntArray) -> FloatArray:
        return self._log_ms.predict(rows)


class Mixture(BaseEstimator):
    """Ridge on all boards' log-latencies, on each of the most alike ones and on features, together.

    How much each may explain is weighed by the evidence: one board that is nearly a twin, a mean
    of many, or, with more measured models, what is this board's own. So the other ways but the
    adapter are its limits.
    """

    def fit(self, pool: Pool, rows: IntArray, y_ms: FloatArray) -> Mixture:
        rho = proxy_correlations(pool, rows, y_ms)
        alike = np.argsort(-rho, kind="stable")[:N_TWINS]
        twins = [pool.log_boards[:, [column]] for column in alike]
        shares = [(*both, *(0.0,) * len(twins)) for both in BOARDS_AND_FEATURES]
        for own in np.eye(len(twins)).tolist():
            shares += [(*both, *own) for both in BESIDE_A_TWIN]
        blocks = (pool.log_boards, pool.features, *twins)
        self._log_ms = _LogRidge(blocks, shares, rows, y_ms)
        return self

    def predict(self, rows: IntArray) -> FloatArray:
        return self._log_ms.predict(rows)


N_TWINS = 4
"""Of boards that may stand for the target by themselves."""
BOARDS_AND_FEATURES = (
    (1.0, 0.0), (1.0, 0.03), (1.0, 0.1), (1.0, 0.3), (1.0, 1.0), (1.0, 3.0), (0.0, 1.0)
)  # fmt: skip
BESIDE_A_TWIN = tuple((boards, x) for boards in (0.0, 0.1, 0.3, 1.0) for x in (0.0, 0.1, 0.3))


class _LogRidge:
    """fit_evidence on the logarithm, kept within a decade of what was measured."""

    def __init__(
        self,
        blocks: Sequence[FloatArray],
        shares: Sequence[Sequence[float]],
        rows: IntArray,
        y_ms: FloatArray,
    ) -> None:
        self._blocks = blocks
        self._ridge = fit_evidence([block[rows] for block in blocks], shares, np.log(y_ms))
        self._range = np.log(y_ms.min() / 10), np.log(y_ms.max() * 10)

    def predict(self, rows: IntArray) -> FloatArray:
        log_ms = self._ridge.predict([block[rows] for block in self._blocks])
        return np.asarray(np.exp(np.clip(log_ms, *self._range)))


METHODS: Mapping[str, Callable[[], Estimator]] = {
    "raw proxy": RawProxy,
    "adapter": Adapter,
    "ridge on boards": BoardRidge,
    "ridge on features": FeatureRidge,
    "mixture": Mixture,
}
"""Simplest first."""
NEED_FEATURES = frozenset({"adapter", "ridge on features"})


def checked(pool: Pool, rows: ArrayLike, y_ms: ArrayLike) -> tuple[IntArray, FloatArray]:
    """Rows and latencies as arrays. Raises ValueError for ones that do not belong together."""
    at, ms = np.asarray(rows, dtype=np.int64), np.asarray(y_ms, dtype=np.float64)
    if at.ndim != 1 or at.shape != ms.shape:
        raise ValueError(f"{at.shape} rows and {ms.shape} latencies")
    if len(set(at.tolist())) != len(at) or (len(at) and not 0 <= at.min() <= at.max() < len(pool)):
        raise ValueError(f"rows are distinct positions below {len(pool)}")
    if not (np.isfinite(ms) & (ms > 0)).all():
        raise ValueError("a latency is not > 0")
    return at, ms
