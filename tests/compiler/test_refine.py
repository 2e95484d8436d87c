"""The descent that ends a search: exchanges at equal work, within the patience."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.features import total_macs
from compiler.pruning.refine import neighbours, refine
from compiler.pruning.widths import PruneSpace, Widths

PRICES = np.array([5.0, 1.0, 3.0, 2.0, 4.0, 1.5, 2.5])


def cost(widths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Every channel has its group's price."""
    return np.asarray(widths @ PRICES)


def test_at_equal_work_channels_go_where_they_are_cheap(mobile_space: PruneSpace) -> None:
    most = 0.5 * mobile_space.macs(mobile_space.dense_widths)
    start = tuple(legal[len(legal) // 2] for legal in mobile_space.widths_by_group)
    least = 0.9 * mobile_space.macs(start)

    def allowed(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        macs = total_macs(mobile_space, rows)
        return np.asarray((macs >= least) & (macs <= most))

    def anything(widths: Widths, value: float) -> bool:
        assert value == cost(np.asarray([widths]))[0]
        return True

    found = refine(mobile_space, start, cost, allowed, anything, patience=4, seed=0)
    mobile_space.check(found)
    assert least <= mobile_space.macs(found) <= most
    assert cost(np.asarray(found)) < cost(np.asarray(start))
    near = neighbours(mobile_space, found)
    assert cost(near[allowed(near)]).min() >= cost(np.asarray(found)) * (1 - 1e-5)


def test_it_asks_no_more_of_the_costly_judge_than_its_patience(mobile_space: PruneSpace) -> None:
    asked: list[Widths] = []

    def never(widths: Widths, value: float) -> bool:
        asked.append(widths)
        return False

    dense = mobile_space.dense_widths
    everything = lambda rows: np.ones(len(rows), dtype=bool)  # noqa: E731
    assert refine(mobile_space, dense, cost, everything, never, patience=3, seed=0) == dense
    assert len(asked) == 3
    values = [float(cost(np.asarray(widths))) for widths in asked]
    assert values == sorted(values)


def test_nowhere_to_go_ends_it(mobile_space: PruneSpace) -> None:
    nothing = lambda rows: np.zeros(len(rows), dtype=bool)  # noqa: E731
    dense = mobile_space.dense_widths
    found = refine(mobile_space, dense, cost, nothing, lambda w, v: True, patience=3, seed=0)
    assert found == dense


def test_neighbours_are_legal_and_differ_in_two_groups_at_most(mobile_space: PruneSpace) -> None:
    smallest = tuple(legal[0] for legal in mobile_space.widths_by_group)
    near = neighbours(mobile_space, smallest)
    for row in near:
        mobile_space.check(tuple(int(width) for width in row))
        assert 1 <= int((row != np.asarray(smallest)).sum()) <= 2
    assert len(np.unique(near, axis=0)) == len(near)
