"""How much each channel matters, and which ones stay at given widths.

Input: a network with its PruneSpace, and pictures of the training part. Output: one score per
channel and group, and from scores and widths the kept channels of a PruningPlan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from compiler.pruning.surgery import BatchNorm
from compiler.pruning.widths import Group, PruneSpace

Scores = tuple[tuple[float, ...], ...]
"""For each group of a space, in its order, one score ≥ 0 per dense channel; more is better."""


def activation(network: nn.Module, space: PruneSpace, x: Tensor) -> Scores:
    """What each channel hands on: its root mean square where a layer reads it, times the norm
    of the weights that read it (Wanda, 2306.11695, equation 1, for whole channels).

    x: (n, C, H, W) of the training part; some hundreds do. Averaged over the layers that read a
    group. The safer choice: with half of every layer gone and batch norm recalibrated, one run
    of digits_mobilenet and digits_resnet kept 95 and 95 % accuracy, by magnitude 80 and 97 %.
    """
    modules = dict(network.named_modules())
    readers = [(g, m.module) for g in space.groups for m in g.members if m.axis == 1]
    scores: dict[str, list[Tensor]] = {group.name: [] for group in space.groups}

    def reads(group: Group) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            by_channel = inputs[0].double().reshape(len(x), group.channels, -1)
            strength = by_channel.square().mean(dim=(0, 2)).sqrt()
            scores[group.name].append(strength * _norms(module, 1, group.channels, 2.0))

        return note

    was_training = network.training
    hooks = [modules[path].register_forward_hook(reads(group)) for group, path in readers]
    try:
        with torch.no_grad():
            network.eval()(x)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return tuple(_mean_over_layers(scores[group.name]) for group in space.groups)


def magnitude(network: nn.Module, space: PruneSpace, norm: float = 2.0) -> Scores:
    """Group-wise weight magnitude, without pictures (1608.08710; groups as in 2301.12900).

    A layer that makes the channel counts with the norm of its filter, times |gamma| where batch
    norm follows; a layer that reads it counts with the norm of the weights that do. |gamma| is
    not divided by the running deviation: that would rank dead channels first. norm: 1 or 2.
    Raises ValueError.
    """
    if norm not in (1.0, 2.0):
        raise ValueError(f"importance knows the norms 1 and 2, not {norm}")
    modules = dict(network.named_modules())
    return tuple(_group_magnitude(modules, group, norm) for group in space.groups)


def keep(
    space: PruneSpace, scores: Scores, widths: Sequence[int]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """PruningPlan.kept_by_group: the highest channels of each group, ascending.

    Ties go to the lower index, so smaller widths keep subsets of larger ones. Raises ValueError
    for illegal widths and for scores of another space.
    """
    legal = space.check(widths)
    if [len(s) for s in scores] != [group.channels for group in space.groups]:
        raise ValueError(f"scores do not fit the groups of {space.network}")
    kept = []
    for group, group_scores, width in zip(space.groups, scores, legal, strict=True):
        ranking = sorted(enumerate(group_scores), key=lambda item: (-item[1], item[0]))
        kept.append((group.name, tuple(sorted(channel for channel, _ in ranking[:width]))))
    return tuple(kept)


def _group_magnitude(modules: dict[str, nn.Module], group: Group, norm: float) -> tuple[float, ...]:
    layers: list[Tensor] = []
    maker: int | None = None
    for member in group.members:
        module = modules[member.module]
        if isinstance(module, BatchNorm):
            # Members come in execution order: this batch norm scales the layer before it.
            if maker is not None:
                layers[maker] = layers[maker] * module.get_parameter("weight").detach().abs()
            maker = None
            continue
        layers.append(_norms(module, member.axis, group.channels, norm))
        if member.axis == 0:
            maker = len(layers) - 1
    return _mean_over_layers(layers)


def _norms(module: nn.Module, axis: int, channels: int, norm: float) -> Tensor:
    """Norm of the weights that belong to each channel along the axis: (channels,) float64."""
    weight = module.get_parameter("weight").detach().double()
    by_channel = weight if axis == 0 else weight.transpose(0, 1)
    return by_channel.reshape(channels, -1).norm(p=norm, dim=1)


def _mean_over_layers(layers: Sequence[Tensor]) -> tuple[float, ...]:
    """Each layer's scores divided by their mean, so that wide layers do not drown narrow ones."""
    relative = [scores / scores.mean().clamp(min=1e-30) for scores in layers]
    return tuple(float(score) for score in torch.stack(relative).mean(dim=0))
