"""Put an artifact in its place and switch a name to it, whole or not at all.

Input: an artifact's id, whose manifest and files were pushed as blobs. Output: the previous id.
deployed/NAME and deployed/NAME.previous are symlinks, switched by rename; what neither of any
name leads to is removed, so each name keeps its last two versions.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Optional, Set, Tuple

from device_agents.contract import ArtifactFile, CodecError, Manifest, canonical_json
from device_agents.contract.codec import from_plain, parse_object
from device_agents.errors import AgentError
from device_agents.files import copy_flushed, fsync_folder, remove_tree, sha256_file, write_whole
from device_agents.home import SHA256, Home, checked_name, checked_sha256
from device_agents.locks import acquire

_PREVIOUS = ".previous"
_PUSH_AGAIN = "push the artifact's files again"


def install(home: Home, artifact_id: str, name: str) -> Optional[str]:
    """Returns the id that ``name`` led to before, None the first time. Raises AgentError.

    Cut at any point it leaves the name on its old or its new version, and may be run again.
    """
    checked_sha256(artifact_id)
    if checked_name(name, "a deployment").endswith(_PREVIOUS):
        raise AgentError(f"{name!r} ends in {_PREVIOUS}", "give the deployment another name")
    # Removing what no name leads to must not meet another install that has not switched yet.
    lock = acquire(home.path / "install.lock")
    if lock is None:
        raise AgentError("another install is running", "try again", exit_status=1)
    try:
        _build(home, artifact_id)
        previous = _target(home, name)
        if previous is not None and previous != artifact_id:
            _link(home, name + _PREVIOUS, previous)
        _link(home, name, artifact_id)
        _remove_unreferenced(home)
    finally:
        lock.release()
    return previous


def _build(home: Home, artifact_id: str) -> None:
    manifest, data = _manifest(home, artifact_id)
    folder = home.artifact(artifact_id)
    if folder.is_dir() and _is_whole(folder, manifest, data):
        return
    staging = home.artifacts / f".staging-{artifact_id[:16]}"
    shutil.rmtree(str(staging), ignore_errors=True)
    staging.mkdir(mode=0o700)
    try:
        for entry in manifest.files:
            _place(home, entry, staging)
    except OSError as error:
        raise AgentError(
            f"artifact {artifact_id[:12]} cannot be written ({error.strerror})",
            "free space on the board",
            exit_status=1,
        ) from None
    write_whole(staging / "manifest.json", data)
    _fsync_below(staging)
    remove_tree(folder)
    os.replace(str(staging), str(folder))
    fsync_folder(home.artifacts)


def _manifest(home: Home, artifact_id: str) -> Tuple[Manifest, bytes]:
    """The manifest's blob, else that of the installed artifact: both have the id as their hash."""
    for path in (home.blob(artifact_id), home.artifact(artifact_id) / "manifest.json"):
        if path.is_file() and sha256_file(path) == artifact_id:
            break
    else:
        raise AgentError(
            f"the manifest {artifact_id[:12]} is not on the board", _PUSH_AGAIN, exit_status=1
        )
    data = path.read_bytes()
    try:
        manifest = from_plain(Manifest, parse_object(data), "manifest")
    except CodecError as error:
        raise AgentError(f"manifest {artifact_id[:12]}: {error}", "fleetcut compile") from None
    if canonical_json(manifest) != data:
        raise AgentError(f"manifest {artifact_id[:12]} is not canonical", "fleetcut compile")
    if any(entry.name == "manifest.json" for entry in manifest.files):
        raise AgentError(f"manifest {artifact_id[:12]} names itself", "fleetcut compile")
    return manifest, data


def _place(home: Home, entry: ArtifactFile, staging: Path) -> None:
    blob = home.blob(entry.sha256)
    if not blob.is_file():
        raise AgentError(f"{entry.name} is not on the board", _PUSH_AGAIN, exit_status=1)
    target = staging / entry.name
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_flushed(blob, target, 0o755 if entry.executable else 0o644)
    # The copy is hashed, not the blob: it is what will run.
    if sha256_file(target) != entry.sha256 or target.stat().st_size != entry.size_bytes:
        blob.unlink()
        raise AgentError(
            f"{entry.name} does not have the hash and size of its manifest",
            _PUSH_AGAIN,
            exit_status=1,
        )


def _is_whole(folder: Path, manifest: Manifest, data: bytes) -> bool:
    try:
        return (folder / "manifest.json").read_bytes() == data and all(
            sha256_file(folder / entry.name) == entry.sha256
            and os.access(str(folder / entry.name), os.X_OK) >= entry.executable
            for entry in manifest.files
        )
    except OSError:
        return False


def _fsync_below(folder: Path) -> None:
    for path, _, _ in os.walk(str(folder)):
        fsync_folder(Path(path))


def _target(home: Home, name: str) -> Optional[str]:
    """The artifact that a name leads to; None when it leads to none."""
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


def _remove_unreferenced(home: Home) -> None:
    referenced: Set[Optional[str]] = {
        _target(home, path.name) for path in home.deployed.iterdir() if path.is_symlink()
    }
    for folder in home.artifacts.iterdir():
        if folder.name not in referenced:
            remove_tree(folder)
