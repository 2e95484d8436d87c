"""The tables as they are now. How they came to be: migrations/versions, which a test compares.

Input: nothing. Output: sqlalchemy Tables. Nanoseconds are 64 bits wide on every database.
"""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()

_WIDE = sa.BigInteger().with_variant(sa.Integer, "sqlite")

PROFILES = sa.Table(
    "profiles",
    METADATA,
    sa.Column("profile_sha256", sa.String(64), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
)

# inserted: the order of arrival. stored_unix_ns: when, by the clock of the machine that stored it;
# of runs older than that column the board's own clock, which may be wrong.
# record_zlib: the whole record, raw samples and states included: one row, so one transaction.
RUNS = sa.Table(
    "runs",
    METADATA,
    sa.Column("run_id", sa.String(32), primary_key=True),
    sa.Column("inserted", _WIDE, sa.Identity(), nullable=False, unique=True),
    sa.Column("campaign_id", sa.String(64), nullable=False, index=True),
    sa.Column("board_id", sa.String(64), nullable=False, index=True),
    sa.Column("model_sha256", sa.String(64), nullable=False, index=True),
    sa.Column("model_name", sa.String(64), nullable=False),
    sa.Column("runtime", sa.String(16), nullable=False),
    sa.Column("valid", sa.Boolean, nullable=False),
    sa.Column("outcome", sa.String(200), nullable=False),
    sa.Column("p50_ns", _WIDE),
    sa.Column("profile_sha256", sa.String(64), nullable=False),
    sa.Column("simulated", sa.Boolean, nullable=False),
    sa.Column("record_zlib", sa.LargeBinary, nullable=False),
    sa.Column("stored_unix_ns", _WIDE, nullable=False, server_default=sa.text("0"), index=True),
)

# Which earlier night each cell of a nightly campaign is compared with.
BASELINES = sa.Table(
    "baselines",
    METADATA,
    sa.Column("campaign_id", sa.String(64), primary_key=True),
    sa.Column("board_id", sa.String(64), primary_key=True),
    sa.Column("cell", sa.String(400), primary_key=True),
    sa.Column("night_id", sa.String(64), nullable=False),
)

# What each cell took, night by night: so much it varies by itself.
NIGHT_CELLS = sa.Table(
    "night_cells",
    METADATA,
    sa.Column("campaign_id", sa.String(64), primary_key=True),
    sa.Column("night_id", sa.String(64), primary_key=True),
    sa.Column("board_id", sa.String(64), primary_key=True),
    sa.Column("cell", sa.String(400), primary_key=True),
    sa.Column("p50_ns", _WIDE, nullable=False),
    sa.Column("ended_unix_ns", _WIDE, nullable=False),
)

# Which database this is: a board keeps the highest token of each.
LABS = sa.Table("labs", METADATA, sa.Column("lab_id", sa.String(16), primary_key=True))

# Who may use a board (harness/leases.py). name: a board_id, or "group:" and an exclusive_group.
# token: of the last lease, ascending. lease_id to beats: the lease, NULL when there is none.
# expires_s: by the clock that no step moves, see Clock. until_s, *_unix_s: wall clocks.
LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("name", sa.String(80), primary_key=True),
    sa.Column("token", _WIDE, nullable=False),
    sa.Column("lease_id", sa.String(32)),
    sa.Column("holder", sa.String(200)),
    sa.Column("process", sa.String(200)),
    sa.Column("purpose", sa.String(200)),
    sa.Column("since_unix_s", sa.Float),
    sa.Column("expires_s", sa.Float),
    sa.Column("beats", _WIDE, nullable=False, server_default=sa.text("0")),
    sa.Column("state", sa.String(16), nullable=False, server_default="open"),
    sa.Column("state_reason", sa.String(300)),
    sa.Column("state_by", sa.String(200)),
    sa.Column("state_unix_s", sa.Float),
    sa.Column("reserved_for", sa.String(200)),
    sa.Column("reserved_until_unix_s", sa.Float),
    sa.Column("healthy", sa.Boolean),
    sa.Column("health_fact", sa.String(300)),
    sa.Column("seen_unix_s", sa.Float),
)
