"""Put an artifact in its place and switch a name to it, whole or not at all.

Input: an artifact's id, whose manifest and files were pushed as blobs, and who vouches for it.
Output: what the name led to before, and the signer. Raises AgentError.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

from device_agents import deployments
from device_agents.contract import ArtifactFile, CodecError, Manifest, canonical_json
from device_agents.contract.codec import from_plain, parse_object
from device_agents.errors import AgentError
from device_agents.files import copy_flushed, fsync_folder, remove_tree, sha256_file, write_whole
from device_agents.home import Home, checked_sha256
from device_agents.sysfs import Root
from device_agents.trust import Proof, admit, forget, remember

_PUSH_AGAIN = "push the artifact's files again"


@dataclass(frozen=True)
class Installed:
    """previous: what the name led to before, None the first time. signer: who vouched for the
    artifact; None where nobody could be asked, and then ``note`` says why.
    """

    previous: Optional[str]
    signer: Optional[str]
    note: str


def install(
    home: Home, root: Root, artifact_id: str, name: str, proof: Optional[Proof] = None
) -> Installed:
    """Switch ``name`` to an artifact. Raises AgentError, and then nothing is switched.

    Cut at any point it leaves the name on its old or its new version, and may be run again.
    """
    checked_sha256(artifact_id)
    deployments.checked_deployment(name)
    with deployments.alone(home):
        manifest, data = _manifest(home, artifact_id)
        now = deployments.deployed(home, name)
        admitted = admit(home, root, data, name, now.current, proof)
        _build(home, artifact_id, manifest, data)
        remember(home, admitted)
        previous = deployments.switch(home, name, artifact_id)
        deployments.tidy(home)
        if proof is not None:
            forget(home, proof)
    return Installed(previous, admitted.signer, admitted.note)


def _build(home: Home, artifact_id: str, manifest: Manifest, data: bytes) -> None:
    folder = home.artifact(artifact_id)
    if deployments.is_whole(home, artifact_id):
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
    blob = home.blob(artifact_id)
    for path in (blob, home.artifact(artifact_id) / "manifest.json"):
        if path.is_file() and sha256_file(path) == artifact_id:
            break
    else:
        # Damaged it would count as present, and never be sent again.
        with contextlib.suppress(FileNotFoundError):
            blob.unlink()
        raise AgentError(
            f"the manifest {artifact_id[:12]} is not on the board, or damaged",
            _PUSH_AGAIN,
            exit_status=1,
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


def _fsync_below(folder: Path) -> None:
    for path, _, _ in os.walk(str(folder)):
        fsync_folder(Path(path))
