"""Put an artifact on boards: pushed by hash, checked there, switched at once; and put it back.

Input: an artifact folder, who may sign, and an AgentSession. Output: LocalArtifact, Deployment.
Raises BoardError, and ArtifactFolderError for a folder that is not what its manifest says.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from device_agents.contract import (
    ArtifactFile,
    CodecError,
    Manifest,
    Release,
    canonical_json,
    decode,
)
from device_agents.contract.codec import from_plain, parse_object
from harness.errors import HarnessError, StableBoardError
from harness.session import AgentSession
from harness.signing import (
    SIGNATURE_FILES,
    Signed,
    check,
    hash_of,
    signed_artifact,
    signed_signers,
)

_MANIFEST = "manifest.json"
_RELEASE = "release.json"
_BESIDE = {_MANIFEST, _RELEASE, *SIGNATURE_FILES}

ANY_MACHINE = "any"
_32_BIT = ("armv7l", "aarch64")


class ArtifactFolderError(HarnessError):
    """An artifact's folder is not what its manifest says: it is not deployed."""


@dataclass(frozen=True)
class LocalArtifact:
    """A checked artifact folder. artifact_id: SHA-256 of manifest.json's bytes.

    signed: the signatures beside the manifest, which ``vouched`` checks; None: unsigned.
    """

    folder: Path
    artifact_id: str
    manifest: Manifest
    signed: Signed | None = None

    @property
    def name(self) -> str:
        """What it is deployed as: as its signer says, else by network, kind and precision."""
        if self.signed is not None:
            return self.signed.statement.name
        return default_name(self.manifest)

    def blobs(self) -> dict[str, Path]:
        """sha256 → file of everything a board needs, the manifest under the artifact's id."""
        files = {entry.sha256: self.folder / entry.name for entry in self.manifest.files}
        return {**files, self.artifact_id: self.folder / _MANIFEST}


@dataclass(frozen=True)
class Deployment:
    """An artifact that a board now runs under its name. previous: the one that it ran before.

    signer: whom the board found to have signed it; None where it could ask nobody: ``note``.
    """

    board_id: str
    name: str
    artifact_id: str
    previous: str | None
    signer: str | None
    note: str


def default_name(manifest: Manifest) -> str:
    """Network, kind and, where it is not fp32, precision."""
    precision = manifest.target.precision
    suffix = "" if precision == "fp32" else f"-{precision}"
    # A network of the user's own is called module:factory, which is no file's name.
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{manifest.network}-{manifest.kind}{suffix}")


def load_artifact(folder: Path) -> LocalArtifact:
    """Read and check every byte of an artifact. Raises ArtifactFolderError naming the file.

    SigningError where signatures lie there that cannot be read; ``vouched`` checks whose they are.
    """
    path = folder / _MANIFEST
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
    artifact_id = hashlib.sha256(data).hexdigest()
    for entry in manifest.files:
        _check_file(folder / entry.name, entry)
    for name in sorted(_names(folder) - {entry.name for entry in manifest.files} - _BESIDE):
        raise _differs(folder / name, "is not in the manifest")
    if len(folder.name) == 64 and folder.name != artifact_id:
        raise ArtifactFolderError(
            f"{folder}: its manifest belongs to {artifact_id[:12]}. Next: fleetcut compile"
        )
    return LocalArtifact(folder, artifact_id, manifest, signed_artifact(folder))


def _check_file(path: Path, entry: ArtifactFile) -> None:
    if path.is_symlink():
        raise _differs(path, "is a link")
    try:
        found = hash_of(path)
    except OSError as error:
        raise ArtifactFolderError(
            f"{path}: cannot be read ({error.strerror}). Next: fleetcut compile"
        ) from None
    if found != entry.sha256:
        raise _differs(path, f"has hash {found[:12]}, its manifest says {entry.sha256[:12]}")
    if path.stat().st_size != entry.size_bytes:
        raise _differs(path, f"has not the {entry.size_bytes} bytes that its manifest says")


def _names(folder: Path) -> set[str]:
    """Every file, link and empty folder below it, relative."""
    found = set()
    for top, folders, files in os.walk(folder):
        links = [name for name in folders if Path(top, name).is_symlink()]
        if not folders and not files and Path(top) != folder:
            found.add(Path(top).relative_to(folder).as_posix())
        found |= {Path(top, name).relative_to(folder).as_posix() for name in (*files, *links)}
    return found


def _differs(path: Path, fact: str) -> ArtifactFolderError:
    return ArtifactFolderError(
        f"{path}: {fact}. Next: fleetcut compile makes it anew; do not ship this copy"
    )


def fits(artifact: LocalArtifact, machine: str | None) -> bool:
    """Whether it is built for such a board. machine: as ``uname -m`` prints it, None: not known."""
    built_for = artifact.manifest.target.machine
    # A 64-bit kernel below a 32-bit system says aarch64, and runs armv7l.
    return machine is None or built_for in (ANY_MACHINE, machine) or (built_for, machine) == _32_BIT


def require_names_apart(artifacts: Sequence[LocalArtifact]) -> None:
    """Raises ArtifactFolderError where two artifacts would take each other's place on a board."""
    for one, other in combinations(artifacts, 2):
        machines = {a.manifest.target.machine for a in (one, other)}
        if one.name == other.name and (len(machines) == 1 or ANY_MACHINE in machines):
            raise ArtifactFolderError(
                f"{one.folder} and {other.folder} are both called {one.name!r}. Next: deploy one "
                "of them, or give each a name of its own: fleetcut sign ARTIFACT --name NAME"
            )


def vouched(artifacts: Sequence[LocalArtifact], signers: Path | None) -> tuple[str | None, ...]:
    """Who signed each artifact; None throughout where no signers are configured.

    signers: an allowed_signers file. Raises SigningError for one that none of them signed.
    """
    if signers is None:
        return tuple(None for _ in artifacts)
    return tuple(check(a.folder, a.artifact_id, a.signed, signers) for a in artifacts)


def refuse_refused(artifact: LocalArtifact) -> None:
    """Raises ArtifactFolderError for an artifact that a board's proof did not pass.

    One that was never verified passes: it has to reach a board to be proven there.
    """
    path = artifact.folder / _RELEASE
    try:
        release = decode(Release, path.read_bytes())
    except FileNotFoundError:
        return
    except (OSError, CodecError) as error:
        raise ArtifactFolderError(f"{path}: {error}. Next: fleetcut verify") from None
    if release.state == "refused":
        reasons = "; ".join(f"{p.board_id}: {p.reason}" for p in release.proofs if p.reason)
        raise ArtifactFolderError(
            f"{artifact.folder}: was refused ({reasons}). Next: mend that and compile anew, or "
            "fleetcut verify where it is deployed already"
        )


def deploy(
    agent: AgentSession, artifacts: Sequence[LocalArtifact], signers: Path | None = None
) -> tuple[Deployment, ...]:
    """Push by hash, check on the board, switch; for each artifact that is built for the board.

    signers: the first ones that a board is given are those it asks for from then on.
    Raises BoardError; a board that fails keeps what it had. Asked again, it goes on.
    """
    artifacts = _fitting(agent, artifacts)
    blobs = {k: v for artifact in artifacts for k, v in artifact.blobs().items()}
    for artifact in artifacts:
        if artifact.signed is not None:
            blobs |= artifact.signed.blobs()
    change = None
    if signers is not None:
        change = signed_signers(signers)
        blobs |= {hash_of(signers): signers, **(change.blobs() if change else {})}
    agent.push_blobs(blobs)
    if signers is not None:
        agent.pin_signers(hash_of(signers), change.hashes() if change else ())
    deployments = []
    for artifact in artifacts:
        hashes = artifact.signed.hashes() if artifact.signed else ()
        previous, signer, note = agent.install(artifact.artifact_id, artifact.name, hashes)
        board_id = agent.board.board_id
        deployments.append(
            Deployment(board_id, artifact.name, artifact.artifact_id, previous, signer, note)
        )
    return tuple(deployments)


def _fitting(agent: AgentSession, artifacts: Sequence[LocalArtifact]) -> list[LocalArtifact]:
    """Raises StableBoardError where none of them is built for the board."""
    built_for = {artifact.manifest.target.machine for artifact in artifacts}
    if built_for <= {ANY_MACHINE}:
        return list(artifacts)
    machine = agent.probe().machine
    found = [artifact for artifact in artifacts if fits(artifact, machine)]
    if not found:
        raise StableBoardError(
            agent.board.board_id,
            f"is {machine}, and these artifacts are built for {', '.join(sorted(built_for))}",
            "compile for a target of that machine, or leave the board out",
        )
    return found


def roll_back(agent: AgentSession, name: str, artifact_id: str | None = None) -> str | None:
    """Put ``name`` back to the version before. Returns the id that runs now.

    artifact_id: only away from this one; a board that runs another is left as it is.
    None where the board has nothing of that name.
    """
    now = {found.name: found for found in agent.deployed()}.get(name)
    if now is None or now.current is None:
        return None
    return agent.rollback(artifact_id or now.current, name).current
