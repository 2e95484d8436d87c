"""Finds the channels of a network that can only be removed together.

Input: a network and its input's shape. Output: a PruneSpace with the coupled groups, the layers
in execution order and every legal width; or a TraceError that names what stands in the way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from compiler.pruning.operators import TraceError, UnsupportedOpError, check_operators
from compiler.pruning.surgery import BatchNorm, PlanMismatchError, deviation
from compiler.pruning.widths import Group, LayerShape, Member, PruneSpace

WIDTH_STEP = 8
MIN_FRACTION = 0.125
TRIAL_TOLERANCE = 1e-9
_PRUNABLE = (nn.Conv2d, nn.Linear, BatchNorm)


class FrozenParameterError(TraceError):
    """A parameter without gradient: the coupling graph would lose its layer without a word."""


class UncoveredLayerError(TraceError):
    """A weighted layer that no group covers and that does not make the output."""


@dataclass(frozen=True)
class _Call:
    """One weighted layer as it ran. Shapes are those of one picture, without the batch."""

    name: str
    module: nn.Module
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]


def trace(
    network: nn.Module,
    input_shape: Sequence[int],
    name: str,
    width_step: int = WIDTH_STEP,
    min_fraction: float = MIN_FRACTION,
) -> PruneSpace:
    """The prune space of a network, which is left as it is.

    input_shape: (C, H, W). Coupling is read from torch-pruning's graph (DepGraph, 2301.12900),
    then tried: the network cut at random channels must equal the masked one. Input channels and
    logits stay fixed. Raises UnsupportedOpError, FrozenParameterError, UncoveredLayerError,
    TraceError where the trial fails, ValueError for width_step < 1 or min_fraction not in (0, 1].
    """
    if width_step < 1 or not 0 < min_fraction <= 1:
        raise ValueError(
            f"width_step {width_step} < 1 or min_fraction {min_fraction} not in (0, 1]"
        )
    dense = copy.deepcopy(network).to("cpu").eval()
    x = torch.randn((2, *input_shape), generator=torch.Generator().manual_seed(0))
    _check_modules(dense, name)
    check_operators(dense, x, name)
    calls = _run(dense, x, name)
    groups = _coupled(dense, x, calls, name)
    space = PruneSpace(
        network=name,
        input_shape=tuple(int(size) for size in input_shape),
        groups=groups,
        layers=_layers(calls, groups),
        widths_by_group=tuple(
            legal_widths(group.channels, width_step, min_fraction) for group in groups
        ),
    )
    _try_out(dense, space, x)
    return space


def legal_widths(channels: int, step: int, min_fraction: float) -> tuple[int, ...]:
    """Multiples of the step, at least that fraction of the channels; the dense width is last."""
    least = max(step, math.ceil(min_fraction * channels - 1e-9))
    first = -(-least // step) * step
    return (*range(first, channels, step), channels)


def _check_modules(network: nn.Module, name: str) -> None:
    """Only layers that surgery can cut, none frozen, none grouped, no weight in two places."""
    owners = dict(network.named_modules())
    seen: dict[int, str] = {}
    for path, parameter in network.named_parameters(remove_duplicate=False):
        owner = owners[path.rpartition(".")[0]]
        if not isinstance(owner, _PRUNABLE):
            raise UnsupportedOpError(f"{type(owner).__name__} with parameter {path}", name)
        if not parameter.requires_grad:
            raise FrozenParameterError(
                f"{name}: parameter {path} is frozen. Next: requires_grad_(True) before tracing"
            )
        if id(parameter) in seen:
            raise UnsupportedOpError(f"weights shared by {seen[id(parameter)]} and {path}", name)
        seen[id(parameter)] = path
    for path, module in owners.items():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and not _is_depthwise(module):
            raise UnsupportedOpError(f"grouped convolution {path} (groups={module.groups})", name)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and (
        1 < module.groups == module.in_channels == module.out_channels
    )


def _run(network: nn.Module, x: Tensor, name: str) -> list[_Call]:
    """Weighted layers in execution order. Raises UncoveredLayerError for one that never runs."""
    calls: list[_Call] = []
    wanted: dict[nn.Module, str] = {
        m: path for path, m in network.named_modules() if isinstance(m, _PRUNABLE)
    }

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        in_shape, out_shape = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])
        calls.append(_Call(wanted[module], module, in_shape, out_shape))

    hooks = [module.register_forward_hook(note) for module in wanted]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    ran = [call.name for call in calls]
    for path in wanted.values():
        if path not in ran:
            raise UncoveredLayerError(f"{name}: layer {path} never runs. Next: remove it")
        if ran.count(path) > 1:
            raise UnsupportedOpError(f"layer {path} run {ran.count(path)} times", name)
    for call in calls:
        if isinstance(call.module, nn.Linear) and len(call.in_shape) != 1:
            raise UnsupportedOpError(f"linear layer {call.name} on {call.in_shape}", name)
    return calls


def _coupled(network: nn.Module, x: Tensor, calls: Sequence[_Call], name: str) -> tuple[Group, ...]:
    """Groups in the order in which their first layers run; those that reach the output left out."""
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(
            network,
            example_inputs=(x,),
            # A layer of weights at the very end would not be recognised as the output.
            output_transform=torch.clone,
            verbose=False,
        )
    places = {call.module: (position, call.name) for position, call in enumerate(calls)}
    groups: list[Group] = []
    covered: set[nn.Module] = set()
    for call in calls:
        if isinstance(call.module, BatchNorm) or call.module in covered:
            continue
        if call.module not in graph.module2node:
            raise UncoveredLayerError(f"{name}: no gradient reaches layer {call.name}")
        prune = graph.get_pruner_of_module(call.module).prune_out_channels
        channels = call.out_shape[0]
        items = graph.get_pruning_group(call.module, prune, list(range(channels))).items
        members, is_output = _members(items, channels, call.name, places, name)
        covered.update(calls[position].module for position, m in members if m.axis == 0)
        if not is_output:
            groups.append(Group(call.name, channels, tuple(m for _, m in members)))
    for call in calls:
        if call.module not in covered:
            raise UncoveredLayerError(f"{name}: no group of channels covers layer {call.name}")
    return tuple(groups)


def _members(
    items: Sequence[Any],
    channels: int,
    root: str,
    places: Mapping[nn.Module, tuple[int, str]],
    name: str,
) -> tuple[list[tuple[int, Member]], bool]:
    """One group's (position of the layer, member), ascending, and whether it is the output's.

    Raises UnsupportedOpError where a layer's entries are not the root's channels in order.
    """
    found: set[tuple[int, int, int, str]] = set()
    is_output = False
    for item in items:
        node = item.dep.target
        if node.type == torch_pruning.ops.OPTYPE.OUTPUT:
            is_output = True
        if node.module not in places:
            continue
        position, path = places[node.module]
        repeat = max(1, len(item.idxs) // channels)
        expected = [(i, i // repeat) for i in range(channels * repeat)]
        if sorted(zip(item.idxs, item.root_idxs, strict=True)) != expected:
            raise UnsupportedOpError(f"what mixes channels between {root} and {path}", name)
        axis = _axis(node.module, item.dep.handler)
        found.add((position, axis, repeat, path))
    members = [(at, Member(path, axis, repeat)) for at, axis, repeat, path in sorted(found)]
    return members, is_output


def _axis(module: nn.Module, handler: Any) -> int:
    inputs = (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
    return 1 if handler in inputs and not _is_depthwise(module) else 0


def _layers(calls: Sequence[_Call], groups: Sequence[Group]) -> tuple[LayerShape, ...]:
    side = {(m.module, m.axis): (g.name, m.repeat) for g in groups for m in g.members}
    layers = []
    for call in calls:
        if isinstance(call.module, BatchNorm):
            continue
        out_group, _ = side.get((call.name, 0), (None, 1))
        in_group, repeat = side.get((call.name, 1), (None, 1))
        kind, kernel_area = "linear", 1
        if isinstance(call.module, nn.Conv2d):
            kind, kernel_area = "conv", math.prod(call.module.kernel_size)
            if _is_depthwise(call.module):
                kind, in_group = "depthwise", out_group
        layers.append(
            LayerShape(
                name=call.name,
                kind=kind,
                in_group=in_group,
                out_group=out_group,
                in_channels=call.in_shape[0] // repeat,
                out_channels=call.out_shape[0],
                kernel_area=kernel_area,
                in_positions=math.prod(call.in_shape[1:]),
                out_positions=math.prod(call.out_shape[1:]),
                in_repeat=repeat,
            )
        )
    return tuple(layers)


def _try_out(network: nn.Module, space: PruneSpace, x: Tensor) -> None:
    """Cuts a third of every group at random and compares with masking; changes the network.

    Biases and batch norm are made random first: at their initial 0 and 1 they would hide errors.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5, generator=generator)
    kept = {}
    for group in space.groups:
        count = group.channels - max(1, group.channels // 3) if group.channels > 1 else 1
        chosen = torch.randperm(group.channels, generator=generator)[:count]
        kept[group.name] = sorted(chosen.tolist())
    try:
        found = deviation(network, space.groups, kept, x)
    except (RuntimeError, PlanMismatchError) as error:
        raise TraceError(f"{space.network}: does not run when cut: {error}") from error
    if not found <= TRIAL_TOLERANCE:
        raise TraceError(
            f"{space.network}: cut and masked outputs differ by {found:.1e} of the largest. "
            "Next: look for an activation that does not map 0 to 0, or channels that mix"
        )
