"""``fleetcut plan`` says what would be measured and touches nothing."""

import hashlib
import json
import socket
import subprocess

import pytest

from device_agents.contract import BoardState, Condition, MeasurementRecord, Verdict
from fleetcut.cli import main
from fleetcut.planning import in_words, span_text
from harness.campaign import load_campaign
from harness.inventory import load_inventory
from harness.plan import Span
from harness.store import Store

INVENTORY = """\
version: 1
boards:
  - {board_id: a, model: m, host: h, user: u, labels: {cooling: fan}, exclusive_group: g}
  - {board_id: b, model: m, host: h, user: u, exclusive_group: g}
"""
CAMPAIGN = """\
version: 1
campaign_id: c1
models: [{name: one, path: one.onnx}]
runtimes: [ort]
threads: [1, 2]
repeats: 3
conditions: {temp_c: [[45, 55], null], freq_khz: [600000]}
canary: {model: one, every: 5}
stopping: {max_seconds: 4}
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    (tmp_path / "one.onnx").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def offline(monkeypatch):
    """Any socket or process that is opened fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("plan went out of its own process")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


def fill_store(lab) -> None:
    """Three seconds for every run of the campaign's first board but one, and 1 s between."""
    campaign = load_campaign(lab / "campaign.yaml", load_inventory(lab / "inventory.yaml"))
    store = Store(lab / "lab.db")
    try:
        for index, spec in enumerate([s for s in campaign.specs if s.board_id == "a"][:-1]):
            start_ns = index * 4_000_000_000
            states = (BoardState(start_ns), BoardState(start_ns + 3_000_000_000))
            store.add(
                MeasurementRecord(
                    spec, "p", "a", "x", True, 1, states, latency_ns=(1,), verdict=Verdict(True)
                ),
                "one",
            )
    finally:
        store.close()


def tree(folder) -> dict:
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("with_store", [False, True])
def test_nothing_is_touched(lab, offline, with_store, capsys):
    if with_store:
        fill_store(lab)
    before = tree(lab)
    assert main(["plan", "campaign.yaml", "--store", "lab.db"]) == 0
    assert tree(lab) == before
    out = capsys.readouterr().out
    assert "45..55 °C, 600000 kHz" in out
    assert "cooling=fan" in out
    assert "one (canary)" in out
    assert "one after another (g)" in out
    assert "Next: fleetcut measure campaign.yaml" in out
    assert ("there is no lab.db" in out) == (not with_store)


def test_a_store_that_is_being_written_is_read_as_it_stands(lab, offline, capsys):
    fill_store(lab)
    writer = Store(lab / "lab.db")
    try:
        assert writer.known([]) == set()
        assert len(writer.summaries()) == 15
        assert main(["plan", "campaign.yaml", "--store", "lab.db", "--json"]) == 0
    finally:
        writer.close()
    assert [b["stored"] for b in json.loads(capsys.readouterr().out)["boards"]] == [15, 0]


def test_json_has_cells_boards_and_durations(lab, offline, capsys):
    fill_store(lab)
    assert main(["plan", "campaign.yaml", "--store", "lab.db", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len([c for c in document["cells"] if not c["canary"]]) == 4
    assert {c["condition"]["freq_khz"] for c in document["cells"]} == {600_000}
    a, b = document["boards"]
    assert (a["runs"], a["stored"], b["runs"], b["stored"]) == (16, 15, 16, 0)
    # A run of 3 s after a pause of 1 s, on boards that go one after another.
    assert (a["low_s"], b["low_s"]) == (4.0, 64.0)
    assert document["wall_clock"] == {"low_s": 68.0, "high_s": 68.0}
    assert any("on another board" in said for said in document["assumed"])


def test_mistakes_end_in_one_line(lab, capsys):
    (lab / "lab.db").write_text("not a database")
    assert main(["plan", "campaign.yaml", "--store", "lab.db"]) == 1
    assert "lab.db: file is not a database" in capsys.readouterr().err
    (lab / "campaign.yaml").write_text(CAMPAIGN.replace("temp_c", "heat"))
    assert main(["plan", "campaign.yaml"]) == 2
    err = capsys.readouterr().err
    assert "campaign.yaml:7: conditions.heat: is not a key known here" in err
    assert "Traceback" not in err


def test_words_for_conditions_and_durations():
    assert in_words(Condition()) == "as it is"
    assert (
        in_words(Condition("performance", None, None, 60, 20, 40.5, "battery", "15W"))
        == "..60 °C, performance, mode 15W, battery, 20..40.5 % charge"
    )
    assert span_text(Span(3.2, 3.3)) == "3 s"
    assert span_text(Span(99.4, 3599)) == "99 s to 1 h"
    assert span_text(Span(4500, 300_000)) == "1 h 15 min to 3.5 days"
