"""Put an artifact on boards: pushed by hash, checked there, switched at once.

Input: an artifact folder and an AgentSession. Output: LocalArtifact, Deployment.
Raises BoardError, and ArtifactFolderError for a folder that is not what its manifest says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from device_agents.contract import (
    CodecError,
    Manifest,
    Release,
    canonical_json,
    decode,
)
from device_agents.contract.codec import from_plain, parse_object
from harness.errors import HarnessError
from harness.session import AgentSession


class ArtifactFolderError(HarnessError):
    """An artifact's folder is not what its manifest says: it is not deployed."""


@dataclass(frozen=True)
class LocalArtifact:
    """A checked artifact folder. artifact_id: SHA-256 of manifest.json's bytes."""

    folder: Path
    artifact_id: str
    manifest: Manifest

    @property
    def name(self) -> str:
        """What it is deployed as: one link on a board for each network and kind."""
        # A network of the user's own is called module:factory, which is no file's name.
        return re.sub(r"[^A-Za-z0-9._-]", "-", f"{self.manifest.network}-{self.manifest.kind}")

    def blobs(self) -> dict[str, Path]:
        """sha256 → file of everything a board needs, the manifest under the artifact's id."""
        files = {entry.sha256: self.folder / entry.name for entry in self.manifest.files}
        return {**files, self.artifact_id: self.folder / "manifest.json"}


@dataclass(frozen=True)
class Deployment:
    """An artifact that a board now runs under its name. previous: the one that it ran before."""

    board_id: str
    artifact_id: str
    previous: str | None


def load_artifact(folder: Path) -> LocalArtifact:
    """Read and check every byte of an artifact. Raises ArtifactFolderError naming the file."""
    path = folder / "manifest.json"
    try:
        data = path.read_bytes()
        manifest = from_plain(Manifest, parse_object(data))
    except OSError as error:
        raise ArtifactFolderError(
            f"{path}: cannot be read ({error.strerror}). Next: fleetcut compile"
        ) from None
    except CodecError as error:
        raise ArtifactFolderError(f"{path}: {error}. Next: fleetcut compile") from None
    if canonical_json(manifest) != data:
        raise ArtifactFolderError(f"{path}: is not in canonical form. Next: fleetcut compile")
    artifact = LocalArtifact(folder, hashlib.sha256(data).hexdigest(), manifest)
    for entry in manifest.files:
        _check_file(folder / entry.name, entry.sha256)
    if len(folder.name) == 64 and folder.name != artifact.artifact_id:
        raise ArtifactFolderError(
            f"{folder}: its manifest belongs to {artifact.artifact_id[:12]}. Next: fleetcut compile"
        )
    return artifact


def _check_file(path: Path, sha256: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactFolderError(
            f"{path}: cannot be read ({error.strerror}). Next: fleetcut compile"
        ) from None
    if found != sha256:
        raise ArtifactFolderError(
            f"{path}: has hash {found[:12]}, its manifest says {sha256[:12]}. "
            "Next: fleetcut compile makes it anew; do not ship this copy"
        )


def refuse_refused(artifact: LocalArtifact) -> None:
    """Raises ArtifactFolderError for an artifact that a board's proof did not pass.

    One that was never verified passes: it has to reach a board to be proven there.
    """
    path = artifact.folder / "release.json"
    try:
        release = decode(Release, path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, CodecError) as error:
        raise ArtifactFolderError(f"{path}: {error}. Next: fleetcut verify") from None
    if release.state != "released":
        reasons = "; ".join(f"{p.board_id}: {p.reason}" for p in release.proofs if p.reason)
        raise ArtifactFolderError(
            f"{artifact.folder}: was refused ({reasons}). Next: mend that and compile anew, or "
            "fleetcut verify where it is deployed already"
        )


def deploy(agent: AgentSession, artifacts: Sequence[LocalArtifact]) -> tuple[Deployment, ...]:
    """Push by hash, check on the board, switch; for each artifact in turn.

    Raises BoardError; a board that fails keeps what it had.
    """
    agent.push_blobs({k: v for artifact in artifacts for k, v in artifact.blobs().items()})
    deployments = []
    for artifact in artifacts:
        previous = agent.install(artifact.artifact_id, artifact.name)
        deployments.append(Deployment(agent.board.board_id, artifact.artifact_id, previous))
    return tuple(deployments)
