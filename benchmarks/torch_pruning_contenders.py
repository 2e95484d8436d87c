"""The shapes that torch-pruning gives a network at one budget of work, as width vectors.

Input: a network's name, its PruneSpace and a band of multiply-accumulates. Output: Contenders;
how it cuts (uniform, global) and rounds is torch-pruning's own doing, only the ratio is sought.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from compiler import networks
from compiler.pruning.widths import PruneSpace, Widths

ROUNDINGS = (None, 8, 16, 32)
LEAST_FRACTION = 0.1
"""No group is cut below it, neither here nor by fleetcut: only shapes are compared."""
_TRIES = 12


@dataclass(frozen=True)
class Contender:
    """One way of torch-pruning's to cut. widths: None where no ratio falls into the band."""

    name: str
    ratio: float
    macs: int
    widths: Widths | None


def contenders(name: str, space: PruneSpace, least: float, most: float) -> Iterator[Contender]:
    """Uniform and global pruning by L1 norm, at each rounding; the lightest of the band.

    Of seed 0's untrained weights, as everything in that benchmark: global pruning ranks these.
    least, most: multiply-accumulates of the whole network.
    """
    for scope in ("uniform", "global"):
        for rounding in ROUNDINGS:
            yield _at_budget(f"torch-pruning {scope} /{rounding or 1}", name, space, scope,
                             rounding, (least, most))  # fmt: skip


def _at_budget(
    title: str,
    name: str,
    space: PruneSpace,
    scope: str,
    rounding: int | None,
    band: tuple[float, float],
) -> Contender:
    """The lightest shape of the band that bisection of the ratio meets.

    Where rounding makes the ratio jump over the band, the first layers get the ratio below the
    jump and the others the one above it: as uniform as the rounding allows.
    """
    best: Contender | None = None
    low, high = 0.0, 1 - LEAST_FRACTION  # heavier than the band, and lighter

    def judged(lighter: float, heavier: float, n_lighter: int) -> int:
        nonlocal best
        widths = cut_widths(
            name, space, heavier, scope=scope, rounding=rounding, first=(lighter, n_lighter)
        )
        macs = space.macs(widths)
        fits = band[0] <= macs <= band[1] and _wide_enough(space, widths)
        if fits and (best is None or macs < best.macs):
            best = Contender(title, heavier, macs, widths)
        return macs

    for _ in range(_TRIES):
        ratio = (low + high) / 2
        macs = judged(ratio, ratio, 0)
        if band[0] <= macs <= band[0] * 1.003:
            break
        low, high = (ratio, high) if macs > band[0] else (low, ratio)
    for n_lighter in range(1, len(space.layers)):
        if best is not None:
            break
        judged(high, low, n_lighter)
    return best or Contender(title, high, judged(high, high, 0), None)


def _wide_enough(space: PruneSpace, widths: Widths) -> bool:
    return all(w >= LEAST_FRACTION * g.channels for g, w in zip(space.groups, widths, strict=True))


def cut_widths(
    name: str,
    space: PruneSpace,
    ratio: float,
    *,
    scope: str,
    rounding: int | None,
    first: tuple[float, int] = (0.0, 0),
) -> Widths:
    """Widths by group after torch-pruning cut the network (seed 0's weights) at this ratio.

    first: (another ratio, for how many layers from the input on).
    """
    network = networks.build(name, 0)
    return read_widths(cut_network(network, space, ratio, scope, "l1", rounding, first), space)


def cut_network(
    network: nn.Module,
    space: PruneSpace,
    ratio: float,
    scope: str,
    importance: str,
    rounding: int | None,
    first: tuple[float, int] = (0.0, 0),
) -> nn.Module:
    """A copy that torch-pruning cut, its last layer left alone.

    scope: "uniform" or "global". importance: "l1", "magnitude" (L2) or "bn-scale".
    first: (another ratio, for how many layers from the input on).
    """
    import torch_pruning

    cut = copy.deepcopy(network).to("cpu").eval()
    layers = [m for m in cut.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    pruner, score = torch_pruning.pruner.BasePruner, torch_pruning.importance
    if importance == "bn-scale":
        pruner, judge = torch_pruning.pruner.BNScalePruner, score.BNScaleImportance()
    else:
        judge = score.GroupMagnitudeImportance(p={"l1": 1, "magnitude": 2}[importance])
    pruner(
        cut,
        (torch.zeros(1, *space.input_shape),),
        importance=judge,
        global_pruning=scope == "global",
        pruning_ratio=ratio,
        max_pruning_ratio=1 - LEAST_FRACTION,
        pruning_ratio_dict=dict.fromkeys(layers[: first[1]], first[0]),
        ignored_layers=layers[-1:],
        round_to=rounding,
        # Its defaults are dicts that all pruners of a process would share.
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        channel_groups={},
    ).step()
    return cut


def read_widths(network: nn.Module, space: PruneSpace) -> Widths:
    """The width of every group in a network that somebody else cut."""
    modules = dict(network.named_modules())
    widths = []
    for group in space.groups:
        member = next(m for m in group.members if m.axis == 0)
        weight = modules[member.module].weight
        assert isinstance(weight, torch.Tensor)
        widths.append(int(weight.shape[0]) // member.repeat)
    return tuple(widths)
