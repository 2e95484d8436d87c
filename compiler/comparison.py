"""The shape that was found beside the dense one and the baselines: what the fleet takes for each.

Input: the fleet, the accuracy proxy and the search's settings. Output: plain facts for the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from compiler.fleet import Fleet
from compiler.pruning.baselines import global_threshold, knapsack, random_shapes, uniform
from compiler.pruning.importance import Scores
from compiler.pruning.judge import Accuracy, SearchResult, SearchSettings
from compiler.pruning.objectives import Objective
from compiler.pruning.resume import SearchCheckpoint, SearchFile, identity
from compiler.pruning.widths import PruneSpace, Widths

UNIFORM = "uniform widths"
Observe = Callable[[int, int, str], None]
"""Called with how many baselines are done, of how many, and the one that is being found."""


@dataclass(frozen=True)
class Contest:
    """What all contenders share: the search's own space, bounds and objective.

    scores: of the channels, by which the proxy cuts; l1_scores: their group-wise L1 norms.
    """

    space: PruneSpace
    fleet: Fleet
    accuracy: Accuracy
    scores: Scores
    l1_scores: Scores
    settings: SearchSettings
    objective: Objective
    seed: int
    slo_ms: float | None


def compare(
    contest: Contest, chosen: Widths, checkpoint: SearchCheckpoint, observe: Observe
) -> dict[str, Any]:
    """Facts: the objective, and the fleet's figures for the dense, the chosen and each baseline.

    Every baseline has the search's budget of accuracy evaluations; what several of them ask is
    evaluated once. checkpoint: accuracies of a killed call are there.
    """
    return {
        "objective": {"name": contest.objective.name, "slo_ms": contest.slo_ms},
        "dense": _facts(contest, contest.space.dense_widths),
        "chosen": _facts(contest, chosen),
        "baselines": _baselines(contest, checkpoint, observe),
    }


def _baselines(
    contest: Contest, checkpoint: SearchCheckpoint, observe: Observe
) -> dict[str, dict[str, Any]]:
    """Name → figures of the shape it came to, and how it was found."""
    latency = contest.fleet.latency()
    which = identity(
        contest.space,
        latency,
        contest.settings,
        contest.objective,
        contest.seed,
        checkpoint.accuracy_of,
    )
    shared = {"settings": contest.settings, "objective": contest.objective}
    find: dict[str, Callable[..., SearchResult]] = {
        UNIFORM: uniform,
        "random widths": partial(random_shapes, seed=contest.seed),
        "global L1 threshold": partial(global_threshold, scores=contest.l1_scores),
        "knapsack of importance per ms": partial(knapsack, scores=contest.scores),
    }
    accuracy = SearchFile(checkpoint, which).remembering(contest.accuracy)
    found: dict[str, dict[str, Any]] = {}
    for name, baseline in find.items():
        observe(len(found), len(find), name)
        result = baseline(contest.space, latency, accuracy, **shared)
        found[name] = {
            **_facts(contest, result.widths),
            "proxy_accuracy": result.accuracy,
            "n_latency_evaluations": result.n_latency_evaluations,
            "n_accuracy_evaluations": result.n_accuracy_evaluations,
        }
    return found


def _facts(contest: Contest, widths: Widths) -> dict[str, Any]:
    """objective_ms: with the search's penalty, as it was compared; the others without."""
    ms, spread = contest.fleet.latency()(np.asarray([widths]))
    value = contest.objective.value(ms + contest.settings.spread_penalty * spread)[0]
    return {
        **asdict(contest.fleet.figures(widths, contest.slo_ms)),
        "objective_ms": float(value),
        "macs": contest.space.macs(widths),
    }
