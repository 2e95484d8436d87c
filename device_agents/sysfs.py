"""Typed reads and writes below a root: the board's own / or a captured tree.

Input: a root folder and paths relative to it. Output: text, integers, paths; None is unreadable.
Unreadable is never 0 or -1: missing, EAGAIN, EINVAL, empty and garbage all read as None.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import List, Optional, Tuple, Union

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DIGITS = re.compile(r"([0-9]+)")
_READ_BYTES = 1 << 16


class Root:
    """One board's file tree."""

    def __init__(self, path: Union[str, Path] = "/") -> None:
        self.path = Path(path)

    def read_text(self, relative: str) -> Optional[str]:
        """The file's text without surrounding blanks and NULs; None when unreadable or empty."""
        try:
            # Unbuffered and at once: sysfs answers one read(2) with one value.
            fd = os.open(str(self.path / relative), os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            data = os.read(fd, _READ_BYTES)
            if len(data) == _READ_BYTES or relative.startswith("proc/"):
                data += _rest(fd)
        except OSError:
            return None
        finally:
            os.close(fd)
        # The device tree ends its strings with NUL, and separates lists of them by it.
        return data.decode("utf-8", "replace").strip("\0 \t\r\n") or None

    def read_int(self, relative: str) -> Optional[int]:
        """A decimal integer and nothing else; None otherwise."""
        text = self.read_text(relative)
        return int(text) if text is not None and _INTEGER.fullmatch(text) else None

    def read_ints(self, relative: str) -> Tuple[int, ...]:
        """Integers between blanks; what is no integer is left out."""
        words = (self.read_text(relative) or "").split()
        return tuple(int(word) for word in words if _INTEGER.fullmatch(word))

    def glob(self, pattern: str) -> List[str]:
        """Relative paths in natural order: zone 2 before zone 10, as the kernel numbers them."""
        try:
            found = [str(path.relative_to(self.path)) for path in self.path.glob(pattern)]
        except OSError:
            return []
        return sorted(found, key=_natural)

    def exists(self, relative: str) -> bool:
        return os.path.exists(str(self.path / relative))

    def writable(self, relative: str) -> bool:
        return os.access(str(self.path / relative), os.W_OK)

    def write_text(self, relative: str, text: str) -> None:
        """Write to a file that is there already, never make one. Raises OSError."""
        fd = os.open(str(self.path / relative), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)


def _rest(fd: int) -> bytes:
    """What the first read left: /proc gives a long file in pieces."""
    parts: List[bytes] = []
    while True:
        part = os.read(fd, _READ_BYTES)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _natural(path: str) -> List[Tuple[int, str]]:
    pieces = _DIGITS.split(path)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]
