"""Boards of the rack's benchmark, and what they are asked to do.

Input: a folder, how many boards, seconds a run. Output: a running rack, its inventory, a campaign
and each board's runs. The model sleeps (rack_model.c), so that many boards fit on two cores.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from device_agents.contract import RunSpec
from harness.bundle import build_bundle
from harness.campaign import load_campaign
from harness.errors import StableBoardError
from harness.inventory import Board, load_inventory
from harness.session import AgentSession
from harness.ssh import SshTransport
from harness.virtual import rack
from harness.virtual.cgroup import rack_cgroup
from harness.virtual.spec import uniform_rack

MODEL_SOURCE = Path(__file__).with_name("rack_model.c")
PYTHON = "/usr/bin/python3"
"""The boards': Debian's own, as on a board, without what this workstation has installed."""


@dataclass(frozen=True)
class Rack:
    """Boards that listen. inventory: every board may run at the same time as any other."""

    folder: Path
    inventory: Path
    pid: int
    started_s: float

    @property
    def boards(self) -> tuple[Board, ...]:
        return load_inventory(self.inventory).boards

    def cpu_s(self) -> float:
        """CPU time that sshd boards have cost so far; 0 for embedded ones, which have no cgroup."""
        folder = rack_cgroup((self.folder / "rack").resolve())
        stats = [path.read_text(encoding="utf-8") for path in folder.glob("*/cpu.stat")]
        return sum(int(stat.split()[1]) for stat in stats) / 1e6

    def forget(self) -> None:
        """Every board's home is empty again: what was pushed has to be pushed anew."""
        for home in self.folder.glob("rack/boards/*/home"):
            for path in home.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def running(folder: Path, count: int, *, sshd: bool) -> Iterator[Rack]:
    """A rack of ``count`` fresh boards, down again at the end. Raises RackError."""
    began_s = time.perf_counter()
    status = rack.up(folder / "rack", uniform_rack(count), PYTHON, sshd=sshd)
    try:
        assert status.pid is not None
        document = yaml.safe_load(status.inventory.read_text(encoding="utf-8"))
        key_file = str(load_inventory(status.inventory).boards[0].key_file)
        for entry in document["boards"]:
            entry.pop("exclusive_group", None)
            entry["key_file"] = key_file
        inventory = folder / "inventory.yaml"
        inventory.write_text(yaml.safe_dump(document), encoding="utf-8")
        yield Rack(folder, inventory, status.pid, time.perf_counter() - began_s)
    finally:
        rack.down(folder / "rack")


def build_model(folder: Path) -> Path:
    """The sleeping model, for this machine. Raises CalledProcessError."""
    path = folder / "sleeping-model"
    subprocess.run(["cc", "-O2", "-o", str(path), str(MODEL_SOURCE)], check=True)
    return path


def write_campaign(folder: Path, name: str, model: Path, *, runs: int, run_s: float) -> Path:
    """A campaign of ``runs`` runs a board, each of about ``run_s`` seconds."""
    document = {
        "version": 1,
        "campaign_id": name,
        "models": [{"name": "sleeping", "path": str(model)}],
        "runtimes": ["executable"],
        "repeats": runs,
        "stopping": {
            "warmup_min": 1, "warmup_max": 2, "samples_min": 5, "samples_max": 100_000,
            "min_seconds": run_s, "max_seconds": run_s + 0.01,
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def specs_by_board(campaign: Path, inventory: Path) -> dict[str, list[RunSpec]]:
    """Each board's runs, in their order."""
    loaded = load_campaign(campaign, load_inventory(inventory))
    found: dict[str, list[RunSpec]] = {}
    for spec in loaded.specs:
        found.setdefault(spec.board_id, []).append(spec)
    return found


def pure_s(board: Board, model: Path, session: str, specs: list[RunSpec]) -> float:
    """Seconds from a session's start to its end on a board that is alone."""
    transport = SshTransport(board)
    try:
        agent = AgentSession(board, transport, build_bundle())
        agent.push_agent()
        agent.push_blobs({specs[0].model_sha256: model})
        agent.start(session, specs)
        began_s = time.perf_counter()
        records = [
            entry.record
            for entry in agent.entries(session, 0, follow=True, silence_s=120)
            if entry.record is not None
        ]
        taken_s = time.perf_counter() - began_s
    finally:
        transport.close()
    failed = [record.error for record in records if record.error is not None]
    if failed or len(records) != len(specs):
        raise StableBoardError(board.board_id, f"runs failed: {failed}", "read the worker's log")
    return taken_s
