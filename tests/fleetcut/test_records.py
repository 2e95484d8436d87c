"""fleetcut results and export: which runs, from which store; and a dataset that stands alone."""

import datetime
import json
import subprocess
import sys

import duckdb
import pandas as pd
import pytest

from device_agents.contract import Reason, RunError, Verdict
from fleetcut.cli import main
from fleetcut.records import since_unix_ns
from harness.errors import SelectionError
from harness.store import Store
from tests.harness.store_samples import PROFILE, record

NOW = datetime.datetime(2031, 5, 4, 12, tzinfo=datetime.UTC)


@pytest.fixture
def lab(tmp_path):
    path = tmp_path / "lab.db"
    store = Store(path)
    store.add_profile(PROFILE)
    store.add(record(0), "net")
    store.add(record(1, verdict=Verdict(False, (Reason.THROTTLED,))), "net")
    store.add(record(2, error=RunError("timeout", "took 60 s", "raise timeout_s")), "other")
    store.add(record(0, campaign="later"), "other")
    store.close()
    return path


def listed(capsys, lab, *arguments):
    assert main(["results", "--store", str(lab), "--json", *arguments]) == 0
    return [
        (run["campaign_id"], run["model_name"], run["outcome"])
        for run in json.loads(capsys.readouterr().out)
    ]


def test_results_by_what_is_asked(lab, capsys):
    assert len(listed(capsys, lab)) == 4
    assert len(listed(capsys, lab, "--since", "1h")) == 4
    assert listed(capsys, lab, "--since", "2999-01-01") == []
    assert listed(capsys, lab, "--board", "b2") == []
    assert listed(capsys, lab, "--campaign", "later") == [("later", "other", "valid")]
    assert listed(capsys, lab, "--invalid") == [
        ("c", "net", "throttled"),
        ("c", "other", "timeout: took 60 s"),
    ]
    assert listed(capsys, lab, "--valid", "--model", "net") == [("c", "net", "valid")]
    assert len(listed(capsys, lab, "--model", "ffffffff")) == 4


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("36h", NOW - datetime.timedelta(hours=36)),
        ("7d", NOW - datetime.timedelta(days=7)),
        ("2031-05-04T10:00+02:00", NOW - datetime.timedelta(hours=4)),
        ("2031-05-04T22:00Z", NOW + datetime.timedelta(hours=10)),
    ],
)
def test_since(text, when):
    assert since_unix_ns(text, NOW) == when.timestamp() * 1e9


@pytest.mark.parametrize("text", ["", "yesterday", "999999w", "2031-13-01", "-1h", "1e9h"])
def test_a_time_that_cannot_be_read_is_one_line(text):
    with pytest.raises(SelectionError, match="is no time. Next: write 36h"):
        since_unix_ns(text, NOW)


def test_a_limit_beyond_any_database_is_one_line(lab, capsys):
    assert main(["results", "--store", str(lab), "--limit", "9" * 30]) == 1
    assert "Next:" in capsys.readouterr().err


def test_a_dataset_is_read_by_pandas_and_duckdb_alone(lab, tmp_path, capsys):
    out = tmp_path / "data"
    argv = ["export", "--store", str(lab), "--out", str(out), "--since", "1h", "--json"]
    assert main(argv) == 0
    answer = json.loads(capsys.readouterr().out)
    frame = pd.read_parquet(out / "runs.parquet")
    assert list(frame["p50_ns"]) == [2_000_000] * 2
    rows = duckdb.sql(
        f"SELECT campaign_id, model_name, p50_ns, len(latency_ns), list_max(latency_ns), simulated "
        f"FROM '{out}/runs.parquet' WHERE valid ORDER BY campaign_id"
    ).fetchall()
    assert rows == [
        ("c", "net", 2_000_000, 3, 3_000_000, True),
        ("later", "other", 2_000_000, 3, 3_000_000, True),
    ]
    provenance = json.loads((out / "dataset.json").read_text())
    assert provenance["runs_sha256"] == answer["sha256"]
    assert provenance["source"] == str(lab)
    assert provenance["counts"] == {
        "runs": 2, "valid": 2, "boards": 1, "models": 1, "samples": 6
    }  # fmt: skip
    assert provenance["query"]["valid"] is True
    assert provenance["query"]["since_unix_ns"] > 0
    assert set(provenance["versions"]) == {"fleetcut", "records", "tables"}
    assert provenance["profile_sha256"] == [PROFILE.sha256()]


def test_a_dataset_of_one_board_and_model(lab, tmp_path, capsys):
    argv = ["export", "--store", str(lab), "--out", str(tmp_path / "d"), "--board", "b1"]
    assert main([*argv, "--model", "net", "--include-invalid", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_runs"] == 2
    assert main([*argv, "--model", "nothing"]) == 1
    assert "no valid run of any campaign fits" in capsys.readouterr().err


def test_the_store_may_be_named_by_the_environment(lab, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fleetcut", "results", "--json"],
        env={"FLEETCUT_STORE": str(lab), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(done.stdout)) == 4
    assert not (tmp_path / ".fleetcut").exists()


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        ("postgresql://lab:hunter2@127.0.0.1:x/db", 2, "cannot be read"),
        ("mysql://lab:hunter2@127.0.0.1/db", 2, "'mysql' is no kind of store"),
        ("postgresql://lab:hunter2@127.0.0.1:1/db", 1, "lab:***@127.0.0.1:1/db"),
    ],
)
def test_a_store_that_cannot_be_is_said_without_its_password(capsys, url, status, said):
    try:
        found = main(["results", "--store", url])
    except SystemExit as error:
        found = error.code
    err = capsys.readouterr().err
    assert found == status
    assert said in err
    assert "hunter2" not in err
    assert "Traceback" not in err
