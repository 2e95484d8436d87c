"""Whether a proxy's optimal models may be taken over, and which of them are optimal on the target.

Input: a fitted ChosenTransfer, the proxy's name and the models' accuracies. Output: Judged, the
verdict with its reasons; Optimal, what is kept, what is dropped and what is still to be measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compiler.transfer.chosen import ChosenTransfer
from compiler.transfer.probes import MOST_PROBES
from compiler.transfer.rank import RankCorrelation, rank_correlation

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Verdict = Literal["reuse", "adapt", "measure"]

VALID_SRCC = 0.9
"""From which a ranking counts as the target's: arXiv 2009.00278."""


@dataclass(frozen=True)
class Judged:
    """reuse: the proxy's order is the target's, so its optimal set is. adapt: it is not, but the
    chosen method's is, on samples left out. measure: too little is known to say either.

    proxy: rank correlation of the named proxy with the target. left_out: of the chosen method.
    """

    verdict: Verdict
    proxy: RankCorrelation
    left_out: RankCorrelation
    reason: str


def judge(transfer: ChosenTransfer, proxy: str) -> Judged:
    """proxy: one of the pool's names. Raises ValueError for another.

    The proxy is taken at the lower end of its interval, for with it goes the whole set unmeasured;
    predictions at their value, from MOST_PROBES samples on, for they carry intervals of their own.
    """
    column = transfer.pool_.names.index(proxy)
    of_proxy = rank_correlation(transfer.pool_.proxies_ms[transfer.rows_, column], transfer.y_ms_)
    left_out, n = transfer.correlation_, len(transfer.rows_)
    adapted = f"{transfer.method_}, on samples left out: {left_out}"
    if of_proxy.lower >= VALID_SRCC:
        return Judged(
            "reuse", of_proxy, left_out, f"{proxy} ranks models as the target: {of_proxy}"
        )
    weak = (
        f"{proxy} is not shown to rank models as the target: {of_proxy}, lower end < {VALID_SRCC}"
    )
    if n >= MOST_PROBES and left_out.value >= VALID_SRCC:
        return Judged("adapt", of_proxy, left_out, f"{weak}; {adapted}")
    few = f"only {n} models measured" if n < MOST_PROBES else adapted
    return Judged("measure", of_proxy, left_out, f"{weak}; {few}")


@dataclass(frozen=True)
class Optimal:
    """rows: (n,) positions in the pool, optimal on the target, fastest first; ms, lower_ms and
    upper_ms: (n,), where measured: (n,) all three as measured, else predicted.

    dropped: candidates that another one dominates there. unsettled: (m,) candidates that were not
    measured, those first whose order may most easily be another one. from_proxy: whether the
    candidates were the proxy's optimal set, or, it not being valid, that of the predictions.
    """

    rows: IntArray
    ms: FloatArray
    lower_ms: FloatArray
    upper_ms: FloatArray
    measured: BoolArray
    dropped: IntArray
    unsettled: IntArray
    from_proxy: bool


def optimal(transfer: ChosenTransfer, proxy: str, judged: Judged, accuracy: ArrayLike) -> Optimal:
    """The models that are optimal on the transfer's target as far as it is known.

    The proxy's own optimal set where it may be reused: with the order the optimum is kept, so no
    search is needed (arXiv 2111.01203, proposition 1). Otherwise the optimal set of the transfer's
    predictions. From either, what is not optimal on the target is dropped. accuracy: (n,), of
    every model of the pool. Raises ValueError for other shapes.
    """
    gain = np.asarray(accuracy, dtype=np.float64)
    pool = transfer.pool_
    ms, lower, upper = transfer.predict(np.arange(len(pool)))
    for known in (ms, lower, upper):
        known[transfer.rows_] = transfer.y_ms_
    from_proxy = judged.verdict == "reuse"
    by = pool.proxies_ms[:, pool.names.index(proxy)] if from_proxy else ms
    candidates = drop_dominated(gain, by)
    rows = candidates[drop_dominated(gain[candidates], ms[candidates])]
    unknown = np.setdiff1d(candidates, transfer.rows_)
    return Optimal(
        rows=rows,
        ms=ms[rows],
        lower_ms=lower[rows],
        upper_ms=upper[rows],
        measured=np.isin(rows, transfer.rows_),
        dropped=np.setdiff1d(candidates, rows),
        unsettled=unknown[_nearest_first(ms[unknown])],
        from_proxy=from_proxy,
    )


def drop_dominated(accuracy: ArrayLike, ms: ArrayLike) -> IntArray:
    """Positions of those that nothing beats, fastest first: none is as fast and as accurate.

    accuracy: (n,), any proxy of it, more is better. ms: (n,). Of equals the first stays. Raises
    ValueError for other shapes or what is not finite.
    """
    gain, cost = np.asarray(accuracy, dtype=np.float64), np.asarray(ms, dtype=np.float64)
    if gain.ndim != 1 or gain.shape != cost.shape:
        raise ValueError(f"{gain.shape} accuracies and {cost.shape} latencies")
    if not (np.isfinite(gain).all() and np.isfinite(cost).all()):
        raise ValueError("an accuracy or a latency is not finite")
    order = np.lexsort((-gain, cost))
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(gain[order])[:-1]])
    return np.asarray(order[gain[order] > best_before])


def _nearest_first(ms: FloatArray) -> IntArray:
    """Positions (n,), those with a neighbour nearest in latency first."""
    order = np.argsort(ms)
    step = np.diff(np.log(ms[order]), prepend=-np.inf, append=np.inf)
    nearest = np.minimum(np.abs(step[:-1]), step[1:])
    return np.asarray(order[np.argsort(nearest, kind="stable")])
