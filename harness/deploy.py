"""Put an artifact on boards, run it there against its golden output, and say whether it may ship.

Input: an artifact folder and boards of every cluster. Output: Release, beside the manifest.
Raises BoardError, and ArtifactFolderError for a folder that is not what its manifest says.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_agents.contract import (
    BoardProof,
    CodecError,
    GoldenCheck,
    Manifest,
    MeasurementRecord,
    Release,
    RunSpec,
    StoppingRule,
    canonical_json,
    encode,
)
from device_agents.contract.codec import from_plain, parse_object
from harness.errors import BoardError, HarnessError
from harness.executor import Executor, Work
from harness.inventory import Board
from harness.session import AgentSession
from harness.statistics import median_ns
from harness.store import Store

RUNTIME_OF_KIND = {"onnx": "ort", "tflite": "tflite", "executable": "executable"}


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
        return f"{self.manifest.network}-{self.manifest.kind}"

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


def deploy(agent: AgentSession, artifacts: Sequence[LocalArtifact]) -> tuple[Deployment, ...]:
    """Push by hash, check on the board, switch; for each artifact in turn.

    Raises BoardError; a board that fails keeps what it had.
    """
    deployments = []
    for artifact in artifacts:
        agent.push_blobs(artifact.blobs())
        previous = agent.install(artifact.artifact_id, artifact.name)
        deployments.append(Deployment(agent.board.board_id, artifact.artifact_id, previous))
    return tuple(deployments)


def proof_spec(
    artifact: LocalArtifact, board: Board, campaign_id: str, stopping: StoppingRule
) -> RunSpec:
    """The run that proves an installed artifact: golden input in, golden output out, timed."""
    manifest = artifact.manifest
    return RunSpec(
        campaign_id=campaign_id,
        board_id=board.board_id,
        model_sha256=manifest.file(manifest.model_file).sha256,
        runtime=RUNTIME_OF_KIND[manifest.kind],
        precision=manifest.target.precision,
        threads=manifest.target.threads,
        stopping=stopping,
        artifact_id=artifact.artifact_id,
        golden=GoldenCheck(
            input_sha256=manifest.file(manifest.golden_input).sha256,
            output_sha256=manifest.file(manifest.golden_output).sha256,
            atol=manifest.atol,
        ),
    )


def verify(
    artifacts: tuple[LocalArtifact, ...],
    boards: tuple[Board, ...],
    cluster_of: Mapping[str, str],
    executor: Executor,
    store: Store,
    campaign_id: str,
    stopping: StoppingRule,
) -> tuple[Release, ...]:
    """Run every artifact on every board; write and return one Release an artifact.

    cluster_of: board_id → cluster label. store: the one that the executor writes to.
    """
    specs = {
        (artifact.artifact_id, board.board_id): proof_spec(artifact, board, campaign_id, stopping)
        for artifact in artifacts
        for board in boards
    }
    work = Work(
        campaign_id=campaign_id,
        boards=boards,
        specs=tuple(specs.values()),
        blobs={k: v for artifact in artifacts for k, v in artifact.blobs().items()},
        model_names={a.manifest.file(a.manifest.model_file).sha256: a.name for a in artifacts},
    )
    failures = {o.board_id: o.failure for o in executor.measure(work)}
    records_of = store.records(spec.run_id for spec in specs.values())
    releases = []
    for artifact in artifacts:
        proofs = tuple(
            _proof(
                artifact,
                board,
                cluster_of.get(board.board_id),
                specs[artifact.artifact_id, board.board_id].run_id,
                records_of,
                failures.get(board.board_id),
            )
            for board in boards
        )
        state = "released" if proofs and all(p.passed for p in proofs) else "refused"
        release = Release(artifact.artifact_id, state, proofs)
        write_release(artifact, release)
        releases.append(release)
    return tuple(releases)


def _proof(
    artifact: LocalArtifact,
    board: Board,
    cluster: str | None,
    run_id: str,
    records_of: Mapping[str, MeasurementRecord],
    failure: BoardError | None,
) -> BoardProof:
    record = records_of.get(run_id)
    predicted = dict(artifact.manifest.predicted_ms_by_cluster).get(cluster or "")
    error = record.max_abs_err if record else None
    reason = _refusal(record, artifact.manifest.atol, failure)
    return BoardProof(
        board_id=board.board_id,
        cluster=cluster,
        run_id=run_id,
        passed=reason is None,
        measured_ms=median_ns(record.latency_ns) / 1e6 if record and record.latency_ns else None,
        predicted_ms=predicted,
        max_abs_err=error,
        simulated=board.simulated or bool(record and record.simulated),
        reason=reason,
    )


def _refusal(
    record: MeasurementRecord | None, atol: float, failure: BoardError | None
) -> str | None:
    """Why this run is no proof; None when it is one."""
    if record is None:
        return str(failure) if failure else "no record came back"
    if record.error is not None:
        return f"{record.error.kind}: {record.error.fact}"
    if record.max_abs_err is None:
        return "the golden output was not compared"
    if not record.max_abs_err <= atol:
        return f"deviates {record.max_abs_err:.3g} from the golden output, {atol:.3g} is allowed"
    if record.verdict is not None and not record.verdict.valid:
        return "invalid: " + ", ".join(reason.value for reason in record.verdict.reasons)
    return None


def write_release(artifact: LocalArtifact, release: Release) -> Path:
    """release.json beside the manifest, replaced as a whole."""
    path = artifact.folder / "release.json"
    handle, temporary = tempfile.mkstemp(prefix=".release-", dir=artifact.folder)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(encode(release) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path
