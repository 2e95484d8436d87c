"""The whole way of a measurement for the benchmark: harness, SSH, agent, bench, store.

Input: a work folder, boards, RunSpecs. Output: their records. What is stored stays in the folder:
asked again, it is read and not measured.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

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
    path = folder / f"{network}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        example = torch.zeros(1, *networks.input_shape(network))
        spooled = path.with_suffix(".new")
        spooled.write_bytes(fast_onnx(networks.build(network, SEED), example))
        spooled.replace(path)
    return ModelFile(network, path, hashlib.sha256(path.read_bytes()).hexdigest())


class Boards:
    """A running rack of virtual boards and what was measured on it. A context manager."""

    def __init__(self, folder: Path, spec: RackSpec) -> None:
        self.folder = folder
        self._spec = spec
        self._bundle = build_bundle()

    def __enter__(self) -> Boards:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._store = Store(self.folder / "fleetcut.db")
        status = rack.up(self.rack, self._spec)
        self._inventory: Inventory = load_inventory(status.inventory)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store.close()
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

    def known(self, specs: Sequence[RunSpec]) -> bool:
        """Whether all of these were measured before."""
        ids = {spec.run_id for spec in specs}
        return self._store.known(ids) == ids

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


def _say(progress: Progress) -> None:
    if progress.note is not None:
        print(f"{progress.board_id}: {progress.note}", file=sys.stderr, flush=True)
