"""Large fleets: behaviours that differ in scale and in shape are found beside outliers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from compiler.cluster_stages import TWO_STAGES_FROM, grouped
from compiler.clusters import AnchorLatencies, DeviceClusters
from compiler.dataset import DatasetError

ANCHORS = ("conv", "wide", "depthwise", "memory", "copy", "linear", "tiny")
BASE_MS = np.array([2.0, 4.0, 1.9, 1.3, 0.9, 1.5, 0.3])
NOMINAL = [1.0] * 7
SLOW_CLOCK = [1.2] * 7
BANDWIDTH_BOUND = [1.0, 1.02, 1.25, 1.6, 1.7, 1.35, 1.0]
RUNTIME_BOUND = [1.05, 1.02, 1.1, 1.0, 1.0, 1.08, 1.9]
BEHAVIOURS = np.array([NOMINAL, SLOW_CLOCK, BANDWIDTH_BOUND, RUNTIME_BOUND])
SHARES = (0.55, 0.3, 0.1, 0.05)
LARGE = TWO_STAGES_FROM + 5_000


def fleet(
    n_boards: int, seed: int, *, outliers: float = 0.01
) -> tuple[AnchorLatencies, np.ndarray]:
    """Boards with planted behaviours; of each the number, -1 for boards like no other."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(SHARES), n_boards, p=SHARES)
    ratios = np.log(BEHAVIOURS)[truth]
    ratios += rng.normal(0, 0.015, (n_boards, 1)) + rng.normal(0, 0.015, ratios.shape)
    ratios += 0.02 * np.linspace(0, 1, n_boards)[:, None]  # the rack warms while it is measured
    odd = np.flatnonzero(rng.random(n_boards) < outliers)
    ratios[odd] = rng.uniform(0.9, 2.0, (len(odd), 1)) + rng.normal(0, 0.3, (len(odd), 7))
    truth[odd] = -1
    return latencies(np.exp(ratios) * BASE_MS), truth


def latencies(median_ms: np.ndarray) -> AnchorLatencies:
    ids = tuple(f"b{board:06d}" for board in range(len(median_ms)))
    anchors = ANCHORS[: median_ms.shape[1]]
    return AnchorLatencies(ids, anchors, median_ms, np.full(len(anchors), 0.01), "0" * 64)


def new_board(behaviour: list[float], *anchors: str) -> dict[str, float]:
    every = dict(zip(ANCHORS, BASE_MS * behaviour, strict=True))
    return {anchor: every[anchor] for anchor in anchors or ANCHORS}


@pytest.fixture(scope="module")
def large() -> tuple[DeviceClusters, np.ndarray]:
    measured, truth = fleet(LARGE, seed=0)
    return DeviceClusters(n_bootstrap=5).fit(measured), truth


@pytest.mark.parametrize("n_boards", [400, 1_000, 4_000, 10_000])
def test_scatter_and_outliers_do_not_blur_behaviours(n_boards: int) -> None:
    for seed in range(2):
        measured, truth = fleet(n_boards, seed)
        clusters = DeviceClusters(n_bootstrap=0).fit(measured)
        usual = truth >= 0
        assert adjusted_rand_score(truth[usual], clusters.labels_[usual]) > 0.98, seed
        assert n_boards < 1_000 or len(clusters.weights_) == len(SHARES), seed


def test_planted_behaviours_of_a_large_fleet_are_found(
    large: tuple[DeviceClusters, np.ndarray],
) -> None:
    clusters, truth = large
    usual = truth >= 0
    assert len(clusters.representatives_) == len(SHARES)
    assert adjusted_rand_score(truth[usual], clusters.labels_[usual]) > 0.99
    assert sorted(clusters.weights_.values(), reverse=True) == pytest.approx(SHARES, abs=0.02)
    assert sum(clusters.weights_.values()) == pytest.approx(1)
    assert clusters.stability_ > 0.97


def test_outliers_of_a_large_fleet_are_named_and_counted(
    large: tuple[DeviceClusters, np.ndarray],
) -> None:
    clusters, truth = large
    named = np.isin(clusters.board_ids_, clusters.outliers_)
    assert named[truth < 0].mean() > 0.95
    assert (truth < 0)[named].mean() > 0.95
    assert set(clusters.labels_[named]) <= set(clusters.weights_)


def test_representatives_of_a_large_fleet_behave_as_planted(
    large: tuple[DeviceClusters, np.ndarray],
) -> None:
    clusters, truth = large
    planted = [truth[clusters.board_ids_.index(b)] for b in clusters.representatives_.values()]
    assert sorted(planted) == [0, 1, 2, 3]
    for number, label in zip(planted, clusters.representatives_, strict=True):
        given = clusters.assign(new_board(BEHAVIOURS[number].tolist()))
        assert (given.label, given.outlier) == (label, False)
    assert clusters.assign(new_board([5.0] * 7)).outlier


def test_the_same_seed_gives_the_same_clusters(large: tuple[DeviceClusters, np.ndarray]) -> None:
    measured, _ = fleet(LARGE, seed=0)
    assert DeviceClusters(n_bootstrap=5).fit(measured).to_json() == large[0].to_json()


def test_a_large_fleet_of_equal_boards_is_one_cluster() -> None:
    same = latencies(np.tile(BASE_MS, (LARGE, 1)))
    rng = np.random.default_rng(0)
    alike = latencies(BASE_MS * np.exp(rng.normal(0, 0.015, (LARGE, 7))))
    for measured in (same, alike):
        clusters = DeviceClusters(n_bootstrap=0).fit(measured)
        assert clusters.weights_ == {"c0": 1.0}
        assert clusters.outliers_ == ()


@pytest.mark.parametrize("n_boards", [1_000, LARGE])
def test_outliers_beside_boards_without_any_noise_are_named(n_boards: int) -> None:
    for scales in ([1.0], [1.0, 1.3]):
        factors = np.resize(scales, n_boards)
        factors[:3] = (3.0, 4.0, 5.0)
        clusters = DeviceClusters(n_bootstrap=0).fit(latencies(factors[:, None] * BASE_MS))
        assert clusters.outliers_ == ("b000000", "b000001", "b000002")
        assert len(clusters.weights_) == len(scales)


def test_a_small_share_of_a_large_fleet_is_a_cluster_only_when_asked() -> None:
    rng = np.random.default_rng(0)
    median_ms = BASE_MS * np.exp(rng.normal(0, 0.015, (LARGE, 7)))
    median_ms[:75] *= 1.5
    usual = DeviceClusters(n_bootstrap=0).fit(latencies(median_ms))
    assert usual.weights_ == {"c0": 1.0}
    assert usual.outliers_ == tuple(usual.board_ids_[:75])
    asked = DeviceClusters(n_bootstrap=0, min_share=0.001).fit(latencies(median_ms))
    assert asked.weights_ == pytest.approx({"c0": 1 - 75 / LARGE, "c1": 75 / LARGE})
    assert asked.outliers_ == ()


def test_a_large_fleet_without_any_likeness_is_one_cluster() -> None:
    scaled = np.random.default_rng(0).normal(0, 500, (LARGE, 7))
    assert set(grouped(scaled, 100, seed=0)) == {0}


def test_few_probes_tell_a_new_board_where_they_tell_clusters_apart(
    large: tuple[DeviceClusters, np.ndarray],
) -> None:
    clusters, _ = large
    probes = clusters.probes()
    assert 2 <= len(probes) < len(ANCHORS)
    for behaviour in BEHAVIOURS.tolist():
        whole = clusters.assign(new_board(behaviour))
        assert clusters.assign(new_board(behaviour, *probes)).label == whole.label
    with pytest.raises(DatasetError, match="1 of 7 anchors do not tell the 4 clusters apart"):
        clusters.probes(at_most=1)


def test_probes_that_leave_doubt_are_refused_with_the_one_that_ends_it(
    large: tuple[DeviceClusters, np.ndarray],
) -> None:
    clusters, _ = large
    with pytest.raises(
        DatasetError, match=r"c0 and c\d both fit its .* conv, wide\. Next: measure (tiny|copy) "
    ):
        clusters.assign(new_board(NOMINAL, "conv", "wide"))
    # A slow clock shows on every anchor: two are enough for a board that has one.
    slow = clusters.assign(new_board(SLOW_CLOCK, "conv", "wide"))
    assert slow.label == clusters.assign(new_board(SLOW_CLOCK)).label
    assert math.isclose(slow.distance, 0, abs_tol=0.5)
