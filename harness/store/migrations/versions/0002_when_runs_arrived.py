"""When each run was stored, so that results can be asked for since a time.

Input: runs. Output: runs.stored_unix_ns; of runs that are there the board's clock at their start,
the only time that was kept.
"""

import json
import zlib

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    wide = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.add_column(
        "runs", sa.Column("stored_unix_ns", wide, nullable=False, server_default=sa.text("0"))
    )
    op.create_index("ix_runs_stored_unix_ns", "runs", ["stored_unix_ns"])
    runs = sa.table(
        "runs",
        sa.column("run_id", sa.String),
        sa.column("record_zlib", sa.LargeBinary),
        sa.column("stored_unix_ns", wide),
    )
    connection = op.get_bind()
    last = ""
    while True:
        query = sa.select(runs.c.run_id, runs.c.record_zlib).where(runs.c.run_id > last)
        rows = connection.execute(query.order_by(runs.c.run_id).limit(500)).all()
        if not rows:
            return
        last = rows[-1].run_id
        connection.execute(
            sa.update(runs)
            .where(runs.c.run_id == sa.bindparam("known"))
            .values(stored_unix_ns=sa.bindparam("time_ns")),
            [{"known": row.run_id, "time_ns": _started_unix_ns(row.record_zlib)} for row in rows],
        )


def _started_unix_ns(packed: bytes) -> int:
    """Of a record's document, which keeps its fields below "body"; 0 where it cannot be read."""
    try:
        document = json.loads(zlib.decompress(packed))
        return int(document["body"]["started_unix_ns"])
    except (ValueError, zlib.error, KeyError, TypeError):
        return 0
