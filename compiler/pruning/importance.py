"""How much each channel matters, and which ones stay at given widths.

Input: a network with its PruneSpace. Output: one score per channel and group, and from scores
and widths the kept channels of a PruningPlan.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compiler.pruning.surgery import BatchNorm
from compiler.pruning.widths import Group, PruneSpace

Scores = tuple[tuple[float, ...], ...]
"""For each group of a space, in its order, one score ≥ 0 per dense channel; more is better."""


def magnitude(network: nn.Module, space: PruneSpace, norm: float = 2.0) -> Scores:
    """Group-wise weight magnitude (1608.08710, summed over coupled layers as in 2301.12900).

    A layer that makes the channel counts with the norm of its filter, times batch norm's
    effective scale |gamma| / sqrt(var + eps) where one follows; a layer that reads it counts
    with the norm of the weights that do. Each layer's scores are divided by their mean, then
    averaged, so that wide layers do not drown narrow ones. norm: 1 or 2. Raises ValueError.
    """
    if norm not in (1.0, 2.0):
        raise ValueError(f"importance knows the norms 1 and 2, not {norm}")
    modules = dict(network.named_modules())
    return tuple(_group_scores(modules, group, norm) for group in space.groups)


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


def _group_scores(modules: dict[str, nn.Module], group: Group, norm: float) -> tuple[float, ...]:
    layers: list[Tensor] = []
    maker: int | None = None
    for member in group.members:
        module = modules[member.module]
        if isinstance(module, BatchNorm):
            # Members come in execution order: this batch norm scales the layer before it.
            if maker is not None:
                layers[maker] = layers[maker] * _scale(module)
            maker = None
            continue
        weight = module.get_parameter("weight").detach()
        rows = weight if member.axis == 0 else weight.transpose(0, 1)
        layers.append(rows.reshape(group.channels, -1).double().norm(p=norm, dim=1))
        if member.axis == 0:
            maker = len(layers) - 1
    normalised = [scores / scores.mean().clamp(min=1e-30) for scores in layers]
    return tuple(float(s) for s in torch.stack(normalised).mean(dim=0))


def _scale(norm: nn.Module) -> Tensor:
    scale = norm.get_parameter("weight").detach().abs().double()
    variance = norm.get_buffer("running_var").double()
    return scale / (variance + float(getattr(norm, "eps", 0.0))).sqrt()
