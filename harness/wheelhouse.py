"""The wheels that a board needs, found on the workstation: one set per Python, machine and glibc.

Input: a Platform and requirements as pip takes them. Output: a Wheelhouse of files with hashes,
kept in the cache: asked again, it needs no network. Raises WheelhouseError.
pip chooses among wheels for the platform that it is told; but it reads the conditions of
dependencies (``; python_version < "3.9"``) for its own Python, so the set is closed here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.parser import BytesHeaderParser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion

from harness.errors import HarnessError

_ROUNDS = 5
_PIP_TIMEOUT_S = 900.0
_UNREACHABLE = ("Retrying (", "NewConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError")
_OLD_NAMES = {"2014": (2, 17), "2010": (2, 12), "1": (2, 5)}
"""Names that manylinux had before PEP 600, and the glibc that they stand for."""

_FORMAT = 1


class WheelhouseError(HarnessError):
    """No set of wheels fits."""


class UnreachableIndexError(WheelhouseError):
    """pip could not ask its index at all, so nothing is said about what there is."""


@dataclass(frozen=True)
class Platform:
    """What wheels have to fit. python: "3.11". machine: as uname says, of the interpreter.

    glibc: "2.36"; None where the board has another C library, for which there are no manylinux
    wheels. packages: (distribution, version) that the board has by itself.
    """

    python: str
    machine: str
    glibc: str | None
    packages: tuple[tuple[str, str], ...] = ()

    def has(self, requirement: Requirement) -> bool:
        """Whether the board's own packages are enough."""
        wanted = canonicalize_name(requirement.name)
        return any(
            canonicalize_name(name) == wanted and _is_in(version, requirement)
            for name, version in self.packages
        )

    def __str__(self) -> str:
        return f"Python {self.python}, {self.machine}, glibc {self.glibc or 'none'}"

    def tags(self) -> tuple[str, ...]:
        """The platform tags of pip, the newest first. Raises WheelhouseError."""
        major, _, minor = (self.glibc or "").partition(".")
        if major != "2" or not minor.isdecimal():
            raise WheelhouseError(
                f"{self}: wheels are built for glibc. Next: install the runtime by the board's "
                "own packages"
            )
        tags = [f"manylinux_2_{n}_{self.machine}" for n in range(int(minor), 4, -1)]
        tags += [
            f"manylinux{name}_{self.machine}"
            for name, (_, least) in _OLD_NAMES.items()
            if least <= int(minor)
        ]
        return (*tags, f"linux_{self.machine}")

    def environment(self) -> dict[str, str]:
        """What conditions of dependencies are read with (https://peps.python.org/pep-0508/)."""
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "platform_python_implementation": "CPython",
            "platform_machine": self.machine,
            "platform_system": "Linux",
            "sys_platform": "linux",
            "os_name": "posix",
            "platform_release": "",
            "platform_version": "",
        }


@dataclass(frozen=True)
class Wheel:
    """One file of a set. name: canonical."""

    name: str
    version: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Wheelhouse:
    """A set that is whole: every dependency of every wheel is in it."""

    platform: Platform
    wheels: tuple[Wheel, ...]

    def versions(self) -> dict[str, str]:
        return {wheel.name: wheel.version for wheel in self.wheels}

    def size_bytes(self) -> int:
        return sum(wheel.path.stat().st_size for wheel in self.wheels)


def default_cache() -> Path:
    """Where sets are kept: the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fleetcut" / "wheelhouse"


def resolve(
    platform: Platform, requirements: Sequence[str], cache: Path, *, refresh: bool = False
) -> Wheelhouse:
    """The set for ``requirements``. refresh: ask the index even if the cache has one.

    Where there is no whole set, as numpy has no wheels for armv7l, what the board has by itself
    stands for the rest.
    """
    parsed = [_requirement(text) for text in requirements]
    with _alone(cache):
        try:
            return _resolved(replace(platform, packages=()), parsed, cache, refresh=refresh)
        except UnreachableIndexError:
            raise
        except WheelhouseError as error:
            if not platform.packages:
                raise
            try:
                return _resolved(platform, parsed, cache, refresh=refresh)
            except WheelhouseError:
                raise error from None


def _resolved(
    platform: Platform, requirements: Sequence[Requirement], cache: Path, *, refresh: bool
) -> Wheelhouse:
    of = [platform.python, platform.machine, platform.glibc, sorted(platform.packages)]
    asked = json.dumps([_FORMAT, *of, sorted(map(str, requirements))])
    folder = cache / hashlib.sha256(asked.encode()).hexdigest()[:24]
    found = None if refresh else _read(platform, folder)
    if found is None:
        staging = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            _download(platform, requirements, staging)
            shutil.rmtree(folder, ignore_errors=True)
            staging.replace(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        found = _read(platform, folder)
    if found is None:
        raise WheelhouseError(f"{folder}: cannot be read again. Next: remove that folder")
    return found


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        stream = (cache / "lock").open("w")
    except OSError as error:
        raise WheelhouseError(
            f"{cache}: cannot be written ({error.strerror}). Next: set XDG_CACHE_HOME"
        ) from None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _requirement(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        fact = str(error).splitlines()[0]
        raise WheelhouseError(
            f"--with {text[:80]!r}: {fact}. Next: write it as pip takes it: 'numpy<2'"
        ) from None


def _is_in(version: str, requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _download(platform: Platform, requirements: Sequence[Requirement], folder: Path) -> None:
    """Fill ``folder`` with the set and nothing else."""
    asked = [each for each in requirements if not platform.has(each)]
    for _ in range(_ROUNDS):
        for path in folder.glob("*.whl"):
            path.unlink()
        _pip(platform, asked, folder, with_dependencies=not platform.packages)
        wheels = {_name(path): path for path in folder.glob("*.whl")}
        needed, missing = _closed(platform, requirements, wheels)
        if not missing:
            for name, path in wheels.items():
                if name not in needed:
                    path.unlink()
            return
        asked += missing
    raise WheelhouseError(
        f"{platform}: dependencies do not close over {', '.join(map(str, requirements))}. "
        "Next: name what is missing with --with"
    )


def _pip(
    platform: Platform,
    requirements: Iterable[Requirement],
    folder: Path,
    *,
    with_dependencies: bool,
) -> None:
    digits = platform.python.replace(".", "")
    argv = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--dest", str(folder),
        "--disable-pip-version-check", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", platform.python,
        *(() if with_dependencies else ("--no-deps",)),
        *(part for abi in (f"cp{digits}", "abi3", "none") for part in ("--abi", abi)),
        *(part for tag in platform.tags() for part in ("--platform", tag)),
        "--", *map(str, requirements),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UnreachableIndexError(
            f"{platform}: pip did not end within {_PIP_TIMEOUT_S:g} s. Next: see the network"
        ) from None
    if done.returncode == 0:
        return
    if any(sign in done.stderr for sign in _UNREACHABLE):
        raise UnreachableIndexError(
            f"{platform}: pip cannot reach its index. Next: see pip config list, or the network"
        )
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    fact = said[-1].removeprefix("ERROR: ")[:300] if said else f"pip ended with {done.returncode}"
    next_step = "name other versions with --with, or see docs/provisioning.md"
    if platform.machine == "armv7l":
        next_step = f"sudo apt-get install python3-numpy on the board (no wheels), or {next_step}"
    raise WheelhouseError(f"{platform}: {fact}. Next: {next_step}")


def _closed(
    platform: Platform,
    requirements: Sequence[Requirement],
    wheels: Mapping[str, Path],
) -> tuple[set[str], list[Requirement]]:
    """What of ``wheels`` the requirements lead to, and what they lead to that is not there."""
    environment = platform.environment()

    def holds(depends: Requirement, extra: str) -> bool:
        marker = depends.marker
        return marker is None or marker.evaluate({**environment, "extra": extra})

    needed: set[str] = set()
    missing: list[Requirement] = []
    seen: set[str] = set()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        path = wheels.get(name)
        if path is None and platform.has(requirement):
            continue
        if path is None or parse_wheel_filename(path.name)[1] not in requirement.specifier:
            missing.append(Requirement(f"{name}{requirement.specifier}"))
            continue
        needed.add(name)
        for extra in ("", *sorted(requirement.extras)):
            todo += [depends for depends in _depends(path) if holds(depends, extra)]
    return needed, missing


def _name(wheel: Path) -> str:
    return str(canonicalize_name(parse_wheel_filename(wheel.name)[0]))


def _depends(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        with archive.open(name) as stream:
            headers = BytesHeaderParser().parsebytes(stream.read())
    return [Requirement(text) for text in headers.get_all("Requires-Dist", [])]


def _read(platform: Platform, folder: Path) -> Wheelhouse | None:
    """The set in a folder; None when there is none."""
    if not folder.is_dir():
        return None
    wheels = []
    for path in sorted(folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(path.name)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        wheels.append(Wheel(canonicalize_name(name), str(version), path, sha256))
    return Wheelhouse(platform, tuple(wheels)) if wheels else None
