"""Compilers and runtimes for other machines than this one: found, or installed by one command.

Input: a machine as ``uname -m`` prints it. Output: Toolchain; MissingToolError naming what is
missing and the command that installs it. Nothing is fetched but by ``install``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import CompilerError
from compiler.targets import xnnpack_packages

COMMAND = "fleetcut toolchains --install"

TRIPLETS = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "armv7l": "arm-linux-gnueabihf",
}
"""Machines that there are programs for → GNU's names of them."""

PACKAGES = {
    "x86_64": "g++-x86-64-linux-gnu",
    "aarch64": "g++-aarch64-linux-gnu",
    "armv7l": "g++-arm-linux-gnueabihf",
}
"""Debian's cross compilers; for this machine itself it is g++."""

WHEEL_PLATFORM = "manylinux_2_28_{machine}"
RUNTIME = "executorch"
ONNXRUNTIME = "onnxruntime"
XNNPACK = "xnnpack"

WHEELS = {RUNTIME: ("lib", "include"), ONNXRUNTIME: ("capi",)}
"""Runtimes that come in Python wheels → folders of the package, that of the libraries first."""

RUNTIMES = {
    "x86_64": (RUNTIME, XNNPACK, ONNXRUNTIME),
    "aarch64": (RUNTIME, XNNPACK, ONNXRUNTIME),
    "armv7l": (XNNPACK,),
}
"""What a machine's programs run on, the first by default: the others publish none for armv7."""
INSTALL_TIMEOUT_S = 900
SAID_CHARS = 800


class MissingToolError(CompilerError):
    """A tool that is not here. fact: which; next_step: how to get it."""

    def __init__(self, fact: str, next_step: str) -> None:
        self.fact = fact
        self.next_step = next_step
        super().__init__(f"{fact}. Next: {next_step}")


@dataclass(frozen=True)
class Toolchain:
    """What links a program for one machine.

    cxx: g++, which compiles C and assembly too. nm, objcopy: list and rename symbols. runtime: the
    folder with the libraries of the engine, one of RUNTIMES, for that machine.
    """

    machine: str
    cxx: str
    nm: str
    objcopy: str
    runtime: Path
    engine: str

    def version(self) -> str:
        """The compiler's, as "12.2.0"."""
        return _said([self.cxx, "-dumpfullversion"])

    def file(self, name: str) -> Path:
        """A library that comes with the compiler, as libstdc++.a. Raises MissingToolError."""
        path = Path(_said([self.cxx, f"-print-file-name={name}"]))
        if not path.is_absolute():
            raise MissingToolError(f"{self.cxx} has no {name}", f"install it whole: {COMMAND}")
        return path.resolve()


def find(machine: str, runtime: str | None = None) -> Toolchain:
    """The toolchain for ``machine``, with the runtime that is asked for, or its first.

    MissingToolError for the first thing missing.
    """
    _require_known(machine)
    runtime = runtime or RUNTIMES[machine][0]
    missing = _missing_tool(machine)
    if missing is not None:
        raise MissingToolError(
            f"{missing} is not on PATH",
            f"{COMMAND} (Debian: apt-get install {_package(machine)})",
        )
    folder = runtime_folder(machine, runtime)
    if not _is_there(machine, runtime):
        raise MissingToolError(
            f"{_title(runtime)} for {machine} is not in {folder.parent}", COMMAND
        )
    cxx, nm, objcopy = (str(shutil.which(tool)) for tool in _tools(machine))
    return Toolchain(machine, cxx, nm, objcopy, folder, runtime)


def install(machine: str) -> tuple[str, ...]:
    """Gets what ``find`` misses for any runtime of a machine; what was done, a line each.

    The compiler comes from Debian's packages and needs root; ExecuTorch and ONNX Runtime are wheels
    that pip's registry has, XNNPACK is taken out of Debian's packages. What is linked for another
    machine is tried on this one, so this one's XNNPACK comes with it. Raises MissingToolError with
    what was tried and could not be done.
    """
    _require_known(machine)
    done = []
    for runtime in WHEELS:
        if runtime in RUNTIMES[machine] and not _is_there(machine, runtime):
            _fetch_wheel(machine, runtime)
            done.append(_fetched(machine, runtime))
    if _missing_tool(machine) is not None:
        _install_package(_package(machine))
        done.append(f"Debian package {_package(machine)}")
    for owner in dict.fromkeys((machine, platform.machine())):
        if not _is_there(owner, XNNPACK):
            _fetch_xnnpack(owner, runtime_folder(owner, XNNPACK))
            done.append(_fetched(owner, XNNPACK))
    for runtime in RUNTIMES[machine]:
        find(machine, runtime)
    return tuple(done)


def runtime_folder(machine: str, runtime: str = RUNTIME) -> Path:
    """Where a machine's runtime lies: in the cache, but this one's Python packages, which are
    installed; they are found without an import (3 s).
    """
    if runtime == XNNPACK:
        return cache_folder() / f"{XNNPACK}-{xnnpack_packages.VERSION}-{machine}"
    if machine != platform.machine():
        version = importlib.metadata.version(runtime)
        return cache_folder() / f"{runtime}-{version}-{machine}" / runtime
    spec = importlib.util.find_spec(runtime)
    assert spec is not None, f"{runtime} is a dependency"
    assert spec.submodule_search_locations is not None, f"{runtime} is a package"
    return Path(next(iter(spec.submodule_search_locations)))


def cache_folder() -> Path:
    """fleetcut/toolchains below XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fleetcut" / "toolchains"


def _require_known(machine: str) -> None:
    if platform.system() != "Linux" or machine not in TRIPLETS:
        *first, last = sorted(TRIPLETS)
        raise MissingToolError(
            f"no toolchain for executables on {machine!r}: there are some on Linux, for "
            f"{', '.join(first)} and {last}",
            "deploy the onnx or tflite artifact to such boards",
        )


def _tools(machine: str) -> tuple[str, str, str]:
    prefix = "" if machine == platform.machine() else f"{TRIPLETS[machine]}-"
    return f"{prefix}g++", f"{prefix}nm", f"{prefix}objcopy"


def _missing_tool(machine: str) -> str | None:
    return next((tool for tool in _tools(machine) if shutil.which(tool) is None), None)


def _is_there(machine: str, runtime: str) -> bool:
    libraries, *_ = WHEELS.get(runtime, ("lib",))
    return (runtime_folder(machine, runtime) / libraries).is_dir()


def _fetched(machine: str, runtime: str) -> str:
    return f"{_title(runtime)} for {machine} → {runtime_folder(machine, runtime).parent}"


def _title(runtime: str) -> str:
    if runtime == XNNPACK:
        return f"Debian's XNNPACK {xnnpack_packages.VERSION}"
    title = {RUNTIME: "ExecuTorch", ONNXRUNTIME: "ONNX Runtime"}[runtime]
    return f"{title} {importlib.metadata.version(runtime)}"


def _package(machine: str) -> str:
    return "g++" if machine == platform.machine() else PACKAGES[machine]


def _fetch_wheel(machine: str, runtime: str) -> None:
    """Unpacks a wheel's folders, and moves them into the cache whole or not at all."""
    folder = runtime_folder(machine, runtime).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as work:
        _run(
            "pip",
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--disable-pip-version-check", "--only-binary=:all:"),
                *("--platform", WHEEL_PLATFORM.format(machine=machine), "--implementation", "cp"),
                *("--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"),
                *("--dest", work, f"{runtime}=={importlib.metadata.version(runtime)}"),
            ],
            f"let pip reach its registry, then {COMMAND}",
        )
        (wheel,) = Path(work).glob("*.whl")
        unpacked = Path(work) / "unpacked"
        wanted = tuple(f"{runtime}/{name}/" for name in WHEELS[runtime])
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked, [n for n in archive.namelist() if n.startswith(wanted)])
        if not folder.exists():
            unpacked.rename(folder)


def _fetch_xnnpack(machine: str, folder: Path) -> None:
    try:
        xnnpack_packages.fetch(machine, TRIPLETS[machine], folder)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()[-SAID_CHARS:]
        raise MissingToolError(
            f"fetching Debian's XNNPACK for {machine} failed: {said}",
            f"on Debian 12, let apt reach its archive, then {COMMAND}",
        ) from error


def _install_package(package: str) -> None:
    by_hand = f"as root: apt-get install {package}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise MissingToolError(f"{package} is not installed, and needs root on Debian", by_hand)
    apt = ["apt-get", "--quiet", "--quiet"]
    _run("apt-get", [*apt, "update"], by_hand)
    _run("apt-get", [*apt, "install", "--yes", "--no-install-recommends", package], by_hand)


def _run(tool: str, command: list[str], next_step: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
            check=True,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip()[-SAID_CHARS:]
        raise MissingToolError(f"{tool} failed: {said}", next_step) from error


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingToolError(f"{command[0]} does not run ({error})", COMMAND) from error
    return done.stdout.strip()
