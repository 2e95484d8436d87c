"""Every error the harness raises, in one tree.

Each names the board or file, the fact and the next step, and never holds a secret.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal


class HarnessError(Exception):
    """Root of the tree: something the user can act on. ``str()`` is one line."""


class DocumentError(HarnessError):
    """A file that a person wrote does not say what it must. line is 1-based, None if unknown."""

    def __init__(self, path: Path, line: int | None, fact: str, instead: str) -> None:
        self.path = path
        self.line = line
        self.fact = fact
        self.instead = instead
        where = f"{path}:{line}" if line is not None else str(path)
        super().__init__(f"{where}: {fact}. Next: {instead[:1].lower()}{instead[1:]}")


class SelectionError(HarnessError):
    """What a person named is not there, or does not go together."""


class StoreError(HarnessError):
    """The store or an export could not be read or written."""


Category = Literal["infrastructure", "board", "model", "bug"]
"""Who has to do something: the lab (network, leases, the workstation's disk), whoever cares for the
board, whoever made the model, or we."""


class BoardError(HarnessError):
    """A board did not do what it was asked to."""

    category: ClassVar[Category] = "board"

    def __init__(self, board_id: str, fact: str, next_step: str) -> None:
        self.board_id = board_id
        # It may quote what a board said: one line, and nothing that a terminal would obey.
        self.fact = " ".join("".join(c if c.isprintable() else " " for c in fact).split())
        self.next_step = next_step
        super().__init__(f"{board_id}: {self.fact}. Next: {next_step}")


class TransientBoardError(BoardError):
    """The network or the board's load: trying again may help, and is done."""

    category = "infrastructure"


class StableBoardError(BoardError):
    """Keys, permissions, missing parts: trying again would not help, and is not done."""


class LocalError(StableBoardError):
    """Something of this workstation that a board needed: a file that changed or cannot be read."""

    category = "infrastructure"


class ProtocolError(StableBoardError):
    """The agent answered what it never should: a bug of ours, on this side or on that."""

    category = "bug"


class LeaseError(StableBoardError):
    """The board is somebody else's now, or nobody's until somebody says so."""

    category = "infrastructure"


class LeaseLostError(TransientBoardError):
    """Our lease ended while we used the board. A new one may be had, and is asked for."""


class HostKeyError(StableBoardError):
    """The board's host key is unknown or is not the one in the inventory.

    found: its OpenSSH fingerprint ("SHA256:…"), so that a person can compare it.
    """

    def __init__(self, board_id: str, fact: str, next_step: str, found: str) -> None:
        self.found = found
        super().__init__(board_id, fact, next_step)
