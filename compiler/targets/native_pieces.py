"""What every executable of one machine shares, compiled once and kept in the cache.

Input: a toolchain. Output: Pieces: the libraries that a program carries inside, in the order in
which it loads them, and what its launcher is linked against.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.targets.native_engines import ENGINES, Engine
from compiler.targets.native_libc import (
    DEFINED,
    UNDEFINED,
    UNDEFINED_DYNAMIC,
    Version,
    glibc_floor,
    symbols,
    write_empty,
    write_stubs,
)
from compiler.targets.toolchains import Toolchain, cache_folder

CXX = "libfleetcut_cxx.so"
STAND_INS = ("libgcc_s.so.1", "libstdc++.so.6")
"""Empty, because the runtime's libraries ask for them by name. They are not CXX itself, as the
loader asserts that a library of such a name holds the versions it is asked for."""

RUNNER = "libfleetcut_runner.so"

GCC_NOTE = """\
The library libfleetcut_cxx.so in this program contains parts of GCC's libstdc++ and libgcc
(GPL-3.0 with the GCC Runtime Library Exception 3.1, https://www.gnu.org/licenses/gcc-exception-3.1.html).
"""

LIBGCC = ("libgcc_eh.a", "libgcc.a")
JUMPS = {"x86_64": "jmp", "aarch64": "b", "armv7l": "b"}
SOURCES = ("native_runner.cc", "native_engine.h", "native_cxx.c", "native_program.h")
COMPILE_TIMEOUT_S = 1800

COMMON = ("-O2", "-pipe", "-fPIC", "-Wl,--build-id=none", "-Wl,-z,defs", "-frandom-seed=fleetcut")
"""No random seed and no build id: the same inputs give the same bytes."""


@dataclass(frozen=True)
class Pieces(ABC):
    """folder holds everything; stubs: names in folder/stubs; floor: of all that is carried."""

    toolchain: Toolchain
    folder: Path
    stubs: tuple[str, ...]
    floor: Version

    @abstractmethod
    def libraries(self, *, kernels: bool) -> tuple[Path, ...]:
        """In loading order: each finds what it needs among those before it."""

    @abstractmethod
    def version(self) -> str:
        """Of the runtime inside."""

    @abstractmethod
    def tools(self, *, int8: bool) -> tuple[tuple[str, str], ...]:
        """(tool, version) of what makes a program with these."""

    @abstractmethod
    def licences(self) -> tuple[str, ...]:
        """Texts that must travel with a program."""


@dataclass(frozen=True)
class EnginePieces(Pieces):
    """For an engine that native_runner.cc runs."""

    engine: Engine

    def libraries(self, *, kernels: bool) -> tuple[Path, ...]:
        theirs = dict(zip(self.engine.libraries, self.engine.files(self.toolchain), strict=True))
        if not kernels:
            theirs.pop(self.engine.kernels, None)
        own = self.folder
        cxx = (own / CXX, *(own / name for name in STAND_INS))
        return (*cxx, *theirs.values(), own / RUNNER)

    def version(self) -> str:
        return self.engine.version()

    def tools(self, *, int8: bool) -> tuple[tuple[str, str], ...]:
        return self.engine.tool_versions(int8=int8)

    def licences(self) -> tuple[str, ...]:
        return (*self.engine.licence_texts(), GCC_NOTE)


def pieces(toolchain: Toolchain) -> EnginePieces:
    """Of the toolchain's engine. From the cache; built first, in some 5 s, when not there.

    Raises subprocess.SubprocessError when the compiler fails, MissingToolError when it lacks a
    library.
    """
    here = Path(__file__).parent
    engine = ENGINES[toolchain.engine]
    modules = ("native_pieces.py", "native_engines.py", "native_libc.py")
    deciding = (
        *(here / name for name in (*SOURCES, engine.source, *modules)),
        *engine.files(toolchain),
        *(toolchain.file(name) for name in ("libc.so.6", "libstdc++.a", *LIBGCC)),
    )
    home = kept("pieces", toolchain, engine.floor, deciding, _build)
    carried = [home / CXX, home / RUNNER, *engine.files(toolchain)]
    stubs = tuple((home / "stubs.txt").read_text(encoding="utf-8").split())
    return EnginePieces(toolchain, home, stubs, glibc_floor(toolchain, carried), engine)


def kept(
    name: str,
    toolchain: Toolchain,
    floor: Version,
    deciding: Sequence[Path],
    build: Callable[[Toolchain, Path], None],
) -> Path:
    """The folder in the cache that ``build`` fills; built first when it is not there.

    deciding: files that, with the compiler and its flags, decide the bytes.
    """
    digest = hashlib.sha256(f"{toolchain.version()} {floor} {COMMON}".encode())
    for path in deciding:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    home = cache_folder() / f"{name}-{toolchain.machine}-{digest.hexdigest()[:16]}"
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=home.parent) as work:
            built = Path(work) / "pieces"
            built.mkdir()
            build(toolchain, built)
            if not home.exists():  # or another process was quicker: its bytes are the same
                built.rename(home)
    return home


def link_against(stubs: Sequence[str]) -> tuple[str, ...]:
    """Arguments that name the stubs in ./stubs and nothing else of the system."""
    return ("-nodefaultlibs", *(f"stubs/{name}" for name in stubs), "-lgcc")


def run(command: Sequence[str], folder: Path) -> None:
    """In ``folder``, so that the bytes do not know where it lies. SubprocessError with stderr."""
    subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=True
    )


def _build(toolchain: Toolchain, folder: Path) -> None:
    engine = ENGINES[toolchain.engine]
    for source in (*SOURCES, engine.source):
        shutil.copyfile(Path(__file__).parent / source, folder / source)
    stubs = write_stubs(toolchain, engine.floor, folder / "stubs")
    (folder / "stubs.txt").write_text("\n".join(stubs) + "\n", encoding="utf-8")
    for name in STAND_INS:
        write_empty(toolchain, folder, name)
    for source in ("native_runner.cc", engine.source):
        _compile(toolchain, engine, folder, source)
    _link_cxx(toolchain, engine, folder, stubs)
    _link_runner(toolchain, engine, folder, stubs)


def _compile(toolchain: Toolchain, engine: Engine, folder: Path, source: str) -> None:
    run(
        [
            *(toolchain.cxx, "-std=c++17", *COMMON, "-fvisibility=hidden"),
            f"-ffile-prefix-map={toolchain.runtime}={engine.package}",
            *(f"-D{name}" for name in engine.definitions),
            # -isystem: warnings in the runtime's headers are not ours to mend.
            *(flag for i in engine.include for flag in ("-isystem", str(toolchain.runtime / i))),
            *("-c", source, "-o", f"{source}.o"),
        ],
        folder,
    )


def _link_cxx(toolchain: Toolchain, engine: Engine, folder: Path, stubs: Sequence[str]) -> None:
    """libstdc++ and libgcc's unwinder as one library, of what is asked for and what that needs."""
    asked: set[str] = set()
    for source in ("native_runner.cc", engine.source):
        asked |= symbols(toolchain, folder / f"{source}.o", UNDEFINED)
    for library in engine.files(toolchain):
        asked |= symbols(toolchain, library, UNDEFINED_DYNAMIC)
    cxx = toolchain.file("libstdc++.a")
    asked_of_gcc = asked - symbols(toolchain, cxx, DEFINED)
    asked -= asked_of_gcc
    (folder / "asked.txt").write_text("".join(f"-u {name}\n" for name in sorted(asked)), "utf-8")
    open_libgcc(toolchain, folder, asked_of_gcc)
    run([toolchain.cxx, "-x", "c", *COMMON, "-c", "native_cxx.c", "-o", "cxx.o"], folder)
    run(
        [
            *(toolchain.cxx, "-shared", "-s", *COMMON, f"-Wl,-soname,{CXX}", "-o", CXX),
            *("cxx.o", "doors.s", "-Wl,@asked.txt", str(cxx), *LIBGCC, *link_against(stubs)),
        ],
        folder,
    )


def open_libgcc(
    toolchain: Toolchain, folder: Path, asked: set[str], *, unwinder: bool = True
) -> None:
    """Copies of libgcc's archives, whose functions are hidden, and doors.s with a door to each.

    unwinder: all that exceptions may need, too.

    A door only jumps: a call would put a frame of its own below the one that is to be unwound.
    """
    jump = JUMPS[toolchain.machine]
    doors = ['.section .note.GNU-stack,"",%progbits', ".text"]
    for archive in LIBGCC:
        path = toolchain.file(archive)
        defined = symbols(toolchain, path, DEFINED)
        names = sorted(n for n in defined if n in asked or (unwinder and n.startswith("_Unwind_")))
        renames = [f"--redefine-sym={name}=fleetcut{name}" for name in names]
        run([toolchain.objcopy, *renames, str(path), archive], folder)
        doors += [f".globl {n}\n.type {n},%function\n{n}: {jump} fleetcut{n}" for n in names]
    (folder / "doors.s").write_text("\n".join(doors) + "\n", "utf-8")


def _link_runner(toolchain: Toolchain, engine: Engine, folder: Path, stubs: Sequence[str]) -> None:
    run(
        [
            *(toolchain.cxx, "-shared", "-s", *COMMON, f"-Wl,-soname,{RUNNER}", "-o", RUNNER),
            *("native_runner.cc.o", f"{engine.source}.o", CXX),
            *(str(library) for library in engine.linked_files(toolchain)),
            *link_against(stubs),
        ],
        folder,
    )
