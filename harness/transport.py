"""What the harness needs of a connection to a board, whatever carries it.

Input: argument lists and bytes. Output: Completed commands and lines.
Every call has a deadline; what is wrong is a BoardError (harness/errors.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Completed:
    """A command that ended. exit_status: as the shell gives it, -1 when a signal ended it."""

    argv: tuple[str, ...]
    exit_status: int
    stdout: bytes
    stderr: bytes

    def last_error(self) -> str:
        """The last line of standard error, at most 300 characters; never empty."""
        lines = self.stderr.decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {self.exit_status}, nothing on stderr"


class Stream(Protocol):
    """A command's standard input and output, for a conversation with it."""

    def send(self, data: bytes, *, silence_s: float) -> None:
        """Write to its input. Raises TransientBoardError when it takes nothing for silence_s."""

    def line(self, *, silence_s: float) -> bytes:
        """Its next line of output, without the newline. Raises as ``Transport.lines`` does.

        Ended is an error too, and says why: StableBoardError, or transient when it was killed.
        """

    def close(self) -> None:
        """Hang up; the command's input ends."""


class Transport(Protocol):
    """One authenticated connection to one board. Paths are relative to the login's home."""

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Run to the end. Raises TransientBoardError past the deadline or when cut."""

    def lines(self, argv: Sequence[str], *, silence_s: float) -> Iterator[bytes]:
        """Standard output line by line while it runs.

        Raises TransientBoardError when nothing is heard for silence_s or the connection is cut,
        StableBoardError when the command ends with a non-zero status.
        """

    def converse(self, argv: Sequence[str]) -> Stream:
        """Start a command to talk with. Raises TransientBoardError."""

    def close(self) -> None:
        """End the connection; no error when it is gone already."""
