"""The border between a board's physics and what runs on it: a shared page and a preloaded library.

Input: the rack's folder. Output: ClockPage (slowness out, busy time in) and the built clockshim.
Raises RackError where no C compiler can build the library.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from harness.virtual.errors import RackError

PAGE_ENV = "FLEETCUT_CLOCK_PAGE"

_MAGIC = int.from_bytes(b"FCTCLCK3", "little")
_PAGE_BYTES = 4096


class _Layout(ctypes.Structure):
    """As ``struct page`` in clockshim.c: aligned 64-bit words, each loaded and stored whole."""

    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("stretch_ppb", ctypes.c_uint64),
        ("busy_ns", ctypes.c_uint64),
        ("memory_bytes_per_s", ctypes.c_uint64),
        ("cache_bytes", ctypes.c_uint64),
        ("malloc_ns", ctypes.c_uint64),
        ("cpu_ns", ctypes.c_uint64),
    )


class ClockPage:
    """One board's page, mapped. Created when it is not there; the counter goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _PAGE_BYTES)
            self._map = mmap.mmap(fd, _PAGE_BYTES)
        finally:
            os.close(fd)
        self._words = _Layout.from_buffer(self._map)
        if self._words.magic != _MAGIC:
            self._words.stretch_ppb = 10**9
            self._words.busy_ns = 0
            self._words.cpu_ns = 0
            self._words.magic = _MAGIC

    @property
    def stretch(self) -> float:
        """How many times longer than on the host a computation takes; >= 1."""
        return int(self._words.stretch_ppb) / 1e9

    @stretch.setter
    def stretch(self, value: float) -> None:
        if not value >= 1:
            raise ValueError(f"stretch {value} must be at least 1")
        self._words.stretch_ppb = round(value * 1e9)

    def set_shape(
        self, *, memory_bytes_per_s: int | None, cache_bytes: int, malloc_ns: int
    ) -> None:
        """What slows networks unequally, as in VirtualBoardSpec; None: as fast as the host."""
        self._words.cache_bytes = cache_bytes
        self._words.malloc_ns = malloc_ns
        self._words.memory_bytes_per_s = memory_bytes_per_s or 0

    @property
    def busy_s(self) -> float:
        """Core-seconds that the board's processes have run, on the board's own slower cores."""
        return int(self._words.busy_ns) / 1e9

    @property
    def cpu_s(self) -> float:
        """The CPU time behind busy_s, waiting included, as the host's kernel counts it."""
        return int(self._words.cpu_ns) / 1e9

    def close(self) -> None:
        del self._words
        self._map.close()


def build_shim(folder: Path) -> Path:
    """The compiled library in ``folder``, built unless this very source was built there before."""
    source = resources.files("harness.virtual").joinpath("clockshim.c").read_bytes()
    library = folder / f"clockshim-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if library.exists():
        return library
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RackError(
            "no C compiler: neither cc nor gcc is on the PATH, and the virtual boards' slower "
            "clock is a small C library. Next: apt-get install gcc libc6-dev (or your "
            "system's own C compiler), then run this again"
        )
    building = folder / f".{library.name}.{os.getpid()}"
    command = [compiler, "-O2", "-std=gnu11", "-Wall", "-Wextra", "-shared", "-fPIC"]
    command += ["-fvisibility=hidden", "-x", "c", "-", "-o", str(building), "-ldl", "-pthread"]
    try:
        done = subprocess.run(command, input=source, capture_output=True, check=False)
    except OSError as error:
        raise RackError(f"{compiler} does not run: {error}. Next: repair the compiler") from None
    if done.returncode != 0:
        reason = done.stderr.decode("utf-8", "replace").strip()[-400:]
        raise RackError(
            f"{compiler} could not build clockshim.c: {reason}. "
            "Next: install the C library's headers (apt-get install libc6-dev)"
        )
    building.replace(library)
    return library


def require_touched_pages() -> None:
    """Raises RackError where the kernel does not say which pages a process touched."""
    for name, mode in (("clear_refs", os.W_OK), ("smaps_rollup", os.R_OK)):
        if not os.access(f"/proc/self/{name}", mode):
            raise RackError(
                f"no /proc/self/{name}: this kernel does not count touched pages "
                "(CONFIG_PROC_PAGE_MONITOR), which a memory-bound board needs. "
                "Next: leave memory-bound out of the behaviours"
            )


def board_clock_environment(library: Path, page: Path) -> Mapping[str, str]:
    """The environment variables that give a process the board's clock."""
    return {"LD_PRELOAD": str(library), PAGE_ENV: str(page)}
