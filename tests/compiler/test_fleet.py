"""A fleet of boards: figures over every board, whatever its cluster's representative takes."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.clusters import AnchorLatencies, DeviceClusters
from compiler.dataset import Dataset
from compiler.errors import CompilerError
from compiler.features import feature_names, physics_features
from compiler.fleet import Fleet, board_ratios
from compiler.pruning.widths import PruneSpace
from compiler.sampling import sample_widths
from compiler.surrogates import LatencySurrogate, OutOfDomainError

BOARDS = {"a1": ("c0", 1.0), "a2": ("c0", 1.1), "a3": ("c0", 0.9), "b1": ("c1", 1.0)}


@pytest.fixture
def fleet(mobile_space: PruneSpace) -> Fleet:
    widths = sample_widths(mobile_space, 24, 0)
    x = physics_features(mobile_space, widths)
    names = feature_names(mobile_space)
    y = 0.1 + x[:, 1] / 8e6 + x[:, 7] / 9e6
    surrogates = {
        label: LatencySurrogate(("additive",)).fit(Dataset(x, scale * y, ("b",) * 24, names, "0"))
        for label, scale in (("c1", 3.0), ("c0", 1.0))
    }
    return Fleet(mobile_space, surrogates, BOARDS)


def test_every_board_counts_with_its_own_ratio(fleet: Fleet) -> None:
    dense = fleet.space.dense_widths
    by_cluster = fleet.by_cluster_ms(dense)
    boards = np.array([by_cluster[label] * ratio for label, ratio in BOARDS.values()])
    figures = fleet.figures(dense, slo_ms=float(by_cluster["c0"]) * 1.05)
    assert figures.mean_ms == pytest.approx(boards.mean()) == fleet.mean_ms(dense)
    assert figures.p95_ms == pytest.approx(boards.max())
    assert figures.slo_share == 0.5
    assert fleet.figures(dense).slo_share is None


def test_objectives_say_the_same_as_the_figures(fleet: Fleet) -> None:
    """Whatever order the surrogates and the boards come in."""
    smaller = tuple(legal[len(legal) // 2] for legal in fleet.space.widths_by_group)
    ms, spread = fleet.latency()(np.array([fleet.space.dense_widths, smaller]))
    assert ms.shape == spread.shape == (2, 2)
    for row, widths in enumerate((fleet.space.dense_widths, smaller)):
        figures = fleet.figures(widths)
        assert fleet.objective("mean").value(ms)[row] == pytest.approx(figures.mean_ms)
        assert fleet.objective("p95").value(ms)[row] == pytest.approx(figures.p95_ms)
        assert fleet.objective("slo", 1.0).mean_ms(ms)[row] == pytest.approx(figures.mean_ms)


def test_clusters_without_boards_and_boards_without_clusters_are_refused(fleet: Fleet) -> None:
    for boards in ({"a1": ("c0", 1.0)}, {**BOARDS, "x": ("c9", 1.0)}):
        with pytest.raises(ValueError, match="boards of clusters"):
            Fleet(fleet.space, fleet.surrogates, boards)


def test_outside_what_was_measured_there_are_no_figures(mobile_space: PruneSpace) -> None:
    widths = sample_widths(mobile_space, 24, 0)[2:]
    x = physics_features(mobile_space, widths)
    data = Dataset(x, 0.1 + x[:, 1], ("b",) * 22, feature_names(mobile_space), "0")
    fleet = Fleet(
        mobile_space, {"c0": LatencySurrogate(("additive",)).fit(data)}, {"a": ("c0", 1.0)}
    )
    with pytest.raises(OutOfDomainError):
        fleet.figures(mobile_space.dense_widths)
    assert np.isinf(fleet.latency()(np.array([mobile_space.dense_widths]))[0]).all()


def test_a_board_is_compared_with_the_board_that_was_measured() -> None:
    median_ms = np.array([[1.0, 1.0], [1.02, 1.0], [0.99, 1.0], [2.0, 2.0], [2.02, 2.0]])
    latencies = AnchorLatencies(tuple("abcde"), ("x", "y"), median_ms, np.zeros(2), "0")
    clusters = DeviceClusters().fit(latencies)
    ratio = dict(zip("abcde", median_ms.mean(axis=1).tolist(), strict=True))
    boards = board_ratios(clusters, ratio)
    assert list(boards) == list("abcde")
    for label, representative in clusters.representatives_.items():
        assert boards[representative] == (label, 1.0)
        for board, (its_label, value) in boards.items():
            if its_label == label:
                assert value == ratio[board] / ratio[representative]
    del ratio["d"]
    with pytest.raises(CompilerError, match="d: has a cluster but no anchor ratio"):
        board_ratios(clusters, ratio)
