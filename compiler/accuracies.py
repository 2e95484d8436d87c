"""Proxy accuracies of one network's shapes, kept on disk: no search pays for one twice.

Input: an accuracy function, and the folder that belongs to one network and recipe. Output: the
same function with a memory. Searches differ in their latencies; accuracies stay what they are.
"""

from __future__ import annotations

from pathlib import Path

from compiler.pruning.judge import Accuracy
from compiler.pruning.widths import Widths
from compiler.work import read_json, write_json


class KnownAccuracies:
    """accuracy: widths → 0..1. of: names what it depends on, e.g. the hash of the weights."""

    def __init__(self, accuracy: Accuracy, folder: Path, of: str) -> None:
        self.of = of
        self._accuracy = accuracy
        self._path = folder / f"accuracies-{of[:16]}.json"
        rows = read_json(self._path) if self._path.exists() else []
        self.known: dict[Widths, float] = {tuple(widths): value for widths, value in rows}

    def __call__(self, widths: Widths) -> float:
        if widths not in self.known:
            self.known[widths] = float(self._accuracy(widths))
            write_json(self._path, [[list(w), value] for w, value in self.known.items()])
        return self.known[widths]
