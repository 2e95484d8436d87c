"""The search beats its baselines at equal cost, never returns what is not allowed, and repeats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from compiler.features import feature_names, physics_features, total_macs
from compiler.pruning.baselines import uniform
from compiler.pruning.search import (
    Accuracy,
    FleetLatency,
    Progress,
    SearchError,
    SearchSettings,
    search,
)
from compiler.pruning.widths import PruneSpace, Widths
from compiler.sampling import decode

QUICK = SearchSettings(generations=60, max_accuracy_evaluations=120)


def latency(space: PruneSpace) -> FleetLatency:
    price = np.array(
        [
            1 / 8e6 if name.endswith("macs_pad8") else 1 / 4e6 if name.endswith("_bytes") else 0
            for name in feature_names(space)
        ]
    )

    def fleet_ms(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = 0.05 + physics_features(space, widths) @ price
        return mean, 0.02 * mean

    return fleet_ms


def landscape(space: PruneSpace, seed: int) -> Accuracy:
    """Accuracy 0.98 that falls with each group's loss; some groups are far cheaper than others."""
    rng = np.random.default_rng(seed)
    sensitivity = np.exp(rng.normal(0, 1.2, len(space.groups)))
    sensitivity *= 0.08 / sensitivity.sum()
    dense = np.asarray(space.dense_widths)

    def accuracy(widths: Widths) -> float:
        return float(0.98 - (sensitivity * (1 - np.asarray(widths) / dense) ** 2).sum())

    return accuracy


def random_search(
    space: PruneSpace, fleet_ms: FleetLatency, accuracy: Accuracy, n_evaluations: int, seed: int
) -> float:
    """Best feasible ms of random shapes, accuracy asked only of those faster than the best."""
    rng = np.random.default_rng(seed)
    best_ms = float(fleet_ms(np.asarray([space.dense_widths]))[0][0])
    least = accuracy(space.dense_widths) - 0.01
    for _ in range(n_evaluations - 1):
        while True:
            kept = rng.uniform() + rng.uniform(-0.3, 0.3, (1, len(space.groups)))
            widths = decode(space, kept)
            ms = float(fleet_ms(widths)[0][0])
            if ms < best_ms:
                break
        if accuracy(tuple(widths[0].tolist())) >= least:
            best_ms = ms
    return best_ms


def counted(accuracy: Accuracy, asked: list[Widths]) -> Accuracy:
    def count(widths: Widths) -> float:
        asked.append(widths)
        return accuracy(widths)

    return count


def test_it_beats_uniform_and_random_at_equal_evaluations(mobile_space: PruneSpace) -> None:
    fleet_ms = latency(mobile_space)
    settings = SearchSettings(max_accuracy_evaluations=300)
    ratios_uniform, ratios_random = [], []
    for seed in range(6):
        accuracy = landscape(mobile_space, seed)
        found = search(mobile_space, fleet_ms, accuracy, settings=settings, seed=seed)
        even = uniform(mobile_space, fleet_ms, accuracy, settings=settings)
        random_ms = random_search(
            mobile_space, fleet_ms, accuracy, found.n_accuracy_evaluations, seed
        )
        ratios_uniform.append(found.predicted_ms / even.predicted_ms)
        ratios_random.append(found.predicted_ms / random_ms)
        assert found.objective_ms <= even.objective_ms
    assert np.mean(ratios_uniform) < 0.8
    assert np.mean(ratios_random) < 0.9


def test_the_result_holds_what_it_says(mobile_space: PruneSpace) -> None:
    asked: list[Widths] = []
    accuracy = landscape(mobile_space, 0)
    fleet_ms = latency(mobile_space)
    result = search(mobile_space, fleet_ms, counted(accuracy, asked), settings=QUICK, seed=1)
    assert mobile_space.check(result.widths) == result.widths
    assert result.accuracy == accuracy(result.widths)
    assert result.accuracy >= result.dense_accuracy - 0.01
    assert result.dense_accuracy == 0.98
    mean_ms, spread_ms = (values[0] for values in fleet_ms(np.asarray([result.widths])))
    assert result.predicted_ms == mean_ms
    assert result.objective_ms == pytest.approx(mean_ms + 0.5 * spread_ms)
    assert result.macs == mobile_space.macs(result.widths)
    assert len(asked) == len(set(asked)) == result.n_accuracy_evaluations <= 120
    bests = [step.best_ms for step in result.history]
    assert bests == sorted(bests, reverse=True)
    assert bests[-1] == result.predicted_ms
    # Accuracy is asked of a part of the shapes whose latency was asked.
    assert result.n_accuracy_evaluations < result.n_latency_evaluations


def test_the_seed_decides(mobile_space: PruneSpace) -> None:
    def run(seed: int) -> tuple[object, list[Progress]]:
        seen: list[Progress] = []
        result = search(
            mobile_space,
            latency(mobile_space),
            landscape(mobile_space, 0),
            settings=QUICK,
            seed=seed,
            progress=seen.append,
        )
        assert tuple(seen) == result.history
        return result, seen

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_where_nothing_may_be_lost_the_dense_shape_remains(mobile_space: PruneSpace) -> None:
    dense = mobile_space.dense_widths

    def fragile(widths: Widths) -> float:
        return 0.9 if widths == dense else 0.1

    settings = dataclasses.replace(QUICK, max_accuracy_drop=0.0)
    for settings_now in (settings, dataclasses.replace(settings, max_accuracy_evaluations=1)):
        result = search(mobile_space, latency(mobile_space), fragile, settings=settings_now, seed=0)
        assert result.widths == dense
        assert result.predicted_ms == result.dense_ms
        even = uniform(mobile_space, latency(mobile_space), fragile, settings=settings_now)
        assert even.widths == dense


@pytest.mark.parametrize("budget", [1, 2, 7, 30])
def test_a_small_budget_of_evaluations_is_kept(mobile_space: PruneSpace, budget: int) -> None:
    asked: list[Widths] = []
    accuracy = counted(landscape(mobile_space, 1), asked)
    settings = dataclasses.replace(QUICK, max_accuracy_evaluations=budget)
    result = search(mobile_space, latency(mobile_space), accuracy, settings=settings, seed=0)
    assert len(asked) <= budget
    assert result.accuracy >= 0.97


def test_a_budget_of_work_is_kept_though_dense_exceeds_it(mobile_space: PruneSpace) -> None:
    limit = 0.4 * mobile_space.macs(mobile_space.dense_widths)
    settings = dataclasses.replace(QUICK, max_macs=limit, max_accuracy_drop=0.05)
    accuracy = landscape(mobile_space, 0)
    result = search(mobile_space, latency(mobile_space), accuracy, settings=settings, seed=0)
    assert total_macs(mobile_space, [result.widths])[0] <= limit
    assert result.accuracy >= 0.93
    assert result.predicted_ms < result.dense_ms


def test_at_equal_work_only_the_shape_is_left_to_gain(mobile_space: PruneSpace) -> None:
    most = 0.5 * mobile_space.macs(mobile_space.dense_widths)
    settings = SearchSettings(max_macs=most, min_macs=0.97 * most)
    fleet_ms = latency(mobile_space)
    found = search(mobile_space, fleet_ms, lambda widths: 1.0, settings=settings, seed=0)
    assert 0.97 * most <= found.macs <= most
    kept = np.random.default_rng(1).uniform(0.3, 1, (20_000, len(mobile_space.groups)))
    others = decode(mobile_space, kept)
    macs = total_macs(mobile_space, others)
    others = others[(macs >= 0.97 * most) & (macs <= most)]
    assert len(others) > 100
    assert found.predicted_ms < fleet_ms(others)[0].min()


def test_constraints_that_exclude_each_other_are_an_error(mobile_space: PruneSpace) -> None:
    settings = dataclasses.replace(QUICK, max_macs=1.0)
    for call in (search, uniform):
        arguments = {"settings": settings} | ({"seed": 0} if call is search else {})
        with pytest.raises(SearchError, match="mobile: no shape within 1 multiply-accumulates"):
            call(mobile_space, latency(mobile_space), landscape(mobile_space, 0), **arguments)


def outside(space: PruneSpace, excluded: Callable[[np.ndarray], np.ndarray]) -> FleetLatency:
    """Latency that is refused (inf) for some shapes."""
    inner = latency(space)

    def fleet_ms(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, spread = inner(widths)
        return np.where(excluded(np.asarray(widths)), np.inf, mean), spread

    return fleet_ms


def test_shapes_that_no_surrogate_answers_for_are_never_chosen(mobile_space: PruneSpace) -> None:
    fleet_ms = outside(mobile_space, lambda widths: widths[:, 6] < 200)
    result = search(mobile_space, fleet_ms, lambda _: 1.0, settings=QUICK, seed=0)
    assert result.widths[6] >= 200
    assert result.predicted_ms < result.dense_ms
    nothing = outside(mobile_space, lambda widths: np.ones(len(widths), dtype=bool))
    with pytest.raises(SearchError, match="dense shape cannot be predicted"):
        search(mobile_space, nothing, lambda _: 1.0, settings=QUICK, seed=0)


def test_doubtful_shapes_pay(mobile_space: PruneSpace) -> None:
    inner = latency(mobile_space)

    def doubtful(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, _ = inner(widths)
        return mean, np.where(np.asarray(widths)[:, 0] < 16, 10 * mean, 0)

    bold = dataclasses.replace(QUICK, spread_penalty=0.0)
    careful = dataclasses.replace(QUICK, spread_penalty=1.0)
    assert search(mobile_space, doubtful, lambda _: 1.0, settings=bold, seed=0).widths[0] == 8
    assert search(mobile_space, doubtful, lambda _: 1.0, settings=careful, seed=0).widths[0] == 16


@pytest.mark.parametrize("value", [float("nan"), -0.1, 97.5])
def test_an_accuracy_that_is_none_is_refused(mobile_space: PruneSpace, value: float) -> None:
    with pytest.raises(ValueError, match=r"is not in 0\.\.1"):
        search(mobile_space, latency(mobile_space), lambda _: value, settings=QUICK, seed=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"population": 1},
        {"generations": 0},
        {"epoch": 0},
        {"max_accuracy_evaluations": 0},
        {"sigma": 0.0},
        {"step_factor": 1.0},
        {"max_accuracy_drop": -0.1},
        {"spread_penalty": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|population >= 2|max_accuracy_drop"):
        SearchSettings(**changes)
