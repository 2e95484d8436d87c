"""fleetcut compare: what changed between two campaigns, models or states, board by board.

Input: a store and the names of two sides. Output: a table or JSON, and an exit status: 0 nothing
got slower, 1 something did, 2 usage.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict

from fleetcut.console import Console
from fleetcut.verbs import CHECK_FAILED, DONE
from harness.comparison import CHANGE_OF_INTEREST
from harness.errors import SelectionError
from harness.pairing import AXES, NOTHING, Compared, Row, Side, compare_runs
from harness.store import Store, StoreAddress, is_there

_PERCENT = 100


def compare(
    console: Console,
    store_path: StoreAddress,
    names: tuple[str, str],
    campaigns: Sequence[str] | None,
    boards: Sequence[str] | None,
    alpha: float,
) -> int:
    """Compare side B with side A. Raises SelectionError where a name fits nothing."""
    if not 0 < alpha < 0.5:
        raise SelectionError(f"--alpha {alpha} is not between 0 and 0.5. Next: write 0.01")
    if not is_there(store_path):
        raise SelectionError(f"{store_path}: no such store. Next: fleetcut measure campaign.yaml")
    store = Store(store_path)
    try:
        a, b = _sides(store, names, campaigns)
        wanted = {s.where["campaign"] for s in (a, b) if "campaign" in s.where} or campaigns
        of_boards = (
            run
            for run in store.runs(wanted)
            if boards is None or run.record.spec.board_id in boards
        )
        with console.steps(f"compare {b.name} with {a.name}"):
            compared = compare_runs(of_boards, a, b, alpha=alpha)
    finally:
        store.close()
    _print(console, a, b, compared, alpha)
    console.answer(_document(a, b, compared, alpha))
    rows = (*compared.boards, *compared.fleet)
    verdicts = {row.comparison.verdict for row in rows}
    more = max(row.comparison.more_pairs or 0 for row in compared.boards)
    if "unclear" in verdicts and more:
        console.next(f"campaign.yaml with {more} more repeats, then fleetcut measure campaign.yaml")
    else:
        console.next(f"fleetcut results --store {store_path}")
    return CHECK_FAILED if "slower" in verdicts else DONE


def _sides(
    store: Store, names: tuple[str, str], campaigns: Sequence[str] | None
) -> tuple[Side, Side]:
    runs = store.summaries(campaigns)
    known_campaigns = {run.campaign_id for run in runs}
    known_models = {run.model_name for run in runs}
    a, b = (side_of(name, known_campaigns, known_models) for name in names)
    return a, b


def side_of(name: str, campaigns: Collection[str], models: Collection[str]) -> Side:
    """A campaign's or a model's name, or KEY=VALUE,… of AXES. Raises SelectionError."""
    if "=" not in name:
        for axis, known in (("campaign", campaigns), ("model", models)):
            if name in known:
                return Side(name, {axis: name})
        raise SelectionError(
            f"{name!r} is no campaign and no model of the store. Next: name one of "
            f"{_some(campaigns)}, or one of {_some(models)}"
        )
    where = {}
    for part in name.split(","):
        axis, _, value = part.partition("=")
        if axis not in AXES or not value:
            raise SelectionError(
                f"{name!r}: {part!r} is not KEY=VALUE. Next: name a key of {', '.join(AXES)}"
            )
        where[axis] = value
    for axis, known in (("campaign", campaigns), ("model", models)):
        if axis in where and where[axis] not in known:
            raise SelectionError(
                f"{where[axis]!r} is no {axis} of the store. Next: name one of {_some(known)}"
            )
    return Side(name, where)


def _some(names: Collection[str], most: int = 8) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (" …" if len(listed) > most else "") or "none"


def _print(console: Console, a: Side, b: Side, compared: Compared, alpha: float) -> None:
    columns = (
        "board", "cell", f"A: {a.name}", f"B: {b.name}", "change",
        f"{(1 - alpha) * _PERCENT:g} % interval", "pairs", "verdict", "note",
    )  # fmt: skip
    rows = (*compared.boards, *compared.fleet)
    console.table("B compared with A (p50)", columns, [_line(row) for row in rows])
    if compared.n_invalid:
        console.line(f"{compared.n_invalid} runs are not valid and left out")
    if compared.n_unpaired:
        console.line(f"{compared.n_unpaired} runs have no mate and are left out")


def _line(row: Row) -> Sequence[str]:
    c = row.comparison
    interval = "–"
    if math.isfinite(c.change_high):
        interval = f"{_percent(c.change_low)} … {_percent(c.change_high)}"
    simulated = " (simulated)" if row.simulated else ""
    return (
        (row.board_id or f"all {row.n_boards} boards") + simulated,
        _cell(row),
        f"{row.a_p50_ms:.3f} ms",
        f"{row.b_p50_ms:.3f} ms",
        _percent(c.change),
        interval,
        str(c.n_pairs),
        c.verdict,
        "; ".join(_notes(row)),
    )


def _cell(row: Row) -> str:
    """What both sides share, without what no run asked for."""
    plain = {"campaign", "model", "runtime", "precision"}
    shown = [
        value if axis in plain else f"{axis}={value}"
        for axis, value in row.cell
        if value != NOTHING
    ]
    return " ".join(shown)


def _notes(row: Row) -> list[str]:
    """What a reader must know of a row before believing it."""
    c, notes = row.comparison, []
    if c.verdict == "unclear" and c.more_pairs:
        notes.append(f"{c.more_pairs} more pairs would show {CHANGE_OF_INTEREST:.0%}")
    if row.canary_moved is not None:
        notes.append(f"the canary moved by {_percent(row.canary_moved)}: corrected for it")
    elif row.apart and not row.canaries:
        notes.append("measured apart without a canary: drift of the board is not told from change")
    if c.n_wild:
        notes.append(f"{c.n_wild} wild pairs left out")
    return notes


def _percent(fraction: float) -> str:
    return f"{fraction * _PERCENT:+.1f} %"


def _document(a: Side, b: Side, compared: Compared, alpha: float) -> dict[str, object]:
    return {
        "a": {"name": a.name, **a.where},
        "b": {"name": b.name, **b.where},
        "alpha": alpha,
        "boards": [_row_document(row) for row in compared.boards],
        "fleet": [_row_document(row) for row in compared.fleet],
        "n_invalid": compared.n_invalid,
        "n_unpaired": compared.n_unpaired,
    }


def _row_document(row: Row) -> dict[str, object]:
    document = {**asdict(row), "cell": dict(row.cell), "notes": _notes(row)}
    comparison = asdict(row.comparison)
    if not math.isfinite(row.comparison.change_high):
        # JSON has no infinity: too few pairs exclude nothing.
        comparison |= {"change_low": None, "change_high": None}
    del document["comparison"]
    return document | comparison
