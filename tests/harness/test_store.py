"""Records are inserted once, survive, and are exported with their provenance."""

import json
import sqlite3
import threading

import pandas as pd
import pytest

from device_agents.contract import (
    BoardState,
    DeviceProfile,
    MeasurementRecord,
    Reason,
    RunError,
    RunSpec,
    Verdict,
)
from harness.errors import StoreError
from harness.export import export
from harness.store import Store

PROFILE = DeviceProfile(
    hostname="b1",
    machine="aarch64",
    model="Raspberry Pi 4",
    soc=None,
    isa_features=("asimd",),
    cores=4,
    opp_freqs_khz=(600_000, 1_500_000),
    memory_bytes=1 << 30,
    kernel="6.1",
    os="Debian",
    glibc="2.36",
    python="3.11.2",
    runtime_versions=(("onnxruntime", "1.31.1"),),
    boot_id="x",
    simulated=True,
)


def record(
    repeat: int = 0, *, verdict=Verdict(True), error=None, campaign="c"
) -> MeasurementRecord:
    spec = RunSpec(campaign, "b1", "f" * 64, "ort", repeat=repeat)
    return MeasurementRecord(
        spec=spec,
        profile_sha256=PROFILE.sha256(),
        agent_sha256="a",
        boot_id="x",
        simulated=True,
        started_unix_ns=1,
        states=(
            BoardState(
                1,
                temp_c_by_zone=(("cpu", 50.0), ("gpu", None)),
                governor="ondemand",
                effective_freq_khz=1_500_000,
                battery_pct=80.0,
                power_mw=2000,
            ),
            BoardState(2, power_mw=9000),
            BoardState(3, temp_c_by_zone=(("cpu", 60.5),), power_mw=5000),
            BoardState(4, power_mw=None),
            BoardState(5, power_mw=5200),
            BoardState(6, effective_freq_khz=1_400_000, power_mw=3000),
        ),
        runtime_version="onnxruntime 1.31.1",
        peak_rss_bytes=70_000_000,
        latency_ns=() if error else (3_000_000, 1_000_000, 2_000_000),
        verdict=None if error else verdict,
        error=error,
    )


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "lab.db")
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


def test_what_is_no_database_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "lab.db"
    path.write_text("this is not a database, and it is long enough to be read as a header page")
    with pytest.raises(StoreError, match=r"lab\.db: file is not a database"):
        Store(path)


def test_a_record_that_was_cut_in_the_file_is_an_error_that_names_it(store):
    store.add(record(), "net")
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE runs SET record_zlib = substr(record_zlib, 1, 20)")
    connection.close()
    with pytest.raises(StoreError, match=r"lab\.db"):
        list(store.runs())
