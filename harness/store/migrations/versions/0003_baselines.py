"""Baselines of nightly campaigns: the night that each cell is compared with.

Input: nothing. Output: baselines.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "baselines",
        sa.Column("campaign_id", sa.String(64), primary_key=True),
        sa.Column("board_id", sa.String(64), primary_key=True),
        sa.Column("cell", sa.String(400), primary_key=True),
        sa.Column("night_id", sa.String(64), nullable=False),
    )
