"""One network, from dense to small: search for the fleet, slice, fine-tune, bound the loss.

Input: a trained network, its PruneSpace and the fleet's latency. Output: a sliced network whose
accuracy on the validation part stays within the recipe's bound, its plan, and the search's facts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from compiler.data import Splits
from compiler.errors import CompilerError
from compiler.fleet import Fleet
from compiler.pruning.importance import Scores, activation, keep
from compiler.pruning.search import SearchResult, SearchSettings, search, uniform
from compiler.pruning.surgery import slice_network
from compiler.pruning.widths import PruneSpace, PruningPlan, Widths
from compiler.recipe import Recipe
from compiler.training import (
    Distillation,
    TrainSettings,
    distil,
    evaluate,
    recalibrate_batch_norm,
)
from compiler.weights import sha256

Observe = Callable[[str, int, int, str], None]
"""Called with a stage's title, how much is done, of how much, and what came last."""

RECALIBRATION_PICTURES = 256
SCORING_PICTURES = 256
MAX_ATTEMPTS = 3
"""Searches at most: each after the first bounds the proxy's loss twice as tightly."""


@dataclass(frozen=True)
class Shrunk:
    """A network cut for the fleet. facts: plain data for the report."""

    network: nn.Module
    plan: PruningPlan
    val_accuracy: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class Dense:
    """The trained parent. val_accuracy: fraction of the validation part."""

    network: nn.Module
    space: PruneSpace
    val_accuracy: float


def shrink(dense: Dense, fleet: Fleet, splits: Splits, recipe: Recipe, observe: Observe) -> Shrunk:
    """Search, slice and fine-tune until the accuracy bound holds.

    The bound is judged on the validation part: the test part only reports. Raises CompilerError
    when no attempt keeps it.
    """
    drop = recipe.search.proxy_accuracy_drop
    for _ in range(MAX_ATTEMPTS):
        found = _search(dense, fleet, splits, recipe, drop, observe)
        plan = _plan(dense, fleet, splits, found.widths, recipe.seed)
        network = slice_network(dense.network, dense.space, plan)
        result = _fine_tune(network, dense, splits, recipe, observe)
        if dense.val_accuracy - result <= recipe.search.max_accuracy_drop:
            alike = uniform(
                dense.space,
                fleet.objective(),
                _proxy(dense, splits),
                settings=_settings(recipe, drop),
            )
            facts = _facts(dense, fleet, plan, found, alike, drop)
            return Shrunk(network, plan, result, facts)
        drop /= 2
    raise CompilerError(
        f"{dense.space.network}: no shape kept its accuracy within "
        f"{recipe.search.max_accuracy_drop:.2%} after {MAX_ATTEMPTS} searches. "
        "Next: allow more fine_tuning.epochs or a larger search.max_accuracy_drop"
    )


def _search(
    dense: Dense,
    fleet: Fleet,
    splits: Splits,
    recipe: Recipe,
    max_drop: float,
    observe: Observe,
) -> SearchResult:
    title = f"search {dense.space.network}"
    return search(
        dense.space,
        fleet.objective(),
        _proxy(dense, splits),
        settings=_settings(recipe, max_drop),
        seed=recipe.seed,
        progress=lambda p: observe(
            title,
            p.generation,
            recipe.search.generations,
            f"fleet mean {p.best_ms:.3f} ms predicted",
        ),
    )


def _settings(recipe: Recipe, max_drop: float) -> SearchSettings:
    return SearchSettings(
        population=recipe.search.population,
        generations=recipe.search.generations,
        max_accuracy_drop=max_drop,
        max_accuracy_evaluations=recipe.search.max_accuracy_evaluations,
    )


def _proxy(dense: Dense, splits: Splits) -> Callable[[Widths], float]:
    """Accuracy right after slicing, with batch norm recalibrated: quick, and ranks shapes well."""
    importance = _importance(dense, splits)

    def accuracy(widths: Widths) -> float:
        plan = PruningPlan(
            network=dense.space.network,
            parent_sha256=sha256(dense.network.state_dict()),
            kept_by_group=keep(dense.space, importance, widths),
            predicted_ms_by_cluster=(),
            seed=0,
        )
        candidate = slice_network(dense.network, dense.space, plan)
        recalibrate_batch_norm(candidate, splits.train_x[:RECALIBRATION_PICTURES])
        return evaluate(candidate, splits.val_x, splits.val_y)

    return accuracy


def _importance(dense: Dense, splits: Splits) -> Scores:
    return activation(dense.network, dense.space, splits.train_x[:SCORING_PICTURES])


def _plan(dense: Dense, fleet: Fleet, splits: Splits, widths: Widths, seed: int) -> PruningPlan:
    return PruningPlan(
        network=dense.space.network,
        parent_sha256=sha256(dense.network.state_dict()),
        kept_by_group=keep(dense.space, _importance(dense, splits), widths),
        predicted_ms_by_cluster=tuple(sorted(fleet.by_cluster_ms(widths).items())),
        seed=seed,
    )


def _fine_tune(
    network: nn.Module, dense: Dense, splits: Splits, recipe: Recipe, observe: Observe
) -> float:
    title = f"fine-tune {dense.space.network}"
    recalibrate_batch_norm(network, splits.train_x[:RECALIBRATION_PICTURES])
    distil(
        network,
        dense.network,
        splits,
        train_settings(recipe.fine_tuning, recipe.seed),
        Distillation(),
        lambda done, total, figures: observe(title, done, total, show(figures)),
    )
    return evaluate(network, splits.val_x, splits.val_y)


def train_settings(training: Any, seed: int) -> TrainSettings:
    """The recipe's part as the trainer takes it."""
    return TrainSettings(
        epochs=training.epochs, lr=training.learning_rate, batch=training.batch_size, seed=seed
    )


def show(figures: Any) -> str:
    """Figures of an epoch in one short line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _facts(
    dense: Dense,
    fleet: Fleet,
    plan: PruningPlan,
    found: SearchResult,
    alike: SearchResult,
    max_drop: float,
) -> dict[str, Any]:
    space = dense.space
    return {
        "groups": [
            {"name": g.name, "dense_width": g.channels, "pruned_width": w}
            for g, w in zip(space.groups, plan.widths(space), strict=True)
        ],
        "predicted_ms_by_cluster": [list(pair) for pair in plan.predicted_ms_by_cluster],
        "predicted_fleet_ms": fleet.mean_ms(found.widths),
        "uniform_fleet_ms": fleet.mean_ms(alike.widths),
        "proxy_accuracy": found.accuracy,
        "proxy_accuracy_drop": max_drop,
        "n_latency_evaluations": found.n_latency_evaluations,
        "n_accuracy_evaluations": found.n_accuracy_evaluations,
        "history": [
            {"evaluations": p.n_accuracy_evaluations, "best_ms": p.best_ms} for p in found.history
        ],
    }
