"""Whether B is slower than A: paired runs, a test that a few wild pairs do not decide.

Input: raw latencies in ns of runs done in pairs, A beside B in time on one board. Output: a
PairedComparison: change of the p50, its interval, a p-value, a verdict.

The test flips signs (Fisher 1935): where A and B are equal, each pair's log ratio is as likely to
be its own opposite, whatever the noise's shape and whatever the pairs share, as long as which of
the two runs goes first is random. Two things keep the host's noise from deciding, and neither can
tell A from B, so that the test stays exact: the statistic is redescending (Tukey's biweight; Huber
1981), and a pair whose runs were disturbed, their p50 far above their p10, weighs little.
docs/method.md has the rates found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from harness.statistics import median_ns

FloatArray: TypeAlias = npt.NDArray[np.float64]
VerdictName: TypeAlias = Literal["faster", "slower", "same", "unclear"]

ALPHA = 0.01
"""A comparison of two equal things errs once in a hundred: nightly jobs make many."""

TOLERANCE = 0.01
"""Smaller changes of the p50 are no news, however surely they are seen."""

CHANGE_OF_INTEREST = 0.03
"""What must not stay unseen: `same` excludes it, and the pairs still needed are counted for it."""

POWER = 0.9

_BIWEIGHT_C = 4.685  # 95 % as efficient as the mean on normal noise
_MAD_TO_SIGMA = 1.4826
_SPREAD_FLOOR = 1e-3  # spreads below a thousandth are no sign of disturbance
_GRID = 10_000  # steps of the statistic's exact distribution
_MOST_EXACT = 500  # pairs; above, the bounded terms' sum is normal to any precision of interest
_TINY = 1e-12


@dataclass(frozen=True)
class PairedComparison:
    """How B compares with A, over the pairs of one cell.

    change: fraction by which B's p50 is above A's (0.03: three per cent slower), > -1; over
    several boards the geometric mean of theirs. change_low, change_high: its interval at
    1 - alpha, the test's own; -1 and infinite where so few pairs can exclude nothing.
    p_value: of no change, two-sided, in (0, 1]. n_pairs: pairs compared.
    n_wild: those of them that the estimate leaves out. more_pairs: how many more would show
    CHANGE_OF_INTEREST in 9 of 10 comparisons, 0 when there are enough, None from one pair a board.
    """

    verdict: VerdictName
    change: float
    change_low: float
    change_high: float
    p_value: float
    n_pairs: int
    n_wild: int
    more_pairs: int | None


@dataclass(frozen=True)
class Pairs:
    """The pairs of one board. log_ratios: ln(B's p50 / A's p50). weights: > 0."""

    log_ratios: FloatArray
    weights: FloatArray


def compare_paired(
    a_ns: Sequence[Sequence[int]], b_ns: Sequence[Sequence[int]], *, alpha: float = ALPHA
) -> PairedComparison:
    """Compare runs a_ns[i] with runs b_ns[i] that ran beside them; each a run's latencies in ns.

    Raises ValueError where there is no pair, the two differ in number or a run is empty.
    """
    pairs = pairs_of([level_of(x) for x in a_ns], [level_of(x) for x in b_ns])
    return compare_boards([pairs], alpha=alpha)


@dataclass(frozen=True)
class Level:
    """What a comparison needs of a run. log_p50: ln of its p50 in ns. spread: ln(p50 / p10), large
    where the host took its time elsewhere during part of the run.
    """

    log_p50: float
    spread: float


def level_of(latency_ns: Sequence[int]) -> Level:
    """The level of one run. Raises ValueError if empty."""
    middle = median_ns(latency_ns)
    low = float(np.quantile(np.asarray(latency_ns, dtype=np.float64), 0.1))
    return Level(math.log(middle), max(0.0, math.log(middle / low)))


def pairs_of(a: Sequence[Level], b: Sequence[Level]) -> Pairs:
    """The pairs of one board from its runs' levels. Raises ValueError as compare_paired does."""
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} runs of A cannot be paired with {len(b)} of B")
    ratios = [y.log_p50 - x.log_p50 for x, y in zip(a, b, strict=True)]
    spreads = np.array([math.hypot(x.spread, y.spread) for x, y in zip(a, b, strict=True)])
    quiet = max(_SPREAD_FLOOR, float(np.quantile(spreads, 0.25)))
    return Pairs(np.array(ratios), 1 / (1 + (spreads / quiet) ** 2))


def compare_boards(boards: Sequence[Pairs], *, alpha: float = ALPHA) -> PairedComparison:
    """Compare over the boards given, each counting alike. Raises ValueError where there is none."""
    if not boards:
        raise ValueError("a comparison needs at least one pair")
    fits = [_location(pairs) for pairs in boards]
    estimate = float(np.mean([fit.centre for fit in fits]))
    n_pairs = sum(len(pairs.log_ratios) for pairs in boards)
    p_value = _p_value(boards, 0.0)
    low, high = (_bound(boards, estimate, fits, side, alpha) for side in (-1.0, 1.0))
    return PairedComparison(
        verdict=_verdict(p_value, estimate, low, high, alpha),
        change=math.expm1(estimate),
        change_low=math.expm1(low),
        change_high=math.expm1(high) if math.isfinite(high) else math.inf,
        p_value=p_value,
        n_pairs=n_pairs,
        n_wild=sum(fit.n_wild for fit in fits),
        more_pairs=_more_pairs(fits, low, high, n_pairs, alpha),
    )


def control_false_discoveries(
    comparisons: Sequence[PairedComparison], *, alpha: float = ALPHA
) -> list[PairedComparison]:
    """The same, judged together: of those called faster or slower, at most alpha are false.

    Benjamini and Hochberg 1995: p_value becomes the adjusted one. Intervals stay each its own.
    """
    from scipy import stats  # takes half a second to import

    if not comparisons:
        return []
    adjusted = stats.false_discovery_control([c.p_value for c in comparisons])
    return [
        replace(
            c,
            p_value=float(p),
            verdict=_verdict(
                float(p),
                math.log1p(c.change),
                math.log1p(c.change_low) if c.change_low > -1 else -math.inf,
                math.log1p(c.change_high),
                alpha,
            ),
        )
        for c, p in zip(comparisons, adjusted, strict=True)
    ]


def _verdict(p_value: float, estimate: float, low: float, high: float, alpha: float) -> VerdictName:
    """What may be said. estimate, low, high: log ratios."""
    if p_value <= alpha and abs(estimate) >= math.log1p(TOLERANCE):
        return "slower" if estimate > 0 else "faster"
    limit = math.log1p(CHANGE_OF_INTEREST)
    return "same" if -limit < low and high < limit else "unclear"


def _p_value(boards: Sequence[Pairs], shift: float) -> float:
    """Share of sign patterns as extreme as the pairs' own, all log ratios less ``shift``."""
    terms = np.concatenate([_terms(pairs, shift) for pairs in boards])
    size = np.abs(terms)
    if size.max() < _TINY:
        return 1.0
    if len(terms) > _MOST_EXACT:
        z = abs(float(terms.sum())) / math.sqrt(float(terms @ terms))
        return max(math.erfc(z / math.sqrt(2)), _TINY)
    steps = np.rint(size / size.sum() * _GRID).astype(int)
    total = int(steps.sum())
    observed = abs(int((np.sign(terms).astype(int) * steps).sum()))
    # The distribution of the sum of those that stay positive (Streitberg and Roehmel 1986).
    share = np.zeros(total + 1)
    share[0] = 1.0
    for step in steps[steps > 0]:
        share[step:] += share[:-step]
        share /= 2
    beyond = np.abs(2 * np.arange(total + 1) - total) >= observed
    return float(min(1.0, share[beyond].sum()))


def _terms(pairs: Pairs, shift: float) -> FloatArray:
    """What each pair adds to the statistic: a one-step estimate of the board's log ratio."""
    d = pairs.log_ratios - shift
    # A scale about zero does not change when signs do, so that each pattern is judged alike.
    scale = max(_TINY, _MAD_TO_SIGMA * _weighted_median(np.abs(d), pairs.weights))
    terms: FloatArray = pairs.weights * scale * _biweight(d / scale) / pairs.weights.sum()
    return terms


def _biweight(u: FloatArray) -> FloatArray:
    return np.where(np.abs(u) < _BIWEIGHT_C, u * (1 - (u / _BIWEIGHT_C) ** 2) ** 2, 0.0)


def _weighted_median(x: FloatArray, weights: FloatArray) -> float:
    """The mean of the two values in the middle where the weights meet exactly between them."""
    order = np.argsort(x, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    low = int(np.searchsorted(reached, 0.5 - 1e-9))
    high = int(np.searchsorted(reached, 0.5 + 1e-9))
    return float(x[order[low]] + x[order[min(high, len(x) - 1)]]) / 2


@dataclass(frozen=True)
class _Fit:
    """Biweight location of one board's log ratios. variance: of it; None from one pair."""

    centre: float
    variance: float | None
    n_wild: int


def _location(pairs: Pairs) -> _Fit:
    d, w = pairs.log_ratios, pairs.weights
    n = len(d)
    centre = _weighted_median(d, w)
    scale = max(_TINY, _MAD_TO_SIGMA * _weighted_median(np.abs(d - centre), w))
    for _ in range(50):
        inner = w * np.clip(1 - ((d - centre) / (_BIWEIGHT_C * scale)) ** 2, 0, None) ** 2
        before, centre = centre, float(inner @ d / inner.sum())
        if abs(centre - before) < 1e-9:
            break
    u = (d - centre) / scale
    inside = np.abs(u) < _BIWEIGHT_C
    n_wild = int(np.sum(~inside))
    if n < 2:
        return _Fit(centre, None, n_wild)
    slope = np.where(inside, (1 - (u / _BIWEIGHT_C) ** 2) * (1 - 5 * (u / _BIWEIGHT_C) ** 2), 0.0)
    # Influence-function variance of an M-estimator (Huber 1981, section 3.2).
    steepness = max(float(w @ slope), 0.1 * float(w.sum()))
    variance = scale**2 * float(w**2 @ _biweight(u) ** 2) / steepness**2
    return _Fit(centre, variance * n / (n - 1), n_wild)


def _bound(
    boards: Sequence[Pairs], estimate: float, fits: Sequence[_Fit], side: float, alpha: float
) -> float:
    """The nearest shift on one side of the estimate that the test rejects: the test inverted."""
    if 2.0 * 0.5 ** sum(len(pairs.log_ratios) for pairs in boards) > alpha:
        return side * math.inf
    variances = [fit.variance for fit in fits if fit.variance is not None]
    guess = 2 * math.sqrt(sum(variances)) / len(fits)
    inner, outer = 0.0, max(1e-4, guess)
    while _p_value(boards, estimate + side * outer) > alpha:
        inner, outer = outer, outer * 1.5
        if outer > 50:
            return side * math.inf
    while outer - inner > 0.01 * outer and outer > 1e-6:
        middle = (inner + outer) / 2
        if _p_value(boards, estimate + side * middle) > alpha:
            inner = middle
        else:
            outer = middle
    return estimate + side * outer


def _more_pairs(
    fits: Sequence[_Fit], low: float, high: float, n_pairs: int, alpha: float
) -> int | None:
    """Pairs still missing to show CHANGE_OF_INTEREST with POWER, by the normal approximation."""
    from scipy import stats  # takes half a second to import

    z_alpha = float(stats.norm.ppf(1 - alpha / 2))
    z = z_alpha + float(stats.norm.ppf(POWER))
    known = [fit.variance for fit in fits if fit.variance is not None]
    if math.isfinite(high - low):
        variance = ((high - low) / 2 / z_alpha) ** 2
    elif known:
        variance = float(np.mean(known)) / len(fits)
    else:
        return None
    needed = math.ceil(z**2 * variance * n_pairs / math.log1p(CHANGE_OF_INTEREST) ** 2)
    fewest = math.ceil(math.log2(2 / alpha))
    return max(0, max(fewest, needed) - n_pairs)
