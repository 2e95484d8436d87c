"""Which operators a network may use: those whose effect on channels is known.

Input: a network and one example batch. Output: nothing, or an UnsupportedOpError that names the
first operator that is not on the list; torch-pruning would take it for an element-wise one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compiler.errors import CompilerError

Rule = Callable[[tuple[Any, ...]], bool]
"""Says of an operator's arguments whether channels pass through it one by one."""


class TraceError(CompilerError, ValueError):
    """A network that cannot be pruned safely; the message names the layer and the reason."""


class UnsupportedOpError(TraceError):
    """An operator, or a use of one, whose effect on channels is unknown."""

    def __init__(self, op: str, network: str) -> None:
        super().__init__(
            f"{network}: cannot prune through {op}. Next: write the network without it, or "
            "teach compiler/pruning/operators.py what it does to channels"
        )
        self.op = op
        self.network = network


def check_operators(network: nn.Module, x: Tensor, name: str) -> None:
    """Runs the network once and refuses every operator that is not listed.

    network: in eval mode. x: (n, C, H, W), n ≥ 2, so that a batch of one hides no broadcast.
    Raises UnsupportedOpError, and TraceError where the network does not run at all.
    """
    recorder = _Recorder(name)
    try:
        with torch.no_grad(), recorder:
            output = network(x)
    except UnsupportedOpError:
        raise
    except Exception as error:
        raise TraceError(
            f"{name}: does not run on {_brief(x)} pictures: {type(error).__name__}: {error}. "
            "Next: check its input_shape"
        ) from error
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[0] != x.shape[0]:
        raise UnsupportedOpError("an output that is not one (n, classes) tensor", name)
    for module_type, ops in _OPERATORS_OF_MODULE.items():
        modules = sum(isinstance(module, module_type) for module in network.modules())
        if sum(recorder.calls[op] for op in ops) > modules:
            uses = " or ".join(ops)
            raise UnsupportedOpError(f"{uses} called outside a module or more than once", name)


class _Recorder(TorchDispatchMode):
    """Sees every operator below autograd, functional calls and those of submodules alike."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.network = network
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        op = str(func).removeprefix("aten.")
        base = op.split(".")[0]
        rule = _ALLOWED.get(base) or _ALLOWED.get(base.removesuffix("_"))
        if rule is None or not rule(args):
            raise UnsupportedOpError(f"{op}({', '.join(map(_brief, args))})", self.network)
        self.calls[base] += 1
        return func(*args, **(kwargs or {}))


def _brief(arg: Any) -> str:
    """An argument as a word: tensors by their shapes."""
    if isinstance(arg, Tensor):
        return "x".join(map(str, arg.shape)) or "scalar"
    if isinstance(arg, list | tuple):
        return f"[{', '.join(map(_brief, arg))}]"
    return str(arg)


def _always(args: tuple[Any, ...]) -> bool:
    return True


def _same_channels(args: tuple[Any, ...]) -> bool:
    """Numbers, or tensors that agree in batch and channels; other axes may broadcast."""
    tensors = [a for a in args[:2] if isinstance(a, Tensor) and a.ndim > 0]
    return all(t.ndim >= 2 and t.shape[:2] == tensors[0].shape[:2] for t in tensors) and (
        len({t.ndim for t in tensors}) == 1
    )


def _spatial_axes(args: tuple[Any, ...]) -> bool:
    """Only height and width are named, and at least one of them."""
    if len(args) < 2 or args[0].ndim != 4:
        return False
    axes = args[1] if isinstance(args[1], list | tuple) else [args[1]]
    return bool(axes) and {axis % 4 for axis in axes} <= {2, 3}


def _flattens(args: tuple[Any, ...]) -> bool:
    """(n, C, …) to (n, C · …), or the same shape."""
    before = tuple(args[0].shape)
    after = tuple(args[1])
    features = args[0][0].numel()
    return after in {before, (before[0], features), (before[0], -1), (-1, features)}


def _spatial_padding(args: tuple[Any, ...]) -> bool:
    return args[0].ndim == 4 and len(args[1]) <= 4 and (len(args) < 3 or args[2] == 0)


_OPERATORS_OF_MODULE: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("convolution",),
    nn.Linear: ("addmm", "mm"),
    nn.modules.batchnorm._BatchNorm: ("native_batch_norm",),
}

_ALLOWED: dict[str, Rule] = {
    # Weighted layers; which ones is checked on the modules.
    "convolution": _always,
    "addmm": _always,
    "mm": _always,
    "t": _always,
    "native_batch_norm": _always,
    "empty": _always,  # batch norm's unused statistics
    # One value in, one value out.
    "relu": _always,
    "hardtanh": _always,
    "hardswish": _always,
    "hardsigmoid": _always,
    "leaky_relu": _always,
    "silu": _always,
    "sigmoid": _always,
    "gelu": _always,
    "tanh": _always,
    "clone": _always,
    # Two tensors of equal channels.
    "add": _same_channels,
    "sub": _same_channels,
    "mul": _same_channels,
    "div": _same_channels,
    # Within a channel.
    "mean": _spatial_axes,
    "avg_pool2d": _always,
    "max_pool2d_with_indices": _always,
    "_adaptive_avg_pool2d": _always,
    "constant_pad_nd": _spatial_padding,
    # From maps to a vector.
    "view": _flattens,
    "_unsafe_view": _flattens,
    "squeeze": _spatial_axes,
}
