"""What a shape costs, as tensors: the surrogates' features, exact or smooth enough for gradients.

Input: a PruneSpace, widths or kept fractions. Output: features (n, n_features) over the dense
shape's, in the order of feature_names; and to which kind of cost each of them belongs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from compiler.features import (
    BYTES_PER_VALUE,
    CACHE_BYTES,
    QUANTITIES,
    WHOLE,
    feature_names,
    layer_kind,
    layer_stage,
    physics_features,
)
from compiler.pruning.widths import LayerShape, PruneSpace

PARTS = ("fixed", "dense", "depthwise", "traffic")
"""Kinds of cost that one board may pay more for than another: what no width changes, arithmetic
of dense and of depthwise layers, bytes."""

Pad = Callable[[Tensor, int], Tensor]


class ShapeCosts:
    """Features of one space's shapes. feature_names: columns; scale: the dense shape's, or 1.

    part_of: (1 + n_features,) positions in PARTS, of the constant and then of each feature.
    """

    def __init__(self, space: PruneSpace) -> None:
        self.space = space
        self.feature_names = feature_names(space)
        dense = physics_features(space, space.dense_widths)
        self.scale = torch.tensor(np.where(dense > 0, dense, 1.0))
        self.dense_widths = torch.tensor(space.dense_widths, dtype=torch.float64)
        self.least_kept = torch.tensor(
            [legal[0] / legal[-1] for legal in space.widths_by_group], dtype=torch.float64
        )
        self.part_of = torch.tensor([0, *(_part(space, name) for name in self.feature_names)])
        self._to_columns = self._columns()
        places = {group.name: place for place, group in enumerate(space.groups)}
        n = len(space.groups)
        # Behind the groups' columns stand one a layer for a width that is fixed.
        self._in = torch.tensor([places.get(x.in_group or "", n + i) for i, x in _layers(space)])
        self._out = torch.tensor(
            [places.get(x.out_group or "", n + len(space.layers) + i) for i, x in _layers(space)]
        )
        fixed = [x.in_channels for x in space.layers] + [x.out_channels for x in space.layers]
        self._fixed = torch.tensor(fixed, dtype=torch.float64)
        self._depthwise = torch.tensor([x.kind == "depthwise" for x in space.layers])
        self._repeat = _of(space, lambda x: x.in_repeat)
        self._work = _of(space, lambda x: x.kernel_area * x.out_positions)
        self._kernel = _of(space, lambda x: x.kernel_area)
        self._in_positions = _of(space, lambda x: x.in_positions)
        self._out_positions = _of(space, lambda x: x.out_positions)

    def exact(self, widths: Tensor) -> Tensor:
        """(n, n_groups) widths → (n, n_features): physics_features over the dense shape's."""
        return self._features(widths.double(), lambda c, m: torch.ceil(c / m) * m)

    def smooth(self, kept: Tensor) -> Tensor:
        """(n, n_groups) fractions of the dense widths → (n, n_features), differentiable.

        Rounding up to multiples of m costs (m - 1) / 2 channels on average: that is added.
        """
        return self._features(kept * self.dense_widths, lambda c, m: c + (m - 1) / 2)

    def _features(self, widths: Tensor, pad: Pad) -> Tensor:
        both = torch.cat([widths, self._fixed.expand(len(widths), -1)], dim=1)
        c_in, c_out = both[:, self._in], both[:, self._out]

        def macs(fan_in: Tensor, channels: Tensor) -> Tensor:
            lanes = torch.where(self._depthwise, 1.0, fan_in * self._repeat)
            return lanes * channels * self._work

        fan_in = torch.where(self._depthwise, 1.0, c_in * self._repeat)
        weight_bytes = fan_in * c_out * self._kernel * BYTES_PER_VALUE
        amounts = {
            "macs": macs(c_in, c_out),
            "macs_pad8": macs(pad(c_in, 8), pad(c_out, 8)),
            "macs_pad16": macs(pad(c_in, 16), pad(c_out, 16)),
            "macs_out32": macs(c_in, pad(c_out, 32)),
            "read_bytes": c_in * self._repeat * self._in_positions * BYTES_PER_VALUE,
            "write_bytes": c_out * self._out_positions * BYTES_PER_VALUE,
            "weight_bytes": weight_bytes,
        }
        by_layer = torch.cat([amounts[quantity] for quantity in QUANTITIES], dim=1)
        total_bytes = weight_bytes.sum(dim=1)
        beyond = [torch.relu(total_bytes - cache_bytes) for cache_bytes in CACHE_BYTES]
        counted = by_layer @ self._to_columns
        return torch.cat([counted, torch.stack(beyond, dim=1)], dim=1) / self.scale

    def _columns(self) -> Tensor:
        """(n_quantities · n_layers, n_counted): which column each layer's amount adds to."""
        column = {name: place for place, name in enumerate(self.feature_names)}
        n_counted = len(column) - len(CACHE_BYTES)
        n_layers = len(self.space.layers)
        to_columns = torch.zeros(len(QUANTITIES) * n_layers, n_counted, dtype=torch.float64)
        for number, quantity in enumerate(QUANTITIES):
            for place, layer in _layers(self.space):
                for part in (layer_kind(layer), layer_stage(layer)):
                    to_columns[number * n_layers + place, column[f"{part}.{quantity}"]] = 1
        return to_columns


def _layers(space: PruneSpace) -> list[tuple[int, LayerShape]]:
    return list(enumerate(space.layers))


def _of(space: PruneSpace, count: Callable[[LayerShape], int]) -> Tensor:
    return torch.tensor([count(layer) for layer in space.layers], dtype=torch.float64)


def _part(space: PruneSpace, name: str) -> int:
    """Position in PARTS of the feature "PART.QUANTITY"."""
    part, quantity = name.rsplit(".", 1)
    if part == WHOLE or not quantity.startswith("macs"):
        return PARTS.index("traffic")
    kinds = {
        p: layer.kind for layer in space.layers for p in (layer_kind(layer), layer_stage(layer))
    }
    return PARTS.index("depthwise" if kinds[part] == "depthwise" else "dense")
