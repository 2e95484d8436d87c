"""What programs do to watched files: inotify for writes, fanotify for opens, through libc.

Input: folders, or files. Output: (folder, file name) pairs of files closed after a write; files
that a program is about to open, which waits until it is answered. Linux only. Raises OSError.
Files that arrive by rename, as this package's own do, are not reported as written.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

_IN_CLOSE_WRITE = 0x8
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC
_HEADER = struct.Struct("iIII")

_FAN_CLOEXEC = 0x1
_FAN_NONBLOCK = 0x2
_FAN_CLASS_CONTENT = 0x4
_FAN_MARK_ADD = 0x1
_FAN_OPEN_PERM = 0x10000
_FAN_ALLOW = 1
_FAN_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_FAN_RESPONSE = struct.Struct("=iI")
_AT_FDCWD = -100


class WriteWatch:
    """One inotify instance. Use as a context manager, or close it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._folders: dict[int, Path] = {}
        self.fd = _checked(self._libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))

    def add(self, folder: Path) -> None:
        """Watches the files right in ``folder``."""
        watch = self._libc.inotify_add_watch(self.fd, os.fsencode(folder), _IN_CLOSE_WRITE)
        self._folders[_checked(watch)] = folder

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


class OpenWatch:
    """One fanotify group: who opens a watched file waits until its content is made fresh.

    Needs root (CAP_SYS_ADMIN). Once it is closed, or its process ends, nobody waits any more.
    The process that answers must not open a watched file itself.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.fanotify_mark.argtypes = [
            *(ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
        ]
        flags = _FAN_CLASS_CONTENT | _FAN_NONBLOCK | _FAN_CLOEXEC
        self.fd = _checked(self._libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC))
        self._refresh: dict[tuple[int, int], Callable[[], None]] = {}

    def add(self, file: Path, refresh: Callable[[], None]) -> None:
        """``refresh`` is called by ``answer`` whenever a program is about to open ``file``."""
        stat = file.stat()
        path = os.fsencode(file)
        _checked(self._libc.fanotify_mark(self.fd, _FAN_MARK_ADD, _FAN_OPEN_PERM, _AT_FDCWD, path))
        self._refresh[stat.st_dev, stat.st_ino] = refresh

    def answer(self) -> None:
        """Refreshes what is asked for and lets everybody who waits go on; never blocks."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return
        for offset in range(0, len(data), _FAN_EVENT.size):
            fd = _FAN_EVENT.unpack_from(data, offset)[5]
            try:
                stat = os.fstat(fd)
                self._refresh[stat.st_dev, stat.st_ino]()
            finally:
                os.write(self.fd, _FAN_RESPONSE.pack(fd, _FAN_ALLOW))
                os.close(fd)

    def close(self) -> None:
        os.close(self.fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
