"""A trained switchable network as the one file that a board switches within.

Input: a SwitchableNetwork, its Policy and an example (1, C, H, W). Output: BuiltModel around
network.switchable, a zip archive: weights once, a bank for each sub-network, a graph without
weights for each, the policy, golden answers. Read by device_agents/runtimes/switchable_file.py.

Batch norm is folded, but not into the weights: a folded convolution is the shared one times one
factor for each output channel, plus a bias. Factors and biases are the bank.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.switchable.network import SwitchableNetwork
from compiler.targets.built import (
    ATOL_FP32,
    BuiltFile,
    BuiltModel,
    Floats,
    parity,
    raw_bytes,
    reference_output,
    require_fp32,
    versions,
)
from compiler.targets.onnx import fast_onnx, run_onnx
from device_agents.contract.artifacts import Target
from device_agents.contract.switching import Policy

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = 1
KIND = "switchable"
_TOLERANCE = 1e-5
"""Of a factor's product, relative to the weight's largest value: folding rounds elsewhere."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Export:
    """An ONNX graph apart from its weights: float32 tensors of one axis or more, by name."""

    graph: bytes
    weights: dict[str, Floats]


def build_switchable(
    network: SwitchableNetwork, policy: Policy, example: Tensor, out: Path, target: Target
) -> BuiltModel:
    """Writes out/network.switchable; every sub-network is put together again and checked.

    The golden output is the widest's. Raises TargetError when the exporter fails or a sub-network
    deviates by more than ATOL_FP32, ValueError where policy and network do not fit.
    """
    require_fp32(target)
    if len(policy.laws) != len(network.widths):
        raise ValueError(f"{len(policy.laws)} laws for {len(network.widths)} sub-networks")
    subs = [network.sub_network(position) for position in range(len(network.widths))]
    shared = _apart(fast_onnx(_without_batch_norm(network.sub_network(0)), example)).weights
    exports = [_apart(fast_onnx(sub, example)) for sub in subs]
    expected = [reference_output(sub, example) for sub in subs]
    archive = _Archive(shared)
    errors = []
    for export, answer in zip(exports, expected, strict=True):
        stored = archive.add(export)
        found = run_onnx(_together(export.graph, stored), example.numpy())
        errors.append(parity(target, answer, found))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "network.switchable"
    path.write_bytes(archive.to_bytes(policy, example.numpy(), expected))
    return BuiltModel(
        kind=KIND,
        target=target,
        model_file=path.name,
        files=(BuiltFile(path.name, path),),
        input_layout="NCHW",
        input_shape=tuple(example.shape),
        output_shape=expected[0].shape,
        golden_input=raw_bytes(example.numpy()),
        golden_output=raw_bytes(expected[0]),
        atol=ATOL_FP32,
        max_abs_err=max(errors),
        tool_versions=versions("torch", "onnx", "onnxruntime"),
    )


class _Archive:
    """The file as it grows by one sub-network after another."""

    def __init__(self, shared: dict[str, Floats]) -> None:
        self._shared = {name: array for name, array in shared.items() if array.ndim > 1}
        self._names = list(shared)
        self._whole = {name: list(array.shape) for name, array in shared.items()}
        self._bank: list[Floats] = []
        self._bank_size = 0
        self._entries: list[dict[str, Any]] = []
        self._graphs: list[bytes] = []

    def add(self, export: Export) -> dict[str, Floats]:
        """Its weights, as a board computes them from what is stored."""
        tensors: list[dict[str, Any]] = []
        stored: dict[str, Floats] = {}
        for name in self._names:
            wanted = export.weights[name]
            shared = self._shared.get(name)
            factors = None if shared is None else _factors(shared, wanted)
            entry: dict[str, Any] = {"shape": list(wanted.shape), "own": None, "factors": None}
            if shared is None or factors is None:
                entry["own"], stored[name] = self._keep(wanted), wanted
            else:
                rows, columns = wanted.shape[:2]
                stored[name] = _scaled(shared[:rows, :columns], factors)
                if not (factors == 1).all():
                    entry["factors"] = self._keep(factors)
            tensors.append(entry)
        graph = f"graph-{len(self._entries)}.onnx"
        self._entries.append({"graph": graph, "tensors": tensors})
        self._graphs.append(export.graph)
        return stored

    def to_bytes(self, policy: Policy, example: Floats, golden: Sequence[Floats]) -> bytes:
        offsets, at = {}, 0
        for name, array in self._shared.items():
            offsets[name] = at
            at += array.size
        document = {
            "version": VERSION,
            "input": {"name": "input", "shape": list(example.shape)},
            "output": {"name": "output", "shape": list(golden[0].shape)},
            "tensors": [
                {"name": name, "shape": self._whole[name], "at": offsets.get(name)}
                for name in self._names
            ],
            "sub_networks": self._entries,
            "policy": policy.to_plain(),
            "atol": ATOL_FP32,
        }
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return _zipped(
            {
                "switchable.json": text.encode("utf-8"),
                "weights.f32": b"".join(raw_bytes(array) for array in self._shared.values()),
                "banks.f32": b"".join(raw_bytes(array) for array in self._bank),
                "golden_input.f32": raw_bytes(example),
                "golden_outputs.f32": b"".join(raw_bytes(answer) for answer in golden),
                **{
                    entry["graph"]: graph
                    for entry, graph in zip(self._entries, self._graphs, strict=True)
                },
            }
        )

    def _keep(self, array: Floats) -> int:
        at = self._bank_size
        self._bank.append(array)
        self._bank_size += array.size
        return at


def _factors(shared: Floats, wanted: Floats) -> Floats | None:
    """What turns the first rows and columns into the weight, by output channel; None if nothing."""
    if any(n > most for n, most in zip(wanted.shape, shared.shape, strict=True)):
        return None
    part = shared[: wanted.shape[0], : wanted.shape[1]]
    if part.shape != wanted.shape:
        return None
    if np.array_equal(part, wanted):
        return np.ones(len(part), dtype=np.float32)
    rows, goal = part.reshape(len(part), -1).astype(np.float64), wanted.reshape(len(part), -1)
    power = (rows * rows).sum(axis=1)
    factors = np.divide((rows * goal).sum(axis=1), power, out=np.zeros_like(power), where=power > 0)
    found = factors.astype(np.float32)
    error = np.abs(_scaled(part, found) - wanted).max()
    return found if error <= _TOLERANCE * np.abs(wanted).max() else None


def _scaled(part: Floats, factors: Floats) -> Floats:
    scaled: Floats = part * factors.reshape(-1, *[1] * (part.ndim - 1))
    return scaled


def _without_batch_norm(network: nn.Module) -> nn.Module:
    """The same with batch norm that changes nothing: its export holds the weights as they are."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()
                if module.running_var is not None:
                    module.running_var.fill_(1 - module.eps)
                if module.affine:
                    module.weight.fill_(1)
                    module.bias.fill_(0)
    return network


def _apart(model: bytes) -> Export:
    import onnx

    proto = onnx.load_model_from_string(model)
    weights = {}
    for tensor in list(proto.graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims:
            weights[tensor.name] = onnx.numpy_helper.to_array(tensor)
            proto.graph.initializer.remove(tensor)
    return Export(proto.SerializeToString(deterministic=True), weights)


def _together(graph: bytes, weights: dict[str, Floats]) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(graph)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model: bytes = proto.SerializeToString()
    return model


def _zipped(members: dict[str, bytes]) -> bytes:
    """The same members give the same bytes. Weights are stored as they are: they do not shrink."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            small = not name.endswith(".f32")
            kind = zipfile.ZIP_DEFLATED if small else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, compress_type=kind)
    return buffer.getvalue()
