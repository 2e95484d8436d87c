"""Measured runs as the compiler reads them; the only place where nanoseconds become milliseconds.

Input: an exported dataset folder (runs.parquet, dataset.json). Output: Runs, and from them a
Dataset: features, one measured quantity and boards, one row a board and model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from compiler.errors import CompilerError

FloatArray = NDArray[np.float64]

NS_PER_MS = 1e6
BYTES_PER_MB = 1e6
UJ_PER_MJ = 1e3

Quantity = Literal["latency_ms", "energy_mj", "peak_rss_mb"]
"""What a run tells of a model, unit last. latency_ms: the run's median. energy_mj: of one
inference, the whole board's draw times the mean latency. peak_rss_mb: the measuring process's
largest resident set, in 10⁶ bytes, the runtime and the interpreter included."""
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

COLUMNS = (
    "run_id", "campaign_id", "board_id", "model_sha256", "model_name", "runtime", "precision",
    "threads", "repeat", "valid", "reasons", "p50_ns", "latency_ns", "temp_c_before", "temp_c_max",
    "freq_khz", "effective_freq_khz", "governor", "throttled", "board_model", "cores",
    "runtime_version", "simulated",
)  # fmt: skip
"""What is read of runs.parquet; docs/architecture.md lists all of its columns."""

OPTIONAL_COLUMNS = (
    "power_mw", "peak_rss_bytes", "battery_pct", "effective_freq_khz_after", "isa_features",
    "machine",
)  # fmt: skip
"""Read where they stand: exports from before these were recorded have none of them."""


class DatasetError(CompilerError):
    """A dataset that cannot be used; the message names the file, the fact and the next step."""


@dataclass(frozen=True)
class Run:
    """One measured run. latency_ms: every timed inference in order; p50_ms: their median.

    reasons: why the run does not count, empty where valid. None is what the board could not read.
    effective_freq_khz: measured before the load, effective_freq_khz_after once it was over.
    power_mw: the whole board's draw, median over the timed loop. battery_pct: before the load.
    isa_features: of the CPU, as /proc/cpuinfo names them. machine: as ``uname -m`` prints it.
    """

    run_id: str
    campaign_id: str
    board_id: str
    model_sha256: str
    model_name: str
    runtime: str
    precision: str
    threads: int
    repeat: int
    valid: bool
    reasons: tuple[str, ...]
    p50_ms: float
    latency_ms: tuple[float, ...]
    temp_c_before: float | None
    temp_c_max: float | None
    freq_khz: int | None
    effective_freq_khz: int | None
    governor: str | None
    throttled: bool | None
    board_model: str | None
    cores: int | None
    runtime_version: str | None
    simulated: bool
    power_mw: float | None = None
    peak_rss_bytes: int | None = None
    battery_pct: float | None = None
    effective_freq_khz_after: int | None = None
    isa_features: tuple[str, ...] = ()
    machine: str | None = None

    def value(self, quantity: Quantity) -> float | None:
        """The quantity in its unit; None where the board could not read it."""
        if quantity == "latency_ms":
            return self.p50_ms
        if quantity == "energy_mj":
            mean_ms = math.fsum(self.latency_ms) / len(self.latency_ms)
            return None if self.power_mw is None else self.power_mw * mean_ms / UJ_PER_MJ
        return None if self.peak_rss_bytes is None else self.peak_rss_bytes / BYTES_PER_MB


@dataclass(frozen=True)
class Runs:
    """The runs of one export, ordered by run_id. source_sha256: hash of runs.parquet."""

    runs: tuple[Run, ...]
    source: str
    source_sha256: str

    @property
    def board_ids(self) -> tuple[str, ...]:
        return tuple(sorted({run.board_id for run in self.runs}))

    @property
    def simulated(self) -> bool:
        """True as soon as one run comes from a board that is not hardware."""
        return any(run.simulated for run in self.runs)

    def select(
        self,
        *,
        campaign_ids: Iterable[str] | None = None,
        board_ids: Iterable[str] | None = None,
        model_names: Iterable[str] | None = None,
        runtime: str | None = None,
        threads: int | None = None,
    ) -> Runs:
        """The runs that fit everything asked; None asks nothing. Raises DatasetError if none."""
        campaigns, boards, models = (
            None if wanted is None else frozenset(wanted)
            for wanted in (campaign_ids, board_ids, model_names)
        )
        kept = tuple(
            run
            for run in self.runs
            if (campaigns is None or run.campaign_id in campaigns)
            and (boards is None or run.board_id in boards)
            and (models is None or run.model_name in models)
            and runtime in (None, run.runtime)
            and threads in (None, run.threads)
        )
        if not kept:
            asked = {
                "campaigns": campaigns and sorted(campaigns),
                "boards": boards and sorted(boards),
                "models": models and sorted(models),
                "runtime": runtime,
                "threads": threads,
            }
            facts = ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None)
            raise DatasetError(
                f"{self.source}: none of its {len(self.runs)} runs has {facts}. "
                "Next: fleetcut results"
            )
        return Runs(kept, self.source, self.source_sha256)


@dataclass(frozen=True)
class Dataset:
    """What a surrogate learns from; the arrays cannot be written to.

    x: (n_runs, n_features), finite. y: (n_runs,), > 0, in the unit that ends quantity's name.
    board_ids: (n_runs,). feature_names: (n_features,), distinct. source_sha256: hash of the
    runs.parquet it came from. Raises DatasetError where these do not hold.
    """

    x: FloatArray
    y: FloatArray
    board_ids: tuple[str, ...]
    feature_names: tuple[str, ...]
    source_sha256: str
    quantity: Quantity = "latency_ms"

    def __post_init__(self) -> None:
        x = np.array(self.x, dtype=np.float64)
        y = np.array(self.y, dtype=np.float64)
        if x.ndim != 2 or y.shape != (len(x),) or len(self.board_ids) != len(x):
            raise DatasetError(
                f"dataset: x {x.shape}, {self.quantity} {y.shape} and {len(self.board_ids)} boards "
                "do not belong together"
            )
        if not len(x) or not x.shape[1]:
            raise DatasetError("dataset: no run, or no feature")
        if self.quantity not in QUANTITIES:
            raise DatasetError(f"dataset: {self.quantity!r} is none of {', '.join(QUANTITIES)}")
        if len(set(self.feature_names)) != x.shape[1] or len(self.feature_names) != x.shape[1]:
            raise DatasetError(
                f"dataset: {x.shape[1]} features have the names {self.feature_names}"
            )
        if not np.isfinite(x).all():
            row, column = np.argwhere(~np.isfinite(x))[0]
            raise DatasetError(f"dataset: {self.feature_names[column]} of run {row} is not finite")
        if not (np.isfinite(y) & (y > 0)).all():
            raise DatasetError(f"dataset: a {self.quantity} is not a positive number")
        x.flags.writeable = False
        y.flags.writeable = False
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)

    @property
    def y_ms(self) -> FloatArray:
        """y, where it is a latency. Raises DatasetError where it is not."""
        if self.quantity != "latency_ms":
            raise DatasetError(f"dataset: holds {self.quantity}, not latency")
        return self.y


def read_runs(folder: Path, *, include_invalid: bool = False) -> Runs:
    """The valid runs of an exported folder; with include_invalid every run.

    Refuses, with DatasetError: a missing or unreadable file, two files that do not belong
    together, a missing column, no run, a latency that is not positive, and runs of one runtime
    in several versions (a new version changes latency as a new board does, and nothing here
    models it: boards with other versions are another dataset).
    """
    path = folder / "runs.parquet"
    source_sha256 = _checked_sha256(folder)
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not a Parquet file: {error}. {_EXPORT_AGAIN}") from None
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise DatasetError(f"{path}: lacks the columns {', '.join(missing)}. {_EXPORT_AGAIN}")
    frame = frame.reindex(columns=[*COLUMNS, *OPTIONAL_COLUMNS])
    rows = frame.sort_values("run_id").to_dict("records")
    runs = tuple(_run(path, row) for row in rows)
    if not include_invalid:
        runs = tuple(run for run in runs if run.valid)
    if not runs:
        raise DatasetError(
            f"{path}: none of its {len(rows)} runs is valid. Next: fleetcut results"
            if rows
            else f"{path}: holds no run. {_EXPORT_AGAIN}"
        )
    _refuse_mixed_versions(path, runs)
    return Runs(runs, str(path), source_sha256)


_EXPORT_AGAIN = "Next: fleetcut export"


def _checked_sha256(folder: Path) -> str:
    """Hash of runs.parquet, equal to what dataset.json says of it."""
    try:
        provenance = json.loads((folder / "dataset.json").read_bytes())
        recorded = provenance["runs_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{folder / 'dataset.json'}: cannot be read ({type(error).__name__}: {error}). "
            f"{_EXPORT_AGAIN}"
        ) from None
    try:
        found = hashlib.sha256((folder / "runs.parquet").read_bytes()).hexdigest()
    except OSError as error:
        raise DatasetError(
            f"{folder / 'runs.parquet'}: {error.strerror}. {_EXPORT_AGAIN}"
        ) from None
    if found != recorded:
        raise DatasetError(
            f"{folder / 'runs.parquet'}: its hash begins {found[:12]}, dataset.json says "
            f"{str(recorded)[:12]}: the two are not of one export. {_EXPORT_AGAIN}"
        )
    return found


def _run(path: Path, row: Mapping[str, Any]) -> Run:
    latency_ns = np.asarray(row["latency_ns"], dtype=np.float64)
    p50_ns = float(row["p50_ns"])
    if not len(latency_ns) or not (latency_ns > 0).all() or not p50_ns > 0:
        raise DatasetError(
            f"{path}: run {row['run_id']} on {row['board_id']} holds a latency that is not > 0 ns. "
            f"{_EXPORT_AGAIN}"
        )
    return Run(
        run_id=str(row["run_id"]),
        campaign_id=str(row["campaign_id"]),
        board_id=str(row["board_id"]),
        model_sha256=str(row["model_sha256"]),
        model_name=str(row["model_name"]),
        runtime=str(row["runtime"]),
        precision=str(row["precision"]),
        threads=int(row["threads"]),
        repeat=int(row["repeat"]),
        valid=bool(row["valid"]),
        reasons=tuple(reason for reason in str(row["reasons"] or "").split(",") if reason),
        p50_ms=p50_ns / NS_PER_MS,
        latency_ms=tuple(float(ms) for ms in latency_ns / NS_PER_MS),
        temp_c_before=_maybe(row["temp_c_before"], float),
        temp_c_max=_maybe(row["temp_c_max"], float),
        freq_khz=_maybe(row["freq_khz"], int),
        effective_freq_khz=_maybe(row["effective_freq_khz"], int),
        governor=_maybe(row["governor"], str),
        throttled=_maybe(row["throttled"], bool),
        board_model=_maybe(row["board_model"], str),
        cores=_maybe(row["cores"], int),
        runtime_version=_maybe(row["runtime_version"], str),
        simulated=bool(row["simulated"]),
        power_mw=_maybe(row["power_mw"], float),
        peak_rss_bytes=_maybe(row["peak_rss_bytes"], int),
        battery_pct=_maybe(row["battery_pct"], float),
        effective_freq_khz_after=_maybe(row["effective_freq_khz_after"], int),
        isa_features=tuple(filter(None, (_maybe(row["isa_features"], str) or "").split(","))),
        machine=_maybe(row["machine"], str),
    )


def _maybe(value: Any, kind: type[Any]) -> Any:
    """The value as its type, or None: pandas stores a missing number as NaN."""
    missing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    return None if missing else kind(value)


def _refuse_mixed_versions(path: Path, runs: Sequence[Run]) -> None:
    boards_by_version: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        versions = boards_by_version.setdefault(run.runtime, {})
        versions.setdefault(run.runtime_version or "unknown", set()).add(run.board_id)
    for runtime, versions in sorted(boards_by_version.items()):
        if len(versions) > 1:
            facts = "; ".join(
                f"{version} on {', '.join(sorted(boards))}"
                for version, boards in sorted(versions.items())
            )
            raise DatasetError(
                f"{path}: runs of {runtime} in {len(versions)} versions: {facts}. "
                "Next: provision the boards alike, or export each version's campaign by itself"
            )


def measured_quantities(runs: Runs, board_ids: Iterable[str]) -> tuple[Quantity, ...]:
    """What each of these boards recorded in one run at least, in QUANTITIES' order."""
    boards = frozenset(board_ids)
    told = {
        (run.board_id, quantity)
        for run in runs.runs
        if run.board_id in boards
        for quantity in QUANTITIES
        if run.value(quantity) is not None
    }
    return tuple(q for q in QUANTITIES if all((board, q) in told for board in boards))


def lower_median(values: Sequence[float]) -> float:
    """Of two the smaller: what disturbs a run slows it, so the mean of both would not do.

    values: any unit, at least one.
    """
    return float(sorted(values)[(len(values) - 1) // 2])


def make_dataset(
    runs: Runs,
    x_by_model: Mapping[str, FloatArray],
    feature_names: Sequence[str],
    board_ids: Iterable[str] | None = None,
    *,
    quantity: Quantity = "latency_ms",
    min_measured: float = 0.8,
) -> Dataset:
    """One row for each board and model in x_by_model: the lower median over its repeats.

    Runs that could not read the quantity are left out (see measured_quantities).

    Runs of other models are left out. x_by_model: model_sha256 → (n_features,). board_ids: only
    these boards; None for all.
    min_measured: the fraction of the models, 0..1, that must have a run there: a few that timed
    out or throttled are no reason to stop. Raises DatasetError for fewer, for no run at all, and
    where the runs differ in runtime, precision or threads, which no feature here tells apart.
    """
    boards = None if board_ids is None else frozenset(board_ids)
    rows = [
        run
        for run in runs.runs
        if run.model_sha256 in x_by_model and (boards is None or run.board_id in boards)
    ]
    told = [(run, value) for run in rows if (value := run.value(quantity)) is not None]
    where = "any board" if boards is None else ", ".join(sorted(boards))
    measured = {run.model_sha256 for run, _ in told}
    if rows and not told:
        raise DatasetError(
            f"{runs.source}: none of {len(rows)} runs on {where} recorded {quantity}. "
            f"Next: {_RECORDED_BY[quantity]}"
        )
    if not told or len(measured) < min_measured * len(x_by_model):
        raise DatasetError(
            f"{runs.source}: {len(measured)} of {len(x_by_model)} models have a run on {where}"
            f"{'' if quantity == 'latency_ms' else ' with ' + quantity}, "
            f"{min_measured:.0%} are needed. Next: measure the proposed campaign again"
        )
    cells = sorted({(run.runtime, run.precision, run.threads) for run in rows})
    if len(cells) > 1:
        raise DatasetError(
            f"{runs.source}: mixes {', '.join(f'{r} {p} {t} threads' for r, p, t in cells)}. "
            "Next: select one runtime, precision and number of threads"
        )
    repeats: dict[tuple[str, str], list[float]] = {}
    for run, value in told:
        repeats.setdefault((run.board_id, run.model_sha256), []).append(value)
    return Dataset(
        x=np.stack([np.asarray(x_by_model[model], dtype=np.float64) for _, model in repeats]),
        y=np.asarray([lower_median(values) for values in repeats.values()]),
        board_ids=tuple(board for board, _ in repeats),
        feature_names=tuple(feature_names),
        source_sha256=runs.source_sha256,
        quantity=quantity,
    )


_RECORDED_BY: Mapping[Quantity, str] = {
    "energy_mj": "measure on boards with a power sensor; fleetcut probe shows what a board is",
    "peak_rss_mb": "measure again: agents record it where /proc/self/clear_refs can be written",
}
