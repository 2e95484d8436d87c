"""Tables come to be by migrations only, whole or not at all, from every version that ever was."""

import sqlite3
import threading
import zlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import harness.store
from device_agents.contract import encode
from harness.errors import StoreError
from harness.store import Query, Store
from harness.store.migrating import REVISION, VERSION_TABLE
from harness.store.tables import METADATA
from tests.harness.store_samples import PROFILE, record

FIRST_RELEASE = """
CREATE TABLE profiles (
    profile_sha256 VARCHAR(64) NOT NULL, document TEXT NOT NULL, PRIMARY KEY (profile_sha256)
);
CREATE TABLE runs (
    run_id VARCHAR(32) NOT NULL, inserted INTEGER NOT NULL, campaign_id VARCHAR(64) NOT NULL,
    board_id VARCHAR(64) NOT NULL, model_sha256 VARCHAR(64) NOT NULL,
    model_name VARCHAR(64) NOT NULL, runtime VARCHAR(16) NOT NULL, valid BOOLEAN NOT NULL,
    outcome VARCHAR(200) NOT NULL, p50_ns INTEGER, profile_sha256 VARCHAR(64) NOT NULL,
    simulated BOOLEAN NOT NULL, record_zlib BLOB NOT NULL,
    PRIMARY KEY (run_id), UNIQUE (inserted)
);
CREATE INDEX ix_runs_campaign_id ON runs (campaign_id);
CREATE INDEX ix_runs_model_sha256 ON runs (model_sha256);
CREATE INDEX ix_runs_board_id ON runs (board_id);
"""
"""What create_all() made of the first release's tables, word for word but for spaces."""


@pytest.fixture
def first_release(tmp_path):
    """A file as the first release left it, with one record and its profile."""
    path = tmp_path / "lab.db"
    connection = sqlite3.connect(path)
    connection.executescript(FIRST_RELEASE)
    run = record()
    packed = zlib.compress(encode(run).encode())
    row = (
        run.run_id, 1, "c", "b1", "f" * 64, "net", "ort", True, "valid", 2_000_000,
        run.profile_sha256, True, packed,
    )  # fmt: skip
    with connection:
        connection.execute(
            "INSERT INTO profiles VALUES (?, ?)", (run.profile_sha256, encode(PROFILE))
        )
        connection.execute(f"INSERT INTO runs VALUES ({','.join('?' * len(row))})", row)
    connection.close()
    return path


def engine_of(address):
    return sa.create_engine(f"sqlite:///{address}" if isinstance(address, Path) else address)


def revision_of(address):
    engine = engine_of(address)
    with engine.connect() as connection:
        revision = connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))
    engine.dispose()
    return revision


def test_the_migrations_end_at_the_tables_of_the_program(address):
    Store(address).close()
    engine = engine_of(address)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        differences = compare_metadata(context, METADATA)
    engine.dispose()
    assert differences == []
    assert revision_of(address) == REVISION


def test_the_newest_migration_is_the_one_that_the_program_waits_for():
    config = Config()
    folder = Path(harness.store.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    script = ScriptDirectory.from_config(config)
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert revisions[0] == REVISION
    assert revisions == sorted(revisions, reverse=True)


def test_a_file_of_the_first_release_is_taken_over_with_what_it_holds(first_release):
    store = Store(first_release)
    try:
        (run,) = store.runs()
        assert (run.record, run.model_name) == (record(), "net")
        assert store.profiles() == {PROFILE.sha256(): PROFILE}
        assert not store.add(record(), "net")
        assert store.add(record(1), "net")
        # Of the old one only the board's own clock is known.
        assert store.summaries()[0].stored_unix_ns == record().started_unix_ns == 1
        assert [r.record.spec.repeat for r in store.find(Query(since_unix_ns=2))] == [1]
    finally:
        store.close()
    assert revision_of(first_release) == REVISION


def test_a_reader_of_an_old_file_reads_it_and_leaves_it_old(first_release):
    before = first_release.read_bytes()
    store = Store(first_release, read_only=True)
    assert store.known([record().run_id]) == {record().run_id}
    assert store.latest_with(["f" * 64], 5) == [record()]
    store.close()
    assert first_release.read_bytes() == before
    assert list(first_release.parent.iterdir()) == [first_release]


def test_many_open_an_old_file_at_once(first_release):
    failures = []

    def opened():
        try:
            Store(first_release).close()
        except StoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=opened) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert revision_of(first_release) == REVISION


def test_a_migration_that_fails_leaves_the_file_as_it_was(first_release):
    """Its first step succeeds; a table in the way stops a later one."""
    with sqlite3.connect(first_release) as connection:
        connection.execute("CREATE TABLE baselines (mine TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="baselines already exists"):
        Store(first_release)
    columns = {c["name"] for c in sa.inspect(engine_of(first_release)).get_columns("runs")}
    assert "stored_unix_ns" not in columns
    with sqlite3.connect(first_release) as connection:
        connection.execute("DROP TABLE baselines")
    connection.close()
    Store(first_release).close()
    assert revision_of(first_release) == REVISION


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_database_is_refused_and_left_alone(address, read_only):
    Store(address).close()
    engine = engine_of(address)
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '0999'"))
    engine.dispose()
    with pytest.raises(StoreError, match="written by a newer fleetcut .*Next: update this"):
        Store(address, read_only=read_only)
    assert revision_of(address) == "0999"


@pytest.mark.parametrize("table", ["bookmarks (url TEXT)", "runs (athlete TEXT)"])
def test_a_file_of_another_program_is_refused_and_left_alone(tmp_path, table):
    path = tmp_path / "places.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE {table}")
    connection.close()
    with pytest.raises(StoreError, match="tables that are not fleetcut's"):
        Store(path)
    assert len(sa.inspect(engine_of(path)).get_table_names()) == 1


def test_a_lab_s_server_may_hold_other_programs_tables(postgres):
    url = postgres.new_database()
    engine = engine_of(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num TEXT)"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('theirs')"))
    store = Store(url)
    assert store.add(record(), "net")
    store.close()
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "theirs"
    engine.dispose()
