"""inventory.yaml: which boards there are and how to reach them; never a secret.

Input: a YAML file. Output: Inventory of Boards, frozen.
Raises DocumentError with file, line, what is wrong and what to write instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.documents import read_document
from harness.errors import DocumentError, HarnessError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
FINGERPRINT_PATTERN = r"^SHA256:[A-Za-z0-9+/]{43}$"

SHOWN_CHARS = 80
"""Of what somebody wrote, in a message."""

CACHE_MIB = 2048
"""About an eighth of the smallest card that a board is likely to have."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


@dataclass(frozen=True)
class Board:
    """One physical unit. labels: (key, value), sorted by key.

    host_key_sha256: OpenSSH fingerprint, None until somebody trusts the board.
    exclusive_group: boards that name the same group share silicon and are never timed at once.
    simulated: a stand-in for hardware, and called so wherever its numbers appear.
    cache_mib: how much of its disk pushed models may take, those in use excepted.
    """

    board_id: str
    model: str
    host: str
    port: int
    user: str
    host_key_sha256: str | None
    key_file: Path | None
    python: str
    exclusive_group: str | None
    simulated: bool
    labels: tuple[tuple[str, str], ...]
    cache_mib: int = CACHE_MIB


@dataclass(frozen=True)
class Inventory:
    """The rack, in the file's order.

    allowed_signers: whose artifacts may be deployed, in ssh-keygen's format; None: anybody's.
    """

    path: Path
    boards: tuple[Board, ...]
    allowed_signers: Path | None = None

    def board(self, board_id: str) -> Board:
        """The board of that id. Raises HarnessError naming those that exist."""
        for board in self.boards:
            if board.board_id == board_id:
                return board
        raise HarnessError(
            f"{self.path}: no board {board_id[:SHOWN_CHARS]!r}. Next: use one of "
            f"{', '.join(b.board_id for b in self.boards)}"
        )

    def select(
        self, ids: Iterable[str] | None = None, labels: Mapping[str, str] | None = None
    ) -> tuple[Board, ...]:
        """Boards by id and label, in the file's order; nothing asked for selects every board.

        Raises HarnessError for an unknown id, and when nothing is left.
        """
        wanted = None if ids is None else {self.board(i).board_id for i in ids}
        chosen = tuple(
            board
            for board in self.boards
            if (wanted is None or board.board_id in wanted)
            and all(dict(board.labels).get(k) == v for k, v in (labels or {}).items())
        )
        if not chosen:
            raise HarnessError(
                f"{self.path}: no board fits labels {str(dict(labels or {}))[:SHOWN_CHARS]}. "
                "Next: fleetcut check --json shows every board and its labels"
            )
        return chosen


class _BoardEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    board_id: Name = Field(examples=["pi4-01"])
    model: str = Field(min_length=1, max_length=120, examples=["Raspberry Pi 4 Model B"])
    host: str = Field(pattern=r"^[A-Za-z0-9:\[][A-Za-z0-9.:\-\]%]*$", examples=["pi4-01.lab"])
    port: int = Field(default=22, ge=1, le=65535, examples=[22])
    user: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$", examples=["fleetcut"])
    host_key_sha256: str | None = Field(
        default=None,
        pattern=FINGERPRINT_PATTERN,
        examples=['"SHA256:<43 characters>"   # fleetcut trust BOARD writes it'],
    )
    key_file: str | None = Field(default=None, examples=["~/.ssh/id_ed25519"])
    python: str = Field(default="python3", pattern=r"^[A-Za-z0-9_./-]+$", examples=["python3"])
    exclusive_group: Name | None = Field(default=None, examples=["carrier-3"])
    simulated: bool = Field(default=False, examples=["true"])
    labels: dict[Name, str] = Field(default_factory=dict, examples=["{cooling: fan}"])
    cache_mib: int = Field(default=CACHE_MIB, ge=16, le=1 << 24, examples=[CACHE_MIB])


class _InventoryFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = Field(examples=[1])
    allowed_signers: str | None = Field(default=None, min_length=1, examples=["allowed_signers"])
    boards: list[_BoardEntry] = Field(
        min_length=1, examples=["a list, each entry with a board_id of its own"]
    )

    @field_validator("boards")
    @classmethod
    def _ids_are_unique(cls, boards: list[_BoardEntry]) -> list[_BoardEntry]:
        seen: set[str] = set()
        for entry in boards:
            if entry.board_id in seen:
                raise ValueError(f"board_id {entry.board_id!r} stands twice")
            seen.add(entry.board_id)
        return boards


def load_inventory(path: Path) -> Inventory:
    """The inventory at ``path``; files it names are taken relative to it. Raises DocumentError."""
    document = read_document(path, _InventoryFile)
    signers = document.allowed_signers
    return Inventory(
        path,
        tuple(_board(path, entry) for entry in document.boards),
        None if signers is None else _file(path, signers, "allowed_signers"),
    )


def _file(path: Path, named: str, what: str) -> Path:
    try:
        return (path.parent / Path(named).expanduser()).absolute()
    except RuntimeError:
        raise DocumentError(path, None, f"{what} has no such home", "Write a full path") from None


def _board(path: Path, entry: _BoardEntry) -> Board:
    return Board(
        board_id=entry.board_id,
        model=entry.model,
        host=entry.host,
        port=entry.port,
        user=entry.user,
        host_key_sha256=entry.host_key_sha256,
        key_file=None
        if entry.key_file is None
        else _file(path, entry.key_file, f"{entry.board_id}: key_file"),
        python=entry.python,
        exclusive_group=entry.exclusive_group,
        simulated=entry.simulated,
        labels=tuple(sorted(entry.labels.items())),
        cache_mib=entry.cache_mib,
    )
