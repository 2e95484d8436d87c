"""What each cell of a nightly campaign took, night by night.

Input: a Store, typical p50s. Output: the same of earlier nights, the newest last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import sqlalchemy as sa

from harness.store.store import BaselineCell, Store
from harness.store.tables import NIGHT_CELLS

_CELLS = NIGHT_CELLS.c


def keep_night(
    store: Store,
    campaign_id: str,
    night_id: str,
    p50s_ns: Mapping[BaselineCell, int],
    ended_unix_ns: int,
) -> None:
    """Keep a night's p50s; the same night again replaces them, and keeps its place in the order.

    ended_unix_ns: of the night, by this machine's clock.
    """
    ours = (_CELLS.campaign_id == campaign_id) & (_CELLS.night_id == night_id)
    with store.transaction() as connection:
        before = connection.scalar(sa.select(sa.func.min(_CELLS.ended_unix_ns)).where(ours))
        connection.execute(sa.delete(NIGHT_CELLS).where(ours))
        rows = [
            {
                "campaign_id": campaign_id,
                "night_id": night_id,
                "board_id": cell.board_id,
                "cell": cell.cell,
                "p50_ns": p50_ns,
                "ended_unix_ns": before or ended_unix_ns,
            }
            for cell, p50_ns in p50s_ns.items()
        ]
        if rows:
            connection.execute(sa.insert(NIGHT_CELLS), rows)


def earlier_nights(
    store: Store, campaign_id: str, night_id: str, most: int
) -> dict[BaselineCell, tuple[int, ...]]:
    """Cell → its p50s in ns of the newest ``most`` other nights, the newest last."""
    with store.transaction() as connection:
        nights = connection.scalars(
            sa.select(_CELLS.night_id)
            .where(_CELLS.campaign_id == campaign_id, _CELLS.night_id != night_id)
            .group_by(_CELLS.night_id)
            .order_by(sa.func.min(_CELLS.ended_unix_ns).desc())
            .limit(most)
        ).all()
        rows = connection.execute(
            sa.select(_CELLS.board_id, _CELLS.cell, _CELLS.p50_ns)
            .where(_CELLS.campaign_id == campaign_id, _CELLS.night_id.in_(nights))
            .order_by(_CELLS.ended_unix_ns)
        ).all()
    found: dict[BaselineCell, list[int]] = defaultdict(list)
    for row in rows:
        found[BaselineCell(row.board_id, row.cell)].append(row.p50_ns)
    return {cell: tuple(p50s_ns) for cell, p50s_ns in found.items()}
