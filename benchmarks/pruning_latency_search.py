"""fleetcut's side of the pruning_latency benchmark: sample, measure, learn, search, measure again.

Input: a network, a band of work and the runtimes that the fleet runs. Output: the shape found,
with what was predicted for it. All parts are the compiler's own; only the loop stands here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.stopwatch import interleaved_ms, load
from benchmarks.torch_pruning_contenders import LEAST_FRACTION
from compiler import networks
from compiler.dataset import Dataset
from compiler.features import feature_names, layer_kind, physics_features, total_macs
from compiler.ladders import with_legal_widths
from compiler.pruning.groups import trace
from compiler.pruning.objectives import Objective
from compiler.pruning.refine import neighbours
from compiler.pruning.search import SearchSettings, search
from compiler.pruning.surgery import materialise
from compiler.pruning.widths import PruneSpace, Widths
from compiler.sampling import decode, sample_widths
from compiler.surrogates import LatencySurrogate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STEPS = (4, 8, 16, 32)
"""Of the widths: which one, a race decides."""
RACERS = 6
"""Shapes of equal work, each rounded to every one of STEPS."""
SAMPLES = 56
SAMPLE_ROUNDS = 9
ELITES = 8
PATIENCE = 2
GAIN = 0.003
"""The search's best shapes are measured and learned from, in rounds, until so many of them in a row
gained less than this share."""
FINALISTS, FINALS = 6, 3
"""Of all that was measured the best are measured again: the least of many was lucky too."""
BATCH = 14
"""Models in memory at once."""
QUIET = 1.05
DISTURBED = 8
GENERATIONS = 120
SEARCHES = 3
"""From different seeds; the best of all counts, the others' ends are measured too."""


@dataclass(frozen=True)
class Band:
    """Multiply-accumulates of a contender."""

    least: float
    most: float

    @classmethod
    def of(cls, name: str, budget: float, below: float) -> Band:
        """budget: multiply-accumulates, or up to 1 a fraction of the dense network's."""
        if budget <= 1:
            dense = trace_whole(name)
            budget *= dense.macs(dense.dense_widths)
        return cls(budget * (1 - below), budget)


@dataclass(frozen=True)
class Found:
    """A shape and the objective's value: predicted before it was measured, and measured."""

    widths: Widths
    predicted_ms: float
    measured_ms: float


Board = Callable[[Sequence[Widths]], FloatArray]
"""Shapes → their p50 in ms on one kind of board, (n_shapes,)."""


def trace_whole(name: str) -> PruneSpace:
    """Every width from a tenth on is legal: what any contender may choose."""
    network = networks.build(name, 0).eval()
    return trace(
        network, networks.input_shape(name), name, width_step=1, min_fraction=LEAST_FRACTION
    )


def make(runtime: str, network: nn.Module, example: torch.Tensor) -> bytes:
    """The network in the form that the runtime ("ort" or "litert") loads."""
    if runtime == "litert":
        from compiler.targets.fast_tflite import fast_tflite

        return fast_tflite(network, example)
    from compiler.targets.onnx import fast_onnx

    return fast_onnx(network, example)


class Bench:
    """A network's shapes, made and timed."""

    def __init__(self, network: str, band: Band) -> None:
        self.network = network
        self.band = band
        self.space = trace_whole(network)
        self._canary_ms: dict[str, float] = {}
        self._models: dict[tuple[str, Widths], bytes] = {}

    def model(self, runtime: str, widths: Widths) -> bytes:
        """The shape with random weights, in the runtime's form; the last few are kept."""
        if (runtime, widths) not in self._models:
            network = materialise(self.network, self.space, widths, 0)
            model = make(runtime, network, torch.zeros(1, *self.space.input_shape))
            while len(self._models) >= BATCH:
                self._models.pop(next(iter(self._models)))
            self._models[runtime, widths] = model
        return self._models[runtime, widths]

    def canary(self, runtime: str) -> bytes:
        """A narrow shape, timed along with others: it tells a disturbed loop from a quiet one."""
        narrow = tuple(legal[len(legal) // 3] for legal in self.space.widths_by_group)
        return self.model(runtime, narrow)

    def measure(self, runtime: str, shapes: Sequence[Widths], rounds: int) -> FloatArray:
        """(rounds, n_shapes) ms, all in one interleaved loop, while the machine is quiet."""
        models = [self.model(runtime, widths) for widths in shapes]
        inferences = [load(runtime, model) for model in (*models, self.canary(runtime))]
        return self.quiet(lambda: interleaved_ms(inferences, rounds), runtime)

    def quiet(self, loop: Callable[[], FloatArray], where: str) -> FloatArray:
        """The quietest of up to DISTURBED runs of a loop whose last column is the canary's.

        Quiet: the canary takes what it took at best so far, there. Returns the other columns.
        """
        quietest: tuple[float, FloatArray] | None = None
        for _ in range(DISTURBED):
            ms = loop()
            canary_ms = float(np.median(ms[:, -1]))
            best_ms = self._canary_ms[where] = min(canary_ms, self._canary_ms.get(where, canary_ms))
            if quietest is None or canary_ms < quietest[0]:
                quietest = (canary_ms, ms[:, :-1])
            if quietest[0] <= best_ms * QUIET:
                break
        assert quietest is not None
        return quietest[1]

    def p50_ms(self, runtime: str, shapes: Sequence[Widths]) -> FloatArray:
        """(n_shapes,), in batches that fit into memory."""
        parts = [
            np.median(self.measure(runtime, shapes[at : at + BATCH], SAMPLE_ROUNDS), axis=0)
            for at in range(0, len(shapes), BATCH)
        ]
        return np.concatenate(parts)

    def board(self, runtime: str) -> Board:
        """A stopwatch on this machine with one runtime."""
        return lambda shapes: self.p50_ms(runtime, shapes)


class Study:
    """What was measured of one network on the kinds of boards of a fleet, and searches on it.

    boards: by label. step: legal widths are its multiples, finer where a group has few.
    rounds: of elites, at most; quick: one, and half the samples.
    """

    def __init__(
        self, bench: Bench, boards: Mapping[str, Board], *, seed: int, rounds: int, quick: bool
    ) -> None:
        self._band, self._boards = bench.band, dict(boards)
        self._seed, self._rounds = seed, 1 if quick else rounds
        self._shapes: list[Widths] = []
        self._ms = np.empty((0, len(self._boards)))
        self.step = self._race(bench.space)
        self.space = legal_space(bench.space, self.step)
        samples = _samples(self.space, self._band, SAMPLES // (2 if quick else 1), seed)
        self._measure([widths for widths in samples if widths not in self._shapes])

    def _race(self, whole: PruneSpace) -> int:
        """The step whose shapes are fastest at equal work, the same proportions for each.

        Rounding decides more than a ladder of one layer tells: of two blocks that a kernel works
        in, the larger leaves fewer shapes to choose from and less work to waste.
        """
        rng = np.random.default_rng(self._seed)
        drawn = np.exp(rng.normal(0, 0.3, (RACERS - 1, len(whole.groups))))
        proportions = np.concatenate([np.ones((1, len(whole.groups))), drawn])
        by_step: dict[int, list[Widths]] = {}
        for step in STEPS:
            space = legal_space(whole, step)
            by_step[step] = [_scaled(space, kept, self._band.most) for kept in proportions]
        self._measure(list(dict.fromkeys(shape for ran in by_step.values() for shape in ran)))
        ms = dict(zip(self._shapes, np.log(self._ms).mean(axis=1).tolist(), strict=True))
        # Per work: a coarse step ends further below the budget.
        took = {
            step: float(np.mean([ms[shape] - np.log(whole.macs(shape)) for shape in ran]))
            for step, ran in by_step.items()
        }
        told = ", ".join(f"{step}: {1e9 * np.exp(log):.3g}" for step, log in took.items())
        print(f"{whole.network}: ms a GMAC by width step: {told}", file=sys.stderr, flush=True)
        return min(took, key=lambda step: took[step])

    def find_shape(self, objective: Objective) -> Found:
        """The shape of the band that is best by the objective, as far as was measured.

        Every shape measured on the way may be the answer, and the best ones meet once more; the
        prediction is the one made before its own first measurement. What was measured stays, for
        the next objective to learn from.
        """
        predicted: dict[Widths, float] = {}
        best_ms, without_gain = math.inf, 0
        for number in range(self._rounds):
            surrogates = self._fit()
            elites = self._elites(surrogates, objective, self._seed + 1000 * number)
            told = objective.value(self._predict(surrogates, np.asarray(elites))[0])
            predicted |= dict(zip(elites, told.tolist(), strict=True))
            measured = objective.value(self._measure(elites))
            errors = [round(s.cv_mape_, 4) for s in surrogates]
            print(
                f"{self.space.network}, {objective.name} over {', '.join(self._boards)}: round "
                f"{number + 1}: cross-validated errors {errors}, predicted {told.min():.3f} ms, "
                f"measured {measured.min():.3f} ms",
                file=sys.stderr,
                flush=True,
            )
            without_gain = 0 if measured.min() < best_ms * (1 - GAIN) else without_gain + 1
            best_ms = min(best_ms, float(measured.min()))
            if without_gain == PATIENCE:
                break
        finalists = self._best_so_far(objective)[:FINALISTS]
        ms = np.mean([self._time(finalists) for _ in range(FINALS)], axis=0)
        values = objective.value(ms)
        best = int(np.argmin(values))
        widths = finalists[best]
        return Found(widths, predicted.get(widths, float("nan")), float(values[best]))

    def _best_so_far(self, objective: Objective) -> list[Widths]:
        """Up to ELITES measured shapes of the band, the best first."""
        within = _within(self.space, self._band, np.asarray(self._shapes, dtype=np.int64))
        values = np.where(within, objective.value(self._ms), np.inf)
        order = np.argsort(values, kind="stable")[:ELITES]
        return [self._shapes[place] for place in order if np.isfinite(values[place])]

    def _time(self, shapes: list[Widths]) -> FloatArray:
        """(n_shapes, n_boards) ms."""
        return np.stack([board(shapes) for board in self._boards.values()], axis=1)

    def _measure(self, shapes: list[Widths]) -> FloatArray:
        ms = self._time(shapes)
        self._shapes += shapes
        self._ms = np.concatenate([self._ms, ms])
        return ms

    def _fit(self) -> list[LatencySurrogate]:
        x, names = physics_features(self.space, self._shapes), feature_names(self.space)
        return [
            LatencySurrogate(seed=self._seed).fit(
                Dataset(x, ms, (label,) * len(ms), names, "0" * 64)
            )
            for label, ms in zip(self._boards, self._ms.T, strict=True)
        ]

    def _predict(
        self, surrogates: Sequence[LatencySurrogate], rows: IntArray
    ) -> tuple[FloatArray, FloatArray]:
        """(median_ms, half width of its interval), each (n, n_boards)."""
        x = physics_features(self.space, rows)
        told = [surrogate.predict(x, extrapolate=True) for surrogate in surrogates]
        median = np.stack([ms for ms, _, _ in told], axis=1)
        return median, np.stack([(high - low) / 2 for _, low, high in told], axis=1)

    def _elites(
        self, surrogates: Sequence[LatencySurrogate], objective: Objective, seed: int
    ) -> list[Widths]:
        """The ends of a few searches, then neighbours of the best that differ: none known yet."""
        settings = SearchSettings(
            generations=GENERATIONS,
            max_macs=self._band.most,
            min_macs=self._band.least,
            max_accuracy_evaluations=10**6,
        )
        ends = [
            search(
                self.space,
                lambda rows: self._predict(surrogates, rows),
                lambda widths: 1.0,
                settings=settings,
                seed=seed + number,
                objective=objective,
                starts=self._best_so_far(objective),
            )
            for number in range(SEARCHES)
        ]
        ends.sort(key=lambda end: end.objective_ms)
        near = neighbours(self.space, ends[0].widths)
        near = near[_within(self.space, self._band, near)]
        order = np.argsort(objective.value(self._predict(surrogates, near)[0]), kind="stable")
        spread = np.unique(np.geomspace(1, max(len(order), 2), 4 * ELITES).astype(int)) - 1
        candidates = [end.widths for end in ends]
        candidates += [tuple(int(width) for width in near[order[place]]) for place in spread]
        known = set(self._shapes)
        return [widths for widths in dict.fromkeys(candidates) if widths not in known][:ELITES]


def legal_space(space: PruneSpace, step: int) -> PruneSpace:
    """The same network, its legal widths multiples of the step; finer where a group has few."""
    steps = {layer_kind(layer): step for layer in space.layers}
    return with_legal_widths(space, [steps], LEAST_FRACTION)


def _samples(space: PruneSpace, band: Band, n: int, seed: int) -> list[Widths]:
    """A third over the whole space, its corners first, the others of about the band's work."""
    shapes = dict.fromkeys(sample_widths(space, n // 3, seed))
    rng = np.random.default_rng(seed)
    dense = np.asarray(space.dense_widths, dtype=np.float64)
    while len(shapes) < n:
        kept = np.exp(rng.normal(0, 0.7, len(dense)))
        target = band.most * rng.uniform(0.85, 1.15)
        shapes[_scaled(space, kept, target)] = None
    return list(shapes)


def _scaled(space: PruneSpace, kept: FloatArray, most: float) -> Widths:
    """The largest legal shape of these proportions within the budget."""
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = total_macs(space, decode(space, kept[None] * middle))[0] <= most
        low, high = (middle, high) if fits else (low, middle)
    return tuple(int(width) for width in decode(space, kept[None] * low)[0])


def _within(space: PruneSpace, band: Band, rows: IntArray) -> NDArray[np.bool_]:
    macs = total_macs(space, rows)
    return np.asarray((macs >= band.least) & (macs <= band.most))
