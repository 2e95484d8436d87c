"""The report's document: frozen dataclasses that are the schema of report.json.

Input: values (checked when built: pydantic's ValidationError), or JSON text. Output: a Report.
Text that does not fit raises DocumentError: the file, the path inside it and what to do.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from harness.documents import dotted
from harness.errors import DocumentError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Ms = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Interval = tuple[Ms, Ms]


@dataclass(frozen=True, config=STRICT)
class Provenance:
    """Where the numbers come from. started: ISO 8601; wall_s: the whole job's duration."""

    fleetcut_version: str
    machine: str
    seed: int
    started: str
    wall_s: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Summary:
    """The fleet in one line. *_mean_ms: mean over boards and networks; mape: a fraction."""

    boards: Count
    clusters: Count
    planted_clusters: Count | None = None
    surrogate_mape: Annotated[float, Field(ge=0)] | None = None
    dense_mean_ms: Ms | None = None
    pruned_mean_ms: Ms | None = None
    speedup: Annotated[float, Field(gt=0)] | None = None
    predicted_mean_ms: Ms | None = None
    accuracy_dense: Fraction | None = None
    accuracy_pruned: Fraction | None = None


@dataclass(frozen=True, config=STRICT)
class WidthGroup:
    """One group of coupled channels: how many there were, how many were kept."""

    name: str
    dense_width: Annotated[int, Field(ge=1)]
    pruned_width: Count


@dataclass(frozen=True, config=STRICT)
class HeldOutPoint:
    """One measurement the surrogate never saw, and its prediction with interval."""

    measured_ms: Ms
    predicted_ms: Ms
    lower_ms: Annotated[float, Field(ge=0)] | None = None
    upper_ms: Ms | None = None


@dataclass(frozen=True, config=STRICT)
class SurrogateFit:
    """One cluster's latency surrogate. heldout_mape: a fraction (0.05 = 5 %)."""

    cluster: str
    family: str
    n_train: Count
    n_heldout: Count
    heldout_mape: Annotated[float, Field(ge=0)] | None
    points: tuple[HeldOutPoint, ...] = ()


@dataclass(frozen=True, config=STRICT)
class CostFit:
    """One cluster's surrogate of what a shape costs besides time; heldout_mape: a fraction.

    energy_mj: of one inference, the whole board's. peak_rss_mb: of the measuring process.
    """

    quantity: Literal["energy_mj", "peak_rss_mb"]
    cluster: str
    family: str
    n_train: Count
    n_heldout: Count
    heldout_mape: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class EliteFit:
    """A round's best shapes on one cluster: predicted before they were measured. Errors: fractions.

    round: from 1. n_shapes: those that the cluster's representative answered.
    """

    round: Count
    cluster: str
    n_shapes: Count
    mape: Annotated[float, Field(ge=0)]
    worst: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class SearchPoint:
    """The best predicted fleet-mean latency after so many evaluations."""

    evaluations: Count
    best_ms: Ms


@dataclass(frozen=True, config=STRICT)
class Contender:
    """One shape as predicted for the fleet. slo_share: of boards within the SLO, None without one.

    objective_ms: what the search lowers, with its penalty for doubt.
    """

    name: str
    mean_ms: Ms
    p95_ms: Ms
    objective_ms: Ms
    macs: Count
    slo_share: Fraction | None = None


@dataclass(frozen=True, config=STRICT)
class Network:
    """One network before and after. uniform_predicted_ms: same width everywhere, same proxy.

    objective: "mean", "p95" or "slo". slo_ms: None without an SLO. contenders: dense, the pruned
    one, then the baselines of the same search budget.
    """

    name: str
    accuracy_dense: Fraction | None = None
    accuracy_pruned: Fraction | None = None
    macs_dense: Count | None = None
    macs_pruned: Count | None = None
    dense_mean_ms: Ms | None = None
    pruned_mean_ms: Ms | None = None
    predicted_mean_ms: Ms | None = None
    speedup: Annotated[float, Field(gt=0)] | None = None
    uniform_predicted_ms: Ms | None = None
    groups: tuple[WidthGroup, ...] = ()
    surrogates: tuple[SurrogateFit, ...] = ()
    costs: tuple[CostFit, ...] = ()
    elites: tuple[EliteFit, ...] = ()
    search_history: tuple[SearchPoint, ...] = ()
    objective: Literal["mean", "p95", "slo"] = "mean"
    slo_ms: Ms | None = None
    contenders: tuple[Contender, ...] = ()


@dataclass(frozen=True, config=STRICT)
class BoardLatency:
    """One network on one board. *_ci_ms: (low, high) of the confidence interval."""

    network: str
    dense_ms: Ms | None = None
    dense_ci_ms: Interval | None = None
    pruned_ms: Ms | None = None
    pruned_ci_ms: Interval | None = None
    predicted_ms: Ms | None = None
    speedup: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, config=STRICT)
class BoardReport:
    """One board. anchor_ratio: median latency relative to the fleet's median board (1.0)."""

    board_id: str
    model: str
    cluster: str | None = None
    planted: str | None = None
    representative: bool = False
    outlier: bool = False
    anchor_ratio: Annotated[float, Field(gt=0)] | None = None
    latencies: tuple[BoardLatency, ...] = ()


@dataclass(frozen=True, config=STRICT)
class Proof:
    """What one board showed when it ran the artifact; reason says why it failed."""

    board_id: str
    cluster: str | None
    passed: bool
    measured_ms: Ms | None = None
    predicted_ms: Ms | None = None
    max_abs_err: Annotated[float, Field(ge=0)] | None = None
    reason: str | None = None


@dataclass(frozen=True, config=STRICT)
class ArtifactReport:
    """One artifact. max_abs_err: against the PyTorch network, on the workstation.

    recommended_ms: (cluster, ms) where it was the fastest of its network's forms.
    """

    artifact_id: str
    network: str
    kind: str
    target: str
    state: Literal["released", "partial", "refused", "not verified"]
    size_bytes: Count | None = None
    max_abs_err: Annotated[float, Field(ge=0)] | None = None
    proofs: tuple[Proof, ...] = ()
    precision: str = "fp32"
    accuracy: Fraction | None = None
    recommended_ms: tuple[tuple[str, Ms], ...] = ()


@dataclass(frozen=True, config=STRICT)
class StatePoint:
    """A board's state at one moment. t_s: from the campaign's start; None is unreadable."""

    t_s: float
    temp_c: float | None = None
    freq_mhz: Annotated[float, Field(ge=0)] | None = None
    effective_freq_mhz: Annotated[float, Field(ge=0)] | None = None
    battery_pct: float | None = None


@dataclass(frozen=True, config=STRICT)
class LatencyPoint:
    """One run's latency at one moment; the page shows it relative to the model's own median."""

    t_s: float
    ms: Ms
    model: str


@dataclass(frozen=True, config=STRICT)
class Timeline:
    """One board over the campaign."""

    board_id: str
    states: tuple[StatePoint, ...] = ()
    latencies: tuple[LatencyPoint, ...] = ()


@dataclass(frozen=True, config=STRICT)
class Failure:
    """What went wrong on a board, and what to do about it."""

    board_id: str
    what: str
    next_step: str


@dataclass(frozen=True, config=STRICT)
class Report:
    """Everything the page shows. simulated: the boards were not hardware."""

    title: str
    simulated: bool
    provenance: Provenance
    summary: Summary
    networks: tuple[Network, ...] = ()
    boards: tuple[BoardReport, ...] = ()
    artifacts: tuple[ArtifactReport, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    schema_version: Literal[1] = 1


_ADAPTER: TypeAdapter[Report] = TypeAdapter(Report)
_NEXT = "Next: write it again with `fleetcut report`"


def parse_report(text: str | bytes, source: Path) -> Report:
    """The report in ``text``; ``source`` is named in errors. Raises DocumentError."""
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = dotted(first["loc"])
        fact = f"{where}: {str(first['msg'])[:1].lower()}{str(first['msg'])[1:]}"
        raise DocumentError(source, None, fact, _NEXT) from None


def dump_report(report: Report) -> str:
    """The text of report.json. The report was checked when it was built."""
    return json.dumps(dataclasses.asdict(report), indent=1, allow_nan=False) + "\n"
