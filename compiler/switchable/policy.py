"""Which sub-network to run at which clock, so that latency stays where it is.

Input: latencies of every sub-network at a few clocks of one board. Output: a Policy, JSON: for any
clock the sub-network whose latency lies closest to the target, and when it is worth switching.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from device_agents.contract.switching import HYSTERESIS, ClockLaw, Policy

__all__ = [
    "HYSTERESIS",
    "ClockLaw",
    "Policy",
    "coefficient_of_variation",
    "fit_clock_law",
    "learn_policy",
]

FloatArray = NDArray[np.float64]

_REACH = 2.0
"""Of the highest clock measured, up to where a law's latencies stay above 0."""


def fit_clock_law(khz: Sequence[float], ms: Sequence[float]) -> ClockLaw:
    """Least squares of the relative error; b ≥ 0, latencies above 0 up to twice the highest clock.

    Raises ValueError below two clocks.
    """
    from scipy.optimize import nnls

    f, y = np.asarray(khz, dtype=np.float64), np.asarray(ms, dtype=np.float64)
    if len(f) != len(y) or len(np.unique(f)) < 2:
        raise ValueError(f"latency over clock needs two clocks at least, not {sorted(set(khz))}")
    if not (f > 0).all() or not (y > 0).all():
        raise ValueError("clocks and latencies are above 0")
    # In (1/f - 1/reach) both coefficients are 0 or more just where the law holds what is promised.
    reach = _REACH * f.max()
    columns = np.column_stack([np.ones(len(f)), 1 / f - 1 / reach]) / y[:, None]
    (at_reach, b), _ = nnls(columns, np.ones(len(f)))
    error = np.abs(columns @ [at_reach, b] - 1)
    return ClockLaw(float(at_reach - b / reach), float(b), float(error.mean()))


def learn_policy(
    measured_ms: Mapping[int, Mapping[float, float]],
    *,
    target_ms: float | None = None,
    hysteresis: float = HYSTERESIS,
) -> Policy:
    """A policy from position → clock in kHz → latency in ms, at two clocks each at least.

    Positions count from 0, the widest sub-network. target_ms: by default the widest one's latency
    at the highest clock at which it was measured (All-in-One, section 4). Raises ValueError.
    """
    if sorted(measured_ms) != list(range(len(measured_ms))) or not measured_ms:
        raise ValueError(f"sub-networks count from 0 without gaps, not {sorted(measured_ms)}")
    laws = tuple(
        fit_clock_law(list(measured_ms[position]), list(measured_ms[position].values()))
        for position in range(len(measured_ms))
    )
    if target_ms is None:
        target_ms = measured_ms[0][max(measured_ms[0])]
    return Policy(target_ms, laws, hysteresis)


def coefficient_of_variation(ms: Sequence[float]) -> float:
    """Standard deviation over mean, of the latencies at several clocks (population form)."""
    values = np.asarray(ms, dtype=np.float64)
    return float(values.std() / values.mean())
