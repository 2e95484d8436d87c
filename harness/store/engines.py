"""Connections to a store, set up so that readers do not wait and a dead server is noticed.

Input: an address. Output: a sqlalchemy Engine; nothing is connected yet.
"""

from __future__ import annotations

import sqlite3
import urllib.parse
from pathlib import Path

import sqlalchemy as sa

from harness.store.address import StoreAddress

_PATIENCE_S = 30

_SERVER = {
    "connect_timeout": 15,
    "application_name": "fleetcut",
    # A server that vanishes is noticed within about a minute, not after two hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


def engine_of(address: StoreAddress, *, read_only: bool) -> sa.Engine:
    """read_only: neither the database nor, of a file, its folder is changed through it."""
    if isinstance(address, Path):
        return _of_file(address, read_only=read_only)
    settings: dict[str, object] = {
        key: value for key, value in _SERVER.items() if key not in address.query
    }
    if read_only:
        asked = address.query.get("options", "")
        settings["options"] = f"{asked} -c default_transaction_read_only=on"
    return sa.create_engine(address, connect_args=settings, pool_pre_ping=True)


def _of_file(path: Path, *, read_only: bool) -> sa.Engine:
    if read_only:
        return sa.create_engine("sqlite://", creator=lambda: _unchanging(path))
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": _PATIENCE_S})
    sa.event.listen(engine, "connect", _use_wal)
    return engine


def _unchanging(path: Path) -> sqlite3.Connection:
    """A reader of a file in WAL mode makes files beside it, unless told that nobody writes.

    Somebody does where they lie there already; then nothing new is made.
    """
    is_written = path.with_name(f"{path.name}-wal").exists()
    mode = "mode=ro" if is_written else "mode=ro&immutable=1"
    uri = f"file:{urllib.parse.quote(str(path.absolute()))}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=_PATIENCE_S, check_same_thread=False)


def _use_wal(connection: object, _record: object) -> None:
    """Readers do not wait for the writer, and a commit survives a power cut."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
