"""From a work folder and the store to the report: what was compiled, beside what was measured.

Input: the folders that compile, measure and verify left. Output: report.html and report.json.
"""

from __future__ import annotations

import datetime
import json
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.clusters import DeviceClusters
from compiler.errors import CompilerError
from compiler.work import read_json
from device_agents.contract import MeasurementRecord, Release, decode
from fleetcut import __version__
from fleetcut.console import Console
from fleetcut.verbs import DONE
from harness import report_schema as schema
from harness.deploy import LocalArtifact, load_artifact
from harness.inventory import Board, load_inventory
from harness.report import write_report
from harness.statistics import median_interval_ns, median_ns
from harness.store import Store, StoreAddress, StoredRun

NS_PER_MS = 1e6
MAX_TIMELINE_STATES = 400
"""Points of one board's curve: a page shows no more, and a night holds a million."""


@dataclass(frozen=True)
class Compiled:
    """What compile left in its work folder."""

    work: Path
    overview: Mapping[str, Any]
    clusters: DeviceClusters

    def facts(self, *parts: str) -> Any:
        return read_json(self.work.joinpath(*parts))


def report(
    console: Console, work: Path, store_path: StoreAddress, inventory_path: Path, out: Path
) -> int:
    """The verb: assemble and write the page."""
    store = Store(store_path)
    try:
        document = assemble(work, store, load_inventory(inventory_path).boards)
    finally:
        store.close()
    page = write_report(out, document)
    console.line(f"Report: {page}")
    console.answer({"page": str(page), "summary": asdict(document.summary)})
    console.next(f"open {page}")
    return DONE


def assemble(
    work: Path, store: Store, boards: Sequence[Board], *, wall_s: float | None = None
) -> schema.Report:
    """The whole document. Raises CompilerError where compile has not finished in ``work``.

    wall_s: of the whole job; None gives the time from the first measured run to the last.
    """
    compiled = Compiled(
        work,
        read_json(work / "compiled.json"),
        DeviceClusters.from_json(_text(work / "clusters.json")),
    )
    if compiled.overview.get("mode") == "switchable":
        raise CompilerError(
            f"{work}: holds a switchable network, and this report sets one shape beside the dense "
            f"one. Next: read {work}/switchable/*.json, or fleetcut results --campaign "
            f"{compiled.overview['campaign_ids'][-1]}"
        )
    runs = list(store.runs(compiled.overview["campaign_ids"]))
    final = read_json(work / "proposals" / "final" / "models.json")
    times_ns = [run.record.started_unix_ns for run in runs] or [0]
    first_ns, last_ns = min(times_ns), max(times_ns)
    measured = _measured_ms(runs, final)
    networks = tuple(
        _network(compiled, name, measured, boards) for name in compiled.overview["networks"]
    )
    artifacts = tuple(
        _artifact(folder, compiled.overview) for folder in sorted((work / "artifacts").glob("*/"))
    )
    planted = _planted(boards)
    simulated = any(b.simulated for b in boards) or any(r.record.simulated for r in runs)
    return schema.Report(
        title=f"{compiled.overview['name']}: one network for the whole fleet",
        simulated=simulated,
        provenance=schema.Provenance(
            fleetcut_version=__version__,
            machine=f"{platform.node()}, {platform.machine()}, {platform.system()}",
            seed=int(compiled.overview["seed"]),
            started=_iso(first_ns),
            wall_s=(last_ns - first_ns) / 1e9 if wall_s is None else wall_s,
        ),
        summary=_summary(networks, compiled, boards, planted),
        networks=networks,
        boards=tuple(_board(compiled, board, measured, planted) for board in boards),
        artifacts=artifacts,
        timelines=_timelines(runs, boards),
        failures=_failures(runs),
        notes=tuple(compiled.overview["notes"]),
    )


Latencies = Mapping[tuple[str, str, str], MeasurementRecord]
"""(board_id, network, "dense" or "pruned") → the record of the final campaign."""


def _measured_ms(runs: Iterable[StoredRun], final: Mapping[str, Any]) -> Latencies:
    """Of each board's repeats the lower median, as the surrogates' training data are made."""
    found: dict[tuple[str, str, str], list[MeasurementRecord]] = defaultdict(list)
    for run in runs:
        spec = run.record.spec
        facts = final["models"].get(spec.model_sha256)
        if spec.campaign_id == final["campaign_id"] and facts and _valid(run.record):
            found[spec.board_id, facts["network"], facts["role"]].append(run.record)
    return {
        cell: sorted(records, key=lambda r: median_ns(r.latency_ns))[(len(records) - 1) // 2]
        for cell, records in found.items()
    }


def _valid(record: MeasurementRecord) -> bool:
    return record.verdict is not None and record.verdict.valid


def _mean_ms(measured: Latencies, boards: Sequence[Board], network: str, role: str) -> float | None:
    """Mean over the boards that gave both numbers, so that dense and pruned compare alike."""
    both = [
        b.board_id
        for b in boards
        if (b.board_id, network, "dense") in measured
        and (b.board_id, network, "pruned") in measured
    ]
    values = [median_ns(measured[b, network, role].latency_ns) / NS_PER_MS for b in both]
    return statistics.fmean(values) if values else None


def _network(
    compiled: Compiled, name: str, measured: Latencies, boards: Sequence[Board]
) -> schema.Network:
    dense, pruned = (
        compiled.facts("dense", f"{name}.json"),
        compiled.facts("pruned", f"{name}.json"),
    )
    search = compiled.facts("plans", f"{name}.search.json")
    dense_ms = _mean_ms(measured, boards, name, "dense")
    pruned_ms = _mean_ms(measured, boards, name, "pruned")
    return schema.Network(
        name=name,
        accuracy_dense=dense["accuracy"],
        accuracy_pruned=pruned["accuracy"],
        macs_dense=dense["macs"],
        macs_pruned=pruned["macs"],
        dense_mean_ms=dense_ms,
        pruned_mean_ms=pruned_ms,
        predicted_mean_ms=search["predicted_fleet_ms"],
        speedup=dense_ms / pruned_ms if dense_ms and pruned_ms else None,
        uniform_predicted_ms=search["uniform_fleet_ms"],
        groups=tuple(schema.WidthGroup(**group) for group in search["groups"]),
        surrogates=tuple(
            schema.SurrogateFit(
                **{**fit, "points": tuple(schema.HeldOutPoint(**p) for p in fit["points"])}
            )
            for fit in compiled.facts("surrogates", f"{name}.json")
        ),
        costs=_costs(compiled, name),
        elites=_elites(compiled, name),
        search_history=tuple(schema.SearchPoint(**point) for point in search["history"]),
        objective=search["objective"]["name"],
        slo_ms=search["objective"]["slo_ms"],
        contenders=_contenders(search),
    )


def _contenders(search: Mapping[str, Any]) -> tuple[schema.Contender, ...]:
    shapes = {"dense": search["dense"], "found by the search": search["chosen"]}
    fields = ("mean_ms", "p95_ms", "slo_share", "objective_ms", "macs")
    return tuple(
        schema.Contender(name, **{field: facts[field] for field in fields})
        for name, facts in (shapes | search["baselines"]).items()
    )


def _costs(compiled: Compiled, name: str) -> tuple[schema.CostFit, ...]:
    """Of energy and memory what was recorded; nothing in folders from before it was fitted."""
    if not (compiled.work / "surrogates" / f"{name}.costs.json").exists():
        return ()
    facts = compiled.facts("surrogates", f"{name}.costs.json")
    return tuple(schema.CostFit(**fit) for fit in facts if "missing" not in fit)


def _elites(compiled: Compiled, name: str) -> tuple[schema.EliteFit, ...]:
    """Of each round and cluster; nothing where no round was asked for."""
    if not (compiled.work / "plans" / f"{name}.elites.json").exists():
        return ()
    errors: dict[tuple[int, str], list[float]] = defaultdict(list)
    for fact in compiled.facts("plans", f"{name}.elites.json"):
        predicted = fact["predicted_ms_by_cluster"]
        for cluster, ms in fact["measured_ms_by_cluster"].items():
            errors[fact["round"], cluster].append(abs(predicted[cluster] / ms - 1))
    return tuple(
        schema.EliteFit(number, cluster, len(of), statistics.fmean(of), max(of))
        for (number, cluster), of in sorted(errors.items())
    )


def _summary(
    networks: Sequence[schema.Network],
    compiled: Compiled,
    boards: Sequence[Board],
    planted: Mapping[str, str],
) -> schema.Summary:
    dense_ms = _mean([n.dense_mean_ms for n in networks])
    pruned_ms = _mean([n.pruned_mean_ms for n in networks])
    mapes = [f.heldout_mape for n in networks for f in n.surrogates]
    return schema.Summary(
        boards=len(boards),
        clusters=len(compiled.clusters.representatives_),
        planted_clusters=len(set(planted.values())) or None,
        surrogate_mape=_mean(mapes),
        dense_mean_ms=dense_ms,
        pruned_mean_ms=pruned_ms,
        speedup=dense_ms / pruned_ms if dense_ms and pruned_ms else None,
        predicted_mean_ms=_mean([n.predicted_mean_ms for n in networks]),
        accuracy_dense=_mean([n.accuracy_dense for n in networks]),
        accuracy_pruned=_mean([n.accuracy_pruned for n in networks]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, None as soon as one value is missing: a mean over the rest would flatter."""
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _board(
    compiled: Compiled, board: Board, measured: Latencies, planted: Mapping[str, str]
) -> schema.BoardReport:
    clusters = compiled.clusters
    cluster = dict(zip(clusters.board_ids_, clusters.labels_.tolist(), strict=True)).get(
        board.board_id
    )
    return schema.BoardReport(
        board_id=board.board_id,
        model=board.model,
        cluster=cluster,
        planted=planted.get(board.board_id),
        representative=board.board_id in clusters.representatives_.values(),
        outlier=board.board_id in clusters.outliers_,
        anchor_ratio=compiled.facts("anchor_ratios.json").get(board.board_id),
        latencies=tuple(
            _board_latency(compiled, board.board_id, cluster, name, measured)
            for name in compiled.overview["networks"]
        ),
    )


def _board_latency(
    compiled: Compiled, board_id: str, cluster: str | None, network: str, measured: Latencies
) -> schema.BoardLatency:
    dense = measured.get((board_id, network, "dense"))
    pruned = measured.get((board_id, network, "pruned"))
    search = compiled.facts("plans", f"{network}.search.json")
    dense_ms, pruned_ms = _ms(dense), _ms(pruned)
    return schema.BoardLatency(
        network=network,
        dense_ms=dense_ms,
        dense_ci_ms=_interval_ms(dense),
        pruned_ms=pruned_ms,
        pruned_ci_ms=_interval_ms(pruned),
        predicted_ms=dict(search["predicted_ms_by_cluster"]).get(cluster or ""),
        speedup=dense_ms / pruned_ms if dense_ms and pruned_ms else None,
    )


def _ms(record: MeasurementRecord | None) -> float | None:
    return median_ns(record.latency_ns) / NS_PER_MS if record else None


def _interval_ms(record: MeasurementRecord | None) -> tuple[float, float] | None:
    interval = median_interval_ns(record.latency_ns) if record else None
    return (interval[0] / NS_PER_MS, interval[1] / NS_PER_MS) if interval else None


def _artifact(folder: Path, overview: Mapping[str, Any]) -> schema.ArtifactReport:
    artifact: LocalArtifact = load_artifact(folder)
    manifest = artifact.manifest
    # The prediction is of the runtime that the surrogates were measured with.
    predicted = manifest.predicted_runtime == manifest.target.runtime
    release_path = folder / "release.json"
    release = decode(Release, release_path.read_bytes()) if release_path.exists() else None
    return schema.ArtifactReport(
        artifact_id=artifact.artifact_id,
        network=manifest.network,
        kind=manifest.kind,
        target=manifest.target.name,
        precision=manifest.target.precision,
        accuracy=manifest.accuracy,
        recommended_ms=tuple(
            (str(entry["cluster"]), float(entry["median_ms"]))
            for entry in overview.get("recommended", ())
            if entry["artifact_id"] == artifact.artifact_id
        ),
        state="not verified" if release is None else release.state,  # type: ignore[arg-type]
        size_bytes=sum(entry.size_bytes for entry in manifest.files),
        max_abs_err=manifest.max_abs_err,
        proofs=tuple(
            schema.Proof(
                board_id=p.board_id,
                cluster=p.cluster,
                passed=p.passed,
                measured_ms=p.measured_ms,
                predicted_ms=p.predicted_ms if predicted else None,
                max_abs_err=p.max_abs_err,
                reason=p.reason,
            )
            for p in (release.proofs if release else ())
        ),
    )


def _timelines(runs: Sequence[StoredRun], boards: Sequence[Board]) -> tuple[schema.Timeline, ...]:
    if not runs:
        return ()
    start_ns = min(run.record.started_unix_ns for run in runs)
    by_board: dict[str, list[StoredRun]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: r.record.started_unix_ns):
        by_board[run.record.spec.board_id].append(run)
    return tuple(
        _timeline(board.board_id, by_board[board.board_id], start_ns)
        for board in boards
        if by_board[board.board_id]
    )


def _timeline(board_id: str, runs: Sequence[StoredRun], start_ns: int) -> schema.Timeline:
    states, latencies = [], []
    for run in runs:
        record = run.record
        at_s = (record.started_unix_ns - start_ns) / 1e9
        for state in record.states:
            freq_khz, effective_khz = state.freq_khz(), state.effective_freq_khz
            states.append(
                schema.StatePoint(
                    t_s=at_s + (state.monotonic_ns - record.states[0].monotonic_ns) / 1e9,
                    temp_c=state.temp_c(),
                    freq_mhz=freq_khz / 1e3 if freq_khz is not None else None,
                    effective_freq_mhz=effective_khz / 1e3 if effective_khz is not None else None,
                    battery_pct=state.battery_pct,
                )
            )
        if record.latency_ns:
            ms = median_ns(record.latency_ns) / NS_PER_MS
            latencies.append(schema.LatencyPoint(t_s=at_s, ms=ms, model=run.model_name))
    thinning = max(1, -(-len(states) // MAX_TIMELINE_STATES))
    return schema.Timeline(board_id, tuple(states[::thinning]), tuple(latencies))


def _failures(runs: Sequence[StoredRun]) -> tuple[schema.Failure, ...]:
    return tuple(
        schema.Failure(
            run.record.spec.board_id,
            f"{run.model_name}: {run.record.error.fact}",
            run.record.error.next_step,
        )
        for run in runs
        if run.record.error is not None
    )


def _planted(boards: Sequence[Board]) -> dict[str, str]:
    """What was planted in a simulated rack, from beside its keys; nothing for real boards."""
    for board in boards:
        path = (
            board.key_file.parent / "planted.json" if board.simulated and board.key_file else None
        )
        if path is not None and path.exists():
            return {str(k): str(v) for k, v in json.loads(path.read_text()).items()}
    return {}


def _iso(unix_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(unix_ns // 1_000_000_000, datetime.UTC)
    return moment.isoformat(timespec="seconds")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
