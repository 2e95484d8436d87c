"""Which sub-network to run at which clock, so that latency stays where it is.

Input: latencies of every sub-network at a few clocks of one board. Output: a Policy, JSON: for any
clock the sub-network whose latency lies closest to the target, and when it is worth switching.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

HYSTERESIS = 0.05
"""By how much of the target a switch must come closer to it: less would follow noise of the clock
back and forth."""


@dataclass(frozen=True)
class ClockLaw:
    """latency = a_ms + b_ms_khz / clock in kHz, of one sub-network on one board; both ≥ 0.

    a_ms: what memory and calls take whatever the clock. fit_mape: mean relative error on the
    latencies that it was fitted to.
    """

    a_ms: float
    b_ms_khz: float
    fit_mape: float

    def latency_ms(self, khz: float) -> float:
        return self.a_ms + self.b_ms_khz / khz


def fit_clock_law(khz: Sequence[float], ms: Sequence[float]) -> ClockLaw:
    """Least squares of the relative error, a and b ≥ 0. Raises ValueError below two clocks."""
    from scipy.optimize import nnls

    f, y = np.asarray(khz, dtype=np.float64), np.asarray(ms, dtype=np.float64)
    if len(f) != len(y) or len(np.unique(f)) < 2:
        raise ValueError(f"latency over clock needs two clocks at least, not {sorted(set(khz))}")
    if not (f > 0).all() or not (y > 0).all():
        raise ValueError("clocks and latencies are above 0")
    columns = np.column_stack([np.ones(len(f)), 1 / f]) / y[:, None]
    (a, b), _ = nnls(columns, np.ones(len(f)))
    error = np.abs(columns @ [a, b] - 1)
    return ClockLaw(float(a), float(b), float(error.mean()))


@dataclass(frozen=True)
class Policy:
    """For one board: what to run at which clock.

    target_ms: the latency to hold. laws: of each sub-network, the widest first.
    hysteresis: fraction of the target.
    """

    target_ms: float
    laws: tuple[ClockLaw, ...]
    hysteresis: float = HYSTERESIS

    def __post_init__(self) -> None:
        if not self.laws or not self.target_ms > 0 or not self.hysteresis >= 0:
            raise ValueError("a policy has laws, a target above 0 and a hysteresis of 0 or more")

    def choose(self, khz: float, present: int | None = None) -> int:
        """The position of the sub-network for this clock.

        present: the one that runs now; it stays unless another comes closer to the target by the
        hysteresis. Raises ValueError for a clock of 0 or less.
        """
        if not khz > 0:
            raise ValueError(f"a clock of {khz} kHz")
        distance = [abs(law.latency_ms(khz) - self.target_ms) / self.target_ms for law in self.laws]
        # Of two that are as close the wider one is the more accurate.
        best = min(range(len(distance)), key=lambda position: (distance[position], position))
        if present is None or distance[best] < distance[present] - self.hysteresis:
            return best
        return present

    def covers(self, khz: float, within: float) -> bool:
        """Whether some sub-network's latency at this clock is within a fraction of the target."""
        nearest = self.laws[self.choose(khz)].latency_ms(khz)
        return abs(nearest - self.target_ms) <= within * self.target_ms

    def to_json(self) -> str:
        return json.dumps({"version": 1, **asdict(self)}, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Raises ValueError for a document that is not a policy."""
        try:
            document = json.loads(text)
            if document["version"] != 1:
                raise ValueError(f"policy version {document['version']}, this reads 1")
            laws = tuple(ClockLaw(**law) for law in document["laws"])
            return cls(float(document["target_ms"]), laws, float(document["hysteresis"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a policy: {error}") from None


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
