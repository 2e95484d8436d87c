"""Boards that do not exist, around those that were measured: what the two networks learn from.

Input: KnownDevices, how far boards may spread, a seed. Output: device vectors with their costs.
Simulated: nothing here was measured, and nothing that came of it alone is reported as if it were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compiler.amortised.device import CLOCK, N_ANCHORS
from compiler.amortised.predictor import KnownDevices
from compiler.amortised.shapes import PARTS
from compiler.anchors import ANCHORS

FloatArray = NDArray[np.float64]

SHOWS_IN: dict[str, dict[str, float]] = {
    "anchor-conv": {"dense": 1.0},
    "anchor-depthwise": {"depthwise": 0.5, "fixed": 0.5},
    "anchor-memory": {"traffic": 1.0},
    "anchor-linear": {"traffic": 0.7, "dense": 0.3},
}
"""What an anchor is bound by (anchors.py): which share of a part's gain it shows."""

_SHOWS = np.array(
    [[SHOWS_IN[anchor].get(part, 0.0) for part in PARTS] for anchor in ANCHORS], dtype=np.float64
)


@dataclass(frozen=True)
class Spread:
    """How far simulated boards lie from the measured ones.

    gain_sd: of the logarithm of what one part costs. least_level, most_level: of the logarithm of
    how much slower the whole board is. anchor_noise: of an anchor's measurement, a fraction.
    """

    gain_sd: float = 0.15
    least_level: float = -0.7
    most_level: float = 1.6
    anchor_noise: float = 0.005


def simulate(known: KnownDevices, spread: Spread, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Vectors of n boards (n, N_FEATURES), and their costs (n, 1 + n_features) in ms.

    Each is a mixture of the measured boards that run the same runtime, slower or faster on the
    whole, and more or less so in each part. What a part gains shows in the anchors that it binds.
    """
    rng = np.random.default_rng(seed)
    vectors = np.stack([device.vector() for device in known.devices])
    costs = known.costs.numpy()
    base = rng.integers(len(vectors), size=n)
    runtimes = np.array([device.runtime for device in known.devices])
    alike = (runtimes[:, None] == runtimes[None, :])[base]
    # A Dirichlet draw within the boards of the same runtime.
    drawn = rng.standard_gamma(0.5, size=(n, len(vectors))) * alike + 1e-12 * alike
    mixture = drawn / drawn.sum(axis=1, keepdims=True)
    gains = rng.normal(0.0, spread.gain_sd, size=(n, len(PARTS)))
    level = rng.uniform(spread.least_level, spread.most_level, size=(n, 1))
    simulated = vectors[base]
    anchors = np.log(mixture @ np.exp(vectors[:, :N_ANCHORS])) + gains @ _SHOWS.T + level
    noise = rng.normal(0.0, spread.anchor_noise, size=anchors.shape)
    simulated[:, :N_ANCHORS] = anchors + noise
    # A slower board mostly has the lower clock, but not only so.
    slower = level[:, 0] * rng.uniform(0.5, 1.0, size=n)
    simulated[:, CLOCK] = np.where(
        simulated[:, CLOCK + 1] > 0, simulated[:, CLOCK] - slower, simulated[:, CLOCK]
    )
    paid = (mixture @ costs) * np.exp(gains[:, known.part_of.numpy()] + level)
    return torch.tensor(simulated), torch.tensor(paid)
