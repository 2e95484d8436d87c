"""Run a deployed artifact on boards against its golden output, and say whether it may ship.

Input: artifacts, boards of every cluster, an Executor. Output: proofs of each artifact, and the
Release that they earn, also as release.json beside its manifest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from device_agents.contract import (
    BoardProof,
    GoldenCheck,
    Manifest,
    MeasurementRecord,
    Reason,
    Release,
    RunSpec,
    StoppingRule,
    encode,
)
from harness.deploy import LocalArtifact, fits
from harness.errors import BoardError
from harness.executor import Executor, Work
from harness.files import write_whole
from harness.inventory import Board
from harness.statistics import median_interval_ns, median_ns
from harness.store import Store

LATENCY_SLACK = 0.25
"""How far above the predicted interval the median may lie, a fraction. A cluster's boards differ,
by 12 % on the phones of the literature, and the interval is that of its representative."""

PROOF_STOPPING = StoppingRule(samples_min=30, samples_max=100, max_seconds=3.0)
"""Of proofs on many boards: enough for an interval of the median, and a fleet is soon through."""

PROOF_TRIES = 3
"""Of a proof whose latency cannot be trusted: the clock moved, the board was throttled."""

NOTHING_KNOWN: Mapping[str, str] = MappingProxyType({})

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
        runtime=manifest.target.runtime,
        precision=manifest.target.precision,
        threads=manifest.target.threads,
        stopping=stopping,
        artifact_id=artifact.artifact_id,
        golden=GoldenCheck(
            input_sha256=manifest.file(manifest.golden_input).sha256,
            output_sha256=manifest.file(manifest.golden_output).sha256,
            atol=manifest.atol,
        ),
        # Load and warm-up beside the timed loop, which --seconds may have made long.
        timeout_s=60.0 + 2 * stopping.min_seconds,
    )


def one_of_each_cluster(
    boards: Sequence[Board], cluster_of: Mapping[str, str], representatives: Mapping[str, str]
) -> tuple[Board, ...]:
    """A board of every cluster: its representative where it is among them, else its first one.

    cluster_of: board_id → label. representatives: label → board_id. All boards where no cluster of
    any is known: then each has to speak for itself.
    """
    chosen: dict[str, Board] = {}
    for board in boards:
        label = cluster_of.get(board.board_id)
        if label is not None and (
            label not in chosen or representatives.get(label) == board.board_id
        ):
            chosen[label] = board
    return tuple(b for b in boards if b in chosen.values()) if chosen else tuple(boards)


def verify(
    artifacts: tuple[LocalArtifact, ...],
    boards: tuple[Board, ...],
    cluster_of: Mapping[str, str],
    executor: Executor,
    store: Store,
    campaign_id: str,
    stopping: StoppingRule,
    machine_of: Mapping[str, str] = NOTHING_KNOWN,
) -> dict[str, Release]:
    """Run every artifact on every board it is built for; write its Release.

    cluster_of: board_id → cluster label. store: the one that the executor writes to. machine_of:
    board_id → machine, where known. Returns artifact_id → Release; of an artifact that is built
    for none of the boards nothing.
    """
    proofs = prove(
        artifacts, boards, cluster_of, executor, store, campaign_id, stopping, machine_of
    )
    releases = {}
    for artifact in artifacts:
        found = proofs[artifact.artifact_id]
        if found:
            elsewhere = foreign_clusters(artifact, boards, cluster_of, machine_of)
            releases[artifact.artifact_id] = release_of(artifact, found, elsewhere)
            write_release(artifact, releases[artifact.artifact_id])
    return releases


def foreign_clusters(
    artifact: LocalArtifact,
    boards: Sequence[Board],
    cluster_of: Mapping[str, str],
    machine_of: Mapping[str, str],
) -> set[str]:
    """Clusters of boards that it is not built for, as far as their machines are known."""
    by_fit: dict[bool, set[str]] = {True: set(), False: set()}
    for board in boards:
        label = cluster_of.get(board.board_id)
        if label is not None and board.board_id in machine_of:
            by_fit[fits(artifact, machine_of[board.board_id])].add(label)
    return by_fit[False] - by_fit[True]


def release_of(
    artifact: LocalArtifact, proofs: Sequence[BoardProof], elsewhere: Collection[str] = ()
) -> Release:
    """What the proofs earn. A cluster is proven by one board that passed; not those elsewhere."""
    wanted = {label for label, _ in artifact.manifest.predicted_ms_by_cluster} - set(elsewhere)
    unproven = tuple(sorted(wanted - {p.cluster for p in proofs if p.passed}))
    state = Release.earned(tuple(proofs), unproven)
    return Release(artifact.artifact_id, state, tuple(proofs), unproven)


def prove(
    artifacts: tuple[LocalArtifact, ...],
    boards: tuple[Board, ...],
    cluster_of: Mapping[str, str],
    executor: Executor,
    store: Store,
    campaign_id: str,
    stopping: StoppingRule,
    machine_of: Mapping[str, str] = NOTHING_KNOWN,
) -> dict[str, tuple[BoardProof, ...]]:
    """artifact_id → a proof from every board it is built for, in their order. See ``verify``."""
    cells = {
        (a.artifact_id, b.board_id): (a, b)
        for a in artifacts
        for b in boards
        if fits(a, machine_of.get(b.board_id))
    }
    specs = {cell: proof_spec(a, b, campaign_id, stopping) for cell, (a, b) in cells.items()}
    records: dict[Cell, MeasurementRecord] = {}
    failures: dict[str, BoardError | None] = {}

    def proof(cell: Cell) -> BoardProof:
        artifact, board = cells[cell]
        label, failure = cluster_of.get(board.board_id), failures.get(board.board_id)
        return proof_of(artifact, board, label, specs[cell].run_id, records.get(cell), failure)

    def settled(cell: Cell) -> bool:
        # What slowed it may have passed; an error or a wrong output says what it has to say.
        slow = _slower(proof(cell), cells[cell][0].manifest) is not None
        return _clear(records.get(cell)) and not slow

    for attempt in range(PROOF_TRIES):
        wanted = {
            cell: replace(spec, repeat=attempt)
            for cell, spec in specs.items()
            if not settled(cell) and not failures.get(cell[1])
        }
        if wanted:
            work = _work(campaign_id, artifacts, boards, wanted)
            failures |= {o.board_id: o.failure for o in executor.measure(work)}
            found = store.records(spec.run_id for spec in wanted.values())
            for cell, spec in wanted.items():
                if spec.run_id in found:
                    records[cell] = _better(records.get(cell), found[spec.run_id])
    return {
        artifact.artifact_id: tuple(
            proof(cell) for cell in cells if cell[0] == artifact.artifact_id
        )
        for artifact in artifacts
    }


def _better(old: MeasurementRecord | None, new: MeasurementRecord) -> MeasurementRecord:
    """The newer one, unless both count and the older one was quicker."""
    both_count = old is not None and all(r.verdict and r.verdict.valid for r in (old, new))
    if old is not None and both_count and median_ns(old.latency_ns) < median_ns(new.latency_ns):
        return old
    return new


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


def proof_of(
    artifact: LocalArtifact,
    board: Board,
    cluster: str | None,
    first_run_id: str,
    record: MeasurementRecord | None,
    failure: BoardError | None,
) -> BoardProof:
    """What one run on one board proves. cluster: of the board, None where it is not known.

    record: None where none came back, and then failure says why, if that is known.
    """
    manifest = artifact.manifest
    proof = BoardProof(
        board_id=board.board_id,
        cluster=cluster,
        run_id=record.run_id if record else first_run_id,
        passed=False,
        measured_ms=median_ns(record.latency_ns) / 1e6 if record and record.latency_ns else None,
        predicted_ms=dict(manifest.predicted_ms_by_cluster).get(cluster or ""),
        max_abs_err=record.max_abs_err if record else None,
        simulated=board.simulated or bool(record and record.simulated),
        throttled=_throttled(record),
    )
    interval = median_interval_ns(record.latency_ns) if record else None
    if interval is not None:
        lower_ns, upper_ns = interval
        proof = replace(proof, measured_lower_ms=lower_ns / 1e6, measured_upper_ms=upper_ns / 1e6)
    for label, lower_ms, upper_ms in manifest.predicted_interval_ms_by_cluster:
        if label == cluster:
            proof = replace(proof, predicted_lower_ms=lower_ms, predicted_upper_ms=upper_ms)
    reason = _refusal(record, manifest.atol, failure) or _slower(proof, manifest)
    return replace(proof, passed=reason is None, reason=reason)


def _throttled(record: MeasurementRecord | None) -> bool | None:
    """Whether heat or power slowed the board while the artifact ran; None: it did not run."""
    if record is None or record.verdict is None:
        return None
    slowed = {Reason.THROTTLED, Reason.UNDER_VOLTAGE}
    return bool(slowed & set(record.verdict.reasons))


def _slower(proof: BoardProof, manifest: Manifest) -> str | None:
    """Where it is sure to be slower than predicted; of another runtime nothing was predicted."""
    upper_ms = proof.predicted_upper_ms
    surely_ms = proof.measured_lower_ms or proof.measured_ms
    if manifest.predicted_runtime != manifest.target.runtime or upper_ms is None:
        return None
    if surely_ms is None or surely_ms <= upper_ms * (1 + LATENCY_SLACK):
        return None
    return (
        f"takes {proof.measured_ms:.3g} ms, predicted for cluster {proof.cluster} are "
        f"{proof.predicted_lower_ms:.3g} to {upper_ms:.3g}, {LATENCY_SLACK:.0%} more are allowed"
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
    write_whole(path, (encode(release) + "\n").encode("utf-8"))
    return path
