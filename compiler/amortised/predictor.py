"""Latency of any shape on any board: a cost vector from the device's features, times the shape's.

Input: KnownDevices, boards whose shapes were measured. Output: PairPredictor, differentiable in
the shape; for a board never measured beyond its anchors as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compiler.amortised.device import N_ANCHORS, N_FEATURES, DeviceFeatures
from compiler.amortised.shapes import PARTS, ShapeCosts
from compiler.pruning.widths import Widths
from compiler.surrogates import additive_costs

FloatArray = NDArray[np.float64]

HIDDEN = 64
MOST_GAIN = 2.0
"""Logarithm of how much more, or less, than the known boards any board pays for one part."""
LEAST_MS = 1e-4


@dataclass(frozen=True)
class KnownDevices:
    """Boards with measured shapes of one network.

    devices: one or more. costs: (n_devices, 1 + n_features), ms of the constant and of each
    feature of the dense shape, ≥ 0: surrogates.additive_costs. part_of: as in ShapeCosts.
    """

    devices: tuple[DeviceFeatures, ...]
    costs: Tensor
    part_of: Tensor


def known_devices(
    shapes: ShapeCosts,
    devices: Sequence[DeviceFeatures],
    widths: Sequence[Sequence[Widths]],
    ms: Sequence[FloatArray],
) -> KnownDevices:
    """Fitted to what each board measured: widths[k], ms[k] are the shapes of devices[k].

    Raises ValueError where the lengths differ or there is none.
    """
    if not devices or len({len(devices), len(widths), len(ms)}) != 1:
        raise ValueError(f"{len(devices)} devices, {len(widths)} and {len(ms)} lists of shapes")
    costs = [
        additive_costs(shapes.exact(torch.tensor(of)).numpy(), np.asarray(taken_ms))
        for of, taken_ms in zip(widths, ms, strict=True)
    ]
    return KnownDevices(tuple(devices), torch.tensor(np.stack(costs)), shapes.part_of)


class PairPredictor(nn.Module):
    """``latency(shape, device) = Σ_j a_j(device) · x_j(shape)``, a ≥ 0.

    A board's costs are a mixture of the known boards' ones, times one gain for each of PARTS,
    times how much slower its anchors are on the whole. A small network tells mixture, gains and
    the rest of the factor from the device's features. So a device in between is in between, and a
    shape outside the measured ones still costs what its work costs.
    """

    part_of: Tensor
    costs: Tensor
    anchors: Tensor
    center: Tensor
    spread: Tensor

    def __init__(self, known: KnownDevices) -> None:
        super().__init__()
        vectors = torch.tensor(np.stack([device.vector() for device in known.devices]))
        self.register_buffer("part_of", known.part_of)
        self.register_buffer("costs", known.costs)
        self.register_buffer("anchors", vectors[:, :N_ANCHORS])
        self.register_buffer("center", vectors.mean(dim=0))
        self.register_buffer("spread", torch.ones(N_FEATURES, dtype=torch.float64))
        last = nn.Linear(HIDDEN, len(known.devices) + len(PARTS) + 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            *(nn.Linear(N_FEATURES, HIDDEN), nn.SiLU()),
            *(nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), last),
        ).double()

    def standardise(self, vectors: Tensor) -> None:
        """Take mean and spread of the devices to come, (n, N_FEATURES)."""
        self.center.copy_(vectors.mean(dim=0))
        spread = vectors.std(dim=0)
        self.spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def standardised(self, vectors: Tensor) -> Tensor:
        return (vectors - self.center) / self.spread

    def device_costs(self, vectors: Tensor) -> Tensor:
        """(n, N_FEATURES) → (n, 1 + n_features), ms."""
        out = self.net(self.standardised(vectors))
        n_known = len(self.costs)
        mixture = torch.softmax(out[:, :n_known], dim=1)
        gains = torch.exp(MOST_GAIN * torch.tanh(out[:, n_known : n_known + len(PARTS)]))
        slower = vectors[:, :N_ANCHORS] - mixture @ self.anchors
        level = torch.exp(slower.mean(dim=1) + torch.tanh(out[:, -1]))
        return (mixture @ self.costs) * gains[:, self.part_of] * level[:, None]

    def forward(self, vectors: Tensor, features: Tensor) -> Tensor:
        """Row by row: (n, N_FEATURES) devices, (n, n_features) shapes → (n,) ms."""
        return pair_ms(self.device_costs(vectors), features)


def pair_ms(costs: Tensor, features: Tensor) -> Tensor:
    """Costs (n or 1, 1 + n_features) and features (n, n_features), row by row → (n,) ms."""
    return (costs[:, 0] + (costs[:, 1:] * features).sum(dim=1)).clamp(min=LEAST_MS)
