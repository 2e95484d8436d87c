"""Where a killed search goes on: every accuracy it paid for, and its state after a generation.

Input: a file's path and what identifies the search. Output: an accuracy function that asks nothing
twice, and the last Snapshot. JSON, written whole or not at all; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.pruning.judge import Accuracy, FleetLatency, SearchSettings
from compiler.pruning.objectives import Objective
from compiler.pruning.widths import PruneSpace, Widths
from compiler.sampling import decode
from compiler.work import write_text

_FORMAT = 1
_PROBES = 6


@dataclass(frozen=True)
class SearchCheckpoint:
    """Where a search leaves its state. The caller removes the file once its stage is done.

    every: generations between two states, at least 1; accuracies, which cost, are written one by
    one. accuracy_of: names what the accuracies depend on (weights, pictures), for no one else can
    know. note: told in one line why a file that was found is not used; the search then starts anew
    and overwrites it, as a training does.
    """

    path: Path
    every: int = 1
    accuracy_of: str = ""
    note: Callable[[str], None] = lambda _text: None


@dataclass(frozen=True)
class Snapshot:
    """A search between two generations, plain data. judge, optimiser: what these say of themselves.

    random: the state of numpy's bit generator. history: one document a generation.
    """

    judge: Mapping[str, Any]
    optimiser: Mapping[str, Any]
    random: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]


def identity(
    space: PruneSpace,
    fleet_ms: FleetLatency,
    settings: SearchSettings,
    objective: Objective,
    seed: int,
    accuracy_of: str,
    begins: Any = None,
) -> str:
    """Hash of all that a search depends on: two searches of one identity are the same search.

    Latency is a function, so what it says of a few shapes stands for it, to nine digits. begins:
    what else decides where the search begins, plain data.
    """
    kept = np.random.default_rng(0).uniform(0, 1, (_PROBES, len(space.groups)))
    kept[0], kept[1] = 1, 0
    ms, spread = fleet_ms(decode(space, kept))
    answers = [ms.ravel(), spread.ravel(), objective.value(ms)]
    document = [
        _FORMAT,
        space.to_json(),
        asdict(settings),
        [objective.name, objective.slo_ms],
        [[f"{value:.9g}" for value in values] for values in answers],
        seed,
        accuracy_of,
        begins,
    ]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode("utf-8")).hexdigest()


class SearchFile:
    """One search's file, open for its whole run.

    paid: accuracies by shape, in the order they were asked, those of a killed run included.
    snapshot: None where the search begins at the beginning.
    """

    def __init__(self, checkpoint: SearchCheckpoint, identity: str) -> None:
        self._checkpoint = checkpoint
        self._identity = identity
        self.paid: dict[Widths, float] = {}
        self.snapshot: Snapshot | None = None
        self._read()

    def remembering(self, accuracy: Accuracy) -> Accuracy:
        """The same function; what a killed run asked already is answered from the file."""

        def remembered(widths: Widths) -> float:
            if widths not in self.paid:
                self.paid[widths] = float(accuracy(widths))
                self._write()
            return self.paid[widths]

        return remembered

    def save(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._write()

    def due(self, generation: int, last: bool) -> bool:
        return last or generation % self._checkpoint.every == 0

    def _write(self) -> None:
        document = {
            "identity": self._identity,
            "accuracies": [[list(widths), value] for widths, value in self.paid.items()],
            "snapshot": None if self.snapshot is None else asdict(self.snapshot),
        }
        write_text(self._checkpoint.path, json.dumps(document) + "\n")

    def _read(self) -> None:
        path, note = self._checkpoint.path, self._checkpoint.note
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["identity"] != self._identity:
                note(
                    f"{path.name} is of another space, seed, other settings, latencies or "
                    "accuracies: the search starts anew"
                )
                return
            paid = {tuple(map(int, w)): float(value) for w, value in document["accuracies"]}
            state = document["snapshot"]
            snapshot = None if state is None else Snapshot(**state)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            note(f"{path.name} is damaged: the search starts anew")
            return
        self.paid, self.snapshot = paid, snapshot
