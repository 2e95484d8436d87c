"""A shared library as an older C library takes it: names that changed nothing but their version.

Input: an ELF shared object as Debian ships it, and the newest versions up to a floor. Output: the
same bytes, but for the versions that it asks for.

Debian 12 links against glibc 2.36, so that its libcpuinfo asks for pthread_once of 2.34, which only
moved there from libpthread (https://sourceware.org/glibc/wiki/Release/2.34), and its XNNPACK for
exp of 2.29, which only sets errno otherwise. Both are in every older glibc under its first version.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compiler.targets.native_libc import Version

SAME_BEFORE = frozenset({"exp", "pthread_once"})
"""Names whose older versions do the same for a caller that does not look at errno."""

_VERNEED = 0x6FFFFFFE
_SECTION = {1: "<IIIIIIIIII", 2: "<IIQQQQIIQQ"}
"""Elf32_Shdr and Elf64_Shdr: name, type, flags, addr, offset, size, link, info, align, entsize."""

_ENTRY = struct.Struct("<HHIII")
"""Elf_Verneed: version, count, file, first, next."""

_NEED = struct.Struct("<IHHII")
"""Elf_Vernaux: hash of the name, flags, index, name, next."""

_GLIBC = re.compile(r"^GLIBC_(\d+(?:\.\d+)+)$")


@dataclass(frozen=True)
class _Need:
    """at: of its Vernaux in the file. name: as "GLIBC_2.29"."""

    at: int
    hash: int
    name_at: int
    name: str

    def version(self) -> Version | None:
        match = _GLIBC.match(self.name)
        return tuple(map(int, match[1].split("."))) if match else None


def with_older_versions(
    library: bytes, asked: Mapping[str, frozenset[str]], older: Mapping[str, Version]
) -> bytes:
    """The library, asking for older versions where all names of a version are in SAME_BEFORE.

    asked: names by the version that is asked for, as {"GLIBC_2.29": {"exp"}}. older: of each name
    the newest version up to the floor. What cannot be lowered is left as it is, and the floor that
    is read back says so.
    """
    needs = list(_needs(library))
    by_version = {need.version(): need for need in needs}
    changed = bytearray(library)
    for need in needs:
        names = asked.get(need.name, frozenset())
        wanted = {older[name] for name in names if name in older}
        if not names or not names <= SAME_BEFORE & older.keys() or len(wanted) != 1:
            continue
        instead = by_version.get(wanted.pop())
        if instead is not None:
            _, flags, index, _, following = _NEED.unpack_from(library, need.at)
            record = (instead.hash, flags, index, instead.name_at, following)
            _NEED.pack_into(changed, need.at, *record)
    return bytes(changed)


def _needs(library: bytes) -> Iterator[_Need]:
    """Every version of another library that this one asks for."""
    sections = _sections(library)
    for kind, offset, link in sections:
        if kind != _VERNEED:
            continue
        names = sections[link][1]
        at, more = offset, True
        while more:
            _, count, _, first, following = _ENTRY.unpack_from(library, at)
            place = at + first
            for _ in range(count):
                digest, _, _, name_at, next_need = _NEED.unpack_from(library, place)
                start = names + name_at
                text = library[start : library.index(b"\0", start)].decode("ascii")
                yield _Need(place, digest, name_at, text)
                place += next_need
            at, more = at + following, following != 0


def _sections(library: bytes) -> list[tuple[int, int, int]]:
    """(type, offset, linked section) of each."""
    wide = library[4] == 2
    table, size, count = (
        (*struct.unpack_from("<Q", library, 40), *struct.unpack_from("<HH", library, 58))
        if wide
        else (*struct.unpack_from("<I", library, 32), *struct.unpack_from("<HH", library, 46))
    )
    found = []
    for number in range(count):
        fields = struct.unpack_from(_SECTION[library[4]], library, table + number * size)
        found.append((fields[1], fields[4], fields[6]))
    return found
