"""``fleetcut plan``: a campaign's cells and how long they will take, and nothing is touched.

Input: a campaign, an inventory, a store that may not exist yet. Output: an exit status.
No connection is opened and no file is written: the store is read as it is.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from device_agents.contract import Condition, to_plain
from fleetcut.console import Console
from fleetcut.verbs import DONE
from harness.campaign import Campaign, load_campaign
from harness.inventory import load_inventory
from harness.plan import History, Plan, Span, make_plan
from harness.store import Store, StoreAddress, is_there

LATEST_RECORDS = 2000
"""How many are looked at for durations: reading one takes some milliseconds."""


def plan(
    console: Console, inventory_path: Path, campaign_path: Path, store_path: StoreAddress
) -> int:
    """Print the cells, each board's estimate and the whole wall-clock time."""
    campaign = load_campaign(campaign_path, load_inventory(inventory_path))
    planned = _planned(campaign, store_path)
    _show(console, planned)
    if not is_there(store_path):
        console.line(f"Assumed: nothing was measured before, there is no {store_path}")
    console.answer(_document(planned))
    console.next(f"fleetcut measure {campaign_path} --inventory {inventory_path}")
    return DONE


def _planned(campaign: Campaign, store_path: StoreAddress) -> Plan:
    if not is_there(store_path):
        return make_plan(campaign, (), History())
    store = Store(store_path, read_only=True)
    try:
        known = store.known(spec.run_id for spec in campaign.specs)
        models = {model.sha256 for model in campaign.models}
        history = History(store.latest_with(models, LATEST_RECORDS))
    finally:
        store.close()
    return make_plan(campaign, known, history)


def _show(console: Console, planned: Plan) -> None:
    columns = ("model", "runtime", "precision", "threads", "condition", "boards", "repeats")
    console.table(
        f"Cells of {planned.campaign_id}",
        columns,
        [
            (
                cell.model + (" (canary)" if cell.canary else ""),
                cell.runtime,
                cell.precision,
                cell.threads,
                in_words(cell.condition),
                cell.boards,
                f"{round(cell.runs / cell.boards, 1):g}",
            )
            for cell in planned.cells
        ],
    )
    console.table(
        "Boards",
        ("board", "labels", "exclusive group", "runs", "stored", "time"),
        [
            (
                b.board.board_id + (" (simulated)" if b.board.simulated else ""),
                ", ".join(f"{key}={value}" for key, value in b.board.labels) or None,
                b.board.exclusive_group,
                b.runs,
                b.stored,
                span_text(b.span),
            )
            for b in planned.boards
        ],
    )
    runs, stored = (sum(getattr(b, name) for b in planned.boards) for name in ("runs", "stored"))
    console.line(
        f"{runs} runs on {len(planned.boards)} boards, {stored} stored already: "
        f"{span_text(planned.wall_clock)} on the clock"
    )
    for sentence in planned.assumed:
        console.line(f"Assumed: {sentence}")


def _document(planned: Plan) -> dict[str, object]:
    return {
        "campaign_id": planned.campaign_id,
        "cells": [{**asdict(c), "condition": to_plain(c.condition)} for c in planned.cells],
        "boards": [
            {
                "board_id": b.board.board_id,
                "exclusive_group": b.board.exclusive_group,
                "runs": b.runs,
                "stored": b.stored,
                **asdict(b.span),
            }
            for b in planned.boards
        ],
        "wall_clock": asdict(planned.wall_clock),
        "assumed": list(planned.assumed),
    }


def in_words(condition: Condition) -> str:
    """For example "45..55 °C, 1500000 kHz, mains"; "as it is" where nothing is asked for."""
    c = condition
    parts = (
        _band(c.temp_c_min, c.temp_c_max, "°C"),
        c.governor,
        f"{c.freq_khz} kHz" if c.freq_khz is not None else None,
        f"mode {c.power_mode}" if c.power_mode is not None else None,
        c.power_source,
        _band(c.battery_pct_min, c.battery_pct_max, "% charge"),
    )
    return ", ".join(part for part in parts if part is not None) or "as it is"


def _band(low: float | None, high: float | None, unit: str) -> str | None:
    if low is None and high is None:
        return None
    return f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'} {unit}"


def span_text(span: Span) -> str:
    """For example "2 min" or "40 s to 1 h 10 min"."""
    low, high = _duration(span.low_s), _duration(span.high_s)
    return low if low == high else f"{low} to {high}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours / 24:.1f} days"
