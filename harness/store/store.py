"""Runs and profiles of a lab: each inserted once by its run_id, whole, in one transaction.

Input: MeasurementRecords and profiles. Output: the same, queries, and which runs are known.
Raises StoreError naming the database, never its password.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from device_agents.contract import DeviceProfile, MeasurementRecord, decode, encode
from harness.errors import StoreError
from harness.statistics import median_ns
from harness.store.address import StoreAddress, without_secrets
from harness.store.engines import engine_of
from harness.store.migrating import check_revision, upgrade
from harness.store.tables import BASELINES, PROFILES, RUNS

_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_LEAST_HASH = 8
"""Digits of a model's hash that a query may name it by."""

_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class StoredRun:
    """A record and the name its model had in the campaign."""

    record: MeasurementRecord
    model_name: str


@dataclass(frozen=True)
class RunSummary:
    """One row for a person. outcome: "valid", its reasons, or the error's kind and fact."""

    run_id: str
    campaign_id: str
    board_id: str
    model_name: str
    runtime: str
    valid: bool
    outcome: str
    p50_ns: int | None
    simulated: bool
    stored_unix_ns: int


@dataclass(frozen=True)
class Query:
    """Which runs; None asks nothing. models: names, or at least eight digits of their hash.

    valid: only those that count, or only those that do not. since_unix_ns: stored at it or later.
    """

    campaign_ids: tuple[str, ...] | None = None
    board_ids: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    valid: bool | None = None
    since_unix_ns: int | None = None


@dataclass(frozen=True)
class BaselineCell:
    """A cell of a nightly campaign on one board. cell: its axes as text, at most 400 characters."""

    board_id: str
    cell: str


class Store:
    """The runs of a lab. Threads may share it, and processes the database.

    read_only: the database is there, and nothing here changes it (nor the folder of a file).
    """

    def __init__(self, address: StoreAddress, *, read_only: bool = False) -> None:
        self.address = address
        self._engine = engine_of(address, read_only=read_only)
        self._insert = _INSERTS[self._engine.dialect.name]
        try:
            with self._errors():
                self._open(read_only=read_only)
        except StoreError:
            self.close()
            raise

    def _open(self, *, read_only: bool) -> None:
        if isinstance(self.address, Path) and not read_only:
            self.address.parent.mkdir(parents=True, exist_ok=True)
        if not check_revision(self._engine, self.address) and not read_only:
            upgrade(self.address)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """For tables that are not runs: committed as a whole at the end. Raises StoreError."""
        with self._errors(), self._engine.begin() as connection:
            yield connection

    def add_profile(self, profile: DeviceProfile) -> None:
        """Keep a profile; the same one again changes nothing."""
        row = {"profile_sha256": profile.sha256(), "document": encode(profile)}
        with self._errors(), self._engine.begin() as connection:
            connection.execute(self._insert(PROFILES).values(row).on_conflict_do_nothing())

    def add(self, record: MeasurementRecord, model_name: str) -> bool:
        """Keep a record unless its run_id is known. Returns whether it was new."""
        row = _row(record, model_name)
        if self._engine.dialect.name == "sqlite":
            # PostgreSQL counts by itself, also for writers that do not see each other.
            row["inserted"] = sa.select(
                sa.func.coalesce(sa.func.max(RUNS.c.inserted), 0) + 1
            ).scalar_subquery()
        with self._errors(), self._engine.begin() as connection:
            new = self._insert(RUNS).values(row).on_conflict_do_nothing(index_elements=["run_id"])
            return connection.scalar(new.returning(RUNS.c.run_id)) is not None

    def known(self, run_ids: Iterable[str]) -> set[str]:
        """Which of these runs are stored."""
        wanted = list(run_ids)
        found: set[str] = set()
        with self._errors(), self._engine.connect() as connection:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                query = sa.select(RUNS.c.run_id).where(RUNS.c.run_id.in_(part))
                found.update(connection.scalars(query))
        return found

    def profiles(self) -> dict[str, DeviceProfile]:
        """profile_sha256 → profile."""
        with self._errors(), self._engine.connect() as connection:
            rows = connection.execute(sa.select(PROFILES)).all()
        return {row.profile_sha256: decode(DeviceProfile, row.document) for row in rows}

    def runs(
        self, campaign_ids: Iterable[str] | None = None, *, valid_only: bool = False
    ) -> Iterator[StoredRun]:
        """Stored runs in the order of insertion, read in small portions."""
        campaigns = None if campaign_ids is None else tuple(campaign_ids)
        return self.find(Query(campaigns, valid=True if valid_only else None))

    def find(self, query: Query) -> Iterator[StoredRun]:
        """The runs that fit, whole, in the order of insertion, read in small portions."""
        columns = sa.select(RUNS.c.record_zlib, RUNS.c.model_name)
        ordered = _filtered(columns, query).order_by(RUNS.c.inserted)
        with self._errors(), self._engine.connect() as connection:
            for packed, name in connection.execution_options(yield_per=200).execute(ordered):
                yield StoredRun(decode(MeasurementRecord, zlib.decompress(packed)), name)

    def records(self, run_ids: Iterable[str]) -> dict[str, MeasurementRecord]:
        """run_id → record, for those of these runs that are stored."""
        wanted = list(run_ids)
        found: dict[str, MeasurementRecord] = {}
        with self._errors(), self._engine.connect() as connection:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                query = sa.select(RUNS.c.record_zlib).where(RUNS.c.run_id.in_(part))
                for packed in connection.scalars(query):
                    record = decode(MeasurementRecord, zlib.decompress(packed))
                    found[record.run_id] = record
        return found

    def latest_with(self, model_sha256s: Iterable[str], limit: int) -> list[MeasurementRecord]:
        """The newest ``limit`` records of all campaigns that had one of these models, in order."""
        having = sa.select(RUNS.c.campaign_id).where(RUNS.c.model_sha256.in_(list(model_sha256s)))
        query = sa.select(RUNS.c.record_zlib).where(RUNS.c.campaign_id.in_(having))
        query = query.order_by(RUNS.c.inserted.desc()).limit(limit)
        with self._errors(), self._engine.connect() as connection:
            packed = connection.scalars(query).all()
            return [decode(MeasurementRecord, zlib.decompress(p)) for p in reversed(packed)]

    def summaries(
        self,
        campaign_ids: Iterable[str] | None = None,
        board_ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> list[RunSummary]:
        """Rows for a person, the newest last."""
        campaigns = None if campaign_ids is None else tuple(campaign_ids)
        boards = None if board_ids is None else tuple(board_ids)
        return self.summaries_of(Query(campaigns, boards), limit)

    def summaries_of(self, query: Query, limit: int | None = None) -> list[RunSummary]:
        """Rows of the runs that fit, the newest last; ``limit`` keeps the newest."""
        names = tuple(RunSummary.__dataclass_fields__)
        found = _filtered(sa.select(*(RUNS.c[n] for n in names)), query)
        found = found.order_by(RUNS.c.inserted.desc()).limit(limit)
        with self._errors(), self._engine.connect() as connection:
            rows = connection.execute(found).all()
        return [RunSummary(**row._mapping) for row in reversed(rows)]

    def counts(self) -> dict[tuple[str, str, str], int]:
        """(board_id, model_name, "valid", "invalid" or "failed") → runs stored so far."""
        outcome = sa.case(
            (RUNS.c.valid, "valid"), (RUNS.c.p50_ns.is_(None), "failed"), else_="invalid"
        )
        keys = (RUNS.c.board_id, RUNS.c.model_name, outcome.label("kind"))
        query = sa.select(*keys, sa.func.count().label("n")).group_by(*keys)
        with self._errors(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return {(row.board_id, row.model_name, row.kind): row.n for row in rows}

    def baselines(self, campaign_id: str) -> dict[BaselineCell, str]:
        """By cell, the night that it is compared with."""
        query = sa.select(BASELINES).where(BASELINES.c.campaign_id == campaign_id)
        with self._errors(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return {BaselineCell(row.board_id, row.cell): row.night_id for row in rows}

    def set_baselines(
        self, campaign_id: str, nights: Mapping[BaselineCell, str], *, forget: bool = False
    ) -> None:
        """From now on these cells are compared with these nights.

        forget: others with none, until they have a baseline again; else they stay as they are.
        """
        rows = [
            {"campaign_id": campaign_id, "board_id": c.board_id, "cell": c.cell, "night_id": night}
            for c, night in nights.items()
        ]
        statement = self._insert(BASELINES)
        statement = statement.on_conflict_do_update(
            index_elements=["campaign_id", "board_id", "cell"],
            set_={"night_id": statement.excluded.night_id},
        )
        with self.transaction() as connection:
            if forget:
                ours = BASELINES.c.campaign_id == campaign_id
                connection.execute(sa.delete(BASELINES).where(ours))
            if rows:
                connection.execute(statement, rows)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.SQLAlchemyError, OSError, ValueError, OverflowError, zlib.error) as error:
            fact = without_secrets(str(getattr(error, "orig", None) or error), self.address)
            next_step = (
                "see that it is a fleetcut database on a disk with free space"
                if isinstance(self.address, Path)
                else "see that the server runs, lets this user in and has free space"
            )
            raise StoreError(f"{self.address}: {fact}. Next: {next_step}") from None


def _filtered(select: sa.Select[Any], query: Query) -> sa.Select[Any]:
    if query.campaign_ids is not None:
        select = select.where(RUNS.c.campaign_id.in_(query.campaign_ids))
    if query.board_ids is not None:
        select = select.where(RUNS.c.board_id.in_(query.board_ids))
    if query.models is not None:
        named: list[sa.ColumnElement[bool]] = [RUNS.c.model_name.in_(query.models)]
        hashes = [m for m in query.models if len(m) >= _LEAST_HASH and set(m) <= _HEX]
        named += [RUNS.c.model_sha256.startswith(digits) for digits in hashes]
        select = select.where(sa.or_(*named))
    if query.valid is not None:
        select = select.where(RUNS.c.valid if query.valid else sa.not_(RUNS.c.valid))
    if query.since_unix_ns is not None:
        select = select.where(RUNS.c.stored_unix_ns >= query.since_unix_ns)
    return select


def _row(record: MeasurementRecord, model_name: str) -> dict[str, object]:
    spec = record.spec
    valid = record.verdict is not None and record.verdict.valid
    return {
        "run_id": record.run_id,
        "campaign_id": spec.campaign_id,
        "board_id": spec.board_id,
        "model_sha256": spec.model_sha256,
        "model_name": model_name,
        "runtime": spec.runtime,
        "valid": valid,
        "outcome": _outcome(record),
        "p50_ns": median_ns(record.latency_ns) if record.latency_ns else None,
        "profile_sha256": record.profile_sha256,
        "simulated": record.simulated,
        "record_zlib": zlib.compress(encode(record).encode("utf-8"), 6),
        "stored_unix_ns": time.time_ns(),
    }


def _outcome(record: MeasurementRecord) -> str:
    if record.error is not None:
        # From a board: PostgreSQL keeps no NUL, and no database half a surrogate pair.
        said = f"{record.error.kind}: {record.error.fact}".replace("\0", " ")[:200]
        return said.encode("utf-8", "replace").decode("utf-8")
    if record.verdict is None or record.verdict.valid:
        return "valid"
    return ", ".join(reason.value for reason in record.verdict.reasons)
