"""Files that survive a power cut: hashed, flushed to the disk, and only then renamed.

Input: paths and bytes. Output: files that are whole or absent, never half there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

_CHUNK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Lower-case hex digest. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def fsync_file(path: Path) -> None:
    fd = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# A rename is only durable once its folder is: https://lwn.net/Articles/457667/
fsync_folder = fsync_file


def write_whole(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write under a temporary name, flush, rename over ``path``, flush the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(str(temporary), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(str(temporary), str(path))
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def copy_flushed(source: Path, target: Path, mode: int) -> None:
    """Copy the bytes (not a link: the copy's mode must not become the source's) and flush."""
    fd = os.open(str(target), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with source.open("rb") as reader, os.fdopen(fd, "wb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
        writer.flush()
        # The umask may have taken the execute bit from the mode above.
        os.fchmod(writer.fileno(), mode)
        os.fsync(writer.fileno())


def remove_tree(folder: Path) -> None:
    """Take a folder away in one rename, then its content: a cut never leaves half of it."""
    doomed = folder.with_name(f".removed-{folder.name}-{os.getpid()}")
    try:
        os.replace(str(folder), str(doomed))
    except FileNotFoundError:
        return
    fsync_folder(folder.parent)
    shutil.rmtree(str(doomed), ignore_errors=True)
