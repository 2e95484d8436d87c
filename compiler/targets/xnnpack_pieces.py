"""What every executable over Debian's XNNPACK shares on one machine, made once and kept.

Input: a toolchain whose runtime is XNNPACK. Output: XnnpackPieces: the libraries that a program
carries inside, in the order in which it loads them.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from pathlib import Path

from compiler.targets.built import versions
from compiler.targets.native_libc import (
    UNDEFINED_DYNAMIC,
    Version,
    glibc_floor,
    newest_versions,
    nm,
    write_empty,
    write_stubs,
)
from compiler.targets.native_pieces import (
    COMMON,
    LIBGCC,
    Pieces,
    kept,
    link_against,
    open_libgcc,
    run,
)
from compiler.targets.toolchains import Toolchain
from compiler.targets.xnnpack_floor import with_older_versions
from compiler.targets.xnnpack_packages import VERSION

FLOOR: Version = (2, 27)
"""XNNPACK asks for expf of 2.27, twice as fast as the one before: older boards get no program."""

GCC_NOTE = """\
The library libfleetcut_gcc.so in this program contains parts of GCC's libgcc (GPL-3.0 with the GCC
Runtime Library Exception 3.1, https://www.gnu.org/licenses/gcc-exception-3.1.html).
"""

GCC = "libfleetcut_gcc.so"
STAND_IN = "libgcc_s.so.1"
"""Empty, because XNNPACK asks for it by name on ARM, for division or atomic operations."""

THEIRS = ("libcpuinfo.so.0", "libpthreadpool.so.0", "libXNNPACK.so.0")
RUNNER = "libfleetcut_xnnpack_runner.so"
PARTS = ("runner", "session", "network", "packing", "switching")
"""Each xnnpack_PART.c with its header, the runner's being the table itself."""

SOURCES = (
    *(f"xnnpack_{part}.c" for part in PARTS),
    *(f"xnnpack_{part}.h" for part in (*PARTS[1:], "plan")),
    "native_program.h",
)
MODULES = ("xnnpack_pieces.py", "xnnpack_floor.py", "native_pieces.py", "native_libc.py")

_ASKED = re.compile(r"^\s*U (\w+)@+(\w+_[\d.]+)$")


class XnnpackPieces(Pieces):
    """folder holds everything, the lowered copies of Debian's libraries too."""

    def libraries(self, *, kernels: bool) -> tuple[Path, ...]:
        """In loading order. There are no kernels beside XNNPACK's."""
        names = (GCC, STAND_IN, *THEIRS, RUNNER)
        return tuple(self.folder / name for name in names if (self.folder / name).exists())

    def version(self) -> str:
        return VERSION

    def tools(self, *, int8: bool) -> tuple[tuple[str, str], ...]:
        return (*versions("onnx", "torch"), ("libxnnpack0", VERSION))

    def licences(self) -> tuple[str, ...]:
        texts = sorted((self.toolchain.runtime / "licences").iterdir())
        notes = (GCC_NOTE,) if (self.folder / GCC).exists() else ()
        return (*(text.read_text(encoding="utf-8") for text in texts), *notes)


def xnnpack_pieces(toolchain: Toolchain) -> XnnpackPieces:
    """From the cache; made first, in some 2 s, when they are not there.

    Raises subprocess.SubprocessError when the compiler fails, MissingToolError when it lacks a
    library.
    """
    here = Path(__file__).parent
    deciding = (
        *(here / name for name in (*SOURCES, *MODULES)),
        *(toolchain.runtime / "lib" / name for name in THEIRS),
        *(toolchain.file(name) for name in ("libc.so.6", *LIBGCC)),
    )
    home = kept("xnnpack-pieces", toolchain, FLOOR, deciding, _build)
    stubs = tuple((home / "stubs.txt").read_text(encoding="utf-8").split())
    found = XnnpackPieces(toolchain, home, stubs, ())
    floor = glibc_floor(toolchain, list(found.libraries(kernels=False)))
    return XnnpackPieces(toolchain, home, stubs, floor)


def _build(toolchain: Toolchain, folder: Path) -> None:
    for source in SOURCES:
        shutil.copyfile(Path(__file__).parent / source, folder / source)
    stubs = write_stubs(toolchain, FLOOR, folder / "stubs")
    (folder / "stubs.txt").write_text("\n".join(stubs) + "\n", encoding="utf-8")
    older = newest_versions(toolchain, FLOOR)
    for name in THEIRS:
        library = toolchain.runtime / "lib" / name
        lowered = with_older_versions(library.read_bytes(), _asked(toolchain, library), older)
        (folder / name).write_bytes(lowered)
    _link_gcc(toolchain, folder, stubs)
    _link_runner(toolchain, folder, stubs)


def _asked(toolchain: Toolchain, library: Path) -> dict[str, frozenset[str]]:
    """Names by the version that is asked for, as {"GCC_3.5": {"__aeabi_uidiv"}}."""
    found: dict[str, set[str]] = defaultdict(set)
    for match in filter(None, map(_ASKED.match, nm(toolchain, library, *UNDEFINED_DYNAMIC))):
        found[match[2]].add(match[1])
    return {version: frozenset(names) for version, names in found.items()}


def _link_gcc(toolchain: Toolchain, folder: Path, stubs: tuple[str, ...]) -> None:
    """What XNNPACK asks of libgcc_s.so.1, where it does, as a library of ours."""
    asked = {
        symbol
        for name in THEIRS
        for version, symbols in _asked(toolchain, folder / name).items()
        if version.startswith("GCC_")
        for symbol in symbols
    }
    if not asked:
        return
    write_empty(toolchain, folder, STAND_IN)
    open_libgcc(toolchain, folder, asked, unwinder=False)
    run(
        [
            *(toolchain.cxx, "-shared", "-s", *COMMON, f"-Wl,-soname,{GCC}", "-o", GCC),
            *("doors.s", *LIBGCC, *link_against(stubs)),
        ],
        folder,
    )


def _link_runner(toolchain: Toolchain, folder: Path, stubs: tuple[str, ...]) -> None:
    objects = []
    for part in PARTS:
        objects.append(f"xnnpack_{part}.o")
        run(
            [
                *(toolchain.cxx, "-x", "c", "-std=gnu11", "-Wall", "-Wextra", "-Werror", *COMMON),
                *("-fvisibility=hidden", "-isystem", str(toolchain.runtime / "include")),
                *("-c", f"xnnpack_{part}.c", "-o", objects[-1]),
            ],
            folder,
        )
    run(
        [
            *(toolchain.cxx, "-shared", "-s", *COMMON, f"-Wl,-soname,{RUNNER}", "-o", RUNNER),
            # What their libraries ask of each other is theirs to find, at loading.
            *(*objects, *reversed(THEIRS), "-Wl,--allow-shlib-undefined"),
            *link_against(stubs),
        ],
        folder,
    )
