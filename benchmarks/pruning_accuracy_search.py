"""HDAP's shape for one machine: the best proxy accuracy within a budget of work and of time.

Input: a trained network with its PruneSpace, measured latencies of sampled shapes, and bounds.
Output: the elites of negatively correlated search, best first; the same seed gives the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compiler import devices, networks
from compiler.data import Splits
from compiler.dataset import Dataset
from compiler.devices import Precision
from compiler.features import feature_names, physics_features, total_macs
from compiler.pruning.importance import Scores, activation, keep, magnitude
from compiler.pruning.ncs import NegativelyCorrelatedSearch
from compiler.pruning.search import FleetLatency
from compiler.pruning.surgery import slice_channels
from compiler.pruning.widths import PruneSpace, Widths
from compiler.sampling import decode
from compiler.surrogates import LatencySurrogate, fleet_latency
from compiler.training import evaluate, recalibrate_batch_norm

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RECALIBRATION_PICTURES = 512
SCORING_PICTURES = 512
POPULATION = 5
SIGMA = 0.06
"""First step size, in fractions of the dense width: the starts are good already."""
TRUNK_LEVELS = (1.0, 0.75, 0.5)
INNER_LEVELS = (1.0, 0.75, 0.5, 0.25)


def precision() -> Precision:
    """bf16 where the device multiplies it faster than float32, else as it comes.

    On one core with AMX, ResNet56 trains twice as fast so (batches of 128, channels last).
    """
    amx = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    return "bf16" if devices.chosen().type == "cuda" or amx else "auto"


class Proxy:
    """Accuracy of a shape right after slicing, batch norm recalibrated; each asked once.

    pictures: of the validation part, held out of training here (published weights saw it, which
    flatters every shape alike: accuracy is quoted on the test part). The importance is the one
    whose channels do better at half of every inner width.
    """

    def __init__(self, dense: nn.Module, space: PruneSpace, splits: Splits, pictures: int) -> None:
        self.space = space
        self._dense = dense
        self._recalibration = splits.train_x[:RECALIBRATION_PICTURES].contiguous(
            memory_format=torch.channels_last
        )
        self._x, self._y = splits.val_x[:pictures], splits.val_y[:pictures]
        self._known: dict[Widths, float] = {}
        self.importance = "activation"
        half = tuple(int(w) for w in decode(space, np.where(_trunks(space), 1.0, 0.5)[None])[0])
        found: list[tuple[float, str, Scores]] = []
        for name, scores in (
            ("activation", activation(dense, space, splits.train_x[:SCORING_PICTURES])),
            ("magnitude", magnitude(dense, space)),
        ):
            self._scores = scores
            found.append((self._judge(self.cut(half)), name, scores))
        _, self.importance, self._scores = max(found, key=lambda entry: entry[0])

    def cut(self, widths: Widths) -> nn.Module:
        """The dense network at these widths, its most important channels kept."""
        kept = dict(keep(self.space, self._scores, widths))
        return slice_channels(self._dense, self.space.groups, kept)

    def __call__(self, widths: Widths) -> float:
        if widths not in self._known:
            self._known[widths] = self._judge(self.cut(widths))
        return self._known[widths]

    def of_network(self, network: nn.Module) -> float:
        """Of one that somebody else cut from the same weights."""
        return self._judge(network)

    @property
    def n_evaluations(self) -> int:
        return len(self._known)

    def _judge(self, network: nn.Module) -> float:
        device = devices.chosen()
        arithmetic = devices.autocast_type(device, precision())
        with torch.autocast(device.type, arithmetic, enabled=arithmetic is not None):
            recalibrate_batch_norm(network.to(device), self._recalibration)
            return evaluate(network, self._x, self._y)


@dataclass(frozen=True)
class Bounds:
    """macs: multiply-accumulates at most. ms: predicted milliseconds at most."""

    macs: float
    ms: float


@dataclass(frozen=True)
class Elite:
    """A shape within the bounds. proxy: accuracy, a fraction; ms: predicted."""

    widths: Widths
    proxy: float
    ms: float


def resized(name: str, space: PruneSpace, widths: Sequence[int]) -> nn.Module:
    """The named network at any widths with random weights: to measure, or to load others into."""
    kept = {group.name: range(w) for group, w in zip(space.groups, widths, strict=True)}
    return slice_channels(networks.build(name, 0), space.groups, kept).eval()


def surrogate(
    space: PruneSpace, widths: Sequence[Sequence[int]], ms: Sequence[float], seed: int
) -> tuple[LatencySurrogate, FleetLatency]:
    """Of this one machine, from measured shapes; in the form that the search asks."""
    rows = np.asarray(widths, dtype=np.int64)
    dataset = Dataset(
        physics_features(space, rows),
        np.asarray(ms, dtype=np.float64),
        ("this machine",) * len(rows),
        feature_names(space),
        "measured by this benchmark",
    )
    fitted = LatencySurrogate(seed=seed).fit(dataset)
    return fitted, fleet_latency(space, {"this machine": fitted}, {"this machine": 1.0})


def elites(
    space: PruneSpace,
    predict: FleetLatency,
    proxy: Proxy,
    bounds: Bounds,
    generations: int,
    seed: int,
) -> list[Elite]:
    """Every shape met within the bounds, the best proxy accuracy first; ties to the faster.

    Negatively correlated search from the best of _levelled's shapes, each as wide as the bounds
    allow. Empty where no shape of those is within the bounds.
    """
    met: dict[Widths, Elite] = {}

    def errors(widths: IntArray) -> FloatArray:
        ms, _ = predict(widths)
        within = (ms <= bounds.ms) & (total_macs(space, widths) <= bounds.macs)
        values = np.full(len(widths), np.inf)
        for row in np.flatnonzero(within):
            shape = tuple(int(w) for w in widths[row])
            met[shape] = Elite(shape, proxy(shape), float(ms[row]))
            values[row] = 1 - met[shape].proxy
        return values

    dense = np.asarray(space.dense_widths, dtype=np.float64)
    starts = decode(space, _filled(space, _levelled(space), bounds.macs))
    errors(np.unique(starts, axis=0))
    if not met:
        return []
    best = _ranked(met)[:POPULATION]
    x = np.asarray([best[i % len(best)].widths for i in range(POPULATION)]) / dense
    fitness = 1 - np.asarray([best[i % len(best)].proxy for i in range(POPULATION)])
    ncs = NegativelyCorrelatedSearch(
        x, fitness, np.random.default_rng(seed), generations=generations, sigma=SIGMA
    )
    for _ in range(generations):
        trials = _filled(space, ncs.ask(), bounds.macs)
        values = errors(decode(space, trials))
        ncs.tell(trials, values, ncs.worth(trials, values) | (values < ncs.fitness))
    return _ranked(met)


def _ranked(met: dict[Widths, Elite]) -> list[Elite]:
    return sorted(met.values(), key=lambda elite: (-elite.proxy, elite.ms, elite.widths))


def _filled(space: PruneSpace, kept: FloatArray, macs: float) -> FloatArray:
    """Fractions (n, n_groups), the inner ones scaled together to what the budget of work holds."""
    inner = ~_trunks(space)
    low, high = np.full(len(kept), 0.1), np.full(len(kept), 2.0)

    def scaled(factor: FloatArray) -> FloatArray:
        return np.asarray(np.clip(np.where(inner, kept * factor[:, None], kept), 0, 1))

    for _ in range(12):
        middle = (low + high) / 2
        fits = total_macs(space, decode(space, scaled(middle))) <= macs
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return scaled(low)


def _trunks(space: PruneSpace) -> NDArray[np.bool_]:
    """(n_groups,): whether several layers make the group, as every residual block adds to one.

    Its channels are worth more than inner ones, and are cut only where search says so.
    """
    return np.array([sum(m.axis == 0 for m in g.members) > 2 for g in space.groups])


def _levelled(space: PruneSpace) -> FloatArray:
    """Fractions (n, n_groups) to begin at: one for all trunks, one for the inner widths of each
    stage, which is what has the same dense width.
    """
    sizes = sorted({group.channels for group in space.groups})
    stage = np.array([sizes.index(group.channels) for group in space.groups])
    levels = itertools.product(TRUNK_LEVELS, *[INNER_LEVELS] * len(sizes))
    rows = [np.where(_trunks(space), trunk, np.array(inner)[stage]) for trunk, *inner in levels]
    return np.asarray(rows)
