"""Links against an older C library than the workstation's: stubs that hold its names and versions.

Input: a toolchain and a floor, as (2, 27). Output: shared objects without code, which the linker
takes for libc.so.6 and its kin, so that a program asks for no version above the floor.

A board's C library is often years older than the workstation's. glibc keeps every old version of a
symbol beside the new one; the linker just always takes the newest it sees
(https://sourceware.org/glibc/wiki/Testing/Builds, https://maskray.me/blog/2020-11-26-all-about-symbol-versioning).
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

from compiler.targets.toolchains import Toolchain

Version = tuple[int, ...]

MATH = "libm.so.6"
LIBRARY = "libc.so.6"
EMPTY = ("libdl.so.2", "libpthread.so.0")
"""Parts of libc.so.6 since 2.34, that older boards must be told to load."""

LOADERS = {
    "x86_64": "ld-linux-x86-64.so.2",
    "aarch64": "ld-linux-aarch64.so.1",
    "armv7l": "ld-linux-armhf.so.3",
}

MARKS = {"armv7l": (".eabi_attribute 28, 1",)}
"""What a library without code must say of itself: a loader of ARM's hard floats takes no other."""

DEFINED = ("--defined-only", "--extern-only")
UNDEFINED = ("--undefined-only",)
UNDEFINED_DYNAMIC = ("--undefined-only", "-D")
"""What nm lists; "dynamic" is what is left of a stripped shared object."""

_VERSIONED = re.compile(r"^(?P<name>[A-Za-z_][\w.]*)@{1,2}GLIBC_(?P<version>[\d.]+)$")
_FLOOR = re.compile(r"@{1,2}GLIBC_(\d+(?:\.\d+)+)$")
_DATA = "BDVR"


def write_stubs(toolchain: Toolchain, floor: Version, folder: Path) -> tuple[str, ...]:
    """Writes them into ``folder``; their names, in linking order."""
    folder.mkdir()
    loader = LOADERS[toolchain.machine]
    libc = {**_versions(toolchain, loader, floor), **_versions(toolchain, LIBRARY, floor)}
    _write_stub(toolchain, folder, LIBRARY, libc)
    _write_stub(toolchain, folder, MATH, _versions(toolchain, MATH, floor))
    for name in EMPTY:
        _write_stub(toolchain, folder, name, {})
    return (LIBRARY, MATH, *EMPTY)


def write_empty(toolchain: Toolchain, folder: Path, soname: str) -> None:
    """A shared object that has a name and nothing else."""
    _write_stub(toolchain, folder, soname, {})


def glibc_floor(toolchain: Toolchain, objects: list[Path]) -> Version:
    """The highest version of glibc that these linked objects ask for."""
    found: set[Version] = set()
    for path in objects:
        for line in nm(toolchain, path, *UNDEFINED_DYNAMIC):
            if match := _FLOOR.search(line):
                found.add(_version(match[1]))
    return max(found)


def newest_versions(toolchain: Toolchain, floor: Version) -> dict[str, Version]:
    """Of every name of the C library the newest version up to the floor."""
    libraries = (LOADERS[toolchain.machine], LIBRARY, MATH)
    found = (_versions(toolchain, library, floor) for library in libraries)
    return {name: version for names in found for name, (version, _) in names.items()}


def symbols(toolchain: Toolchain, path: Path, options: tuple[str, ...]) -> set[str]:
    """Names in an object or an archive, without their versions. options: one of the above."""
    lines = (line.split() for line in nm(toolchain, path, *options))
    return {line[-1].split("@")[0] for line in lines if len(line) > 1}


def nm(toolchain: Toolchain, path: Path, *options: str) -> list[str]:
    """The lines of nm over an object, an archive or a library. options: one of the above."""
    done = subprocess.run(
        [toolchain.nm, *options, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


def _versions(
    toolchain: Toolchain, library: str, floor: Version
) -> dict[str, tuple[Version, bool]]:
    """(newest version up to the floor, whether it is data) of every name."""
    best: dict[str, tuple[Version, bool]] = {}
    for line in nm(toolchain, toolchain.file(library), "-D", "--defined-only"):
        *_, kind, symbol = line.split()
        match = _VERSIONED.match(symbol)
        if match is None:
            continue
        version = _version(match["version"])
        if version <= floor and version > best.get(match["name"], ((), False))[0]:
            best[match["name"]] = (version, kind in _DATA)
    return best


def _write_stub(
    toolchain: Toolchain, folder: Path, soname: str, symbols: dict[str, tuple[Version, bool]]
) -> None:
    source, script = folder / f"{soname}.s", folder / f"{soname}.map"
    lines = ['.section .note.GNU-stack,"",%progbits', *MARKS.get(toolchain.machine, ()), ".data"]
    nodes: dict[Version, list[str]] = defaultdict(list)
    for name, (version, data) in sorted(symbols.items()):
        kind = "object" if data else "function"
        lines.append(f".globl {name}\n.type {name},%{kind}\n{name}: .quad 0\n.size {name}, 8")
        nodes[version].append(name)
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    script.write_text(
        "".join(
            f"GLIBC_{'.'.join(map(str, version))} {{ {'; '.join(names)}; }};\n"
            for version, names in sorted(nodes.items())
        ),
        encoding="utf-8",
    )
    subprocess.run(
        [
            *(toolchain.cxx, "-shared", "-nostdlib", "-s", "-Wl,--build-id=none"),
            *("-Wl,-z,noseparate-code", f"-Wl,-soname,{soname}", source.name, "-o", soname),
            *((f"-Wl,--version-script={script.name}",) if nodes else ()),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    source.unlink()
    script.unlink()


def _version(text: str) -> Version:
    return tuple(map(int, text.split(".")))
