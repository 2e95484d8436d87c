"""Small prune spaces that several compiler tests share."""

from __future__ import annotations

import pytest

from compiler.pruning.widths import Group, LayerShape, PruneSpace


@pytest.fixture
def mobile_space() -> PruneSpace:
    """MobileNetV1's pattern at 32 x 32: a stem, six depthwise-separable blocks, a classifier."""
    channels = (16, 32, 64, 64, 128, 128, 256)
    strides = (1, 2, 1, 2, 1, 2)
    positions = 32 * 32
    groups = [Group("g0", channels[0], ())]
    layers = [LayerShape("stem", "conv", None, "g0", 3, channels[0], 9, positions, positions)]
    for block, stride in enumerate(strides):
        before, after = f"g{block}", f"g{block + 1}"
        c_in, c_out = channels[block], channels[block + 1]
        smaller = positions // stride**2
        layers.append(
            LayerShape(f"dw{block}", "depthwise", before, before, c_in, c_in, 9, positions, smaller)
        )
        positions = smaller
        layers.append(
            LayerShape(f"pw{block}", "conv", before, after, c_in, c_out, 1, positions, positions)
        )
        groups.append(Group(after, c_out, ()))
    layers.append(LayerShape("fc", "linear", "g6", None, channels[-1], 10, 1, 1, 1))
    widths = tuple(tuple(range(8, group.channels + 1, 8)) for group in groups)
    return PruneSpace("mobile", (1, 3, 32, 32), tuple(groups), tuple(layers), widths)
