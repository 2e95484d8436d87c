"""Who has which board: listed, reserved, drained, quarantined, given free again.

Input: parsed arguments as plain values. Output: an exit status; a Console says the rest.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fleetcut.console import Console
from fleetcut.verbs import DONE
from harness.errors import SelectionError
from harness.holder import me
from harness.inventory import load_inventory
from harness.leases import OPEN, BoardUse, Leases
from harness.store import Store, StoreAddress

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def boards(
    console: Console, inventory: Path, store: StoreAddress, board_ids: Sequence[str] | None
) -> int:
    """List who holds what, how the boards are, and when each was last seen."""
    chosen = load_inventory(inventory).select(board_ids)
    with _leases(store) as leases:
        uses = leases.uses([board.board_id for board in chosen])
    simulated = {board.board_id for board in chosen if board.simulated}
    now_s = time.time()
    columns = ("board", "state", "held by", "for", "reserved", "health", "last seen")
    rows = [
        (
            use.board_id + (" (simulated)" if use.board_id in simulated else ""),
            _state(use),
            use.holder,
            _purpose(use),
            _reserved(use, now_s),
            _health(use),
            None if use.seen_unix_s is None else f"{_span(now_s - use.seen_unix_s)} ago",
        )
        for use in uses
    ]
    console.table("Boards", columns, rows)
    console.answer([asdict(use) for use in uses])
    shut = [use.board_id for use in uses if use.state != OPEN]
    console.next(f"fleetcut release {shut[0]}" if shut else "fleetcut measure campaign.yaml")
    return DONE


def reserve(
    console: Console,
    inventory: Path,
    store: StoreAddress,
    board_ids: Sequence[str],
    user: str | None,
    span: str,
) -> int:
    """Leases for one person only, for a while."""
    seconds = span_s(span)
    name = user or me().user
    return _each(
        console, inventory, store, board_ids,
        lambda leases, board_id: leases.reserve(board_id, name, seconds),
        f"reserved for {name} for {_span(seconds)}",
    )  # fmt: skip


def drain(
    console: Console, inventory: Path, store: StoreAddress, board_ids: Sequence[str], reason: str
) -> int:
    """No new lease: who is on a board goes on to the end."""
    return _each(
        console, inventory, store, board_ids,
        lambda leases, board_id: leases.drain(board_id, reason), "drained",
    )  # fmt: skip


def quarantine(
    console: Console, inventory: Path, store: StoreAddress, board_ids: Sequence[str], reason: str
) -> int:
    """No lease until somebody releases the board."""
    return _each(
        console, inventory, store, board_ids,
        lambda leases, board_id: leases.quarantine(board_id, reason), "quarantined",
    )  # fmt: skip


def release(
    console: Console,
    inventory: Path,
    store: StoreAddress,
    board_ids: Sequence[str],
    *,
    revoke: bool,
) -> int:
    """End a reservation, a drain or a quarantine; revoke: also the lease that somebody holds."""
    return _each(
        console, inventory, store, board_ids,
        lambda leases, board_id: leases.open(board_id, revoke=revoke), "open",
    )  # fmt: skip


def span_s(text: str) -> float:
    """Seconds of "90s", "30m", "2h" or "1d". Raises SelectionError."""
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smhd])", text)
    if found is None or float(found.group(1)) == 0:
        raise SelectionError(f"{text[:20]!r} is no span of time. Next: write 30m, 2h or 1d")
    return float(found.group(1)) * _UNITS_S[found.group(2)]


def _each(
    console: Console,
    inventory: Path,
    store: StoreAddress,
    board_ids: Sequence[str],
    change: Callable[[Leases, str], None],
    said: str,
) -> int:
    chosen = [board.board_id for board in load_inventory(inventory).select(board_ids)]
    with _leases(store) as leases:
        for board_id in chosen:
            change(leases, board_id)
            console.line(f"{board_id}: {said}")
        uses = leases.uses(chosen)
    console.answer([asdict(use) for use in uses])
    console.next("fleetcut boards")
    return DONE


@contextmanager
def _leases(address: StoreAddress) -> Iterator[Leases]:
    store = Store(address)
    try:
        yield Leases(store)
    finally:
        store.close()


def _state(use: BoardUse) -> str:
    if use.state == OPEN:
        return OPEN
    reason = f": {use.state_reason}" if use.state_reason else ""
    return f"{use.state} by {use.state_by}{reason}"


def _purpose(use: BoardUse) -> str | None:
    if use.holder is None or use.since_unix_s is None:
        return None
    return f"{use.purpose}, for {_span(time.time() - use.since_unix_s)}"


def _reserved(use: BoardUse, now_s: float) -> str | None:
    if use.reserved_for is None or use.reserved_until_unix_s is None:
        return None
    return f"{use.reserved_for}, {_span(use.reserved_until_unix_s - now_s)} more"


def _health(use: BoardUse) -> str | None:
    if use.healthy is None:
        return None
    return "well" if use.healthy else f"unwell: {use.health_fact}"


def _span(seconds: float) -> str:
    """In the largest unit of which there are two: "90 s", "45 min"."""
    for unit, unit_s in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
