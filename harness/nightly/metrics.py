"""A night as metrics for Prometheus: a file for node_exporter's textfile collector.

Input: a NightReport and counts of a Store. Output: FILE, replaced as a whole.
Names, base units and labels: https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from harness.errors import StoreError
from harness.nightly.outcomes import EXIT_STATUS, CellState, NightReport

RunCounts = Mapping[tuple[str, str, str], int]
"""(board_id, model_name, "valid", "invalid" or "failed") → runs stored so far."""

_CELL = ("campaign", "board", "model", "cell")


def write_metrics(path: Path, report: NightReport, counts: RunCounts) -> None:
    """Write the file; a scrape meets the old one or the new. Raises StoreError.

    The collector reads *.prom, and the file while it is written is none.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Night(report, counts))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(path), registry)
        os.chmod(path, 0o644)  # for the collector, which is another user
    except OSError as error:
        raise StoreError(
            f"{path}: metrics cannot be written ({error.strerror}). Next: see that the folder may "
            "be written by this user"
        ) from None


class _Night(Collector):
    def __init__(self, report: NightReport, counts: RunCounts) -> None:
        self._report = report
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        yield from _of_the_night(self._report)
        yield from _of_boards(self._report)
        yield from _of_cells(self._report)
        # Of the whole store, so that it only ever grows, as a counter must.
        runs = CounterMetricFamily(
            "fleetcut_runs", "Runs stored so far.", labels=("board", "model", "outcome")
        )
        for labels, count in sorted(self._counts.items()):
            runs.add_metric(labels, count)
        yield runs


def _of_the_night(report: NightReport) -> Iterator[Metric]:
    campaign = (report.campaign_id,)
    for name, help_text, value in (
        ("start_timestamp_seconds", "When the last night began.", report.started_unix_s),
        ("end_timestamp_seconds", "When the last night ended.", report.ended_unix_s),
        ("exit_status", "Exit status of the last night.", report.exit_status()),
    ):
        gauge = GaugeMetricFamily(f"fleetcut_nightly_{name}", help_text, labels=("campaign",))
        gauge.add_metric(campaign, value)
        yield gauge
    outcome = GaugeMetricFamily(
        "fleetcut_nightly_outcome",
        "1 for everything that happened in the last night.",
        labels=("campaign", "outcome"),
    )
    for name in EXIT_STATUS:
        outcome.add_metric((*campaign, name), float(name in report.outcomes()))
    yield outcome


def _of_boards(report: NightReport) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "fleetcut_board_up",
        "1 where the board passed its health check and finished its runs.",
        labels=("campaign", "board"),
    )
    for board in report.boards:
        up.add_metric((report.campaign_id, board.board_id), float(board.failure is None))
    yield up
    cells = GaugeMetricFamily(
        "fleetcut_nightly_cells",
        "Cells of the last night by what came of them.",
        labels=("campaign", "board", "model", "state"),
    )
    found: dict[tuple[str, str], dict[str, int]] = {}
    for cell in report.cells:
        of_model = found.setdefault((cell.board_id, cell.model), {})
        of_model[cell.state] = of_model.get(cell.state, 0) + 1
    for (board_id, model), by_state in sorted(found.items()):
        for state in get_args(CellState):
            labels = (report.campaign_id, board_id, model, state)
            cells.add_metric(labels, by_state.get(state, 0))
    yield cells


def _of_cells(report: NightReport) -> Iterable[Metric]:
    p50 = GaugeMetricFamily(
        "fleetcut_nightly_latency_p50_seconds", "Typical p50 of the cell.", labels=_CELL
    )
    change = GaugeMetricFamily(
        "fleetcut_nightly_latency_change_ratio",
        "Change of the p50 against the cell's baseline, 0.03 for three per cent slower.",
        labels=_CELL,
    )
    for cell in report.cells:
        labels = (report.campaign_id, cell.board_id, cell.model, cell.name)
        if cell.p50_ns is not None:
            p50.add_metric(labels, cell.p50_ns / 1e9)
        if (by := cell.change()) is not None:
            change.add_metric(labels, by)
    return p50, change
