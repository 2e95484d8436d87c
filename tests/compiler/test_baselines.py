"""The baselines beside the search: allowed, within the budget, and good at what they claim."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from compiler.features import feature_names, physics_features
from compiler.pruning.baselines import (
    STRIDES,
    global_threshold,
    knapsack,
    random_shapes,
    uniform,
)
from compiler.pruning.importance import Scores
from compiler.pruning.judge import Accuracy, FleetLatency, SearchResult, SearchSettings
from compiler.pruning.objectives import BoardRatios, make_objective
from compiler.pruning.search import search
from compiler.pruning.widths import PruneSpace, Widths

SETTINGS = SearchSettings(generations=60, max_accuracy_evaluations=120)
Baseline = Callable[..., SearchResult]


def latency(space: PruneSpace) -> FleetLatency:
    convolutions = ("conv.macs_pad8", "depthwise.macs_pad8", "pointwise.macs_pad8")
    columns = [feature_names(space).index(name) for name in convolutions]

    def fleet_ms(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ms = 0.05 + physics_features(space, widths)[:, columns].sum(axis=1) / 8e6
        return ms, 0.02 * ms

    return fleet_ms


def scores_of(space: PruneSpace, seed: int = 0) -> Scores:
    """Some groups matter far more than others, and so do some channels within a group."""
    rng = np.random.default_rng(seed)
    of_group = np.exp(rng.normal(0, 1, len(space.groups)))
    return tuple(
        tuple((scale * rng.exponential(1, group.channels)).tolist())
        for scale, group in zip(of_group, space.groups, strict=True)
    )


def accuracy_by(scores: Scores) -> Accuracy:
    """What falls with the share of importance that is gone: the knapsack's own view."""
    kept = [np.concatenate([[0.0], np.cumsum(sorted(group, reverse=True))]) for group in scores]
    whole = sum(sums[-1] for sums in kept)
    return lambda widths: float(
        0.97 * sum(sums[w] for sums, w in zip(kept, widths, strict=True)) / whole
    )


def everyone(space: PruneSpace, scores: Scores) -> dict[str, Baseline]:
    return {
        "uniform": uniform,
        "random": lambda *args, **more: random_shapes(*args, seed=0, **more),
        "global": lambda *args, **more: global_threshold(*args, scores=scores, **more),
        "knapsack": lambda *args, **more: knapsack(*args, scores=scores, **more),
    }


NAMES = ("uniform", "random", "global", "knapsack")


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_keeps_every_bound(mobile_space: PruneSpace, name: str) -> None:
    scores = scores_of(mobile_space)
    asked: list[Widths] = []
    inner = accuracy_by(scores)

    def accuracy(widths: Widths) -> float:
        asked.append(widths)
        return inner(widths)

    most = 0.8 * mobile_space.macs(mobile_space.dense_widths)
    settings = dataclasses.replace(SETTINGS, max_accuracy_drop=0.2, max_macs=most)
    baseline = everyone(mobile_space, scores)[name]
    found = baseline(mobile_space, latency(mobile_space), accuracy, settings=settings)
    assert mobile_space.check(found.widths) == found.widths
    assert found.macs <= most
    assert found.accuracy == inner(found.widths) >= found.dense_accuracy - 0.2
    assert found.predicted_ms < found.dense_ms
    assert len(asked) == len(set(asked)) == found.n_accuracy_evaluations <= 120
    assert found == baseline(mobile_space, latency(mobile_space), inner, settings=settings)


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_goes_by_the_objective(mobile_space: PruneSpace, name: str) -> None:
    """The slower cluster is bound by its weights: of one shape, the p95 is over the mean."""
    one = latency(mobile_space)
    boards = BoardRatios([np.ones(8), np.ones(2)])

    def two_clusters(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ms, spread = one(widths)
        return np.stack([ms, 3 * ms], axis=1), np.stack([spread, spread], axis=1)

    found = everyone(mobile_space, scores_of(mobile_space))[name](
        mobile_space,
        two_clusters,
        accuracy_by(scores_of(mobile_space)),
        settings=dataclasses.replace(SETTINGS, max_accuracy_drop=0.2, spread_penalty=0.0),
        objective=make_objective("p95", boards),
    )
    assert found.predicted_ms == pytest.approx(found.objective_ms * (0.8 + 0.2 * 3) / 3)


def test_importance_of_groups_that_differ_is_used(mobile_space: PruneSpace) -> None:
    """Where accuracy is what the scores say, they beat a uniform cut; per ms beats per channel."""
    settings = dataclasses.replace(SETTINGS, max_accuracy_drop=0.2)
    ratios = {"global": [], "knapsack": [], "search": []}
    for seed in range(4):
        scores = scores_of(mobile_space, seed)
        accuracy = accuracy_by(scores)
        by_name = {
            name: everyone(mobile_space, scores)[name](
                mobile_space, latency(mobile_space), accuracy, settings=settings
            )
            for name in ("uniform", "global", "knapsack")
        }
        by_name["search"] = search(
            mobile_space, latency(mobile_space), accuracy, settings=settings, seed=seed
        )
        for name in ratios:
            ratios[name].append(by_name[name].predicted_ms / by_name["uniform"].predicted_ms)
    assert np.mean(ratios["global"]) < 0.98
    assert np.mean(ratios["knapsack"]) < np.mean(ratios["global"])


def test_equal_scores_make_the_threshold_all_or_nothing(mobile_space: PruneSpace) -> None:
    alike: Scores = tuple((1.0,) * group.channels for group in mobile_space.groups)
    found = global_threshold(
        mobile_space, latency(mobile_space), lambda _: 1.0, scores=alike, settings=SETTINGS
    )
    assert found.widths == mobile_space.dense_widths


def test_the_knapsack_passes_over_a_step_that_saves_nothing(mobile_space: PruneSpace) -> None:
    """Latency in steps of four legal widths: only a stride as long sees the saving."""
    inner = latency(mobile_space)
    step = 8 * STRIDES[-1]

    def stairs(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return inner(np.ceil(np.asarray(widths) / step).astype(np.int64) * step)

    scores = scores_of(mobile_space)
    settings = dataclasses.replace(SETTINGS, max_accuracy_drop=0.2)
    found = knapsack(mobile_space, stairs, accuracy_by(scores), scores=scores, settings=settings)
    assert found.predicted_ms < found.dense_ms
    wide = [w for w, g in zip(found.widths, mobile_space.groups, strict=True) if g.channels > step]
    assert all(width % step == 0 for width in wide)


@pytest.mark.parametrize("baseline", [global_threshold, knapsack])
def test_scores_of_another_space_are_refused(mobile_space: PruneSpace, baseline: Baseline) -> None:
    with pytest.raises(ValueError, match="scores do not fit the groups of mobile"):
        baseline(
            mobile_space,
            latency(mobile_space),
            lambda _: 1.0,
            scores=((1.0,),) * len(mobile_space.groups),
            settings=SETTINGS,
        )


def test_shapes_that_no_surrogate_answers_for_are_passed_over(mobile_space: PruneSpace) -> None:
    inner = latency(mobile_space)

    def refused(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ms, spread = inner(widths)
        return np.where(np.asarray(widths)[:, 6] < 200, np.inf, ms), spread

    for baseline in everyone(mobile_space, scores_of(mobile_space)).values():
        found = baseline(mobile_space, refused, lambda _: 1.0, settings=SETTINGS)
        assert found.widths[6] >= 200
        assert np.isfinite(found.objective_ms)


def test_a_search_that_knows_the_scores_ends_no_higher_than_the_knapsack(
    mobile_space: PruneSpace,
) -> None:
    settings = dataclasses.replace(SETTINGS, max_accuracy_drop=0.2)
    for seed in range(3):
        scores = scores_of(mobile_space, seed)
        arguments = (mobile_space, latency(mobile_space), accuracy_by(scores))
        packed = knapsack(*arguments, scores=scores, settings=settings)
        found = search(*arguments, settings=settings, seed=seed, scores=scores)
        assert found.objective_ms <= packed.objective_ms
        assert found.n_accuracy_evaluations <= settings.max_accuracy_evaluations
