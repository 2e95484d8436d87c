"""A store's tables brought up to date when it is opened, by one process at a time.

Input: an address. Output: tables of REVISION. Raises StoreError for a database that is newer than
this program or not fleetcut's; SQLAlchemyError where it cannot be reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from harness.errors import StoreError
from harness.store.address import StoreAddress

REVISION = "0005"
"""The newest of migrations/versions; a test holds them together. Revisions ascend as text."""

VERSION_TABLE = "fleetcut_version"
"""A lab's database may hold another program's alembic_version."""

_BEFORE_MIGRATIONS = "0001"
_LOCK = 0x666C_6565_7463_7574  # "fleetcut": PostgreSQL's advisory locks are numbers


def check_revision(engine: sa.Engine, address: StoreAddress) -> bool:
    """Whether the tables are those of this program. Raises StoreError where they are newer."""
    with engine.connect() as connection:
        return _revision(connection, address) == REVISION


def upgrade(address: StoreAddress) -> None:
    """Bring the tables up to date, in one transaction; what is up to date stays as it is."""
    with _alone(address) as connection:
        # Again, now that nobody else can: another process may have been quicker.
        revision = _revision(connection, address)
        if revision == REVISION:
            return
        from alembic import command  # takes a fifth of a second, and is seldom needed
        from alembic.config import Config

        config = Config()
        folder = str(Path(__file__).parent / "migrations")
        config.set_main_option("script_location", folder.replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        if revision is None and _holds_runs(connection, address):
            command.stamp(config, _BEFORE_MIGRATIONS)
        command.upgrade(config, "head")


def _revision(connection: sa.Connection, address: StoreAddress) -> str | None:
    """None: no migration has been here."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    table = sa.table(VERSION_TABLE, sa.column("version_num"))
    revision = connection.scalar(sa.select(table.c.version_num))
    if revision is not None and str(revision) > REVISION:
        raise StoreError(
            f"{address}: was written by a newer fleetcut (tables {revision}, this one knows "
            f"{REVISION}). Next: update this fleetcut"
        )
    return None if revision is None else str(revision)


def _holds_runs(connection: sa.Connection, address: StoreAddress) -> bool:
    """Whether the tables of the first release are there. Raises StoreError for foreign ones."""
    inspector = sa.inspect(connection)
    tables = set(inspector.get_table_names()) - {VERSION_TABLE}
    if "runs" in tables:
        columns = {column["name"] for column in inspector.get_columns("runs")}
        if "profiles" in tables and {"run_id", "inserted", "record_zlib"} <= columns:
            return True
    elif not tables or not isinstance(address, Path):
        return False
    raise StoreError(
        f"{address}: holds tables that are not fleetcut's ({', '.join(sorted(tables))[:60]}). "
        "Next: name another database"
    )


@contextmanager
def _alone(address: StoreAddress) -> Iterator[sa.Connection]:
    """A transaction that no other process migrates beside: it waits for them."""
    if isinstance(address, Path):
        engine = sa.create_engine(
            f"sqlite:///{address}", poolclass=sa.NullPool, connect_args={"timeout": 60}
        )
        sa.event.listen(engine, "connect", _no_implicit_transactions)
        sa.event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    else:
        engine = sa.create_engine(address, poolclass=sa.NullPool)
    try:
        with engine.begin() as connection:
            if not isinstance(address, Path):
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield connection
    finally:
        engine.dispose()


def _no_implicit_transactions(connection: object, _record: object) -> None:
    """Python's sqlite3 opens none before DDL: a migration would be cut in two by a kill."""
    connection.isolation_level = None  # type: ignore[attr-defined]
