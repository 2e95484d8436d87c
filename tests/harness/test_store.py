"""Records are inserted once, survive, and are exported with their provenance."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from device_agents.contract import Reason, RunError, Verdict, encode
from harness.errors import SelectionError, StoreError
from harness.export import export
from harness.store import (
    BaselineCell,
    Query,
    Store,
    address_of,
    earlier_nights,
    is_there,
    keep_night,
)
from tests.harness.store_samples import PROFILE, record


@pytest.fixture
def store(address):
    opened = Store(address)
    opened.add_profile(PROFILE)
    yield opened
    opened.close()


def test_a_run_is_kept_once_and_comes_back_whole(store):
    assert store.add(record(), "net")
    assert not store.add(record(), "net")
    (stored,) = store.runs()
    assert stored.record == record()
    assert stored.model_name == "net"
    assert store.known([record().run_id, "0" * 32]) == {record().run_id}


def test_many_threads_insert_each_run_once(store):
    def insert() -> None:
        for repeat in range(20):
            store.add(record(repeat), "net")

    threads = [threading.Thread(target=insert) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.summaries()) == 20


def test_summaries_say_why_a_run_does_not_count(store):
    store.add(record(0), "net")
    store.add(record(1, verdict=Verdict(False, (Reason.THROTTLED,))), "net")
    store.add(record(2, error=RunError("timeout", "took 60 s", "raise timeout_s")), "net")
    assert [(s.valid, s.outcome, s.p50_ns) for s in store.summaries()] == [
        (True, "valid", 2_000_000),
        (False, "throttled", 2_000_000),
        (False, "timeout: took 60 s", None),
    ]
    assert [s.outcome for s in store.summaries(limit=1)] == ["timeout: took 60 s"]


def test_export_holds_valid_runs_with_provenance_and_is_repeatable(store, tmp_path):
    store.add(record(0), "net")
    store.add(record(1, verdict=Verdict(False, (Reason.THROTTLED,))), "net")
    store.add(record(2, error=RunError("timeout", "x", "y")), "net")
    store.add(record(0, campaign="other"), "net")
    done = export(store, tmp_path / "data", ["c"])
    frame = pd.read_parquet(tmp_path / "data" / "runs.parquet")
    assert list(frame["p50_ns"]) == [2_000_000]
    assert list(frame["latency_ns"][0]) == [3_000_000, 1_000_000, 2_000_000]
    assert frame["temp_c_max"][0] == 60.5
    # The draw while it was timed, not before, in warm-up or after.
    assert frame["power_mw"][0] == 5100.0
    assert (frame["battery_pct"][0], frame["peak_rss_bytes"][0]) == (80.0, 70_000_000)
    assert (frame["effective_freq_khz"][0], frame["effective_freq_khz_after"][0]) == (
        1_500_000,
        1_400_000,
    )
    assert frame["board_model"][0] == "Raspberry Pi 4"
    provenance = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert provenance["runs_sha256"] == done.sha256
    assert provenance["simulated"] is True
    assert export(store, tmp_path / "data", ["c"]).sha256 == done.sha256
    assert export(store, tmp_path / "all", include_invalid=True).n_runs == 3


def test_nothing_to_export_says_so_and_foreign_folders_are_left_alone(store, tmp_path):
    with pytest.raises(StoreError, match="no valid run of c"):
        export(store, tmp_path / "data", ["c"])
    store.add(record(), "net")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="holds other files"):
        export(store, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_queries_by_campaign_board_model_validity_and_time(store):
    store.add(record(0), "net")
    middle_ns = time.time_ns()
    store.add(record(1, verdict=Verdict(False, (Reason.THROTTLED,))), "net")
    store.add(record(2, error=RunError("timeout", "x", "y"), campaign="other"), "nets")

    def repeats(**asked):
        return [run.record.spec.repeat for run in store.find(Query(**asked))]

    assert repeats() == [0, 1, 2]
    assert repeats(campaign_ids=("c",)) == [0, 1]
    assert repeats(board_ids=("b2",)) == []
    assert repeats(models=("net",)) == [0, 1]
    assert repeats(models=("ffffffff",)) == [0, 1, 2]
    assert repeats(models=("ffff%",)) == []
    assert repeats(valid=True) == [0]
    assert repeats(valid=False) == [1, 2]
    assert repeats(since_unix_ns=middle_ns) == [1, 2]
    assert repeats(campaign_ids=("c",), valid=False, since_unix_ns=middle_ns) == [1]
    newest = store.summaries_of(Query(models=("net", "nets")), limit=1)
    assert [(row.model_name, row.campaign_id) for row in newest] == [("nets", "other")]


def test_counts_by_board_model_and_kind(store):
    for repeat in range(3):
        store.add(record(repeat), "net")
    store.add(record(3, verdict=Verdict(False, (Reason.THROTTLED,))), "net")
    store.add(record(4, error=RunError("timeout", "x", "y")), "net")
    assert store.counts() == {
        ("b1", "net", "valid"): 3,
        ("b1", "net", "invalid"): 1,
        ("b1", "net", "failed"): 1,
    }


def test_baselines_are_set_and_moved(store):
    a, b = BaselineCell("b1", "model=net"), BaselineCell("b2", "model=net")
    store.set_baselines("nightly", {a: "n1", b: "n1"})
    store.set_baselines("nightly", {b: "n2"})
    store.set_baselines("nightly", {})
    assert store.baselines("nightly") == {a: "n1", b: "n2"}
    assert store.baselines("other") == {}


def test_nights_are_kept_in_their_order_and_once_each(store):
    cell = BaselineCell("b1", "model=net")
    other = BaselineCell("b2", "model=net")
    for ended, p50_ns in enumerate((10, 20, 30), 1):
        keep_night(store, "nightly", f"n{ended}", {cell: p50_ns, other: 1}, ended)
    # The first night went on, later: it stays the first.
    keep_night(store, "nightly", "n1", {cell: 11}, 9)
    keep_night(store, "other", "n1", {cell: 99}, 1)
    keep_night(store, "nightly", "empty", {}, 10)
    assert earlier_nights(store, "nightly", "n4", 10) == {cell: (11, 20, 30), other: (1, 1)}
    assert earlier_nights(store, "nightly", "n2", 10)[cell] == (11, 30)
    assert earlier_nights(store, "nightly", "n4", 2)[cell] == (20, 30)


def test_what_a_board_says_of_its_error_can_always_be_stored(store):
    """NUL and half a surrogate pair are legal in JSON, and in no database's text."""
    store.add(record(error=RunError("crashed", "core\x00 dumped \ud800" + "ü" * 300, "y")), "net")
    (row,) = store.summaries()
    assert row.outcome.startswith("crashed: core  dumped ?ü")
    assert len(row.outcome) == 200
    (run,) = store.runs()
    assert "\x00" in run.record.error.fact


def test_latencies_of_seconds_fit(store):
    slow = replace(record(), latency_ns=(7_000_000_000,))
    store.add(slow, "net")
    assert store.summaries()[0].p50_ns == 7_000_000_000


ADDER = """
import sys
from device_agents.contract import MeasurementRecord, decode
from harness.store import Store, address_of
records = [decode(MeasurementRecord, line) for line in sys.stdin]
store = Store(address_of(sys.argv[1]))
print(sum(store.add(record, "net") for record in records))
"""


def test_processes_that_open_make_and_fill_one_database_at_once(address):
    """They race for the tables too: the database is empty when they start."""
    records = "".join(encode(record(repeat)) + "\n" for repeat in range(40))
    text = str(address) if isinstance(address, Path) else address.render_as_string(False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    with ThreadPoolExecutor(len(processes)) as pool:
        added = [int(out) for out, _ in pool.map(lambda p: p.communicate(records), processes)]
    assert sum(added) == 40
    store = Store(address)
    try:
        assert sorted(run.record.spec.repeat for run in store.runs()) == list(range(40))
    finally:
        store.close()


@pytest.fixture
def secret(postgres):
    """The URL of a new database, and what must never be shown of it."""
    url = postgres.new_database()
    return url, str(url.password)


def test_a_server_that_refuses_or_is_gone_is_an_error_without_the_password(secret):
    url, password = secret
    wrong = url.set(password=password[::-1])
    gone = url.set(port=1)
    for address in (wrong, gone, url.set(database="nowhere")):
        with pytest.raises(StoreError, match="Next: see that the server runs") as caught:
            Store(address)
        text = "".join(traceback.format_exception(caught.value))
        assert address.password not in str(caught.value)
        assert address.password not in text
        assert f":***@127.0.0.1:{address.port}/" in text


def test_connections_that_the_server_dropped_are_made_anew(postgres):
    store = Store(postgres.new_database())
    assert store.add(record(0), "net")
    postgres.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fleetcut'"
    )
    assert store.add(record(1), "net")
    assert [run.record.spec.repeat for run in store.runs()] == [0, 1]
    store.close()


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://lab:hunter2@h:99x/db",
        "postgresql://lab:hunter2@h",
        "mysql://lab:hunter2@h/db",
        "postgresql+asyncpg://lab:hunter2@h/db",
        "postgresql://lab@h/db?password=hunter2",
        "hunter2://",
    ],
)
def test_an_address_that_cannot_be_is_refused_without_showing_its_password(text):
    with pytest.raises(SelectionError, match="Next:") as caught:
        address_of(text)
    assert "hunter2" not in str(caught.value).replace("'hunter2'", "")


def test_addresses():
    assert address_of("lab.db") == Path("lab.db")
    assert address_of("sqlite:////srv/lab.db") == Path("/srv/lab.db")
    assert address_of("postgres.db") == Path("postgres.db")
    url = address_of("postgresql://lab:hunter2@db.lab/fleet")
    assert str(url) == "postgresql+psycopg://lab:***@db.lab/fleet"


def test_is_there(address):
    assert not is_there(address)
    Store(address).close()
    assert is_there(address)


def test_a_reader_changes_nothing(address):
    writer = Store(address)
    writer.add(record(), "net")
    writer.close()
    reader = Store(address, read_only=True)
    try:
        assert reader.known([record().run_id]) == {record().run_id}
        with pytest.raises(StoreError, match="read-?only"):
            reader.add(record(1), "net")
    finally:
        reader.close()


def test_what_is_no_database_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "lab.db"
    path.write_text("this is not a database, and it is long enough to be read as a header page")
    with pytest.raises(StoreError, match=r"lab\.db: file is not a database"):
        Store(path)


def test_a_record_that_was_cut_in_the_file_is_an_error_that_names_it(tmp_path):
    store = Store(tmp_path / "lab.db")
    store.add(record(), "net")
    with sqlite3.connect(tmp_path / "lab.db") as connection:
        connection.execute("UPDATE runs SET record_zlib = substr(record_zlib, 1, 20)")
    connection.close()
    with pytest.raises(StoreError, match=r"lab\.db"):
        list(store.runs())
    store.close()
