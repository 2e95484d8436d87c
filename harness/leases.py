"""Who holds which board: leases that end by themselves, and what keeps a board from being leased.

Input: a Store. Output: Leases given, renewed and ended in its database; BoardUse for a person.
Raises LeaseError. What holds when a clock is wrong is the token: it ascends with each lease, and a
board refuses an older one than it has seen (docs/adr/0011-leases-and-fences.md).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from harness.errors import LeaseError
from harness.holder import Holder, is_gone, lives_here, me
from harness.store import Store
from harness.store.tables import LABS, LEASES

LEASE_S = 60.0
"""A lease whose holder is silent so long has ended."""

HEARTBEATS = 4
"""In the length of a lease: three may be lost."""

HEALTH_CHECK = "the health check"

OPEN, DRAINED, QUARANTINED = "open", "drained", "quarantined"

_POLL_S = 0.5
_SLACK_S = 1.0
_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_NO_LEASE = dict.fromkeys(("lease_id", "holder", "process", "purpose", "expires_s"))
_OPENED = {
    **dict.fromkeys(("state_reason", "state_by", "state_unix_s")),
    **dict.fromkeys(("reserved_for", "reserved_until_unix_s")),
    "state": OPEN,
}
_BOARDS_AT_ONCE = 500


class Clock(Protocol):
    """The time of a database. steady_s: no step of a wall clock moves it."""

    def steady_s(self, connection: sa.Connection) -> float: ...

    def unix_s(self, connection: sa.Connection) -> float: ...


class DatabaseClock:
    """A server's own clock: that of its clients may differ. Of a file, the clock of its machine.

    A file is open on one machine only (SQLite's WAL shares memory), so seconds since that booted
    are the same for all; after a reboot no holder is left.
    """

    def steady_s(self, connection: sa.Connection) -> float:
        if connection.dialect.name == "sqlite":
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return self.unix_s(connection)

    def unix_s(self, connection: sa.Connection) -> float:
        if connection.dialect.name == "sqlite":
            return time.time()
        return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")))


@dataclass(frozen=True)
class Lease:
    """A board that is ours. name: its id, or "group:" and an exclusive_group."""

    name: str
    lab_id: str
    token: int
    lease_id: str

    @property
    def fence(self) -> str:
        """What the agent on the board is told with every verb that changes something."""
        return f"{self.lab_id}:{self.token}"


@dataclass(frozen=True)
class BoardUse:
    """One board as the lab knows it. None: nobody, never, or not known.

    state: "open", "drained" (no new lease) or "quarantined" (none, because of state_reason).
    expires_in_s: of the lease, unless it is renewed. healthy: what its last use or check said.
    """

    board_id: str
    holder: str | None = None
    purpose: str | None = None
    since_unix_s: float | None = None
    expires_in_s: float | None = None
    state: str = OPEN
    state_reason: str | None = None
    state_by: str | None = None
    reserved_for: str | None = None
    reserved_until_unix_s: float | None = None
    healthy: bool | None = None
    health_fact: str | None = None
    seen_unix_s: float | None = None


class Leases:
    """The leases of one lab. Threads may share it."""

    def __init__(
        self,
        store: Store,
        *,
        lease_s: float = LEASE_S,
        clock: Clock | None = None,
        holder: Holder | None = None,
    ) -> None:
        """None: the database's own clock, and this process."""
        self.lease_s = lease_s
        self._store = store
        self._clock = clock or DatabaseClock()
        self._me = holder or me()
        with store.transaction() as connection:
            self._lab_id = str(connection.scalar(sa.select(sa.func.min(LABS.c.lab_id))))

    def acquire(
        self,
        name: str,
        purpose: str,
        *,
        wait_s: float = 0.0,
        stopping: threading.Event | None = None,
    ) -> Lease:
        """The board, now or as soon as a silent holder's lease has ended.

        A holder that lives is waited for no longer than wait_s. Raises LeaseError, which says who
        has the board and why.
        """
        stopping = stopping or threading.Event()
        began_s = time.monotonic()
        first: tuple[Any, Any] | None = None
        while True:
            lease, row = self._try(name, purpose)
            if lease is not None:
                return lease
            beat = (row.lease_id, row.beats)
            first = first or beat
            lives = beat != first or lives_here(row.process)
            waited_s = time.monotonic() - began_s
            if refusal := self._refusal(name, row):
                raise refusal
            if stopping.is_set() or (lives and waited_s >= wait_s):
                raise _held(name, row)
            stopping.wait(_POLL_S)

    def renew(self, leases: Sequence[Lease]) -> set[str]:
        """Heartbeat. Returns the lease_ids that have ended: somebody else was given the board."""
        kept: set[str] = set()
        for start in range(0, len(leases), _BOARDS_AT_ONCE):
            ids = [lease.lease_id for lease in leases[start : start + _BOARDS_AT_ONCE]]
            with self._store.transaction() as connection:
                expires_s = self._clock.steady_s(connection) + self.lease_s
                values = {"expires_s": expires_s, "beats": LEASES.c.beats + 1}
                renewed = sa.update(LEASES).where(LEASES.c.lease_id.in_(ids)).values(values)
                kept.update(connection.scalars(renewed.returning(LEASES.c.lease_id)))
        return {lease.lease_id for lease in leases} - kept

    def release(self, leases: Iterable[Lease]) -> None:
        """Give boards back. One that is another's by now stays theirs."""
        ids = [lease.lease_id for lease in leases]
        with self._store.transaction() as connection:
            connection.execute(
                sa.update(LEASES).where(LEASES.c.lease_id.in_(ids)).values(_NO_LEASE)
            )

    def saw(self, board_id: str, *, healthy: bool, fact: str) -> None:
        """What came of a visit; a healthy board was also seen now."""
        with self._store.transaction() as connection:
            values: dict[str, object] = {"healthy": healthy, "health_fact": fact[:300]}
            if healthy:
                values["seen_unix_s"] = self._clock.unix_s(connection)
            self._set(connection, board_id, values)

    def drain(self, board_id: str, reason: str, by: str | None = None) -> None:
        """No new lease; who holds the board now goes on to the end."""
        self._enter(board_id, DRAINED, reason, by)

    def quarantine(self, board_id: str, reason: str, by: str | None = None) -> None:
        """No lease until somebody opens the board again."""
        self._enter(board_id, QUARANTINED, reason, by)

    def judge(self, board_id: str, *, healthy: bool, fact: str) -> None:
        """What a health check said: quarantine while it fails, and not a moment longer.

        What a person decided stays: neither a drained board nor a quarantine of theirs is touched.
        """
        self.saw(board_id, healthy=healthy, fact=fact)
        (use,) = self.uses([board_id])
        if not healthy and use.state == OPEN:
            self.quarantine(board_id, fact, HEALTH_CHECK)
        elif healthy and use.state == QUARANTINED and use.state_by == HEALTH_CHECK:
            self._enter(board_id, OPEN, "", HEALTH_CHECK)

    def reserve(self, board_id: str, user: str, seconds: float) -> None:
        """Leases for nobody but ``user`` until then. Raises LeaseError when another has reserved.

        Who holds the board now goes on to the end.
        """
        with self._store.transaction() as connection:
            now_s = self._clock.unix_s(connection)
            self._insert(connection, board_id)
            free = _not_reserved(now_s, user)
            values = {"reserved_for": user, "reserved_until_unix_s": now_s + seconds}
            update = sa.update(LEASES).where(LEASES.c.name == board_id, free).values(values)
            if connection.execute(update).rowcount:
                return
            row = _row(connection, board_id)
        raise LeaseError(
            board_id,
            _reserved(row, now_s),
            f"ask {row.reserved_for}, or fleetcut release {board_id}",
        )

    def open(self, board_id: str, *, revoke: bool = False) -> None:
        """End its reservation, drain or quarantine. revoke: also the lease that somebody holds."""
        values = {**_OPENED, **(_NO_LEASE if revoke else {})}
        with self._store.transaction() as connection:
            self._set(connection, board_id, values)

    def uses(self, board_ids: Sequence[str]) -> tuple[BoardUse, ...]:
        """The boards in the order asked; one that nobody used yet is open."""
        rows: dict[str, Any] = {}
        with self._store.transaction() as connection:
            steady_s, unix_s = self._clock.steady_s(connection), self._clock.unix_s(connection)
            for start in range(0, len(board_ids), _BOARDS_AT_ONCE):
                part = board_ids[start : start + _BOARDS_AT_ONCE]
                query = sa.select(LEASES).where(LEASES.c.name.in_(part))
                rows |= {row.name: row for row in connection.execute(query)}
        return tuple(
            _use(rows[i], steady_s, unix_s, self.lease_s) if i in rows else BoardUse(i)
            for i in board_ids
        )

    def _try(self, name: str, purpose: str) -> tuple[Lease | None, Any]:
        """The lease, or None and the row as it stands: exactly one of any who ask gets it."""
        with self._store.transaction() as connection:
            now_s, unix_s = self._clock.steady_s(connection), self._clock.unix_s(connection)
            self._insert(connection, name)
            row = _row(connection, name)
            free = _is_free(now_s, self.lease_s)
            if is_gone(row.process):
                free = sa.or_(free, LEASES.c.lease_id == row.lease_id)
            lease_id = secrets.token_hex(16)
            values = {
                "token": LEASES.c.token + 1,
                "lease_id": lease_id,
                "holder": str(self._me)[:200],
                "process": self._me.to_text(),
                "purpose": purpose[:200],
                "since_unix_s": unix_s,
                "expires_s": now_s + self.lease_s,
                "beats": 0,
            }
            given = sa.update(LEASES).where(LEASES.c.name == name, free, self._may_use(unix_s))
            token = connection.scalar(given.values(values).returning(LEASES.c.token))
            if token is not None:
                return Lease(name, self._lab_id, int(token), lease_id), None
            return None, _row(connection, name)

    def _may_use(self, unix_s: float) -> sa.ColumnElement[bool]:
        return sa.and_(LEASES.c.state == OPEN, _not_reserved(unix_s, self._me.user))

    def _refusal(self, name: str, row: Any) -> LeaseError | None:
        """Why no waiting would help; None where the board is only held."""
        with self._store.transaction() as connection:
            unix_s = self._clock.unix_s(connection)
        again = f"fleetcut release {name}, once that is over"
        if row.state != OPEN:
            reason = f": {row.state_reason}" if row.state_reason else ""
            by = f" by {row.state_by}" if row.state_by else ""
            return LeaseError(name, f"is {row.state}{by}{reason}", again)
        if (row.reserved_until_unix_s or 0.0) > unix_s and row.reserved_for != self._me.user:
            return LeaseError(name, _reserved(row, unix_s), again)
        return None

    def _enter(self, board_id: str, state: str, reason: str, by: str | None) -> None:
        with self._store.transaction() as connection:
            values = {
                "state": state,
                "state_reason": reason[:300],
                "state_by": by or str(self._me),
                "state_unix_s": self._clock.unix_s(connection),
            }
            self._set(connection, board_id, values)

    def _set(self, connection: sa.Connection, name: str, values: Mapping[str, Any]) -> None:
        self._insert(connection, name)
        connection.execute(sa.update(LEASES).where(LEASES.c.name == name).values(values))

    def _insert(self, connection: sa.Connection, name: str) -> None:
        row = {"name": name, "token": 0, "beats": 0, "state": OPEN}
        insert = _INSERTS[connection.dialect.name](LEASES)
        connection.execute(insert.values(row).on_conflict_do_nothing(index_elements=["name"]))


def _row(connection: sa.Connection, name: str) -> Any:
    return connection.execute(sa.select(LEASES).where(LEASES.c.name == name)).one()


def _is_free(now_s: float, lease_s: float) -> sa.ColumnElement[bool]:
    """No lease, one that has ended, or one that ends later than any that was ever given.

    The last is of another boot, or of a server whose clock was put back: its holder, if it lives,
    is refused by the board.
    """
    ends = LEASES.c.expires_s
    return sa.or_(LEASES.c.lease_id.is_(None), ends <= now_s, ends > now_s + lease_s + _SLACK_S)


def _not_reserved(unix_s: float, user: str) -> sa.ColumnElement[bool]:
    until_s = LEASES.c.reserved_until_unix_s
    return sa.or_(until_s.is_(None), until_s <= unix_s, LEASES.c.reserved_for == user)


def _reserved(row: Any, unix_s: float) -> str:
    return f"is reserved for {row.reserved_for} for {row.reserved_until_unix_s - unix_s:.0f} s more"


def _held(name: str, row: Any) -> LeaseError:
    return LeaseError(
        name,
        f"is leased to {row.holder or 'somebody'} for {row.purpose or 'something'}",
        "wait for it, with fleetcut measure --wait SECONDS; fleetcut boards shows who has what",
    )


def _use(row: Any, steady_s: float, unix_s: float, lease_s: float) -> BoardUse:
    left_s = (row.expires_s or 0.0) - steady_s
    held = row.lease_id is not None and 0 < left_s <= lease_s + _SLACK_S
    reserved = (row.reserved_until_unix_s or 0.0) > unix_s
    return BoardUse(
        board_id=row.name,
        holder=row.holder if held else None,
        purpose=row.purpose if held else None,
        since_unix_s=row.since_unix_s if held else None,
        expires_in_s=round(left_s, 1) if held else None,
        state=row.state,
        state_reason=row.state_reason,
        state_by=row.state_by,
        reserved_for=row.reserved_for if reserved else None,
        reserved_until_unix_s=row.reserved_until_unix_s if reserved else None,
        healthy=row.healthy,
        health_fact=row.health_fact,
        seen_unix_s=row.seen_unix_s,
    )
