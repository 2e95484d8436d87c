"""The whole way of a measurement for the benchmark: harness, SSH, agent, bench, store.

Input: a work folder, boards, RunSpecs. Output: their records. What is stored stays in the folder:
asked again, it is read and not measured.
"""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import nn

from compiler import networks
from compiler.targets import fast_onnx
from device_agents.contract import MeasurementRecord, RunSpec
from harness.bundle import build_bundle
from harness.errors import StableBoardError
from harness.executor import Executor, Progress, Work
from harness.inventory import Inventory, load_inventory
from harness.ssh import SshTransport
from harness.store import Store
from harness.virtual import rack
from harness.virtual.board import board_paths
from harness.virtual.spec import RackSpec

SEED = 0
COMMAND_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class ModelFile:
    """An ONNX model on disk."""

    name: str
    path: Path
    sha256: str


def model_file(folder: Path, network: str) -> ModelFile:
    """A network of the compiler's with random weights, exported once into ``folder``."""
    built = networks.build(network, SEED)
    return exported(folder, network, built, networks.input_shape(network))


def exported(folder: Path, name: str, network: nn.Module, shape: networks.Shape) -> ModelFile:
    """As ONNX, unless it is there."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        spooled = path.with_suffix(".new")
        spooled.write_bytes(fast_onnx(network, torch.zeros(1, *shape)))
        spooled.replace(path)
    return ModelFile(name, path, hashlib.sha256(path.read_bytes()).hexdigest())


class Bench(ABC):
    """Boards that are up, and what was measured on them. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bundle = build_bundle()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._store = Store(self.folder / "fleetcut.db")
        self._inventory: Inventory = load_inventory(self._up())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store.close()
        self._down()

    @abstractmethod
    def _up(self) -> Path:
        """Starts the boards; their inventory."""

    @abstractmethod
    def _down(self) -> None:
        """Ends them."""

    def run(self, board_id: str, argv: Sequence[str]) -> bytes:
        """Standard output of a command on the board, over SSH. Raises HarnessError."""
        board = self._inventory.board(board_id)
        transport = SshTransport(board)
        try:
            done = transport.run(argv, timeout_s=COMMAND_TIMEOUT_S)
        finally:
            transport.close()
        if done.exit_status != 0:
            raise StableBoardError(
                board_id, f"{argv[1]} failed: {done.last_error()}", "run it by hand"
            )
        return done.stdout

    def knows(self, specs: Sequence[RunSpec]) -> bool:
        """Whether any of these was measured before."""
        return bool(self._store.known({spec.run_id for spec in specs}))

    def measure(
        self, specs: Sequence[RunSpec], models: Sequence[ModelFile]
    ) -> list[MeasurementRecord]:
        """One session on one board, over SSH. A record for each spec, in their order.

        Raises HarnessError where the board fails; a run that fails is a record.
        """
        board = self._inventory.board(specs[0].board_id)
        blobs: Mapping[str, Path] = {model.sha256: model.path for model in models}
        names = {model.sha256: model.name for model in models}
        work = Work(specs[0].campaign_id, (board,), tuple(specs), blobs, names)
        executor = Executor(self._store, self._bundle, SshTransport, observe=_say)
        for outcome in executor.measure(work):
            if outcome.failure is not None:
                raise outcome.failure
        records = self._store.records(spec.run_id for spec in specs)
        return [records[spec.run_id] for spec in specs]


class Boards(Bench):
    """A running rack of virtual boards."""

    def __init__(self, folder: Path, spec: RackSpec) -> None:
        super().__init__(folder)
        self._spec = spec

    def _up(self) -> Path:
        return rack.up(self.rack, self._spec).inventory

    def _down(self) -> None:
        rack.down(self.rack)

    @property
    def rack(self) -> Path:
        """The rack's folder, resolved."""
        return (self.folder / "rack").resolve()

    def clock_page(self, board_id: str) -> Path:
        """The page in which physics tells a board's clock."""
        return board_paths(self.rack, board_id).clock_page

    def root(self, board_id: str) -> Path:
        """The board's tree of sysfs and procfs."""
        return board_paths(self.rack, board_id).root


def _say(progress: Progress) -> None:
    if progress.note is not None:
        print(f"{progress.board_id}: {progress.note}", file=sys.stderr, flush=True)
