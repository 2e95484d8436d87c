"""A board that is deployed to, a signer it knows and one it does not, and what it has of a name.

Input: a folder. Output: World: artifacts version after version, the way of ``fleetcut deploy`` and
the way of a workstation that checks nothing, and whether the board has a whole version.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.tampering_artifacts import NAME, make_artifact, make_key, signed, write_signers
from benchmarks.tampering_faults import Proxy, mortal_python
from harness.bundle import build_bundle
from harness.deploy import (
    LocalArtifact,
    deploy,
    load_artifact,
    refuse_refused,
    require_names_apart,
    vouched,
)
from harness.inventory import Board, load_inventory
from harness.session import AgentSession
from harness.ssh import SshTransport


class World:
    """One simulated board on loopback. ``old`` is what it runs, ``new`` what comes next."""

    def __init__(self, folder: Path, board: Board, home: Path) -> None:
        self.folder = folder
        self.board = board
        self.home = home
        self.bundle = build_bundle()
        self.ann, self.eve = make_key(folder / "keys", "ann"), make_key(folder / "keys", "eve")
        self.signers = write_signers(folder / "allowed_signers", self.ann)
        self.version = 0
        self.older, self.old, self.new = self._next(), self._next(), self._next()
        self.deploy(self.older)
        self.deploy(self.old)

    def _next(self) -> LocalArtifact:
        self.version += 1
        return signed(make_artifact(self.folder / "out", self.version), self.ann, self.version)

    def advance(self) -> None:
        """The new version is deployed: it is the old one of the next case."""
        self.older, self.old, self.new = self.old, self.new, self._next()

    def other(self, version: int) -> LocalArtifact:
        """Another artifact than any of the board's, unsigned."""
        return make_artifact(self.folder / "others", 1_000_000 + version)

    def ship(self, folder: Path, board: Board | None = None) -> None:
        """All that ``fleetcut deploy`` does with a folder. Raises HarnessError."""
        artifact = load_artifact(folder)
        refuse_refused(artifact)
        require_names_apart([artifact])
        vouched([artifact], self.signers)
        self.deploy(artifact, board)

    def deploy(self, artifact: LocalArtifact, board: Board | None = None) -> None:
        with self.agent(board) as agent:
            deploy(agent, [artifact], self.signers)

    def put_new(self, board: Board) -> None:
        self.deploy(self.new, board)

    @contextmanager
    def agent(self, board: Board | None = None) -> Iterator[AgentSession]:
        """The agent itself, for a workstation that checks nothing before it speaks to boards."""
        transport = SshTransport(board or self.board)
        try:
            agent = AgentSession(board or self.board, transport, self.bundle)
            agent.push_agent()
            yield agent
        finally:
            transport.close()

    def through(self, proxy: Proxy) -> Board:
        return replace(self.board, port=proxy.port)

    def mortal(self, begin: str, kill_at: int, count: Path | None = None) -> Board:
        """The board, with an agent that is killed. See mortal_python."""
        path = mortal_python(self.folder / "mortal", begin, kill_at, count)
        return replace(self.board, python=str(path))

    def lines_of(self, begin: str, act: Callable[[Board], None]) -> int:
        """How many lines of the agent an undisturbed ``act`` runs from ``begin`` on."""
        count = self.folder / "lines"
        act(self.mortal(begin, 0, count))
        return int(count.read_text(encoding="utf-8"))

    def runs(self) -> str | None:
        """The id of the version that the board has whole under the name; None where it has none."""
        return self._whole(NAME)

    def keeps(self) -> str | None:
        """The same of the version before."""
        return self._whole(f"{NAME}.previous")

    def _whole(self, name: str) -> str | None:
        link = self.home / "deployed" / name
        try:
            folder = link.resolve(strict=True)
            data = (folder / "manifest.json").read_bytes()
            entries = json.loads(data)["files"]
            good = hashlib.sha256(data).hexdigest() == folder.name and all(
                hashlib.sha256((folder / entry["name"]).read_bytes()).hexdigest() == entry["sha256"]
                for entry in entries
            )
        except (OSError, ValueError, KeyError):
            return None
        files = {
            os.path.relpath(Path(top, n), folder) for top, _, ns in os.walk(folder) for n in ns
        }
        return (
            folder.name
            if good and files == {"manifest.json", *(e["name"] for e in entries)}
            else None
        )

    def blob(self, sha256: str) -> Path:
        return self.home / "blobs" / sha256


def open_world(folder: Path, rack_folder: Path) -> World:
    """rack_folder: of a rack that is up. Its first board is used."""
    board = load_inventory(rack_folder / "inventory.yaml").boards[0]
    home = rack_folder / "boards" / board.board_id / "home" / ".fleetcut"
    return World(folder, board, home)
