"""One switchable network and, for each of its widths, a network trained alone under its budget.

Input: a network's name and a Budget. Output: accuracies on the test part, sizes, and the trained
sub-networks. Weights stay in the work folder, so that a second call only evaluates.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from compiler import data, networks, training, weights
from compiler.pruning import importance
from compiler.pruning.groups import trace
from compiler.switchable.network import (
    RANDOM_WIDTHS,
    SwitchableNetwork,
    best_first,
    nested_widths,
)
from compiler.training import Distillation, TrainSettings

SEED = 0
WIDTH_STEP = 4
SCORED_PICTURES = 512
SHOWN = 16


@dataclass(frozen=True)
class Budget:
    """ratios: of channels that go. epochs: of the dense network, and of each network alone.
    pictures: of the training part, None for all.

    Down to the lowest clock's share of the highest, a step of ratios is a tenth of the
    multiply-adds at most: what lies between two sub-networks is what switching cannot hold.
    """

    ratios: tuple[float, ...] = (*(step / 20 for step in range(11)), 0.6, 0.7)
    epochs: int = 8
    pictures: int | None = None

    @property
    def epochs_together(self) -> int:
        """Of a step the widest, the narrowest and RANDOM_WIDTHS of those between are part."""
        between = max(0, len(self.ratios) - 2)
        return self.epochs * max(1, math.ceil(between / RANDOM_WIDTHS))


@dataclass(frozen=True)
class Trained:
    """Positions as in ratios. example: (1, C, H, W)."""

    ratios: tuple[float, ...]
    macs: tuple[int, ...]
    accuracies: tuple[float, ...]
    accuracies_alone: tuple[float, ...]
    network: SwitchableNetwork
    sub_networks: tuple[nn.Module, ...]
    example: Tensor


def trained(folder: Path, name: str, budget: Budget) -> Trained:
    """Everything trained, or read from the folder where it was.

    Alone: the same slice of the same dense network, distilled from it for budget.epochs. Together:
    for so many epochs that each sub-network is in as many steps as alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = _splits(budget)
    dense = networks.build(name, SEED)
    space = trace(dense.eval(), networks.input_shape(name), name, width_step=WIDTH_STEP)
    settings = TrainSettings(epochs=budget.epochs, seed=SEED)
    _once(folder / "dense", dense, lambda: training.train(dense, splits, settings))
    scores = importance.activation(dense, space, splits.train_x[:SCORED_PICTURES])
    ordered = best_first(dense, space, scores)
    widths = nested_widths(space, budget.ratios)
    switchable = SwitchableNetwork(ordered, space, widths)
    slices = [copy.deepcopy(switchable.sub_network(position)) for position in range(len(widths))]
    _once(
        folder / "together",
        switchable,
        lambda: training.train_together(
            switchable, splits, replace(settings, epochs=budget.epochs_together)
        ),
    )
    distilled = partial(
        training.distil,
        teacher=dense,
        splits=splits,
        settings=settings,
        distillation=Distillation(),
    )
    for ratio, alone in zip(budget.ratios, slices, strict=True):
        _once(folder / f"alone-{ratio:g}", alone, partial(distilled, alone))
    together = tuple(switchable.sub_network(position).eval() for position in range(len(widths)))

    def accuracy(network: nn.Module) -> float:
        return training.evaluate(network.eval(), splits.test_x, splits.test_y)

    return Trained(
        ratios=budget.ratios,
        macs=tuple(space.macs(of_one) for of_one in widths),
        accuracies=tuple(accuracy(network) for network in together),
        accuracies_alone=tuple(accuracy(network) for network in slices),
        network=switchable.eval(),
        sub_networks=together,
        example=splits.test_x[:1],
    )


def real_network(name: str, ratios: tuple[float, ...]) -> tuple[SwitchableNetwork, Tensor]:
    """Untrained, cut to widths that are multiples of 8, and an example. Its batch norms know its
    activations, so that answers are of order 1, as a trained network's are.
    """
    torch.manual_seed(SEED)
    network = networks.build(name, SEED)
    training.recalibrate_batch_norm(network, torch.rand(SHOWN, *networks.input_shape(name)))
    network.eval()
    space = trace(network, networks.input_shape(name), name, width_step=8)
    ordered = best_first(network, space, importance.magnitude(network, space))
    torch.manual_seed(SEED)
    example = torch.rand(1, *networks.input_shape(name))
    return SwitchableNetwork(ordered, space, nested_widths(space, ratios)).eval(), example


def _splits(budget: Budget) -> data.Splits:
    splits = data.load("digits", SEED)
    if budget.pictures is None:
        return splits
    few = budget.pictures
    return replace(splits, train_x=splits.train_x[:few], train_y=splits.train_y[:few])


def _once(path: Path, network: nn.Module, train: Callable[[], object]) -> None:
    """Train, or load what an earlier call left."""
    stored = path.with_name(f"{path.name}.safetensors")
    if stored.exists():
        weights.load_into(network, stored, path.parent.name)
    else:
        print(f"training {path.parent.name}: {path.name}", file=sys.stderr, flush=True)
        train()
        weights.save(network.state_dict(), stored)
    network.eval()
