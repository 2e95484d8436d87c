"""What each cell of a nightly campaign took night by night: how much it varies by itself.

Input: nothing. Output: night_cells.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    wide = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "night_cells",
        sa.Column("campaign_id", sa.String(64), primary_key=True),
        sa.Column("night_id", sa.String(64), primary_key=True),
        sa.Column("board_id", sa.String(64), primary_key=True),
        sa.Column("cell", sa.String(400), primary_key=True),
        sa.Column("p50_ns", wide, nullable=False),
        sa.Column("ended_unix_ns", wide, nullable=False),
    )
