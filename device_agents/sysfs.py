"""Typed reads and writes below a root: the board's own / or a captured tree.

Input: a root folder and paths relative to it. Output: text, integers, paths; None is unreadable.
Unreadable is never 0 or -1: missing, EAGAIN, EINVAL, empty and garbage all read as None, and so
does a file whose read once did not return (`call_patiently`).
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
from pathlib import Path
from typing import Callable, Dict, List, Optional, Set, Tuple, TypeVar, Union

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DIGITS = re.compile(r"([0-9]+)")
_READ_BYTES = 1 << 16
_SYSFS_BYTES = 4096
_STALL_S = 1.0

T = TypeVar("T")


class Root:
    """One board's file tree.

    given_up: files that are not read any more: a read of theirs did not return. reading: the file
    that is being read now, and the number of that read.
    """

    def __init__(self, path: Union[str, Path] = "/") -> None:
        self.path = Path(path)
        self.given_up: Set[str] = set()
        self.reading: Optional[Tuple[str, int]] = None
        self._reads = 0

    def read_text(self, relative: str) -> Optional[str]:
        """The file's text without surrounding blanks and NULs; None when unreadable or empty."""
        if relative in self.given_up:
            return None
        self._reads += 1
        self.reading = (relative, self._reads)
        try:
            data = self._read(relative)
        except (OSError, ValueError):
            return None
        finally:
            self.reading = None
        # The device tree ends its strings with NUL, and separates lists of them by it.
        return data.decode("utf-8", "replace").strip("\0 \t\r\n") or None

    def _read(self, relative: str) -> bytes:
        # Unbuffered and at once: sysfs answers one read(2) with one value.
        fd = os.open(str(self.path / relative), os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, _READ_BYTES)
            if len(data) == _READ_BYTES or relative.startswith("proc/"):
                data += _rest(fd)
        finally:
            os.close(fd)
        return data

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


class KeptOpen(Root):
    """The same tree for one thread that reads the same short files again and again.

    Files stay open: pread(2) takes half the CPU time of opening anew, also with the question
    whether the file was replaced meanwhile. Only a file's first 4096 bytes are read, which is all
    that sysfs ever gives.
    """

    def __init__(self, root: Root) -> None:
        super().__init__(root.path)
        self.given_up = root.given_up
        self._folder = str(root.path)
        self._fds: Dict[str, int] = {}

    def close(self) -> None:
        """Not while another thread reads."""
        for relative in list(self._fds):
            self._forget(relative)

    def _read(self, relative: str) -> bytes:
        fd = self._fds.get(relative)
        if fd is not None:
            with contextlib.suppress(OSError):
                if os.fstat(fd).st_nlink > 0:
                    return os.pread(fd, _SYSFS_BYTES, 0)
            # Replaced by another file of that name, or its driver is gone.
            self._forget(relative)
        fd = os.open(f"{self._folder}/{relative}", os.O_RDONLY | os.O_CLOEXEC)
        self._fds[relative] = fd
        return os.pread(fd, _SYSFS_BYTES, 0)

    def _forget(self, relative: str) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fds.pop(relative))


def call_patiently(root: Root, call: Callable[[], T], stall_s: float = _STALL_S) -> T:
    """What ``call`` gives, which reads below ``root`` and raises nothing.

    It runs in a thread: one read that takes longer than stall_s is given up with its file, and the
    call begun anew without it. The thread that hangs is left behind.
    """
    while True:
        answers: queue.Queue[T] = queue.Queue()
        threading.Thread(target=lambda q=answers: q.put(call()), daemon=True).start()
        seen: Optional[Tuple[str, int]] = None
        while True:
            try:
                return answers.get(timeout=stall_s)
            except queue.Empty:
                reading = root.reading
                if reading is not None and reading == seen:
                    root.given_up.add(reading[0])
                    break
                seen = reading


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
