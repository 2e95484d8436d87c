"""Run a deployed artifact on boards against its golden output, and say whether it may ship.

Input: artifacts, boards of every cluster, an Executor. Output: a Release for each artifact, also
as release.json beside its manifest.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from device_agents.contract import (
    BoardProof,
    GoldenCheck,
    MeasurementRecord,
    Release,
    RunSpec,
    StoppingRule,
    encode,
)
from harness.deploy import LocalArtifact
from harness.errors import BoardError
from harness.executor import Executor, Work
from harness.inventory import Board
from harness.statistics import median_ns
from harness.store import Store

RUNTIME_OF_KIND = {"onnx": "ort", "tflite": "tflite", "executable": "executable"}

PROOF_TRIES = 3
"""Of a proof whose latency cannot be trusted: the clock moved, the board was throttled."""

Cell = tuple[str, str]
"""(artifact_id, board_id)."""


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
    cells = {(a.artifact_id, b.board_id): (a, b) for a in artifacts for b in boards}
    specs = {cell: proof_spec(a, b, campaign_id, stopping) for cell, (a, b) in cells.items()}
    records: dict[Cell, MeasurementRecord] = {}
    failures: dict[str, BoardError | None] = {}
    for attempt in range(PROOF_TRIES):
        wanted = {
            cell: replace(spec, repeat=attempt)
            for cell, spec in specs.items()
            if not _clear(records.get(cell)) and not failures.get(cell[1])
        }
        if wanted:
            work = _work(campaign_id, artifacts, boards, wanted)
            failures |= {o.board_id: o.failure for o in executor.measure(work)}
            found = store.records(spec.run_id for spec in wanted.values())
            records |= {c: found[s.run_id] for c, s in wanted.items() if s.run_id in found}
    releases = []
    for artifact in artifacts:
        proofs = tuple(
            _proof(
                artifact,
                board,
                cluster_of.get(board.board_id),
                specs[artifact.artifact_id, board.board_id].run_id,
                records.get((artifact.artifact_id, board.board_id)),
                failures.get(board.board_id),
            )
            for board in boards
        )
        state = "released" if proofs and all(p.passed for p in proofs) else "refused"
        release = Release(artifact.artifact_id, state, proofs)
        write_release(artifact, release)
        releases.append(release)
    return tuple(releases)


def _clear(record: MeasurementRecord | None) -> bool:
    """A valid run or an error: either says what it has to say. An invalid run says neither."""
    return record is not None and (record.verdict is None or record.verdict.valid)


def _work(
    campaign_id: str,
    artifacts: tuple[LocalArtifact, ...],
    boards: tuple[Board, ...],
    specs: Mapping[Cell, RunSpec],
) -> Work:
    return Work(
        campaign_id=campaign_id,
        boards=boards,
        specs=tuple(specs.values()),
        blobs={k: v for artifact in artifacts for k, v in artifact.blobs().items()},
        model_names={a.manifest.file(a.manifest.model_file).sha256: a.name for a in artifacts},
    )


def _proof(
    artifact: LocalArtifact,
    board: Board,
    cluster: str | None,
    first_run_id: str,
    record: MeasurementRecord | None,
    failure: BoardError | None,
) -> BoardProof:
    predicted = dict(artifact.manifest.predicted_ms_by_cluster).get(cluster or "")
    error = record.max_abs_err if record else None
    reason = _refusal(record, artifact.manifest.atol, failure)
    return BoardProof(
        board_id=board.board_id,
        cluster=cluster,
        run_id=record.run_id if record else first_run_id,
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
