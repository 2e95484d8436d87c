"""A sub-network's graph as this board's onnxruntime runs it fastest, its weights as inputs.

Input: a graph that names its weights. Output: Form: the bytes of a model whose weights are inputs,
and in which layout each of them is to be handed in.

onnxruntime computes convolutions in blocks of channels (NCHWc) where the CPU has kernels for that,
2 to 2.6 times as fast on x86-64, but arranges only weights for it that it takes for constant. So it
is shown constants once, as many as there are weights and each full of its own number, and saves
the graph that it makes of them; the numbers tell which weight each tensor of it is. In that graph
the tensors become inputs. What a block looks like is MLAS's (onnxruntime/core/mlas/lib/reorder.cpp,
MlasReorderFilterOIHWBiBo and …OIHWBo); the golden answers prove every guess.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Optional, Tuple

import numpy as np

from device_agents.runtimes.onnx_wire import (
    FLOAT,
    Initializer,
    initializers,
    nodes,
    with_initializers,
    with_inputs,
    without_initializers,
)
from device_agents.runtimes.switchable_file import Shape, SubNetwork

BLOCKS = (16, 8)
"""Channels in a block: 16 with AVX-512 and NEON, 8 with less."""

_BLOCKED = "com.microsoft.nchwc"


@dataclass(frozen=True)
class Place:
    """One input that is a weight. tensor: which, by position. shape: padded to whole blocks.

    layout: "plain"; "rows": blocks of output channels (OIHWBo); "both" (OIHWBiBo). block: 1 where
    plain.
    """

    name: str
    tensor: int
    shape: Shape
    layout: str = "plain"
    block: int = 1

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Form:
    """optimised: the graph is to be run as it stands."""

    model: bytes
    places: Tuple[Place, ...]
    optimised: bool


def plain_form(sub: SubNetwork) -> Form:
    """The graph as it was compiled: every onnxruntime on every CPU runs it."""
    tensors = [(tensor.name, tensor.shape) for tensor in sub.tensors]
    places = tuple(Place(name, number, shape) for number, (name, shape) in enumerate(tensors))
    return Form(with_inputs(sub.graph, tensors), places, optimised=False)


def optimised_form(
    onnxruntime: Any, options: Any, sub: SubNetwork, buffer: Any, scratch: Path, block: int
) -> Optional[Form]:
    """The graph that onnxruntime makes of it here; None where that holds anything unforeseen.

    options: SessionOptions of the board's own. buffer: float32, room for all weights, spoilt.
    scratch: an empty folder.
    """
    values, at = [], 0
    for number, tensor in enumerate(sub.tensors):
        size = int(np.prod(tensor.shape, dtype=np.int64))
        view = buffer[at : at + size]
        view[:] = number + 1
        values.append(onnxruntime.OrtValue.ortvalue_from_numpy(view.reshape(tensor.shape)))
        at += size
    saved, beside = scratch / "optimised.onnx", scratch / "optimised.bin"
    options.optimized_model_filepath = str(saved)
    prefix = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(f"{prefix}file_name", beside.name)
    options.add_session_config_entry(f"{prefix}min_size_in_bytes", "0")
    try:
        options.add_external_initializers([t.name for t in sub.tensors], values)
        model = with_initializers(sub.graph, [(t.name, t.shape) for t in sub.tensors])
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return _taken(saved.read_bytes(), beside, sub, block)
    except Exception:  # onnxruntime's errors share no base class; the plain form tells the fault
        return None


def _taken(model: bytes, beside: Path, sub: SubNetwork, block: int) -> Optional[Form]:
    convolutions = [n for n in nodes(model) if n.domain == _BLOCKED and n.op_type == "Conv"]
    # The weight and the bias; what may follow is another convolution's answer, to be added.
    blocked = {name for node in convolutions for name in node.inputs[1:3]}
    places: List[Place] = []
    for found in initializers(model):
        if found.data_type != FLOAT or not found.dims:
            continue
        number = _first_value(found, beside)
        if number != int(number) or not 1 <= number <= len(sub.tensors):
            return None
        place = _place(found, int(number) - 1, sub, found.name in blocked, block)
        if place is None:
            return None
        places.append(place)
    names = [place.name for place in places]
    bare = without_initializers(model, names)
    return Form(with_inputs(bare, [(p.name, p.shape) for p in places]), tuple(places), True)


def _first_value(found: Initializer, beside: Path) -> float:
    """It is padded at its end, so that the first value is the number."""
    if found.raw is not None:
        return float(struct.unpack("<f", found.raw[:4])[0])
    with beside.open("rb") as stream:
        stream.seek(found.offset)
        return float(struct.unpack("<f", stream.read(4))[0])


def _place(
    found: Initializer, number: int, sub: SubNetwork, blocked: bool, block: int
) -> Optional[Place]:
    shape = sub.tensors[number].shape
    if not blocked:
        return Place(found.name, number, shape) if found.dims == shape else None
    padded = -(-shape[0] // block) * block
    if len(shape) == 1:
        fits = found.dims == (padded,)
        return Place(found.name, number, found.dims, "rows", block) if fits else None
    if len(shape) != 4 or found.dims[0] != padded or found.dims[2:] != shape[2:]:
        return None
    layout = "both" if shape[1] >= block else "rows"
    columns = -(-shape[1] // block) * block if layout == "both" else shape[1]
    fits = found.dims[1] == columns
    return Place(found.name, number, found.dims, layout, block) if fits else None


LINE = 16
"""Float32 values of a cache line. NCHWc kernels read whole vectors: from 16-byte addresses, which
numpy gives, mobilenet_v2 took 2.6 times as long."""


def aligned(size: int) -> int:
    """A size in float32 values, so that what follows begins on a cache line."""
    return -(-size // LINE) * LINE


def laid_out(layout: str, block: int, values: Any) -> Any:
    """A weight in a layout: (rows, values) where plain, (rows, cells, values in a cell) in blocks.

    Whatever is narrower is the first rows, and of each row the first part. A plain row is an output
    channel; in blocks it is as many as a block has, a cell one position of the kernel.
    """
    outputs = values.shape[0]
    flat = values.reshape(outputs, values.shape[1] if values.ndim > 1 else 1, -1)
    if layout == "plain":
        return flat.reshape(outputs, -1)
    inputs, across = flat.shape[1], block if layout == "both" else 1
    rows, columns = -(-outputs // block), -(-inputs // across)
    padded = np.zeros((rows * block, columns * across, flat.shape[2]), dtype=np.float32)
    padded[:outputs, :inputs] = flat
    cells = padded.reshape(rows, block, columns, across, -1).transpose(0, 2, 4, 3, 1)
    return np.ascontiguousarray(cells).reshape(rows, -1, across * block)
