"""Samples are legal, distinct, spread over the work, and the same for the same seed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.features import total_macs
from compiler.pruning.widths import Group, PruneSpace
from compiler.sampling import decode, sample_widths


@pytest.mark.parametrize("n", [2, 3, 40, 100])
def test_samples_are_legal_distinct_and_begin_at_the_corners(
    mobile_space: PruneSpace, n: int
) -> None:
    samples = sample_widths(mobile_space, n, seed=5)
    assert len(set(samples)) == n
    assert samples[0] == mobile_space.dense_widths
    assert samples[1] == (8,) * 7
    for widths in samples:
        assert mobile_space.check(widths) == widths
        assert all(type(width) is int for width in widths)


def test_total_work_is_spread_evenly(mobile_space: PruneSpace) -> None:
    log_macs = np.log(total_macs(mobile_space, sample_widths(mobile_space, 60, seed=0)))
    halves = np.histogram(log_macs, bins=4)[0]
    assert halves.min() >= 8


def test_every_group_takes_small_and_large_widths(mobile_space: PruneSpace) -> None:
    widths = np.asarray(sample_widths(mobile_space, 60, seed=0))
    share = (widths - 8) / (np.asarray(mobile_space.dense_widths) - 8)
    assert (np.quantile(share, 0.2, axis=0) < 0.4).all()
    assert (np.quantile(share, 0.8, axis=0) > 0.5).all()


def test_the_seed_decides(mobile_space: PruneSpace) -> None:
    assert sample_widths(mobile_space, 30, 7) == sample_widths(mobile_space, 30, 7)
    assert sample_widths(mobile_space, 30, 7) != sample_widths(mobile_space, 30, 8)


def test_a_small_space_is_used_up(mobile_space: PruneSpace) -> None:
    space = dataclasses.replace(
        mobile_space,
        groups=(Group("a", 16, ()), Group("b", 16, ())),
        layers=tuple(
            dataclasses.replace(layer, in_group="a", out_group="b")
            for layer in mobile_space.layers[2:3]
        ),
        widths_by_group=((8, 16), (4, 8, 16)),
    )
    assert len(set(sample_widths(space, 6, seed=0))) == 6
    with pytest.raises(ValueError, match="7 samples asked, 6 legal shapes exist"):
        sample_widths(space, 7, seed=0)
    with pytest.raises(ValueError, match="the dense and the smallest"):
        sample_widths(space, 1, seed=0)


@settings(max_examples=50)
@given(
    legal=st.lists(st.sets(st.integers(1, 64), min_size=1), min_size=1, max_size=4),
    fractions=st.lists(st.floats(-2, 3), min_size=4, max_size=4),
)
def test_decode_gives_the_nearest_legal_width(
    legal: list[set[int]], fractions: list[float]
) -> None:
    widths = tuple(tuple(sorted(group)) for group in legal)
    groups = tuple(Group(f"g{i}", group[-1], ()) for i, group in enumerate(widths))
    space = PruneSpace("any", (1,), groups, (), widths)
    kept = np.asarray([fractions[: len(groups)]])
    decoded = decode(space, kept)[0]
    for width, choices, fraction in zip(decoded, widths, kept[0], strict=True):
        nearest = min(abs(choice - fraction * choices[-1]) for choice in choices)
        assert abs(width - fraction * choices[-1]) == pytest.approx(nearest)
