"""Where a store is: a file (SQLite), or a URL (PostgreSQL).

Input: what a person wrote. Output: a Path or a URL, whose str() never shows the password.
Raises SelectionError for anything else, without repeating it: it may hold a password.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import sqlalchemy as sa

from harness.errors import SelectionError

StoreAddress: TypeAlias = Path | sa.URL

DEFAULT_ADDRESS = ".fleetcut/fleetcut.db"

_FORM = "postgresql+psycopg://USER@HOST:5432/DATABASE, or the path of a file"
_SECRETS = ("password", "sslpassword")


def address_of(text: str) -> StoreAddress:
    """A path as it is; sqlite:///PATH too. A password belongs in ~/.pgpass, but may be in the URL.

    Raises SelectionError for another database, a URL that cannot be read, or a password among the
    URL's parameters, where it would be shown.
    """
    if "://" not in text:
        return Path(text)
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise SelectionError(f"the store's URL cannot be read. Next: write {_FORM}") from None
    backend, _, driver = url.drivername.partition("+")
    if backend == "sqlite" and url.database:
        return Path(url.database)
    if backend != "postgresql" or driver not in ("", "psycopg"):
        raise SelectionError(f"{backend[:20]!r} is no kind of store. Next: write {_FORM}")
    if any(key in url.query for key in _SECRETS):
        raise SelectionError(
            f"{url.set(query={})}: a password among the URL's parameters would be shown. "
            "Next: put it into ~/.pgpass"
        )
    if not url.database:
        raise SelectionError(f"{url}: names no database. Next: write {_FORM}")
    return url.set(drivername="postgresql+psycopg")


def is_there(address: StoreAddress) -> bool:
    """Whether something was stored there before. A server is asked; that it does not answer is no
    answer: then True, and opening the store says why.
    """
    if isinstance(address, Path):
        return address.exists()
    engine = sa.create_engine(address, poolclass=sa.NullPool)
    try:
        return sa.inspect(engine).has_table("runs")
    except sa.exc.SQLAlchemyError:
        return True
    finally:
        engine.dispose()


def without_secrets(text: str, address: StoreAddress) -> str:
    """A driver's message in one line of at most 200 characters, without the password."""
    line = " ".join(text.split())
    password = None if isinstance(address, Path) else address.password
    return (line.replace(str(password), "***") if password else line)[:200]
