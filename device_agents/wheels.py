"""Packages for a board without internet: pushed wheels become a folder that its Python finds.

Input: a plan among the blobs: {"python", "machine", "wheels": {file name: sha256}, "modules"}.
Output: site/sets/<the plan's hash>, and site/<Python>-<machine> that leads to it, switched by
rename once every module imports. Neither pip nor venv is needed here: a wheel is a zip whose files
lie as they are to be found (https://peps.python.org/pep-0427/), and each is hashed before.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, Dict, List, Optional, Tuple

from device_agents.contract.codec import CodecError, parse_object
from device_agents.errors import AgentError
from device_agents.files import fsync_folder, remove_tree, sha256_file
from device_agents.home import Home, checked_sha256
from device_agents.locks import acquire
from device_agents.probe import glibc
from device_agents.provisioned import machine, site_folder

_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}\.whl")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}")
_IMPORT_TIMEOUT_S = 300.0
_MARGIN_BYTES = 64 << 20
_FILES_MAX = 100_000
_AGAIN = "fleetcut provision again"
_IMPORT = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"


def describe(home: Home) -> Dict[str, Any]:
    """What wheels have to fit: Python, its machine (not the kernel's) and C library."""
    return {
        "python": _python(),
        "implementation": sys.implementation.name,
        "machine": machine(),
        "glibc": glibc(),
        "packages": _installed(home),
    }


def _installed(home: Home) -> List[Tuple[str, str]]:
    """(distribution, version) that the board has by itself."""
    folders = [entry for entry in sys.path if entry != str(site_folder(home))]
    return packages_in(folders)


def packages_in(folders: List[str]) -> List[Tuple[str, str]]:
    """(distribution, version) of those whose metadata can be read, sorted."""
    found = set()
    for one in importlib.metadata.distributions(path=folders):
        name = one.metadata["Name"]
        if name:
            found.add((str(name), str(one.version)))
    return sorted(found)


def _python() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def provision(home: Home, plan_sha256: str) -> List[Tuple[str, str]]:
    """Returns (distribution, version) of what is there now. Raises AgentError.

    Cut at any point the board keeps what it had, and the same plan may be asked for again.
    """
    plan = _plan(home, plan_sha256)
    folder = home.path / "site" / "sets" / plan_sha256
    # No run may be under way: its interpreter may load a module any time.
    board = acquire(home.board_lock)
    if board is None:
        raise AgentError("a session is running here", "wait for its end", exit_status=1)
    try:
        if not folder.is_dir():
            _build(home, plan, folder)
        _switch(site_folder(home), folder)
        for other in folder.parent.iterdir():
            if other != folder:
                remove_tree(other)
    finally:
        board.release()
    return packages_in([str(folder)])


def _plan(home: Home, plan_sha256: str) -> Dict[str, Any]:
    path = home.blob(plan_sha256)
    try:
        plan = parse_object(path.read_bytes())
    except (OSError, CodecError) as error:
        raise AgentError(f"plan {plan_sha256[:12]}: {error}", _AGAIN, exit_status=1) from None
    wheels, modules = plan.get("wheels"), plan.get("modules")
    if (
        not isinstance(wheels, dict)
        or not isinstance(modules, list)
        or not all(_WHEEL.fullmatch(str(name)) for name in wheels)
        or not all(isinstance(name, str) and _MODULE.fullmatch(name) for name in modules)
    ):
        raise AgentError(f"plan {plan_sha256[:12]} is not in the agreed form", _AGAIN)
    here = {"python": _python(), "machine": machine()}
    for key, value in here.items():
        if plan.get(key) != value:
            raise AgentError(f"these wheels are for {key} {plan.get(key)}, not {value}", _AGAIN)
    return plan


def _build(home: Home, plan: Dict[str, Any], folder: Path) -> None:
    files = []
    for name, sha256 in sorted(plan["wheels"].items()):
        path = home.blob(checked_sha256(str(sha256)))
        if not path.is_file() or sha256_file(path) != sha256:
            raise AgentError(f"{name} is not on the board", _AGAIN, exit_status=1)
        files.append((name, path))
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = folder.with_name(f".staging-{folder.name[:16]}")
    shutil.rmtree(str(staging), ignore_errors=True)
    staging.mkdir(mode=0o700)
    try:
        for name, path in files:
            _unpack(name, path, staging)
        _check_imports(staging, plan["modules"])
        os.sync()
        os.replace(str(staging), str(folder))
    except BaseException:
        shutil.rmtree(str(staging), ignore_errors=True)
        raise
    fsync_folder(folder.parent)


def _unpack(name: str, wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(str(wheel)) as archive:
            entries = archive.infolist()
            need_bytes = sum(entry.file_size for entry in entries) + _MARGIN_BYTES
            if len(entries) > _FILES_MAX:
                raise AgentError(f"{name} holds {len(entries)} files", "see where it comes from")
            free_bytes = shutil.disk_usage(str(folder)).free
            if free_bytes < need_bytes:
                raise AgentError(
                    f"{name} needs {need_bytes >> 20} MiB, {free_bytes >> 20} are free",
                    "fleetcut clean, or free space on the board",
                    exit_status=1,
                )
            for entry in entries:
                place = _place(name, entry)
                if place is not None:
                    _write(archive, entry, folder.joinpath(*place.parts))
    # RuntimeError: zipfile's for encrypted files, and NotImplementedError for their compression.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise AgentError(f"{name} is no wheel ({error})", _AGAIN, exit_status=1) from None


def _place(name: str, entry: zipfile.ZipInfo) -> Optional[PurePosixPath]:
    """Where in the folder a wheel's file belongs; None for scripts, headers and folders."""
    path = PurePosixPath(entry.filename)
    if entry.filename.endswith("/"):
        return None
    # https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    if path.parts and path.parts[0].endswith(".data"):
        if len(path.parts) < 3 or path.parts[1] not in ("purelib", "platlib"):
            return None
        path = PurePosixPath(*path.parts[2:])
    odd = "\\" in entry.filename or "\0" in entry.filename
    if odd or path.is_absolute() or ".." in path.parts or stat.S_ISLNK(entry.external_attr >> 16):
        raise AgentError(f"{name} holds {entry.filename[:80]!r}", "see where it comes from")
    return path


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
    if entry.external_attr >> 16 & 0o111:
        target.chmod(0o755)


def _check_imports(folder: Path, modules: List[str]) -> None:
    """A wheel that fits by its name may still not load: another CPU, a library that is missing."""
    python = sys.executable or "python3"
    settings = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    for module in modules:
        try:
            done = subprocess.run(
                [python, "-c", _IMPORT, module],
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_IMPORT_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise AgentError(f"import {module} does not end", "see dmesg", exit_status=1) from None
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            fact = said[-1][:300] if said else f"exit status {done.returncode}"
            raise AgentError(
                f"{module} does not import: {fact}",
                "name another version: fleetcut provision --with NAME==VERSION",
                exit_status=1,
            )


def _switch(link: Path, folder: Path) -> None:
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    if temporary.is_symlink():
        temporary.unlink()
    os.symlink(f"sets/{folder.name}", str(temporary))
    os.replace(str(temporary), str(link))
    fsync_folder(link.parent)
