"""What a search may ask of a shape: its fleet latency, its work, and at a price its accuracy.

Input: a PruneSpace, predicted fleet latency and accuracy as callables, settings. Output: Judge,
which counts what was asked and keeps the best feasible shape, and SearchResult.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import CompilerError
from compiler.features import total_macs
from compiler.pruning.objectives import MEAN_GIVEN, Objective
from compiler.pruning.widths import PruneSpace, Widths
from compiler.sampling import decode

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

FleetLatency = Callable[[IntArray], tuple[FloatArray, FloatArray]]
"""Widths (n, n_groups) → (ms, spread_ms): each (n,) of the fleet's mean (surrogates.fleet_latency),
or (n, n_clusters) of every cluster (Fleet.latency) where an Objective says what the fleet makes of
it. Rows are inf where no surrogate answers."""
Accuracy = Callable[[Widths], float]
"""Legal widths → accuracy, a fraction 0..1, or any proxy of it on that scale."""


class SearchError(CompilerError):
    """No shape meets the constraints."""


@dataclass(frozen=True)
class SearchSettings:
    """What may be given up, and how much work the search may do.

    max_accuracy_drop: below the dense network's, a fraction (0.01 = one point).
    max_accuracy_evaluations: calls of the accuracy function in all, the dense network's included.
    max_macs, min_macs: multiply-accumulates allowed; None for any. At least min_macs compares
    shapes of equal work. spread_penalty: how many spreads are added to each latency before the
    objective is taken, >= 0: a search exploits a surrogate's errors, so doubtful shapes pay.
    population, generations: individuals and rounds; few individuals with many rounds each find
    more than the reverse when evaluations are few. sigma: first step size, in fractions of the
    dense width. epoch: generations between step-size changes by step_factor (the 1/5 rule).
    refine_patience: the descent at the end gives up after so many refused shapes (refine.py).
    """

    population: int = 5
    generations: int = 200
    max_accuracy_drop: float = 0.01
    max_accuracy_evaluations: int = 400
    max_macs: float | None = None
    min_macs: float | None = None
    spread_penalty: float = 0.5
    sigma: float = 0.2
    epoch: int = 5
    step_factor: float = 0.8
    refine_patience: int = 16

    def __post_init__(self) -> None:
        if min(self.population, self.generations, self.epoch, self.max_accuracy_evaluations) < 1:
            raise ValueError("population, generations, epoch and evaluations are at least 1")
        if self.population < 2 or not 0 < self.sigma <= 1 or not 0 < self.step_factor < 1:
            raise ValueError("population >= 2, sigma in (0, 1] and step_factor in (0, 1)")
        if not 0 <= self.max_accuracy_drop <= 1 or self.spread_penalty < 0:
            raise ValueError("max_accuracy_drop in 0..1 and spread_penalty >= 0")


@dataclass(frozen=True)
class Progress:
    """One generation. best_ms: predicted mean latency of the best feasible shape so far."""

    generation: int
    best_ms: float
    n_accuracy_evaluations: int


@dataclass(frozen=True)
class SearchResult:
    """What was found; widths are feasible. accuracy: of the proxy that the search was given.

    objective_ms: the objective's value with the penalty. predicted_ms, dense_ms: the fleet's mean
    without it. elites: the feasible shapes met, the best first, up to ELITES.
    n_latency_evaluations: shapes asked of the surrogates; n_accuracy_evaluations: of the accuracy
    function.
    """

    widths: Widths
    objective_ms: float
    predicted_ms: float
    accuracy: float
    macs: float
    dense_ms: float
    dense_accuracy: float
    history: tuple[Progress, ...]
    n_latency_evaluations: int
    n_accuracy_evaluations: int
    elites: tuple[Widths, ...]


ELITES = 32


class Judge:
    """Latency and feasibility of legal shapes; remembers every accuracy, and the best shape."""

    def __init__(
        self,
        space: PruneSpace,
        fleet_ms: FleetLatency,
        accuracy: Accuracy,
        settings: SearchSettings,
        objective: Objective = MEAN_GIVEN,
    ) -> None:
        self._space = space
        self._fleet_ms = fleet_ms
        self._fleet_objective = objective
        self._accuracy = accuracy
        self._settings = settings
        self._known: dict[Widths, float] = {}
        self.n_latency_evaluations = 0
        self._best: tuple[float, Widths] | None = None
        dense = space.dense_widths
        self.dense_ms = self.mean_ms(dense)
        if not math.isfinite(self.dense_ms):
            raise SearchError(
                f"{space.network}: the latency of the dense shape cannot be predicted. "
                "Next: measure it with the samples"
            )
        self.dense_accuracy = self.accuracy(dense)
        self.feasible(dense, self.objective(np.asarray([dense]))[0])

    @property
    def n_accuracy_evaluations(self) -> int:
        return len(self._known)

    @property
    def exhausted(self) -> bool:
        """No new shape can be judged: every evaluation of accuracy is used."""
        return len(self._known) >= self._settings.max_accuracy_evaluations

    def mean_ms(self, widths: Widths) -> float:
        """The fleet's mean latency of one shape, without the penalty."""
        ms, _ = self._fleet_ms(np.asarray([widths], dtype=np.int64))
        return float(self._fleet_objective.mean_ms(ms)[0])

    def penalised_mean_ms(self, widths: IntArray) -> FloatArray:
        """The fleet's mean latency whatever the objective, (n,); not finite where refused."""
        return self._fleet_objective.mean_ms(self._penalised_ms(widths))

    def accuracy(self, widths: Widths) -> float:
        """Of one shape, asked once. Raises ValueError for a value outside 0..1."""
        if widths not in self._known:
            value = float(self._accuracy(widths))
            if not 0 <= value <= 1:
                raise ValueError(f"accuracy {value} of {widths} is not in 0..1")
            self._known[widths] = value
        return self._known[widths]

    def objective(self, widths: IntArray) -> FloatArray:
        """The objective of penalised latencies in ms, (n,); inf where the surrogates refuse."""
        value = self._fleet_objective.value(self._penalised_ms(widths))
        return np.where(np.isfinite(value), value, np.inf)

    def _penalised_ms(self, widths: IntArray) -> FloatArray:
        self.n_latency_evaluations += len(widths)
        ms, spread = self._fleet_ms(widths)
        return ms + self._settings.spread_penalty * spread

    def within_macs(self, widths: IntArray) -> BoolArray:
        if self._settings.max_macs is None:
            return np.ones(len(widths), dtype=bool)
        return np.asarray(total_macs(self._space, widths) <= self._settings.max_macs)

    def enough_macs(self, widths: IntArray) -> BoolArray:
        if self._settings.min_macs is None:
            return np.ones(len(widths), dtype=bool)
        return np.asarray(total_macs(self._space, widths) >= self._settings.min_macs)

    def feasible(self, widths: Widths, objective_ms: float) -> bool:
        """Whether a shape of this objective meets every constraint; keeps it if it is the best.

        A shape not yet known counts as infeasible once the evaluations are used up.
        """
        row = np.asarray([widths])
        if not math.isfinite(objective_ms) or not self.within_macs(row)[0]:
            return False
        if not self.enough_macs(row)[0]:
            return False
        if widths not in self._known and self.exhausted:
            return False
        if self.accuracy(widths) < self.dense_accuracy - self._settings.max_accuracy_drop:
            return False
        if self._best is None or (objective_ms, widths) < self._best:
            self._best = (objective_ms, widths)
        return True

    @property
    def has_best(self) -> bool:
        return self._best is not None

    @property
    def best_objective_ms(self) -> float:
        """Raises SearchError where nothing feasible was seen; so does best_widths."""
        return self._feasible_best()[0]

    @property
    def best_widths(self) -> Widths:
        return self._feasible_best()[1]

    def _feasible_best(self) -> tuple[float, Widths]:
        if self._best is None:
            raise SearchError(
                f"{self._space.network}: no shape within {self._settings.max_macs or 0:.4g} "
                f"multiply-accumulates was found to keep the accuracy within "
                f"{self._settings.max_accuracy_drop} of {self.dense_accuracy:.4f}. "
                "Next: allow more of either"
            )
        return self._best

    @property
    def state(self) -> dict[str, Any]:
        """Plain data: how far it got. Accuracies are told by their number, in the order asked."""
        return {
            "n_known": len(self._known),
            "n_latency_evaluations": self.n_latency_evaluations,
            "best": None if self._best is None else [self._best[0], list(self._best[1])],
        }

    def restore(self, state: Mapping[str, Any], accuracies: Mapping[Widths, float]) -> None:
        """As it was when state was taken; accuracies: at least those known then, in order."""
        self._known = dict(itertools.islice(accuracies.items(), int(state["n_known"])))
        self.n_latency_evaluations = int(state["n_latency_evaluations"])
        best = state["best"]
        self._best = None if best is None else (float(best[0]), tuple(map(int, best[1])))

    def result(self, history: tuple[Progress, ...]) -> SearchResult:
        """Raises SearchError where nothing feasible was seen."""
        objective_ms, widths = self._feasible_best()
        return SearchResult(
            widths=widths,
            objective_ms=objective_ms,
            predicted_ms=self.mean_ms(widths),
            accuracy=self.accuracy(widths),
            macs=float(self._space.macs(widths)),
            dense_ms=self.dense_ms,
            dense_accuracy=self.dense_accuracy,
            history=history,
            n_latency_evaluations=self.n_latency_evaluations,
            n_accuracy_evaluations=self.n_accuracy_evaluations,
            elites=self._elites(),
        )

    def _elites(self) -> tuple[Widths, ...]:
        least = self.dense_accuracy - self._settings.max_accuracy_drop
        shapes = [widths for widths, accuracy in self._known.items() if accuracy >= least]
        rows = np.asarray(shapes, dtype=np.int64)
        ms, spread = self._fleet_ms(rows)
        value = self._fleet_objective.value(ms + self._settings.spread_penalty * spread)
        allowed = np.isfinite(value) & self.within_macs(rows) & self.enough_macs(rows)
        order = np.argsort(value, kind="stable")
        return tuple(shapes[place] for place in order if allowed[place])[:ELITES]


def within_macs(space: PruneSpace, judge: Judge, kept: FloatArray) -> FloatArray:
    """Fractions (n, n_groups), scaled down together where they exceed the budget of work.

    By bisection, 12 steps; a shape that even its smallest widths do not fit stays as it is.
    """
    over = ~judge.within_macs(decode(space, kept))
    if not over.any():
        return kept
    low, high = np.zeros(len(kept)), np.ones(len(kept))
    for _ in range(12):
        middle = (low + high) / 2
        fits = judge.within_macs(decode(space, kept * middle[:, None]))
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.where(over[:, None], kept * low[:, None], kept)


def as_widths(widths: IntArray) -> Widths:
    return tuple(int(width) for width in widths)
