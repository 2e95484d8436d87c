"""What a width vector costs the hardware: work, traffic and padding, counted per kind of layer.

Input: a PruneSpace and width vectors. Output: features in a fixed order, with their names.
Vectorised over width vectors, for the search asks thousands of times.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compiler.pruning.widths import LayerShape, PruneSpace

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BYTES_PER_VALUE = 4
"""Bytes of one float32 weight or activation."""

QUANTITIES = (
    "macs",
    "macs_pad8",
    "macs_pad16",
    "macs_out32",
    "read_bytes",
    "write_bytes",
    "weight_bytes",
)
"""Counted for each kind of layer. macs_padN: both channel counts rounded up to multiples of N,
which is what a vectorised kernel really computes. macs_out32: the output's rounded up to 32 and
the input's as it is, as in a matrix product by tiles of two AVX-512 vectors (XNNPACK)."""

CACHE_BYTES = tuple(2**exponent for exponent in range(17, 26))
"""128 KiB to 32 MiB. Every inference reads every weight once, so those that a cache cannot hold
come from the next level each time, and what they cost is beyond what their work costs."""

WHOLE = "network"
"""The part that counts all layers together; the other parts are kinds and stages."""


def layer_kind(layer: LayerShape) -> str:
    """Call a convolution of one weight a position "pointwise", else the layer's own kind.

    Runtimes hand a 1 x 1 convolution to a matrix product and a larger one to another kernel.
    """
    return "pointwise" if layer.kind == "conv" and layer.kernel_area == 1 else layer.kind


def layer_stage(layer: LayerShape) -> str:
    """Layers that a kernel treats alike: kind, kernel and picture, as "conv9@784/4".

    That is a 3 x 3 convolution with 784 output positions, a quarter of its input's. The same work
    takes more or less time on a large picture of few channels than on a small one of many.
    """
    shrink = layer.in_positions / layer.out_positions
    return f"{layer_kind(layer)}{layer.kernel_area}@{layer.out_positions}/{shrink:g}"


def feature_names(space: PruneSpace) -> tuple[str, ...]:
    """Columns in order: "KIND.QUANTITY", then "STAGE.QUANTITY", as they first occur.

    A stage has an @ in its name (see layer_stage), a kind has none: totals over a whole kind
    learn from few samples, stages tell shapes of equal work apart. Last the weight bytes of the
    whole network beyond each of CACHE_BYTES, as "network.weights_beyond_1024_kib".
    """
    kinds = dict.fromkeys(layer_kind(layer) for layer in space.layers)
    stages = dict.fromkeys(layer_stage(layer) for layer in space.layers)
    counted = (f"{part}.{quantity}" for part in (*kinds, *stages) for quantity in QUANTITIES)
    return (*counted, *(_beyond(cache_bytes) for cache_bytes in CACHE_BYTES))


def _beyond(cache_bytes: int) -> str:
    return f"{WHOLE}.weights_beyond_{cache_bytes // 1024}_kib"


def physics_features(space: PruneSpace, widths: ArrayLike) -> FloatArray:
    """Totals over the layers of each kind, of each stage, and of the network.

    widths: (n_groups,) or (n, n_groups), any integers >= 1. Returns (n_features,) or
    (n, n_features), columns as in feature_names. Raises ValueError for another shape.
    """
    batch = _batch(space, widths)
    names = feature_names(space)
    column = {name: position for position, name in enumerate(names)}
    kinds = dict.fromkeys(layer_kind(layer) for layer in space.layers)
    totals = np.zeros((len(batch), len(names)))
    for layer, c_in, c_out in _channels(space, batch):
        for quantity, amount in zip(QUANTITIES, _amounts(layer, c_in, c_out), strict=True):
            for part in (layer_kind(layer), layer_stage(layer)):
                totals[:, column[f"{part}.{quantity}"]] += amount
    weight_bytes = totals[:, [column[f"{kind}.weight_bytes"] for kind in kinds]].sum(axis=1)
    for cache_bytes in CACHE_BYTES:
        totals[:, column[_beyond(cache_bytes)]] = np.maximum(weight_bytes - cache_bytes, 0)
    return totals[0] if np.ndim(widths) == 1 else totals


def total_macs(space: PruneSpace, widths: ArrayLike) -> FloatArray:
    """PruneSpace.macs for many width vectors at once: (n, n_groups) → (n,)."""
    batch = _batch(space, widths)
    totals = np.zeros(len(batch))
    for layer, c_in, c_out in _channels(space, batch):
        totals += _macs(layer, c_in, c_out)
    return totals


def _batch(space: PruneSpace, widths: ArrayLike) -> IntArray:
    batch = np.atleast_2d(np.asarray(widths, dtype=np.int64))
    if batch.ndim != 2 or batch.shape[1] != len(space.groups):
        raise ValueError(
            f"widths of shape {np.shape(widths)} for the {len(space.groups)} groups "
            f"of {space.network}"
        )
    if batch.size and batch.min() < 1:
        raise ValueError(f"width {batch.min()}: every group keeps at least one channel")
    return batch


def _channels(
    space: PruneSpace, batch: IntArray
) -> Sequence[tuple[LayerShape, FloatArray, FloatArray]]:
    """(layer, input channels (n,), output channels (n,)) in the network's order."""
    columns = {
        group.name: batch[:, position].astype(np.float64)
        for position, group in enumerate(space.groups)
    }

    def width(group: str | None, fixed: int) -> FloatArray:
        return np.full(len(batch), float(fixed)) if group is None else columns[group]

    return [
        (
            layer,
            width(layer.in_group, layer.in_channels),
            width(layer.out_group, layer.out_channels),
        )
        for layer in space.layers
    ]


def _macs(layer: LayerShape, c_in: FloatArray, c_out: FloatArray) -> FloatArray:
    fan_in = 1.0 if layer.kind == "depthwise" else c_in * layer.in_repeat
    return fan_in * c_out * layer.kernel_area * layer.out_positions


def _pad(channels: FloatArray, multiple: int) -> FloatArray:
    return np.ceil(channels / multiple) * multiple


def _amounts(layer: LayerShape, c_in: FloatArray, c_out: FloatArray) -> tuple[FloatArray, ...]:
    """One array (n,) for each of QUANTITIES."""
    fan_in = 1.0 if layer.kind == "depthwise" else c_in * layer.in_repeat
    return (
        _macs(layer, c_in, c_out),
        _macs(layer, _pad(c_in, 8), _pad(c_out, 8)),
        _macs(layer, _pad(c_in, 16), _pad(c_out, 16)),
        _macs(layer, c_in, _pad(c_out, 32)),
        c_in * layer.in_repeat * layer.in_positions * BYTES_PER_VALUE,
        c_out * layer.out_positions * BYTES_PER_VALUE,
        fan_in * c_out * layer.kernel_area * BYTES_PER_VALUE,
    )
