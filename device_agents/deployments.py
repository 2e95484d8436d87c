"""What a name leads to: the version that runs, the one before, and nothing older.

Input: the home, a name, an artifact that stands whole in artifacts/. Output: links below deployed/.
deployed/NAME and deployed/NAME.previous are symlinks, switched by rename. What no name leads to is
removed, with those of its blobs that nothing else needs.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Iterator, List, Optional, Set

from device_agents.cache import needed_by_sessions
from device_agents.contract import CodecError, Manifest
from device_agents.errors import AgentError
from device_agents.files import fsync_folder, remove_tree, sha256_file
from device_agents.home import SHA256, Home, checked_name
from device_agents.locks import acquire

_PREVIOUS = ".previous"


@dataclass(frozen=True)
class Deployed:
    """A name and the artifacts it leads to. previous: None where only one was ever installed."""

    name: str
    current: Optional[str]
    previous: Optional[str]


@contextlib.contextmanager
def alone(home: Home) -> Iterator[None]:
    """One process at a time changes what is deployed. Raises AgentError when another one does.

    Removing what no name leads to must not meet an install that has not switched yet.
    """
    lock = acquire(home.path / "install.lock")
    if lock is None:
        raise AgentError("another install is running", "try again", exit_status=1)
    try:
        yield
    finally:
        lock.release()


def checked_deployment(name: str) -> str:
    """The same name when it is one of a deployment. Raises AgentError."""
    if checked_name(name, "a deployment").endswith(_PREVIOUS):
        raise AgentError(f"{name!r} ends in {_PREVIOUS}", "give the deployment another name")
    return name


def deployed(home: Home, name: str) -> Deployed:
    """What ``name`` leads to now."""
    return Deployed(name, _target(home, name), _target(home, name + _PREVIOUS))


def names(home: Home) -> List[str]:
    """Every name that leads to an artifact, sorted."""
    found = [path.name for path in home.deployed.iterdir() if path.is_symlink()]
    return sorted(n for n in found if not n.startswith(".") and not n.endswith(_PREVIOUS))


def switch(home: Home, name: str, artifact_id: str) -> Optional[str]:
    """Returns what the name led to before. Cut at any point it leads to one of the two."""
    before = deployed(home, name).current
    if before is not None and before != artifact_id:
        _link(home, name + _PREVIOUS, before)
    _link(home, name, artifact_id)
    return before


def rollback(home: Home, name: str, artifact_id: str) -> Deployed:
    """Put ``name`` back from ``artifact_id`` to the version kept before it; that one is kept too.

    Asked twice, because the first answer was lost, it goes back once. Raises AgentError.
    """
    now = deployed(home, checked_deployment(name))
    if now.current is not None and now.current != artifact_id:
        return now
    if now.current is None or now.previous is None or now.previous == now.current:
        raise AgentError(
            f"{name!r} has no version before {artifact_id[:12]} here",
            "fleetcut deploy the version that is wanted",
            exit_status=1,
        )
    if not is_whole(home, now.previous):
        raise AgentError(
            f"{name!r}: the version before, {now.previous[:12]}, is damaged",
            "fleetcut deploy the version that is wanted",
            exit_status=1,
        )
    _link(home, name, now.previous)
    _link(home, name + _PREVIOUS, now.current)
    return deployed(home, name)


def is_whole(home: Home, artifact_id: str) -> bool:
    """Every file is there, has its hash and its mode, and the manifest has the artifact's id."""
    folder = home.artifact(artifact_id)
    try:
        manifest = home.manifest(artifact_id)
        return sha256_file(folder / "manifest.json") == artifact_id and all(
            not (folder / entry.name).is_symlink()
            and sha256_file(folder / entry.name) == entry.sha256
            and os.access(str(folder / entry.name), os.X_OK) >= entry.executable
            for entry in manifest.files
        )
    except (OSError, CodecError):
        return False


def tidy(home: Home) -> None:
    """Remove what no name leads to, and what a cut left behind. Only while ``alone``."""
    kept: Set[str] = set()
    for path in list(home.deployed.iterdir()):
        if path.name.startswith("."):
            path.unlink()  # of a process that died between making a link and renaming it
        elif path.is_symlink():
            kept.add(_target(home, path.name) or "")
    needed = _named_by(home, kept)
    for folder in list(home.artifacts.iterdir()):
        if folder.name in kept:
            continue
        doomed = _named_by(home, {folder.name}) - needed
        remove_tree(folder)
        # A session that is kept here may be about to measure what it names.
        for sha256 in doomed - needed_by_sessions(home) if doomed else ():
            with contextlib.suppress(FileNotFoundError):
                home.blob(sha256).unlink()


def _named_by(home: Home, artifact_ids: Set[str]) -> Set[str]:
    """Hashes of the manifests and of the files that they name, as far as they can be read."""
    found: Set[str] = set()
    for artifact_id in artifact_ids:
        if not SHA256.fullmatch(artifact_id):
            continue
        with contextlib.suppress(OSError, CodecError):
            manifest: Manifest = home.manifest(artifact_id)
            found |= {artifact_id, *(entry.sha256 for entry in manifest.files)}
    return found


def _target(home: Home, name: str) -> Optional[str]:
    """The artifact that a link leads to; None when it leads to none."""
    try:
        found = os.path.basename(os.readlink(str(home.deployed / name)))
    except OSError:
        return None
    return found if SHA256.fullmatch(found) else None


def _link(home: Home, name: str, artifact_id: str) -> None:
    temporary = home.deployed / f".{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    os.symlink(f"../artifacts/{artifact_id}", str(temporary))
    os.replace(str(temporary), str(home.deployed / name))
    fsync_folder(home.deployed)
