"""One set of weights that holds networks of several widths, each a prefix of the wider one.

Input: a trained network, its PruneSpace, channel scores and the widths of each sub-network.
Output: a SwitchableNetwork, to be trained as one, and its sub-networks as plain, small networks.

Masks that are nested cost nothing once channels are sorted by score: keeping the best w channels
is then taking the first w, and the slice really computes less. Convolution and linear weights are
shared; batch norm, whose statistics depend on the width, has a bank for each sub-network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compiler.pruning.importance import Scores
from compiler.pruning.surgery import slice_channels
from compiler.pruning.widths import PruneSpace, Widths

RANDOM_WIDTHS = 2
"""Sub-networks drawn at random in each training step, beside the widest and the narrowest (the
sandwich rule of Yu & Huang, 1903.05134)."""


def nested_widths(space: PruneSpace, ratios: Sequence[float]) -> tuple[Widths, ...]:
    """For each pruning ratio the widths that it leaves, legal ones, every group alike.

    ratios: shares of channels that go, in [0, 1), ascending; each must leave other widths than the
    one before. Raises ValueError.
    """
    if list(ratios) != sorted(set(ratios)) or not all(0 <= ratio < 1 for ratio in ratios):
        raise ValueError(f"pruning ratios ascend within [0, 1): {list(ratios)}")
    found = tuple(
        tuple(
            min(legal, key=lambda width: (abs(width - (1 - ratio) * group.channels), -width))
            for group, legal in zip(space.groups, space.widths_by_group, strict=True)
        )
        for ratio in ratios
    )
    for ratio, before, widths in zip(ratios[1:], found, found[1:], strict=False):
        if before == widths:
            raise ValueError(f"ratio {ratio:g} leaves the widths of the one before: {widths}")
    return found


def best_first(network: nn.Module, space: PruneSpace, scores: Scores) -> nn.Module:
    """A copy that computes the same with the channels of each group in falling order of score.

    Ties go to the lower index, as in importance.keep.
    """
    order = {
        group.name: sorted(range(group.channels), key=lambda channel: (-of[channel], channel))
        for group, of in zip(space.groups, scores, strict=True)
    }
    return slice_channels(network, space.groups, order)


class SwitchableNetwork(nn.Module):
    """Sub-networks of falling width over one set of weights.

    network: at the space's dense widths, channels sorted (best_first); it is not changed.
    widths: of each sub-network, the widest first, each nowhere wider than the one before.

    In training mode it answers a batch (n, C, H, W) with (2 + RANDOM_WIDTHS, n, classes) at most:
    the widest sub-network's logits, the narrowest's, then those of others drawn from torch's global
    generator. In eval mode, with the widest's (n, classes).
    """

    def __init__(self, network: nn.Module, space: PruneSpace, widths: Sequence[Widths]) -> None:
        super().__init__()
        if not widths:
            raise ValueError("a switchable network has one sub-network at least")
        for wider, narrower in pairwise(widths):
            if any(w < n for w, n in zip(wider, narrower, strict=True)):
                raise ValueError(f"widths {narrower} are no part of {wider}")
        self.widths = tuple(space.check(of_one) for of_one in widths)
        widest = _cut(network, space, self.widths[0])
        self._shared = nn.ParameterDict({_key(path, name): p for path, name, p in _shared(widest)})
        self._banks = nn.ModuleList(_cut(network, space, of_one) for of_one in self.widths)
        self._shapes = [
            {f"{path}.{name}": tuple(p.shape) for path, name, p in _shared(bank)}
            for bank in self._banks
        ]
        for bank in self._banks:
            _give_up_shared(bank)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.answer(x, 0)
        return torch.stack([self.answer(x, position) for position in self._sandwich()])

    def answer(self, x: Tensor, position: int) -> Tensor:
        """The logits (n, classes) of one sub-network, by its position in ``widths``."""
        logits: Tensor = functional_call(self._banks[position], self._slices(position), (x,))
        return logits

    def sub_network(self, position: int) -> nn.Module:
        """A copy of one sub-network with weights of its own, in eval mode on the CPU."""
        network = copy.deepcopy(self._banks[position]).cpu()
        modules = dict(network.named_modules())
        for name, values in self._slices(position).items():
            path, _, last = name.rpartition(".")
            del modules[path]._buffers[last]
            weight = nn.Parameter(values.detach().cpu().contiguous().clone())
            modules[path].register_parameter(last, weight)
        return network.eval()

    def _slices(self, position: int) -> dict[str, Tensor]:
        """Every shared weight as one sub-network reads it: the first rows, the first columns."""
        return {
            name: self._shared[_key(*name.rsplit(".", 1))][tuple(slice(n) for n in shape)]
            for name, shape in self._shapes[position].items()
        }

    def _sandwich(self) -> list[int]:
        last = len(self.widths) - 1
        between = torch.randperm(max(0, last - 1))[:RANDOM_WIDTHS] + 1
        return list(dict.fromkeys([0, last, *between.tolist()]))


def _cut(network: nn.Module, space: PruneSpace, widths: Widths) -> nn.Module:
    kept = {g.name: range(width) for g, width in zip(space.groups, widths, strict=True)}
    return slice_channels(network, space.groups, kept)


def _shared(network: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(module's path, parameter's name, parameter) of convolutions and linear layers."""
    for path, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            for name, parameter in module.named_parameters(recurse=False):
                yield path, name, parameter


def _give_up_shared(bank: nn.Module) -> None:
    """Leave empty places where the shared weights are handed in."""
    modules = dict(bank.named_modules())
    for path, name, _ in list(_shared(bank)):
        del modules[path]._parameters[name]
        modules[path].register_buffer(name, torch.empty(0), persistent=False)


def _key(path: str, name: str) -> str:
    # A ParameterDict's keys are attribute names: no dots.
    return f"{path}.{name}".replace(".", "/")
