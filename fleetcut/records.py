"""fleetcut results and export: which runs are stored, as a table, as JSON or as a dataset folder.

Input: a store and what a person asks of it. Output: an exit status; a Console says the rest.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fleetcut.console import Console
from fleetcut.verbs import DONE
from harness.errors import SelectionError
from harness.export import export as export_dataset
from harness.statistics import Summary, summarise
from harness.store import Query, Store, StoreAddress

_LAST_NS = 2**63 - 1
"""No database counts further: a later time, of the year 2262, is no time at which a run was."""

_SPANS_S = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def query_of(
    campaigns: Sequence[str] | None,
    boards: Sequence[str] | None,
    models: Sequence[str] | None,
    since: str | None,
    *,
    valid: bool | None = None,
) -> Query:
    """What the arguments ask for. Raises SelectionError for a time that cannot be read."""
    return Query(
        None if campaigns is None else tuple(campaigns),
        None if boards is None else tuple(boards),
        None if models is None else tuple(models),
        valid,
        None if since is None else since_unix_ns(since, datetime.datetime.now(datetime.UTC)),
    )


def since_unix_ns(text: str, now: datetime.datetime) -> int:
    """A span before ``now`` (36h, 7d), or a time of ISO 8601, local where it names no zone.

    Raises SelectionError.
    """
    span = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    try:
        if span is not None:
            when = now - datetime.timedelta(seconds=int(span[1]) * _SPANS_S[span[2]])
        else:
            when = datetime.datetime.fromisoformat(text)
        return max(0, min(round(when.timestamp()) * 1_000_000_000, _LAST_NS))
    except (ValueError, OverflowError):
        raise SelectionError(
            f"--since {text!r} is no time. Next: write 36h, 7d, 2031-05-04 or 2031-05-04T22:00"
        ) from None


def results(
    console: Console,
    store_path: StoreAddress,
    query: Query,
    limit: int,
) -> int:
    """List stored runs, the newest last."""
    store = Store(store_path)
    try:
        rows = store.summaries_of(query, limit)
        records = store.records(row.run_id for row in rows)
    finally:
        store.close()
    said = {
        run_id: summarise(record.latency_ns)
        for run_id, record in records.items()
        if record.latency_ns
    }
    columns = ("run", "campaign", "board", "model", "runtime", "median", "p90", "p99", "outcome")
    console.table(
        "Runs",
        columns,
        [
            (
                row.run_id[:12],
                row.campaign_id,
                row.board_id + (" (simulated)" if row.simulated else ""),
                row.model_name,
                row.runtime,
                *_percentiles(said.get(row.run_id)),
                row.outcome,
            )
            for row in rows
        ],
    )
    latency = {run_id: asdict(summary) for run_id, summary in said.items()}
    category = {i: record.error.category for i, record in records.items() if record.error}
    console.answer(
        [
            {
                **asdict(row),
                "latency": latency.get(row.run_id),
                "category": category.get(row.run_id),
            }
            for row in rows
        ]
    )
    console.next(f"fleetcut export --store {store_path} --out dataset")
    return DONE


def _percentiles(summary: Summary | None) -> tuple[str, str, str]:
    """Median, p90 and p99 for a person; a dash for what the samples do not support."""
    if summary is None:
        return "–", "–", "–"
    tails = ["–" if ns is None else f"{ns / 1e6:.3f} ms" for ns in (summary.p90_ns, summary.p99_ns)]
    return f"{summary.p50_ns / 1e6:.3f} ms", tails[0], tails[1]


def export(
    console: Console,
    store_path: StoreAddress,
    folder: Path,
    query: Query,
    *,
    include_invalid: bool,
) -> int:
    """Write the dataset folder that the compiler reads."""
    store = Store(store_path)
    try:
        done = export_dataset(store, folder, include_invalid=include_invalid, query=query)
    finally:
        store.close()
    simulated = ", simulated" if done.simulated else ""
    console.line(f"{done.n_runs} runs{simulated} in {folder} (sha256 {done.sha256[:12]})")
    console.answer(
        {"folder": str(folder), "n_runs": done.n_runs, "sha256": done.sha256,
         "simulated": done.simulated}
    )  # fmt: skip
    console.next(f"fleetcut compile recipe.yaml --dataset {folder}")
    return DONE
