"""Additive latency is learned from few samples, intervals cover, and the domain holds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone

from compiler.dataset import Dataset
from compiler.features import feature_names, physics_features
from compiler.pruning.widths import PruneSpace
from compiler.sampling import sample_widths
from compiler.surrogates import (
    LatencySurrogate,
    OutOfDomainError,
    Surrogate,
    SurrogateError,
    fleet_latency,
    mape,
)


def true_ms(space: PruneSpace, widths: Any) -> np.ndarray:
    """A board that pays for padded work, for every byte, and 50 µs a call."""
    x = np.atleast_2d(physics_features(space, widths))
    price = np.zeros(x.shape[1])
    for column, name in enumerate(feature_names(space)):
        if "@" in name:
            continue
        if name.endswith(".macs_pad8"):
            price[column] = 1 / 2e6 if name.startswith("depthwise") else 1 / 8e6
        elif name.endswith("_bytes"):
            price[column] = 1 / 4e6
    return 0.05 + x @ price


def dataset(
    space: PruneSpace, widths: Any, seed: int, noise: float = 0.02, board: str = "pi4-01"
) -> Dataset:
    rng = np.random.default_rng(seed)
    y_ms = true_ms(space, widths) * np.exp(rng.normal(0, noise, len(widths)))
    return Dataset(
        physics_features(space, widths),
        y_ms,
        (board,) * len(y_ms),
        feature_names(space),
        "0" * 64,
    )


def test_forty_samples_are_enough_and_intervals_cover(mobile_space: PruneSpace) -> None:
    errors, covered = [], []
    for seed in range(15):
        train = dataset(mobile_space, sample_widths(mobile_space, 40, seed), seed)
        test = dataset(mobile_space, sample_widths(mobile_space, 80, seed + 100), seed + 100)
        surrogate = LatencySurrogate(("additive", "ridge"), seed=seed).fit(train)
        median_ms, lower_ms, upper_ms = surrogate.predict(test.x)
        errors.append(mape(test.y_ms, median_ms))
        covered.append(((lower_ms <= test.y_ms) & (test.y_ms <= upper_ms)).mean())
        assert (lower_ms <= median_ms).all()
        assert (median_ms <= upper_ms).all()
        assert surrogate.cv_mape_ == pytest.approx(errors[-1], abs=0.02)
    assert max(errors) < 0.05
    # 15 trials that share 40 calibration runs each: the mean's standard error is about 1.3 points.
    assert 0.86 < np.mean(covered) < 0.95


def test_cross_validation_takes_the_family_that_fits(mobile_space: PruneSpace) -> None:
    widths = sample_widths(mobile_space, 40, 0)
    surrogate = LatencySurrogate().fit(dataset(mobile_space, widths, 0))
    assert surrogate.family_ in ("additive", "staged")
    assert set(surrogate.cv_mape_by_family_) == {"additive", "staged", "ridge", "trees"}
    assert surrogate.cv_mape_ == min(surrogate.cv_mape_by_family_.values())

    rng = np.random.default_rng(0)
    x = rng.uniform(1, 10, (150, 2))
    # Faster with more of the first feature, by steps: neither additive nor a power law.
    y_ms = np.where(x[:, 0] > 5, 1.0, 3.0) * np.where(x[:, 1] > 4, 2.0, 1.0)
    steps = Dataset(x, y_ms, ("b",) * 150, ("a", "b"), "0")
    assert LatencySurrogate().fit(steps).family_ == "trees"
    powers = Dataset(x, x[:, 0] ** 2 / x[:, 1], ("b",) * 150, ("a", "b"), "0")
    assert LatencySurrogate().fit(powers).family_ == "ridge"


def test_one_shape_beyond_all_others_does_not_choose_the_family() -> None:
    work = np.append(np.linspace(5, 60, 60), 300)
    y_ms = np.append(work[:-1], 60) * np.exp(np.random.default_rng(0).normal(0, 0.005, 61))
    data = Dataset(work[:, None], y_ms, ("b",) * 61, ("conv.macs",), "0")
    surrogate = LatencySurrogate(("trees", "additive")).fit(data)
    assert surrogate.family_ == "additive"
    by_family = surrogate.cv_mape_by_family_
    assert by_family["trees"] < by_family["additive"], "that one shape alone makes the difference"


def test_additive_shrugs_off_disturbed_runs(mobile_space: PruneSpace) -> None:
    train = dataset(mobile_space, sample_widths(mobile_space, 40, 1), 1, noise=0.01)
    y_ms = train.y_ms.copy()
    y_ms[5::10] *= 2.5
    disturbed = Dataset(train.x, y_ms, train.board_ids, train.feature_names, "0")
    test = sample_widths(mobile_space, 60, 2)
    surrogate = LatencySurrogate(("additive",)).fit(disturbed)
    median_ms, _, _ = surrogate.predict(physics_features(mobile_space, test))
    assert mape(true_ms(mobile_space, test), median_ms) < 0.03


def test_repeats_of_a_shape_stay_in_one_fold(mobile_space: PruneSpace) -> None:
    widths = sample_widths(mobile_space, 12, 0) * 3
    surrogate = LatencySurrogate(("ridge",)).fit(dataset(mobile_space, widths, 0))
    folds = surrogate._fold_of_row.reshape(3, 12)
    assert (folds == folds[0]).all()
    with pytest.raises(SurrogateError, match="9 configurations for 5 folds"):
        LatencySurrogate().fit(dataset(mobile_space, sample_widths(mobile_space, 9, 0) * 5, 0))


def test_outside_the_measured_domain_it_refuses(mobile_space: PruneSpace) -> None:
    whole = sample_widths(mobile_space, 42, 0)
    inner = dataset(mobile_space, whole[2:], 0)
    surrogate = LatencySurrogate(("additive",)).fit(inner)
    dense = physics_features(mobile_space, [mobile_space.dense_widths])
    assert not surrogate.in_domain(dense)[0]
    assert surrogate.in_domain(inner.x).all()
    with pytest.raises(OutOfDomainError, match=r"\w+\.\w+ = .* lies outside what was measured"):
        surrogate.predict(dense)
    assert np.isfinite(surrogate.predict(dense, extrapolate=True)[0]).all()
    # With both corners among the samples every legal shape is inside.
    corners = LatencySurrogate(("additive",)).fit(dataset(mobile_space, whole, 0))
    everywhere = physics_features(mobile_space, sample_widths(mobile_space, 200, 9))
    assert corners.in_domain(everywhere).all()


def test_the_margin_is_a_fraction_of_the_range() -> None:
    x = np.linspace(10, 20, 12)[:, None]
    data = Dataset(np.hstack([x, np.full((12, 1), 3.0)]), x[:, 0], ("b",) * 12, ("a", "fixed"), "0")
    surrogate = LatencySurrogate(("additive",), domain_margin=0.1).fit(data)
    points = [[9.01, 3.0], [20.99, 3.0], [8.9, 3.0], [21.1, 3.0], [15.0, 3.1]]
    assert surrogate.in_domain(points).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("family", ["additive", "ridge", "trees"])
def test_saved_and_read_again_it_predicts_the_same(mobile_space: PruneSpace, family: str) -> None:
    train = dataset(mobile_space, sample_widths(mobile_space, 20, 0), 0)
    surrogate = LatencySurrogate((family,), seed=4).fit(train)
    text = surrogate.to_json()
    again = LatencySurrogate.from_json(text)
    for ours, theirs in zip(surrogate.predict(train.x), again.predict(train.x), strict=True):
        assert np.array_equal(ours, theirs)
    assert again.to_json() == text
    assert (again.cv_mape_, again.family_) == (surrogate.cv_mape_, family)


def test_any_positive_quantity_is_learned_and_keeps_its_name(mobile_space: PruneSpace) -> None:
    latency = dataset(mobile_space, sample_widths(mobile_space, 40, 0), 0)
    energy_mj = replace(latency, y=3.5 * latency.y, quantity="energy_mj")
    surrogate = Surrogate(("additive", "ridge")).fit(energy_mj)
    again = Surrogate.from_json(surrogate.to_json())
    assert again.quantity_ == "energy_mj"
    ours, theirs = surrogate.predict(latency.x)[0], again.predict(latency.x)[0]
    assert np.array_equal(ours, theirs)
    assert mape(energy_mj.y, ours) < 0.05
    with pytest.raises(ValueError, match="surrogate c0 predicts energy_mj, not latency"):
        fleet_latency(mobile_space, {"c0": surrogate}, {"c0": 1.0})


def test_a_document_that_does_not_fit_is_refused(mobile_space: PruneSpace) -> None:
    train = dataset(mobile_space, sample_widths(mobile_space, 20, 0), 0)
    document = json.loads(LatencySurrogate(("additive",)).fit(train).to_json())
    document["fitted"][0] *= 1.01
    with pytest.raises(SurrogateError, match="fits otherwise"):
        LatencySurrogate.from_json(json.dumps(document))
    for bad in ("{}", "[]", "7", "not json"):
        with pytest.raises(ValueError, match=r"not a document|Expecting"):
            LatencySurrogate.from_json(bad)


def test_stages_tell_shapes_of_equal_work_apart(mobile_space: PruneSpace) -> None:
    """A board slower on large pictures: totals over a kind cannot know where the work is."""
    widths = sample_widths(mobile_space, 120, 0)
    names = feature_names(mobile_space)
    x = physics_features(mobile_space, widths)
    price = [
        (3 if int(n.split("@")[1].split("/")[0]) > 100 else 1) / 8e6 if "@" in n else 0.0
        for n in (name if name.endswith(".macs") else "" for name in names)
    ]
    y_ms = 0.05 + x @ np.array(price)
    train = Dataset(x[:60], y_ms[:60], ("pi4-01",) * 60, names, "0" * 64)
    staged = LatencySurrogate(("additive", "staged")).fit(train)
    assert staged.family_ == "staged"
    assert mape(y_ms[60:], staged.predict(x[60:], extrapolate=True)[0]) < 0.01
    assert LatencySurrogate.from_json(staged.to_json()).family_ == "staged"


def test_it_follows_the_estimator_conventions(mobile_space: PruneSpace) -> None:
    surrogate = LatencySurrogate(("ridge",), coverage=0.8)
    assert clone(surrogate).get_params() == surrogate.get_params()
    train = dataset(mobile_space, sample_widths(mobile_space, 20, 0), 0)
    assert surrogate.fit(train) is surrogate
    for families in ((), ("forest",)):
        with pytest.raises(ValueError, match="choose from additive, staged, ridge, trees"):
            LatencySurrogate(families).fit(train)
    with pytest.raises(ValueError, match=r"x \(1, 2\) for \d+ features"):
        surrogate.predict([[1.0, 2.0]])


def test_mape_is_a_fraction() -> None:
    assert mape([1.0, 2.0], [1.1, 1.8]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="error of"):
        mape([], [])
    with pytest.raises(ValueError, match="error of"):
        mape([1.0, 2.0], [1.0])


@given(st.lists(st.floats(0.01, 1e4), min_size=1), st.floats(0.5, 2))
def test_mape_of_a_scale_factor_is_that_factor(y_ms: list[float], factor: float) -> None:
    assert mape(y_ms, np.asarray(y_ms) * factor) == pytest.approx(abs(factor - 1), abs=1e-9)


def test_the_fleet_is_the_weighted_mean_of_its_clusters(mobile_space: PruneSpace) -> None:
    widths = sample_widths(mobile_space, 30, 0)
    fast = dataset(mobile_space, widths, 0)
    slow = Dataset(fast.x, 2 * fast.y_ms, fast.board_ids, fast.feature_names, "0")
    surrogates = {
        "c0": LatencySurrogate(("additive",)).fit(fast),
        "c1": LatencySurrogate(("additive",)).fit(slow),
    }
    fleet_ms = fleet_latency(mobile_space, surrogates, {"c0": 0.75, "c1": 0.25})
    mean_ms, spread_ms = fleet_ms(np.asarray(widths[:3]))
    x = physics_features(mobile_space, [widths[1]])
    by_cluster = {label: surrogate.predict(x)[0][0] for label, surrogate in surrogates.items()}
    assert mean_ms[1] == pytest.approx(0.75 * by_cluster["c0"] + 0.25 * by_cluster["c1"])
    assert by_cluster["c1"] == pytest.approx(2 * by_cluster["c0"], rel=1e-6)
    assert (spread_ms > 0).all()
    inner = {"c0": LatencySurrogate(("additive",)).fit(dataset(mobile_space, widths[2:], 0))}
    refused, _ = fleet_latency(mobile_space, inner, {"c0": 1.0})(np.asarray(widths[:3]))
    assert np.isinf(refused).tolist() == [True, True, False]


@pytest.mark.parametrize("weights", [{}, {"c0": 0.9}, {"c1": 1.0}, {"c0": 1.0, "c1": 0.0}])
def test_weights_that_are_no_shares_of_the_fleet_are_refused(
    mobile_space: PruneSpace, weights: dict[str, float]
) -> None:
    train = dataset(mobile_space, sample_widths(mobile_space, 20, 0), 0)
    surrogate = LatencySurrogate(("additive",)).fit(train)
    surrogates = dict.fromkeys(
        weights if "c1" in weights and len(weights) > 1 else ["c0"], surrogate
    )
    with pytest.raises(ValueError, match="weights"):
        fleet_latency(mobile_space, surrogates, weights)


def test_a_surrogate_of_another_network_is_refused() -> None:
    x = np.arange(1.0, 13.0)[:, None]
    other = LatencySurrogate(("ridge",)).fit(Dataset(x, x[:, 0], ("b",) * 12, ("macs",), "0"))
    space = PruneSpace("none", (1,), (), (), ())
    with pytest.raises(ValueError, match="surrogate c0 has other features than none"):
        fleet_latency(space, {"c0": other}, {"c0": 1.0})
