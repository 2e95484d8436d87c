"""Cuts channels out of a network, for real.

Input: a network, its PruneSpace and a PruningPlan (or widths alone). Output: a new, smaller
network; or, for the proof, one of the old size in which the same channels are zero.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from compiler import networks, weights
from compiler.pruning.widths import Group, Member, PruneSpace, PruningPlan

Kept = Mapping[str, Sequence[int]]
"""Group name → ascending indices of the channels that stay."""

BatchNorm = nn.modules.batchnorm._BatchNorm


class PlanMismatchError(ValueError):
    """A plan, a space and a network that do not belong together; the message says how."""


def slice_network(network: nn.Module, space: PruneSpace, plan: PruningPlan) -> nn.Module:
    """A new network without the removed channels, in the given one's mode.

    Raises PlanMismatchError for a plan made for another network or other weights, or for widths
    that are not legal in the space.
    """
    _check(network, space, plan)
    return slice_channels(network, space.groups, dict(plan.kept_by_group))


def mask_network(network: nn.Module, space: PruneSpace, plan: PruningPlan) -> nn.Module:
    """A new network of the same size whose removed channels are zero. Raises as slice_network."""
    _check(network, space, plan)
    return mask_channels(network, space.groups, dict(plan.kept_by_group))


def materialise(name: str, space: PruneSpace, widths: Sequence[int], seed: int) -> nn.Module:
    """The named network at these widths with random weights, in eval mode.

    For measuring: latency depends on shapes, not on weights. Raises ValueError for illegal
    widths, PlanMismatchError when the space was traced from another network.
    """
    if space.network != name:
        raise PlanMismatchError(f"the space is of network {space.network}, not of {name}")
    kept = {
        group.name: range(width)
        for group, width in zip(space.groups, space.check(widths), strict=True)
    }
    return _slice_in_place(networks.build(name, seed), space.groups, kept)


def slice_channels(network: nn.Module, groups: Sequence[Group], kept: Kept) -> nn.Module:
    """A copy that holds only the kept channels of each group; any widths of at least 1.

    Raises PlanMismatchError where a group's layer is missing or of another size.
    """
    return _slice_in_place(copy.deepcopy(network), groups, kept)


def mask_channels(network: nn.Module, groups: Sequence[Group], kept: Kept) -> nn.Module:
    """A copy in which every layer that makes a removed channel makes zeros of it.

    Convolution and linear rows with their biases, and batch norm's affine terms; consumers are
    left alone, so equality with the sliced network shows that nothing else read the channel.
    """
    masked = copy.deepcopy(network)
    for module, member, index in _members(masked, groups, kept):
        if member.axis != 0:
            continue
        removed = torch.ones(_size(module, 0), dtype=torch.bool)
        removed[index] = False
        with torch.no_grad():
            for parameter in module.parameters(recurse=False):
                parameter[removed] = 0.0
    return masked


def deviation(network: nn.Module, groups: Sequence[Group], kept: Kept, x: Tensor) -> float:
    """Largest difference between masked and sliced outputs, relative to the largest output or 1.

    Computed in float64 and eval mode, so a right cut stays below about 1e-12. x: (n, C, H, W).
    Raises RuntimeError where the sliced network does not run, PlanMismatchError as above.
    """
    reference = copy.deepcopy(network).double().eval()
    x = x.double()
    with torch.inference_mode():
        masked = mask_channels(reference, groups, kept)(x)
        found = slice_channels(reference, groups, kept)(x)
    if found.shape != masked.shape:
        raise RuntimeError(f"output {tuple(found.shape)} instead of {tuple(masked.shape)}")
    return float((found - masked).abs().max() / masked.abs().max().clamp(min=1.0))


def _check(network: nn.Module, space: PruneSpace, plan: PruningPlan) -> None:
    if plan.network != space.network:
        raise PlanMismatchError(f"the plan is for {plan.network}, the space of {space.network}")
    found = weights.sha256(network.state_dict())
    if plan.parent_sha256 != found:
        raise PlanMismatchError(
            f"{plan.network}: the plan was made for weights {plan.parent_sha256[:12]}, these are "
            f"{found[:12]}. Next: load the weights it names, or make a plan for these"
        )
    try:
        space.check(plan.widths(space))
    except ValueError as error:
        raise PlanMismatchError(f"{plan.network}: {error}") from None


def _slice_in_place(network: nn.Module, groups: Sequence[Group], kept: Kept) -> nn.Module:
    for module, member, index in _members(network, groups, kept):
        if member.axis == 1:
            _slice_inputs(module, index)
        else:
            _slice_outputs(module, index)
    return network


def _members(
    network: nn.Module, groups: Sequence[Group], kept: Kept
) -> Iterator[tuple[nn.Module, Member, Tensor]]:
    """Every member with its module and the entries along its axis that stay."""
    modules = dict(network.named_modules())
    for group in groups:
        channels = torch.tensor(list(kept[group.name]), dtype=torch.long)
        for member in group.members:
            module = modules.get(member.module)
            if module is None or _size(module, member.axis) != group.channels * member.repeat:
                raise PlanMismatchError(
                    f"group {group.name}: layer {member.module} is missing or does not have "
                    f"{group.channels} x {member.repeat} entries on axis {member.axis}"
                )
            steps = torch.arange(member.repeat)
            yield module, member, (channels[:, None] * member.repeat + steps).flatten()


def _size(module: nn.Module, axis: int) -> int:
    """Entries along the axis; 0 for a module that has no such axis."""
    if isinstance(module, nn.Conv2d):
        return module.out_channels if axis == 0 else module.in_channels
    if isinstance(module, nn.Linear):
        return module.out_features if axis == 0 else module.in_features
    if isinstance(module, BatchNorm) and axis == 0:
        return module.num_features
    return 0


def _slice_outputs(module: nn.Module, index: Tensor) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        _replace(module, name, parameter.detach()[index], parameter.requires_grad)
    if isinstance(module, nn.Conv2d):
        module.out_channels = len(index)
        if module.groups > 1:  # depthwise: its inputs are its outputs
            module.in_channels = module.groups = len(index)
    elif isinstance(module, nn.Linear):
        module.out_features = len(index)
    elif isinstance(module, BatchNorm):
        module.num_features = len(index)
        if module.running_mean is not None and module.running_var is not None:
            module.running_mean = module.running_mean[index].clone()
            module.running_var = module.running_var[index].clone()


def _slice_inputs(module: nn.Module, index: Tensor) -> None:
    weight = module.get_parameter("weight")
    _replace(module, "weight", weight.detach()[:, index], weight.requires_grad)
    if isinstance(module, nn.Conv2d):
        module.in_channels = len(index)
    elif isinstance(module, nn.Linear):
        module.in_features = len(index)


def _replace(module: nn.Module, name: str, tensor: Tensor, requires_grad: bool) -> None:
    setattr(module, name, nn.Parameter(tensor.contiguous().clone(), requires_grad=requires_grad))
