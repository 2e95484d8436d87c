"""The widths at which latency steps: learned from a ladder of measured widths, not assumed.

Input: widths and latencies of one kind of layer on one board. Output: Step: the multiple that the
runtime pays for, with its evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

FloatArray = NDArray[np.float64]

STEPS = (1, 4, 8, 16, 32)
"""A float32 vector holds four values at least; two at a time would save no more than a channel."""
LADDER = (32, 33, 34, 36, 40, 44, 48, 49, 52, 56, 64, 65, 80)
"""Widths measured: for every step some at its multiples, some just above, some between."""

MARGIN = 2.0
"""Standard errors: a step that is none costs choice of widths for nothing."""
LEAST_GAIN = 1.5
"""A coarser step must lower the error by this factor: of many models one fits noise best."""
NEGLIGIBLE = 0.003
"""Relative error that no step need explain: what timing itself leaves open."""


@dataclass(frozen=True)
class Step:
    """What a ladder says. step: of STEPS, 1 where latency grows evenly; legal are its multiples.

    padded_to: the multiple up to which work is done anyway; slow_off: the one off which the kernel
    is another, slower one; 1 for neither. Step is the larger of both. error_by_step: left-one-out,
    relative, of the best model of each step. r2: of the chosen one, by left-one-out predictions.
    """

    step: int
    padded_to: int
    slow_off: int
    r2: float
    error_by_step: dict[int, float]


def fit_step(widths: Sequence[int], ms: ArrayLike) -> Step:
    """The smallest step that explains a ladder as well as any, given its noise.

    Latency must grow linearly with the width of whole layers, as ladders.ladder_network makes it.
    Model of (s, g): ``ms = a + b·w + c·⌈w/s⌉·s + d·w·[g does not divide w]``, all ≥ 0: work as
    counted, work as padded, and a slower kernel off the grid, which may be the finer of two grids:
    onnxruntime 1.31 on AVX-512 works in blocks of 16 channels and is slower still off multiples
    of 4. As well as any: the mean left-one-out error, relative, is within MARGIN standard errors of
    the least (Breiman et al. 1984, section 3.4.3, has the rule with 1), within LEAST_GAIN times it,
    or below NEGLIGIBLE.
    Raises ValueError for fewer than 8 widths.
    """
    w, y = np.asarray(widths, dtype=np.float64), np.asarray(ms, dtype=np.float64)
    if len(w) < 8 or w.shape != y.shape:
        raise ValueError(f"a staircase from {len(w)} widths and {len(y)} latencies: 8 are needed")
    models = {step: _best_model(w, y, step) for step in STEPS}
    errors = {step: np.abs(predicted / y - 1) for step, (_, predicted) in models.items()}
    means = {step: float(np.mean(values)) for step, values in errors.items()}
    best = min(STEPS, key=lambda step: means[step])
    # Of the differences, for all steps err alike on the same noisy rung.
    chosen = next(
        step
        for step in STEPS
        if means[step] - means[best] <= MARGIN * _standard_error(errors[step] - errors[best])
        or means[step] <= max(NEGLIGIBLE, LEAST_GAIN * means[best])
    )
    (padded_to, slow_off), predicted = models[chosen]
    unexplained = float(np.sum((y - predicted) ** 2) / np.sum((y - y.mean()) ** 2))
    return Step(chosen, padded_to, slow_off, 1 - unexplained, means)


def _standard_error(differences: FloatArray) -> float:
    return float(np.std(differences, ddof=1) / np.sqrt(len(differences)))


def _best_model(w: FloatArray, y: FloatArray, step: int) -> tuple[tuple[int, int], FloatArray]:
    """((s, g), left-one-out predictions) of the pair that errs least, the larger being step."""
    finer = [g for g in STEPS if g <= step]
    pairs = dict.fromkeys([*((step, g) for g in finer), (1, step)])
    found = {pair: _left_one_out(_columns(w, *pair), y) for pair in pairs}
    pair = min(found, key=lambda of: float(np.mean(np.abs(found[of] / y - 1))))
    return pair, found[pair]


def _columns(w: FloatArray, padded_to: int, slow_off: int) -> FloatArray:
    padded = np.ceil(w / padded_to) * padded_to
    return np.column_stack([np.ones(len(w)), w, padded, w * (w % slow_off != 0)])


def _left_one_out(columns: FloatArray, y: FloatArray) -> FloatArray:
    """(n,): each latency as the others predict it."""
    predicted = np.empty(len(y))
    for left in range(len(y)):
        kept = np.arange(len(y)) != left
        # By relative errors: a ladder spans several times its least latency.
        coefficients, _ = nnls(columns[kept] / y[kept, None], np.ones(int(kept.sum())))
        predicted[left] = columns[left] @ coefficients
    return predicted
