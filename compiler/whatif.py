"""What a fleet would take if some of its boards aged, heated up or ran at another clock.

Input: what is predicted of each cluster, how each board differs from its cluster, how latency
follows the clock, and what happens to which boards. Output: mean, p95 and share within an SLO over
the fleet, before and after, each with an interval by seeded Monte Carlo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from compiler.errors import CompilerError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Float = TypeVar("Float", np.float32, np.float64)

DRAWS = 2_000
COVERAGE = 0.9
LEAST_FIXED, MOST_FIXED = -2.0, 1.0
"""Bounds of the share of a latency that the clock leaves alone. Below 0 a board slows down more
than its clock does, as where the memory's clock falls with it; -2 is 4 times at half the clock."""

_BLOCK = 2_000_000
"""Boards × draws held at once: 8 MB an array."""


class WhatIfError(CompilerError):
    """A question that what was measured cannot answer; names the fact and the next step."""


@dataclass(frozen=True)
class Boards:
    """A fleet as arrays, one entry a board unless said otherwise.

    cluster: position among the clusters. ratio: latency over its cluster's prediction, > 0.
    ratio_sd: standard deviation of that ratio's logarithm for a network it was not measured with.
    fixed_share: the share of latency, at the present clock, that does not follow the clock.
    fixed_sd: its standard deviation from board to board. shared_fixed_sd: (n_clusters,), its
    standard deviation for all boards together: it is one network whose share is not known.
    """

    board_ids: tuple[str, ...]
    cluster: IntArray
    ratio: FloatArray
    ratio_sd: FloatArray
    fixed_share: FloatArray
    fixed_sd: FloatArray
    shared_fixed_sd: FloatArray


@dataclass(frozen=True)
class Prediction:
    """One shape on each cluster: ms (n_clusters,), > 0. coverage: of lower_ms to upper_ms."""

    median_ms: FloatArray
    lower_ms: FloatArray
    upper_ms: FloatArray
    coverage: float = 0.9


@dataclass(frozen=True)
class Effect:
    """What happens to the boards of ``chosen`` (n_boards,).

    clock_ratio: (n_boards,), present clock over the new one, > 0; 1 where it stays. clock_sd:
    standard deviation of its logarithm, for all boards together. slowdown: factor on latency, > 0.
    """

    chosen: BoolArray
    clock_ratio: FloatArray
    clock_sd: float = 0.0
    slowdown: float = 1.0


@dataclass(frozen=True)
class Figure:
    """A median over the draws and the interval that holds COVERAGE of them."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class FleetFigures:
    """Over the boards' latencies. p95_ms: the least that 95 % of boards do not exceed.

    slo_share: fraction of boards at or below the SLO, None without one.
    """

    mean_ms: Figure
    p95_ms: Figure
    slo_share: Figure | None


@dataclass(frozen=True)
class Answer:
    """Before and after. mean_ratio, p95_ratio: after over before, draw by draw.

    board_ms_before, board_ms_after: (n_boards,), each board's expected latency.
    """

    before: FleetFigures
    after: FleetFigures
    mean_ratio: Figure
    p95_ratio: Figure
    n_changed: int
    board_ms_before: FloatArray
    board_ms_after: FloatArray


def what_if(
    boards: Boards,
    prediction: Prediction,
    effect: Effect,
    *,
    slo_ms: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Answer:
    """Play the fleet ``draws`` times, each time before and after the change with the same errors.

    A board's latency is its cluster's prediction times its own ratio; a change of clock from f to
    f' multiplies it by ``s + (1 - s)·f/f'``, where s is the share that the clock leaves alone (so
    latency is a + b/f), and a slowdown by itself. Drawn anew each time: each cluster's prediction
    within its interval, each board's ratio, s for the network and for a board, and the new clock.
    The same seed gives the same answer. Raises WhatIfError where no board is chosen, and
    ValueError for fewer than 100 draws or arrays that do not belong together.
    """
    _check(boards, effect, draws)
    rng = np.random.default_rng(seed)
    rows: list[FloatArray] = []
    block = max(1, _BLOCK // len(boards.board_ids))
    for start in range(0, draws, block):
        n = min(block, draws - start)
        before_ms = _latencies(boards, prediction, n, rng)
        figures = _figures(before_ms, slo_ms)
        before_ms[:, effect.chosen] *= _factors(boards, effect, n, rng)
        rows.append(np.column_stack([figures, _figures(before_ms, slo_ms)]))
    before, after = np.hsplit(np.concatenate(rows), 2)
    expected_ms = prediction.median_ms[boards.cluster] * boards.ratio
    after_ms = expected_ms * np.where(effect.chosen, _expected_factor(boards, effect), 1.0)
    return Answer(
        before=_summary(before, slo_ms),
        after=_summary(after, slo_ms),
        mean_ratio=_figure(after[:, 0] / before[:, 0]),
        p95_ratio=_figure(after[:, 1] / before[:, 1]),
        n_changed=int(effect.chosen.sum()),
        board_ms_before=expected_ms,
        board_ms_after=after_ms,
    )


def choose(eligible: BoolArray, share: float | None, seed: int) -> BoolArray:
    """Of the eligible boards (n_boards,) a share, drawn by the seed; all of them without a share.

    share: 0..1 of the *eligible* boards, at least one of them. Raises WhatIfError for none.
    """
    positions = np.flatnonzero(eligible)
    if not len(positions):
        raise WhatIfError("no board is chosen. Next: name boards, a cluster or labels that exist")
    if share is None:
        return eligible
    count = max(1, round(share * len(positions)))
    chosen = np.zeros(len(eligible), dtype=bool)
    chosen[np.random.default_rng(seed).choice(positions, count, replace=False)] = True
    return chosen


def _check(boards: Boards, effect: Effect, draws: int) -> None:
    n = len(boards.board_ids)
    per_board = (
        boards.cluster, boards.ratio, boards.ratio_sd, boards.fixed_share, boards.fixed_sd,
        effect.chosen, effect.clock_ratio,
    )  # fmt: skip
    if not n or any(values.shape != (n,) for values in per_board):
        raise ValueError(f"{n} boards and arrays of {[v.shape for v in per_board]}")
    if draws < 100:
        raise ValueError(f"{draws} draws give no interval: 100 are needed")
    if not effect.chosen.any():
        raise WhatIfError("no board is chosen. Next: name boards, a cluster or labels that exist")


def _latencies(
    boards: Boards, prediction: Prediction, n: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(n, n_boards) ms before the change. An interval's two sides are drawn each by its width."""
    z_limit = NormalDist().inv_cdf((1 + prediction.coverage) / 2)
    z = rng.standard_normal((n, len(prediction.median_ms)))
    up = np.log(prediction.upper_ms / prediction.median_ms) / z_limit
    down = np.log(prediction.median_ms / prediction.lower_ms) / z_limit
    of_cluster = np.log(prediction.median_ms) + z * np.where(z > 0, up, down)
    log_ms = rng.standard_normal((n, len(boards.ratio)), dtype=np.float32)
    log_ms *= boards.ratio_sd.astype(np.float32)
    log_ms += np.log(boards.ratio).astype(np.float32)
    log_ms += of_cluster.astype(np.float32)[:, boards.cluster]
    return np.exp(log_ms, out=log_ms)


def _factors(
    boards: Boards, effect: Effect, n: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(n, n_chosen): what the change multiplies each chosen board's latency by."""
    chosen = effect.chosen
    shared = rng.standard_normal((n, 1)) * boards.shared_fixed_sd
    clock = np.exp(effect.clock_sd * rng.standard_normal((n, 1))).astype(np.float32)
    fixed = rng.standard_normal((n, int(chosen.sum())), dtype=np.float32)
    fixed *= boards.fixed_sd[chosen].astype(np.float32)
    fixed += boards.fixed_share[chosen].astype(np.float32)
    fixed += shared.astype(np.float32)[:, boards.cluster[chosen]]
    ratio = effect.clock_ratio[chosen].astype(np.float32)
    # Where the clock stays there is nothing to be unsure of.
    ratio = np.where(ratio == 1, ratio, ratio * clock)
    return np.float32(effect.slowdown) * _clock_factor(fixed, ratio)


def _expected_factor(boards: Boards, effect: Effect) -> FloatArray:
    return effect.slowdown * _clock_factor(boards.fixed_share, effect.clock_ratio)


def _clock_factor(fixed: NDArray[Float], ratio: NDArray[Float]) -> NDArray[Float]:
    """``s + (1 - s)·f/f'``; a higher clock speeds up in proportion at most, so it stays > 0."""
    least = np.where(ratio < 1, 0, LEAST_FIXED).astype(fixed.dtype)
    fixed = np.clip(fixed, least, MOST_FIXED)
    return fixed + (1 - fixed) * ratio


def _figures(ms: NDArray[np.float32], slo_ms: float | None) -> FloatArray:
    """(n, 3): mean, p95 and share within the SLO of each draw; nan without one."""
    rank = p95_rank(ms.shape[1])
    p95 = np.partition(ms, rank, axis=1)[:, rank]
    share = np.full(len(ms), math.nan) if slo_ms is None else (ms <= slo_ms).mean(axis=1)
    return np.column_stack([ms.mean(axis=1, dtype=np.float64), p95, share])


def p95_rank(n: int) -> int:
    """Position, from 0, of the 95th percentile among n ascending values: the nearest rank."""
    return math.ceil(0.95 * n) - 1


def _summary(draws: FloatArray, slo_ms: float | None) -> FleetFigures:
    share = None if slo_ms is None else _figure(draws[:, 2])
    return FleetFigures(_figure(draws[:, 0]), _figure(draws[:, 1]), share)


def _figure(values: FloatArray) -> Figure:
    tail = (1 - COVERAGE) / 2
    lower, value, upper = np.quantile(values, [tail, 0.5, 1 - tail])
    return Figure(float(value), float(lower), float(upper))
