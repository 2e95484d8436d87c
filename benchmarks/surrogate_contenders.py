"""What predicts a latency from a shape: fleetcut beside simpler models on the same samples.

Input: Shapes to learn from and to judge. Output: one row of errors for each contender.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from compiler.dataset import Dataset
from compiler.surrogates import LatencySurrogate, mape

FloatArray = NDArray[np.float64]

FLEETCUT = "fleetcut"
COVERAGE = 0.9
WITHIN = 0.10
SEED = 0


@dataclass(frozen=True)
class Shapes:
    """Measured shapes as each contender sees them.

    macs: (n,) multiply-adds. raw: (n, n_raw), the shape as it is written down: channels of each
    group, or the operator on each edge. x: (n, n_features) as fleetcut counts them, named by
    names. ms: (n,) measured medians.
    """

    macs: FloatArray
    raw: FloatArray
    x: FloatArray
    names: tuple[str, ...]
    ms: FloatArray

    def __len__(self) -> int:
        return len(self.ms)

    def take(self, rows: NDArray[np.int64]) -> Shapes:
        """The shapes of these rows."""
        return Shapes(self.macs[rows], self.raw[rows], self.x[rows], self.names, self.ms[rows])


Columns = Callable[[Shapes], FloatArray]
Peer = Callable[[Shapes, Shapes], FloatArray]
"""(train, judged) → predicted ms (n_judged,)."""


def _macs(train: Shapes, judged: Shapes) -> FloatArray:
    """A line through the multiply-adds, least squares on the relative error."""
    line = LinearRegression().fit(train.macs[:, None], train.ms, sample_weight=train.ms**-2)
    predicted: FloatArray = line.predict(judged.macs[:, None])
    return np.asarray(np.maximum(predicted, 0.1 * train.ms.min()))


def _ridge(columns: Columns) -> Peer:
    """Standardised, on the logarithm, its strength by leave-one-out."""

    def peer(train: Shapes, judged: Shapes) -> FloatArray:
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-4, 4, 25)))
        model.fit(columns(train), np.log(train.ms))
        return np.asarray(np.exp(model.predict(columns(judged))))

    return peer


def _trees(columns: Columns) -> Peer:
    """Boosted on the logarithm, with the settings of fleetcut's own trees."""

    def peer(train: Shapes, judged: Shapes) -> FloatArray:
        model = GradientBoostingRegressor(
            n_estimators=200, max_depth=3, learning_rate=0.1, subsample=0.8, random_state=SEED
        ).fit(columns(train), np.log(train.ms))
        return np.asarray(np.exp(model.predict(columns(judged))))

    return peer


PEERS: Mapping[str, Peer] = {
    "multiply-adds": _macs,
    "raw boosted trees": _trees(lambda shapes: shapes.raw),
    "raw ridge": _ridge(lambda shapes: shapes.raw),
    "physics ridge": _ridge(lambda shapes: shapes.x),
}


def judge(train: Shapes, judged: Shapes) -> list[dict[str, Any]]:
    """One row a contender: fractions, family and intervals of fleetcut alone."""
    data = Dataset(train.x, train.ms, ("board",) * len(train), train.names, "")
    surrogate = LatencySurrogate(seed=SEED, coverage=COVERAGE).fit(data)
    median, lower, upper = surrogate.predict(judged.x, extrapolate=True)
    inside = (lower <= judged.ms) & (judged.ms <= upper)
    ours = {
        "family": surrogate.family_,
        "coverage": float(inside.mean()),
        "interval_width": float(np.mean((upper - lower) / median)),
        "in_domain": float(surrogate.in_domain(judged.x).mean()),
    }
    peers = {name: peer(train, judged) for name, peer in PEERS.items()}
    nothing = dict.fromkeys(ours)
    return [
        {"n_train": len(train), "contender": name, "n_held_out": len(judged)}
        | errors(judged.ms, predicted)
        | (ours if name == FLEETCUT else nothing)
        for name, predicted in {FLEETCUT: median, **peers}.items()
    ]


def errors(measured_ms: FloatArray, predicted_ms: FloatArray) -> dict[str, float]:
    """Absolute errors as fractions of what was measured: mean, median, worst, share in ±10 %."""
    apart = np.abs(predicted_ms / measured_ms - 1)
    return {
        "mape": mape(measured_ms, predicted_ms),
        "within10": float((apart <= WITHIN).mean()),
        "median_ape": float(np.median(apart)),
        "worst_ape": float(apart.max()),
    }


def nested(n: int, sizes: tuple[int, ...], first: int) -> list[NDArray[np.int64]]:
    """Rows of each learning-curve point, each within the next; the first rows are in all.

    sizes: ascending; those above n are cut to n, and stand once.
    """
    rng = np.random.default_rng(SEED)
    order = np.concatenate([np.arange(first), first + rng.permutation(n - first)])
    return [order[:size] for size in dict.fromkeys(min(size, n) for size in sizes)]
