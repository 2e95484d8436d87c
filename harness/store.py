"""Records in SQL: inserted once by run_id, raw samples and states with them.

Input: MeasurementRecords and profiles. Output: the same, and which runs are already there.
Raises StoreError naming the database.
"""

from __future__ import annotations

import sqlite3
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from device_agents.contract import DeviceProfile, MeasurementRecord, decode, encode
from harness.errors import StoreError
from harness.statistics import median_ns

_METADATA = sa.MetaData()

_PROFILES = sa.Table(
    "profiles",
    _METADATA,
    sa.Column("profile_sha256", sa.String(64), primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
)

_RUNS = sa.Table(
    "runs",
    _METADATA,
    sa.Column("run_id", sa.String(32), primary_key=True),
    sa.Column("inserted", sa.Integer, nullable=False, unique=True),
    sa.Column("campaign_id", sa.String(64), nullable=False, index=True),
    sa.Column("board_id", sa.String(64), nullable=False, index=True),
    sa.Column("model_sha256", sa.String(64), nullable=False, index=True),
    sa.Column("model_name", sa.String(64), nullable=False),
    sa.Column("runtime", sa.String(16), nullable=False),
    sa.Column("valid", sa.Boolean, nullable=False),
    sa.Column("outcome", sa.String(200), nullable=False),
    sa.Column("p50_ns", sa.Integer),
    sa.Column("profile_sha256", sa.String(64), nullable=False),
    sa.Column("simulated", sa.Boolean, nullable=False),
    sa.Column("record_zlib", sa.LargeBinary, nullable=False),
)


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


class Store:
    """The runs of a lab in one SQLite file. Threads may share it.

    read_only: the file is there, and neither it nor its folder is changed by anything here.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        if read_only:
            self._engine = sa.create_engine("sqlite://", creator=lambda: _unchanging(path))
            return
        self._engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
        sa.event.listen(self._engine, "connect", _use_wal)
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            _METADATA.create_all(self._engine)

    def close(self) -> None:
        self._engine.dispose()

    def add_profile(self, profile: DeviceProfile) -> None:
        """Keep a profile; the same one again changes nothing."""
        row = {"profile_sha256": profile.sha256(), "document": encode(profile)}
        with self._errors(), self._engine.begin() as connection:
            connection.execute(insert(_PROFILES).values(row).on_conflict_do_nothing())

    def add(self, record: MeasurementRecord, model_name: str) -> bool:
        """Keep a record unless its run_id is known. Returns whether it was new."""
        with self._errors(), self._engine.begin() as connection:
            row = _row(record, model_name)
            row["inserted"] = sa.select(
                sa.func.coalesce(sa.func.max(_RUNS.c.inserted), 0) + 1
            ).scalar_subquery()
            result = connection.execute(
                insert(_RUNS).values(row).on_conflict_do_nothing(index_elements=["run_id"])
            )
            return result.rowcount == 1

    def known(self, run_ids: Iterable[str]) -> set[str]:
        """Which of these runs are stored."""
        wanted = list(run_ids)
        found: set[str] = set()
        with self._errors(), self._engine.connect() as connection:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                query = sa.select(_RUNS.c.run_id).where(_RUNS.c.run_id.in_(part))
                found.update(connection.scalars(query))
        return found

    def profiles(self) -> dict[str, DeviceProfile]:
        """profile_sha256 → profile."""
        with self._errors(), self._engine.connect() as connection:
            rows = connection.execute(sa.select(_PROFILES)).all()
        return {row.profile_sha256: decode(DeviceProfile, row.document) for row in rows}

    def runs(
        self, campaign_ids: Iterable[str] | None = None, *, valid_only: bool = False
    ) -> Iterator[StoredRun]:
        """Stored runs in the order of insertion, read in small portions."""
        columns = sa.select(_RUNS.c.record_zlib, _RUNS.c.model_name)
        query = _filtered(columns, campaign_ids, valid_only=valid_only).order_by(_RUNS.c.inserted)
        with self._errors(), self._engine.connect() as connection:
            for packed, name in connection.execution_options(yield_per=200).execute(query):
                yield StoredRun(decode(MeasurementRecord, zlib.decompress(packed)), name)

    def records(self, run_ids: Iterable[str]) -> dict[str, MeasurementRecord]:
        """run_id → record, for those of these runs that are stored."""
        wanted = list(run_ids)
        found: dict[str, MeasurementRecord] = {}
        with self._errors(), self._engine.connect() as connection:
            for start in range(0, len(wanted), 500):
                part = wanted[start : start + 500]
                query = sa.select(_RUNS.c.record_zlib).where(_RUNS.c.run_id.in_(part))
                for packed in connection.scalars(query):
                    record = decode(MeasurementRecord, zlib.decompress(packed))
                    found[record.run_id] = record
        return found

    def latest_with(self, model_sha256s: Iterable[str], limit: int) -> list[MeasurementRecord]:
        """The newest ``limit`` records of all campaigns that had one of these models, in order."""
        having = sa.select(_RUNS.c.campaign_id).where(_RUNS.c.model_sha256.in_(list(model_sha256s)))
        query = sa.select(_RUNS.c.record_zlib).where(_RUNS.c.campaign_id.in_(having))
        query = query.order_by(_RUNS.c.inserted.desc()).limit(limit)
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
        names = list(RunSummary.__dataclass_fields__)
        query = _filtered(sa.select(*(_RUNS.c[n] for n in names)), campaign_ids)
        if board_ids is not None:
            query = query.where(_RUNS.c.board_id.in_(list(board_ids)))
        query = query.order_by(_RUNS.c.inserted.desc()).limit(limit)
        with self._errors(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [RunSummary(**row._mapping) for row in reversed(rows)]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.SQLAlchemyError, OSError, ValueError, zlib.error) as error:
            fact = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
            raise StoreError(
                f"{self.path}: {fact}. Next: see that it is a fleetcut database on a disk "
                "with free space"
            ) from None


def _unchanging(path: Path) -> sqlite3.Connection:
    """A reader of a file in WAL mode makes files beside it, unless told that nobody writes.

    Somebody does where they lie there already; then nothing new is made.
    """
    is_written = path.with_name(f"{path.name}-wal").exists()
    mode = "mode=ro" if is_written else "mode=ro&immutable=1"
    uri = f"file:{urllib.parse.quote(str(path.absolute()))}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=30, check_same_thread=False)


def _use_wal(connection: object, _record: object) -> None:
    """Readers do not wait for the writer, and a commit survives a power cut."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _filtered(
    query: sa.Select[Any], campaign_ids: Iterable[str] | None, *, valid_only: bool = False
) -> sa.Select[Any]:
    if campaign_ids is not None:
        query = query.where(_RUNS.c.campaign_id.in_(list(campaign_ids)))
    return query.where(_RUNS.c.valid) if valid_only else query


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
    }


def _outcome(record: MeasurementRecord) -> str:
    if record.error is not None:
        return f"{record.error.kind}: {record.error.fact}"[:200]
    if record.verdict is None or record.verdict.valid:
        return "valid"
    return ", ".join(reason.value for reason in record.verdict.reasons)
