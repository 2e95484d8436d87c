"""A cut of a cut is a cut of the first network: how rounds of pruning add up to one plan.

Input: the space of the dense network, and channels kept of it and of what was kept. Output: the
space of the smaller network, and channels numbered as the dense network numbers them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from compiler.pruning.widths import PruneSpace

Kept = Mapping[str, tuple[int, ...]]
"""Group name → ascending channel indices."""


def narrowed(space: PruneSpace, widths: Sequence[int]) -> PruneSpace:
    """The space of the network cut to these widths: what is legal there and still within them.

    Widths keep their meaning, so surrogates of the whole space know them. Raises ValueError for
    widths that are not legal.
    """
    legal = space.check(widths)
    return dataclasses.replace(
        space,
        groups=tuple(
            dataclasses.replace(group, channels=width)
            for group, width in zip(space.groups, legal, strict=True)
        ),
        layers=tuple(
            dataclasses.replace(layer, in_channels=c_in, out_channels=c_out)
            for layer, c_in, c_out in space.layer_channels(legal)
        ),
        widths_by_group=tuple(
            tuple(w for w in steps if w <= width)
            for steps, width in zip(space.widths_by_group, legal, strict=True)
        ),
    )


def everything(space: PruneSpace) -> dict[str, tuple[int, ...]]:
    """Every channel of every group."""
    return {group.name: tuple(range(group.channels)) for group in space.groups}


def composed(outer: Kept, inner: Kept) -> dict[str, tuple[int, ...]]:
    """Inner's channels, which number what outer kept, numbered as outer's are."""
    return {name: tuple(outer[name][i] for i in indices) for name, indices in inner.items()}


def relative(outer: Kept, whole: Kept) -> dict[str, tuple[int, ...]]:
    """The inverse of composed: whole's channels, each of which outer kept, as outer's positions.

    Raises KeyError for a channel that outer did not keep.
    """
    found = {}
    for name, indices in whole.items():
        position = {channel: i for i, channel in enumerate(outer[name])}
        found[name] = tuple(position[channel] for channel in indices)
    return found
