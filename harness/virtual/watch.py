"""Which watched folders had a file written in place: Linux's inotify, through libc.

Input: folders. Output: (folder, file name) pairs of files closed after a write.
Files that arrive by rename, as this package's own do, are not reported. Raises OSError.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_IN_CLOSE_WRITE = 0x8
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC
_HEADER = struct.Struct("iIII")


class WriteWatch:
    """One inotify instance. Use as a context manager, or close it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._folders: dict[int, Path] = {}
        self.fd = self._checked(self._libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))

    def add(self, folder: Path) -> None:
        """Watches the files right in ``folder``."""
        watch = self._libc.inotify_add_watch(self.fd, os.fsencode(folder), _IN_CLOSE_WRITE)
        self._folders[self._checked(watch)] = folder

    def written(self) -> Iterator[tuple[Path, str]]:
        """What was written since the last call; never blocks. A removed folder drops out."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size
            name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
            offset += length
            if mask & _IN_CLOSE_WRITE and watch in self._folders:
                yield self._folders[watch], name

    def close(self) -> None:
        os.close(self.fd)

    @staticmethod
    def _checked(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"inotify: {os.strerror(number)}")
        return result
