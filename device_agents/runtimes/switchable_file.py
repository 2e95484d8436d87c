"""The file of a switchable network: one set of weights, what differs between its sub-networks.

Input: a zip archive as compiler/switchable/artifact.py writes it. Output: SwitchableFile.
Raises RunFailedError ("model") for any other. Offsets and sizes count float32 values.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, TypeVar

import numpy as np

from device_agents.contract.switching import Policy
from device_agents.errors import RunFailedError
from device_agents.runtimes import TensorSpec

VERSION = 1
WEIGHTS = "weights.f32"

Shape = Tuple[int, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Tensor:
    """One weight of one sub-network.

    shape: here. shared: offset of the whole tensor in weights, of which this is the first part of
    its first two axes; None where ``own``, an offset in banks, says where its values lie.
    factors: offset in banks of what each output channel is multiplied by: batch norm, folded.
    """

    name: str
    shape: Shape
    whole: Shape
    shared: Optional[int]
    own: Optional[int]
    factors: Optional[int]


@dataclass(frozen=True)
class SubNetwork:
    """graph: ONNX without weights, which it reads by name. golden: its answer to golden_input."""

    graph: bytes
    tensors: Tuple[Tensor, ...]
    golden: Any


@dataclass(frozen=True)
class SwitchableFile:
    """banks: a float32 array of one axis. The widest sub-network is the first."""

    input: TensorSpec
    output: TensorSpec
    sub_networks: Tuple[SubNetwork, ...]
    policy: Policy
    banks: Any
    golden_input: Any
    atol: float


def read_switchable(path: Path) -> SwitchableFile:
    """All but the weights, which are best read once there is room for them."""
    return _from_archive(path, _read)


def weights_at(path: Path) -> int:
    """The byte of the file at which its weights begin: they are stored as they are."""
    return _from_archive(path, _weights_at)


def _from_archive(path: Path, read: Callable[[zipfile.ZipFile], T]) -> T:
    try:
        with zipfile.ZipFile(str(path)) as archive:
            return read(archive)
    except (
        OSError,
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
    ) as error:
        raise RunFailedError(
            "model",
            f"{path.name[:12]} is no switchable network ({type(error).__name__}: {error})",
            "fleetcut compile --mode switchable",
        ) from None


def _read(archive: zipfile.ZipFile) -> SwitchableFile:
    document = json.loads(archive.read("switchable.json"))
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']}, this agent reads {VERSION}")
    banks, n_weights = _floats(archive, "banks.f32"), archive.getinfo(WEIGHTS).file_size // 4
    output = _spec(document["output"])
    golden = _floats(archive, "golden_outputs.f32").reshape(-1, output.count())
    policy = Policy.from_plain(document["policy"])
    sub_networks = tuple(
        SubNetwork(
            archive.read(entry["graph"]),
            tuple(
                _tensor(shared, entry["tensors"][position], n_weights, banks.size)
                for position, shared in enumerate(document["tensors"])
            ),
            golden[number].reshape(output.shape),
        )
        for number, entry in enumerate(document["sub_networks"])
    )
    if len(sub_networks) != len(policy.laws):
        raise ValueError(f"{len(sub_networks)} sub-networks, {len(policy.laws)} laws")
    given = _spec(document["input"])
    example = _floats(archive, "golden_input.f32").reshape(given.shape)
    atol = float(document["atol"])
    return SwitchableFile(given, output, sub_networks, policy, banks, example, atol)


def _weights_at(archive: zipfile.ZipFile) -> int:
    """Behind the member's own header: 30 bytes, its name and what else it says (APPNOTE 4.3.7)."""
    entry = archive.getinfo(WEIGHTS)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{WEIGHTS} is compressed")
    with open(str(archive.filename), "rb") as stream:
        stream.seek(entry.header_offset)
        header = stream.read(30)
    return entry.header_offset + 30 + sum(header[26:30:2]) + 256 * sum(header[27:30:2])


def _tensor(shared: Dict[str, Any], own: Dict[str, Any], weights: int, banks: int) -> Tensor:
    tensor = Tensor(
        str(shared["name"]),
        _shape(own["shape"]),
        _shape(shared["shape"]),
        shared["at"] if own["own"] is None else None,
        own["own"],
        own["factors"],
    )
    fits = len(tensor.shape) == len(tensor.whole) and tensor.shape[2:] == tensor.whole[2:]
    if not fits or any(n > most for n, most in zip(tensor.shape, tensor.whole)):
        raise ValueError(f"{tensor.name} of shape {tensor.shape} is no part of {tensor.whole}")
    _check(tensor.shared, size_of(tensor.whole), weights)
    _check(tensor.own, size_of(tensor.shape), banks)
    _check(tensor.factors, tensor.shape[0], banks)
    if tensor.shared is None and tensor.own is None:
        raise ValueError(f"{tensor.name} has no values")
    return tensor


def _check(at: Optional[int], size: int, most: int) -> None:
    if at is not None and not 0 <= at <= at + size <= most:
        raise ValueError(f"{size} values from {at} on lie outside the {most} there are")


def _shape(sizes: Sequence[Any]) -> Shape:
    shape = tuple(int(size) for size in sizes)
    if not shape or min(shape) < 1:
        raise ValueError(f"a weight of shape {shape}")
    return shape


def size_of(shape: Shape) -> int:
    """Values in it."""
    return int(np.prod(shape, dtype=np.int64))


def _spec(document: Dict[str, Any]) -> TensorSpec:
    return TensorSpec(str(document["name"]), "float32", _shape(document["shape"]))


def _floats(archive: zipfile.ZipFile, name: str) -> Any:
    return np.frombuffer(archive.read(name), dtype="<f4").astype(np.float32, copy=False)
