"""A trained switchable network as one native program that switches by itself.

Input: a SwitchableNetwork, its Policy, an example (1, C, H, W), a target. Output: BuiltModel around
``model``, an ELF with the weights of the switchable file once, a bank for each sub-network, and a
plan for each; what it does on a board is in compiler/targets/xnnpack_switching.c.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.switchable.artifact import build_switchable
from compiler.switchable.network import SwitchableNetwork
from compiler.targets.built import (
    ATOL_FP32,
    BuiltModel,
    Floats,
    parity,
    reference_output,
    require_fp32,
)
from compiler.targets.executable import (
    Content,
    link,
    pieces_of,
    run_executable,
    self_tested,
    ship,
)
from compiler.targets.native_pieces import Pieces
from compiler.targets.quiet import contained
from compiler.targets.toolchains import XNNPACK
from compiler.targets.xnnpack_lowering import Emission
from compiler.targets.xnnpack_plan import (
    BLOCK,
    PlanWriter,
    SubNetwork,
    Weights,
    aligned,
    switchable,
)
from device_agents.contract import Target
from device_agents.contract.switching import Policy

if TYPE_CHECKING:
    from torch import Tensor


def build_switchable_executable(
    network: SwitchableNetwork, policy: Policy, example: Tensor, out: Path, target: Target
) -> BuiltModel:
    """Writes out/model for target.machine. Every sub-network is tried on this machine.

    The golden output is the widest's. Raises TargetError for a missing tool, an operator that
    XNNPACK lacks, boards whose C library is too old, or a sub-network that deviates by more than
    ATOL_FP32; ValueError where policy and network do not fit.
    """
    require_fp32(target)
    here, there = pieces_of(target, XNNPACK)
    with tempfile.TemporaryDirectory() as work:
        shared = build_switchable(network, policy, example, Path(work), target)
        archive = shared.files[0].path.read_bytes()
    with contained(target, "lowering to XNNPACK"):
        plan = plan_of_archive(archive)
    expected = reference_output(network.sub_network(0), example)
    content = Content(plan, (), example.numpy(), expected, ATOL_FP32)
    return ship(target, there, content, _tried(target, here, content), out)


def plan_of_archive(archive: bytes) -> bytes:
    """What xnnpack_network.c walks, of a file as ``build_switchable`` writes it.

    Raises UnsupportedError for an operator that XNNPACK lacks.
    """
    import onnx

    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        document = json.loads(members.read("switchable.json"))
        floats = {
            name: np.frombuffer(members.read(f"{name}.f32"), "<f4")
            for name in ("weights", "banks", "golden_outputs")
        }
        graphs = [
            onnx.load_model_from_string(members.read(entry["graph"])).graph
            for entry in document["sub_networks"]
        ]
    weights = Weights()
    goldens = [weights.add(golden) for golden in np.split(floats["golden_outputs"], len(graphs))]
    blocks: dict[str, int] = {}
    networks = []
    widest = _channels(document["sub_networks"][0])
    for k, (entry, graph) in enumerate(zip(document["sub_networks"], graphs, strict=True)):
        tensors = _tensors(document["tensors"], entry["tensors"], floats)
        emission = SharedEmission(_values(graph, tensors), PlanWriter(weights))
        emission.tensors, emission.blocks = tensors, blocks
        emission.read(graph)
        law = document["policy"]["laws"][k]
        ratio = 1 - _channels(entry) / widest
        networks.append(SubNetwork(emission.plan, ratio, law["a_ms"], law["b_ms_khz"], goldens[k]))
    ends = (document["input"]["name"], document["output"]["name"])
    policy = document["policy"]
    return switchable(networks, policy["target_ms"], policy["hysteresis"], ends)


@dataclass(frozen=True)
class _Tensor:
    """One weight of one sub-network: the first part of ``whole``, or all of it where it is its own.

    factors: of each output channel, None for 1.
    """

    shape: tuple[int, ...]
    whole: Floats
    own: bool
    factors: Floats | None

    def values(self) -> Floats:
        if self.whole.ndim < 2:
            return self.whole
        part = self.whole[: self.shape[0], : self.shape[1]]
        if self.factors is None:
            return part
        scaled: Floats = part * self.factors.reshape(-1, *[1] * (part.ndim - 1))
        return scaled


@dataclass
class SharedEmission(Emission):
    """Weights are written once, in blocks whose first part is each sub-network's.

    blocks: where those of each shared weight lie.
    """

    tensors: Mapping[str, _Tensor] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)

    def weights_of(self, name: str, kernel: Floats) -> dict[str, int]:
        tensor = self.tensors[name]
        whole = tensor.whole.reshape(len(tensor.whole), -1, *kernel.shape[2:])
        if tensor.own:
            at = self.plan.weights.add(_in_blocks(whole))
        elif name in self.blocks:
            at = self.blocks[name]
        else:
            at = self.blocks[name] = self.plan.weights.add(_in_blocks(whole))
        fields = {"weights": at, "shared": whole.shape[1]}
        if tensor.factors is not None:
            room = aligned(len(tensor.factors), BLOCK)
            padded = np.ones(room, np.float32)
            padded[: len(tensor.factors)] = tensor.factors
            fields["factors"] = self.plan.weights.add(padded)
        return fields


def _in_blocks(kernel: Floats) -> Floats:
    """(outputs, inputs, height, width) as (outputs / BLOCK, taps, inputs, BLOCK)."""
    outputs, inputs = kernel.shape[:2]
    room = aligned(outputs, BLOCK)
    padded = np.zeros((room, *kernel.shape[1:]), np.float32)
    padded[:outputs] = kernel
    blocks = padded.reshape(room // BLOCK, BLOCK, inputs, -1).transpose(0, 3, 2, 1)
    return np.ascontiguousarray(blocks)


def _tensors(
    shared: list[dict[str, Any]], own: list[dict[str, Any]], floats: Mapping[str, Floats]
) -> dict[str, _Tensor]:
    found = {}
    for whole, part in zip(shared, own, strict=True):
        shape, is_own = tuple(part["shape"]), part["own"] is not None
        source, at = ("banks", part["own"]) if is_own else ("weights", whole["at"])
        full = shape if is_own else tuple(whole["shape"])
        values = floats[source][at : at + int(np.prod(full))].reshape(full)
        factors = part["factors"]
        scale = None if factors is None else floats["banks"][factors : factors + shape[0]]
        found[whole["name"]] = _Tensor(shape, values, is_own, scale)
    return found


def _values(graph: Any, tensors: Mapping[str, _Tensor]) -> dict[str, Floats]:
    import onnx

    kept = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    return {**kept, **{name: tensor.values() for name, tensor in tensors.items()}}


def _channels(entry: Mapping[str, Any]) -> int:
    """Output channels of all its weights."""
    return sum(part["shape"][0] for part in entry["tensors"] if len(part["shape"]) > 1)


def _tried(target: Target, here: Pieces, content: Content) -> float:
    """The largest deviation of any sub-network from PyTorch, as a program of this machine."""
    with tempfile.TemporaryDirectory() as work:
        program = Path(work) / "model"
        link(target, here, content, program)
        found = run_executable(target, program, content.golden_input)
        parity(target, content.golden_output, found.reshape(content.golden_output.shape))
        return self_tested(target, program)
