"""Who holds which board, and which database gave that away.

Input: nothing. Output: labs, with a name drawn for this database, and leases.
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    wide = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    labs = op.create_table("labs", sa.Column("lab_id", sa.String(16), primary_key=True))
    op.bulk_insert(labs, [{"lab_id": secrets.token_hex(8)}])
    op.create_table(
        "leases",
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("token", wide, nullable=False),
        sa.Column("lease_id", sa.String(32)),
        sa.Column("holder", sa.String(200)),
        sa.Column("process", sa.String(200)),
        sa.Column("purpose", sa.String(200)),
        sa.Column("since_unix_s", sa.Float),
        sa.Column("expires_s", sa.Float),
        sa.Column("beats", wide, nullable=False, server_default=sa.text("0")),
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
