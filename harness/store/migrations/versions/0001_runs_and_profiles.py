"""Runs and profiles: the tables of the first release, which had no migrations.

Input: nothing. Output: profiles, runs. SQLite files made before this exist as they are.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_WIDE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "profiles",
        sa.Column("profile_sha256", sa.String(64), primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(32), primary_key=True),
        sa.Column("inserted", _WIDE, sa.Identity(), nullable=False, unique=True),
        sa.Column("campaign_id", sa.String(64), nullable=False),
        sa.Column("board_id", sa.String(64), nullable=False),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("model_name", sa.String(64), nullable=False),
        sa.Column("runtime", sa.String(16), nullable=False),
        sa.Column("valid", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.String(200), nullable=False),
        sa.Column("p50_ns", _WIDE),
        sa.Column("profile_sha256", sa.String(64), nullable=False),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.Column("record_zlib", sa.LargeBinary, nullable=False),
    )
    for column in ("campaign_id", "board_id", "model_sha256"):
        op.create_index(f"ix_runs_{column}", "runs", [column])
