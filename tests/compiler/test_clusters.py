"""Planted behaviours are found, boards alike stay together, and outliers stay visible."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

from compiler.clusters import AnchorLatencies, DeviceClusters, anchor_latencies
from compiler.dataset import DatasetError, Run, Runs

ANCHORS = ("conv", "depthwise", "memory", "linear")


def run(board: str, anchor: str, repeat: int, latency_ms: tuple[float, ...]) -> Run:
    return Run(
        run_id=f"{board}-{anchor}-{repeat}",
        campaign_id="anchors",
        board_id=board,
        model_sha256=f"sha of {anchor}",
        model_name=anchor,
        runtime="ort",
        precision="fp32",
        threads=1,
        repeat=repeat,
        valid=True,
        reasons=(),
        p50_ms=float(np.median(latency_ms)),
        latency_ms=latency_ms,
        temp_c_before=None,
        temp_c_max=None,
        freq_khz=None,
        effective_freq_khz=None,
        governor=None,
        throttled=None,
        board_model=None,
        cores=None,
        runtime_version="1.31.1",
        simulated=True,
    )


def measured(
    scales: list[list[float]] | list[float],
    seed: int,
    *,
    noise: float | None = None,
    repeats: int = 3,
    spike: float = 1.0,
) -> Runs:
    """Runs of boards that take base · scale ms; noise between repeats 1–3 % unless given.

    spike: one run of the first board takes that many times longer.
    """
    rng = np.random.default_rng(seed)
    sigma = rng.uniform(0.01, 0.03) if noise is None else noise
    runs = []
    for board, scale in enumerate(scales):
        by_anchor = scale if isinstance(scale, list) else [scale] * len(ANCHORS)
        for anchor, base, factor in zip(ANCHORS, (2.0, 1.9, 1.3, 1.5), by_anchor, strict=True):
            for repeat in range(repeats):
                middle = base * factor * math.exp(rng.normal(0, sigma))
                middle *= spike if (board, anchor, repeat) == (0, "conv", 0) else 1
                samples = middle * np.exp(rng.normal(0, 0.01, 21))
                runs.append(run(f"b{board:03d}", anchor, repeat, tuple(samples.tolist())))
    return Runs(tuple(runs), "dataset/runs.parquet", "0" * 64)


def fitted(runs: Runs, **params: float) -> DeviceClusters:
    return DeviceClusters(**{"n_bootstrap": 0, **params}).fit(anchor_latencies(runs, ANCHORS))


@pytest.mark.parametrize("scales", [(1.0, 1.25, 1.69), (1.0, 1.12, 1.27)])
def test_three_pairs_of_six_boards_are_found_for_fifty_seeds(scales: tuple[float, ...]) -> None:
    truth = [0, 1, 2, 2, 1, 0]
    for seed in range(50):
        clusters = fitted(measured([scales[k] for k in truth], seed))
        assert clusters.labels_.tolist() == ["c0", "c1", "c2", "c2", "c1", "c0"], seed
        assert clusters.outliers_ == ()
        assert clusters.weights_ == pytest.approx({"c0": 1 / 3, "c1": 1 / 3, "c2": 1 / 3})
        for label, board in clusters.representatives_.items():
            assert clusters.labels_[clusters.board_ids_.index(board)] == label


@pytest.mark.parametrize("n_boards", [1, 2, 6, 12, 40])
def test_boards_alike_are_one_cluster(n_boards: int) -> None:
    for seed in range(20):
        clusters = fitted(measured([1.0] * n_boards, seed))
        assert set(clusters.labels_) == {"c0"}
        assert clusters.weights_ == {"c0": 1.0}
        assert clusters.outliers_ == ()


def test_boards_that_differ_in_one_anchor_are_told_apart() -> None:
    memory_bound = [1.0, 1.0, 1.4, 1.0]
    runs = measured([[1.0] * 4, memory_bound, [1.0] * 4, memory_bound], seed=0)
    assert fitted(runs).labels_.tolist() == ["c0", "c1", "c0", "c1"]


@pytest.mark.parametrize("repeats", [2, 3])
def test_one_disturbed_run_changes_nothing(repeats: int) -> None:
    truth = [1.0, 1.0, 1.25, 1.25, 1.69, 1.69]
    for seed in range(10):
        runs = measured(truth, seed, spike=3.0, repeats=repeats)
        assert fitted(runs).labels_.tolist() == ["c0", "c0", "c1", "c1", "c2", "c2"]


def test_a_board_of_its_own_is_an_outlier_that_still_counts() -> None:
    clusters = fitted(measured([1.0, 1.0, 1.5, 1.5, 1.5, 2.6], seed=1))
    assert clusters.outliers_ == ("b005",)
    assert clusters.labels_.tolist() == ["c0", "c0", "c1", "c1", "c1", "c1"]
    assert clusters.weights_ == pytest.approx({"c0": 1 / 3, "c1": 2 / 3})
    assert clusters.representatives_["c1"] != "b005"
    alone = fitted(measured([1.0, 1.0, 1.5, 1.5, 1.5, 2.6], seed=1), min_cluster_size=1)
    assert set(alone.labels_) == {"c0", "c1", "c2"}
    assert alone.outliers_ == ()


def test_where_every_board_differs_each_is_a_cluster() -> None:
    clusters = fitted(measured([1.0, 1.5, 2.2], seed=0))
    assert clusters.labels_.tolist() == ["c0", "c1", "c2"]
    assert clusters.outliers_ == ()


@pytest.mark.parametrize("n_boards", [30, 300])
def test_larger_fleets_go_through_hdbscan(n_boards: int) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth = rng.permutation(np.arange(n_boards) % 3)
        scales = [(1.0, 1.15, 1.4)[k] for k in truth]
        scales[0] = 4.0
        clusters = fitted(measured(scales, seed))
        assert adjusted_rand_score(truth[1:], clusters.labels_[1:]) == 1
        assert clusters.outliers_ == ("b000",)
        assert clusters.labels_[0] == "c2"


def test_stability_is_high_where_clusters_are_and_lower_where_they_touch() -> None:
    apart = fitted(measured([1, 1, 1.5, 1.5, 2, 2], 0, noise=0.02), n_bootstrap=30, seed=3)
    touching = fitted(
        measured([1, 1.03, 1.06, 1.09, 1.12, 1.15], 0, noise=0.02), n_bootstrap=30, seed=3
    )
    assert apart.stability_ == 1
    assert touching.stability_ < 0.95
    assert math.isnan(fitted(measured([1, 1], 0)).stability_)


def test_one_run_a_board_takes_its_noise_from_within_the_run() -> None:
    runs = measured([1.0, 1.3] * 20, seed=0, noise=0.0, repeats=1)
    latencies = anchor_latencies(runs, ANCHORS)
    # The median of 21 samples with 1 % noise: about 1.25 · 1 % / √21.
    assert latencies.noise == pytest.approx(np.full(4, 0.0027), rel=0.4)
    assert fitted(runs).labels_.tolist() == ["c0", "c1"] * 20


def test_noise_is_the_standard_error_of_the_median_over_repeats() -> None:
    runs = measured([1.0] * 40, seed=0, noise=0.03, repeats=4)
    noise = anchor_latencies(runs, ANCHORS).noise
    assert noise == pytest.approx(np.full(4, 0.015), rel=0.3)


def test_noisy_repeats_blur_small_differences_only() -> None:
    scales = [1.0, 1.0, 1.12, 1.12]
    assert set(fitted(measured(scales, seed=2, noise=0.01)).labels_) == {"c0", "c1"}
    assert set(fitted(measured(scales, seed=2, noise=0.08)).labels_) == {"c0"}


def test_a_new_board_goes_to_the_nearest_cluster() -> None:
    clusters = fitted(measured([1.0, 1.0, 1.5, 1.5], seed=0))
    base = dict(zip(ANCHORS, (2.0, 1.9, 1.3, 1.5), strict=True))
    near = clusters.assign({anchor: 1.49 * ms for anchor, ms in base.items()})
    assert (near.label, near.outlier) == ("c1", False)
    far = clusters.assign({anchor: 3.0 * ms for anchor, ms in base.items()})
    assert (far.label, far.outlier) == ("c1", True)
    assert far.distance > 1 > near.distance
    with pytest.raises(DatasetError, match=r"new board: no latency is linear 0\.0 ms"):
        clusters.assign({"depthwise": 1.0, "memory": 1.0, "linear": 0.0})
    with pytest.raises(DatasetError, match="new board: no latency of conv, depthwise, memory"):
        clusters.assign({})


def test_saved_and_read_again_it_is_the_same() -> None:
    clusters = fitted(measured([1.0, 1.0, 1.5, 1.5], seed=0), n_bootstrap=5, min_difference=0.04)
    text = clusters.to_json()
    again = DeviceClusters.from_json(text)
    assert again.to_json() == text
    assert again.get_params() == clusters.get_params()
    probe = dict.fromkeys(ANCHORS, 2.0)
    assert again.assign(probe) == clusters.assign(probe)
    for bad in ("{}", "[]", "7", '{"params": {"unknown": 1}}', "not json"):
        with pytest.raises(ValueError, match=r"not a document|Expecting"):
            DeviceClusters.from_json(bad)


def test_it_follows_the_estimator_conventions() -> None:
    clusters = DeviceClusters(min_difference=0.1)
    assert clone(clusters).get_params() == clusters.get_params()
    latencies = anchor_latencies(measured([1.0, 1.0, 1.5, 1.5], seed=0), ANCHORS)
    assert clusters.fit(latencies) is clusters
    first = clusters.to_json()
    assert clusters.fit(latencies).to_json() == first


def test_a_board_without_an_anchor_is_named() -> None:
    runs = measured([1.0, 1.0], seed=0)
    kept = tuple(r for r in runs.runs if (r.board_id, r.model_name) != ("b001", "memory"))
    with pytest.raises(DatasetError, match="b001 has no valid run of memory"):
        anchor_latencies(dataclasses.replace(runs, runs=kept), ANCHORS)


def test_an_anchor_that_is_two_models_is_refused() -> None:
    runs = measured([1.0, 1.0], seed=0)
    other = dataclasses.replace(runs.runs[0], model_sha256="another file")
    with pytest.raises(DatasetError, match="conv stands for 2 different models"):
        anchor_latencies(dataclasses.replace(runs, runs=(*runs.runs, other)), ANCHORS)


@pytest.mark.parametrize(
    ("boards", "median_ms", "noise"),
    [
        (("a", "a"), np.ones((2, 1)), np.zeros(1)),
        (("a", "b"), np.ones((3, 1)), np.zeros(1)),
        (("a", "b"), np.array([[1.0], [0.0]]), np.zeros(1)),
        (("a", "b"), np.array([[1.0], [np.nan]]), np.zeros(1)),
        (("a", "b"), np.ones((2, 1)), np.array([-1.0])),
        (("a", "b"), np.ones((2, 1)), np.zeros(2)),
        ((), np.ones((0, 1)), np.zeros(1)),
    ],
)
def test_latencies_that_cannot_be_are_refused(
    boards: tuple[str, ...], median_ms: np.ndarray, noise: np.ndarray
) -> None:
    with pytest.raises(DatasetError):
        AnchorLatencies(boards, ("conv",), median_ms, noise, "0")
