"""The whole weights of a switchable network, on disk, and how slices of them get into the buffer.

Input: the file, and the places that weights go to. Output: SharedWeights, Fill.
Mapped pages of large weights are given back after each use: of these, memory holds what runs. The
kernel keeps the file in its cache as long as nobody needs that memory.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from device_agents.runtimes.switchable_file import SwitchableFile, Tensor, size_of, weights_at
from device_agents.runtimes.switchable_forms import Place, laid_out

_GIVEN_BACK = 1 << 18
"""Float32 values after which mapped pages are given back: 1 MB."""

_KEPT_BYTES = 10 << 20
"""Weights up to this size stay mapped once they were read: mapping them anew is a quarter of a
switch's time, and loading took more memory than they do."""

Key = Tuple[int, str, int]
"""(tensor's position, layout, block)."""


@dataclass(frozen=True)
class Fill:
    """target[...] = source × factor, views; factor None for 1. tail: what is then zero."""

    target: Any
    source: Any
    factor: Optional[Any]
    tail: Optional[Any]

    def write(self) -> None:
        if self.factor is None:
            np.copyto(self.target, self.source)
        else:
            np.multiply(self.source, self.factor, out=self.target)
        if self.tail is not None:
            self.tail[...] = 0


class SharedWeights:
    """Each weight at its widest in every layout that the places ask for.

    Plain ones are mapped from the file itself; others are arranged once, in a file in scratch that
    has no name any more and is gone with its process.
    """

    def __init__(
        self, path: Path, file: SwitchableFile, places: Iterable[Place], scratch: Path
    ) -> None:
        self._maps: List[mmap.mmap] = []
        self._by_key: Dict[Key, Any] = {}
        tensors = {
            number: tensor
            for sub in file.sub_networks
            for number, tensor in enumerate(sub.tensors)
            if tensor.shared is not None
        }
        with path.open("rb") as stream:
            plain = self._map(stream.fileno(), weights_at(path))
        wanted = sorted({(place.tensor, place.layout, place.block) for place in places})
        arranged: List[Tuple[Key, int, Tuple[int, ...]]] = []
        with tempfile.TemporaryFile(dir=str(scratch)) as beside:
            at = 0
            for key in wanted:
                tensor = tensors.get(key[0])
                if tensor is None or tensor.shared is None:
                    continue
                whole = plain[tensor.shared : tensor.shared + size_of(tensor.whole)]
                array = laid_out(key[1], key[2], whole.reshape(tensor.whole))
                if key[1] == "plain":
                    self._by_key[key] = array
                    continue
                beside.write(array.tobytes())
                arranged.append((key, at, array.shape))
                at += array.size
                self._give_back()
            beside.flush()
            if arranged:
                blocks = self._map(beside.fileno(), 0)
                for key, start, shape in arranged:
                    self._by_key[key] = blocks[start : start + size_of(shape)].reshape(shape)
        self._give_back()
        self._stays_mapped = path.stat().st_size <= _KEPT_BYTES

    def at(self, key: Key) -> Any:
        return self._by_key[key]

    def write(self, fills: Sequence[Fill]) -> None:
        if self._stays_mapped:
            for fill in fills:
                fill.write()
            return
        done = 0
        for fill in fills:
            fill.write()
            done += fill.target.size
            if done > _GIVEN_BACK:
                self._give_back()
                done = 0
        self._give_back()

    def close(self) -> None:
        """What is mapped goes once no view of it is left."""
        self._by_key = {}
        self._maps = []

    def _map(self, fd: int, offset: int) -> Any:
        mapped = mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_PRIVATE, mmap.PROT_READ)
        self._maps.append(mapped)
        # The offset is that of a zip's member: no multiple of four, which x86 and ARMv8 read too.
        count = (len(mapped) - offset) // 4
        return np.frombuffer(mapped, dtype="<f4", count=count, offset=offset)

    def _give_back(self) -> None:
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)


def fill_of(view: Any, place: Place, tensor: Tensor, banks: Any, weights: SharedWeights) -> Fill:
    """How one weight of one sub-network gets into its place. view: flat, of the buffer."""
    if tensor.own is not None:
        own = banks[tensor.own : tensor.own + size_of(tensor.shape)].reshape(tensor.shape)
        return Fill(view, laid_out(place.layout, place.block, own).reshape(-1), None, None)
    whole = weights.at((place.tensor, place.layout, place.block))
    rows = -(-place.shape[0] // place.block)
    source = whole[:rows, : place.size // rows // whole[0, 0].size]
    target = view.reshape(source.shape)
    return Fill(target, source, _factor(place, tensor, banks), _tail(target, place, tensor))


def _factor(place: Place, tensor: Tensor, banks: Any) -> Optional[Any]:
    """One for each value of a cell, so that a row is multiplied in long loops."""
    if tensor.factors is None:
        return None
    factors = banks[tensor.factors : tensor.factors + tensor.shape[0]]
    if place.layout == "plain":
        return factors.reshape(-1, 1)
    by_row = laid_out("rows", place.block, factors)
    return np.tile(by_row, (1, 1, place.block)) if place.layout == "both" else by_row


def _tail(target: Any, place: Place, tensor: Tensor) -> Optional[Any]:
    """Input channels that pad the last block: the wider network has weights there."""
    over = tensor.shape[1] % place.block if place.layout == "both" else 0
    if not over:
        return None
    cells = target.reshape(target.shape[0], -1, size_of(tensor.shape[2:]), place.block, place.block)
    return cells[:, -1, :, over:, :]
