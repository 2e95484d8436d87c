"""fleetcut compare through the command, on store files made here."""

import json
import math
import random

import pytest

from device_agents.contract import Condition, MeasurementRecord, Reason, RunSpec, Verdict
from fleetcut.cli import main
from harness.campaign_axes import FIRST_CANARY_REPEAT
from harness.store import Store

MODELS = {"dense": "d" * 64, "pruned": "e" * 64, "canary": "c" * 64}


class Lab:
    """A store that a test fills run by run; every run of 1 ms × factor, with 0.5 % noise."""

    def __init__(self, path):
        self.path = path
        self.store = Store(path)
        self.rng = random.Random(0)

    def run(self, campaign, board, model, repeat, factor=1.0, *, condition=Condition(), valid=True):
        spec = RunSpec(campaign, board, MODELS[model], "ort", condition=condition, repeat=repeat)
        ns = 1e6 * factor * math.exp(self.rng.gauss(0, 0.005))
        record = MeasurementRecord(
            spec=spec,
            profile_sha256="p",
            agent_sha256="a",
            boot_id="x",
            simulated=True,
            started_unix_ns=1,
            latency_ns=tuple(round(ns * math.exp(self.rng.gauss(0, 0.01))) for _ in range(40)),
            verdict=Verdict(True) if valid else Verdict(False, (Reason.THROTTLED,)),
        )
        self.store.add(record, model)

    def pairs(self, campaign, board, factor, n=12):
        """dense and pruned in turn."""
        for repeat in range(n):
            models = ["dense", "pruned"]
            self.rng.shuffle(models)
            for model in models:
                self.run(campaign, board, model, repeat, factor if model == "pruned" else 1.0)


@pytest.fixture
def lab(tmp_path):
    opened = Lab(tmp_path / "lab.db")
    yield opened
    opened.store.close()


def compare(lab, capsys, *arguments):
    """Exit status and the JSON answer."""
    status = main(["compare", "--store", str(lab.path), "--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def test_two_models_of_a_campaign(lab, capsys):
    lab.pairs("night", "pi4-01", 1.05)
    lab.pairs("night", "pi4-02", 0.8)
    status, answer = compare(lab, capsys, "dense", "pruned")
    assert status == 1
    first, second = answer["boards"]
    assert (first["board_id"], first["verdict"]) == ("pi4-01", "slower")
    assert first["change"] == pytest.approx(0.05, abs=0.01)
    assert first["change_low"] < 0.05 < first["change_high"]
    assert (second["verdict"], second["n_pairs"]) == ("faster", 12)
    (fleet,) = answer["fleet"]
    assert fleet["change"] == pytest.approx(math.sqrt(1.05 * 0.8) - 1, abs=0.01)
    assert not first["apart"]
    assert first["cell"]["campaign"] == "night"


def test_the_table_says_what_was_found_and_nothing_slower_is_status_0(lab, capsys):
    lab.pairs("night", "pi4-01", 1.0)
    lab.run("night", "pi4-01", "pruned", 50)
    lab.run("night", "pi4-01", "dense", 51, valid=False)
    assert main(["compare", "--store", str(lab.path), "dense", "pruned"]) == 0
    out = capsys.readouterr().out
    assert "pi4-01 (simulated)" in out
    assert "same" in out
    assert "1 runs are not valid and left out" in out
    assert "1 runs have no mate and are left out" in out
    assert "Next: fleetcut" in out


def test_two_campaigns_are_paired_by_model_and_repeat_and_said_to_be_apart(lab, capsys):
    for campaign, factor in (("monday", 1.0), ("tuesday", 1.1)):
        for repeat in range(10):
            lab.run(campaign, "pi4-01", "dense", repeat, factor)
            lab.run(campaign, "pi4-01", "pruned", repeat)
    status, answer = compare(lab, capsys, "monday", "tuesday")
    assert status == 1
    verdicts = {row["cell"]["model"]: row["verdict"] for row in answer["boards"]}
    assert verdicts == {"dense": "slower", "pruned": "same"}
    assert all(row["apart"] for row in answer["boards"])
    assert any("without a canary" in note for note in answer["boards"][0]["notes"])


def nights(lab, board_factor, model_factor):
    """Two campaigns with a canary between every two runs; the board itself changes between."""
    for campaign, board, model in (("monday", 1.0, 1.0), ("tuesday", board_factor, model_factor)):
        for repeat in range(12):
            lab.run(campaign, "pi4-01", "canary", FIRST_CANARY_REPEAT + repeat, board)
            lab.run(campaign, "pi4-01", "dense", repeat, board * model)


def test_a_board_that_drifted_between_campaigns_is_no_change_of_the_model(lab, capsys):
    nights(lab, 1.08, 1.0)
    status, answer = compare(lab, capsys, "monday", "tuesday")
    (row,) = answer["boards"]
    assert (status, row["verdict"]) == (0, "same")
    assert abs(row["canary_moved"]) == pytest.approx(0.04, abs=0.015)
    assert any("canary moved" in note for note in row["notes"])
    assert row["b_p50_ms"] / row["a_p50_ms"] == pytest.approx(1.08, abs=0.01)


def test_a_model_that_changed_is_seen_beside_a_steady_canary(lab, capsys):
    nights(lab, 1.0, 1.05)
    status, answer = compare(lab, capsys, "monday", "tuesday")
    (row,) = answer["boards"]
    assert (status, row["verdict"], row["canary_moved"]) == (1, "slower", None)
    assert row["canaries"] == 24
    assert row["notes"] == []


def test_states_are_compared_by_their_fields(lab, capsys):
    for repeat in range(10):
        for governor, factor in (("performance", 1.0), (None, 1.3)):
            condition = Condition(governor=governor)
            lab.run("night", "pi4-01", "dense", repeat, factor, condition=condition)
    sides = ("governor=none", "governor=performance")
    status, answer = compare(lab, capsys, *sides)
    (row,) = answer["boards"]
    assert (status, row["verdict"]) == (0, "faster")
    assert "governor" not in row["cell"]


def test_few_pairs_are_unclear_with_the_number_still_missing(lab, capsys):
    lab.pairs("night", "pi4-01", 1.2, n=3)
    status, answer = compare(lab, capsys, "dense", "pruned")
    (row,) = answer["boards"]
    assert (status, row["verdict"], row["change_high"]) == (0, "unclear", None)
    assert row["more_pairs"] == 5


def test_boards_and_campaigns_can_be_picked(lab, capsys):
    for campaign in ("monday", "tuesday"):
        for board in ("pi4-01", "pi4-02"):
            lab.pairs(campaign, board, 1.0, n=8)
    picked = ("--campaign", "monday", "--board", "pi4-02")
    _, answer = compare(lab, capsys, "dense", "pruned", *picked)
    assert [(r["board_id"], r["cell"]["campaign"]) for r in answer["boards"]] == [
        ("pi4-02", "monday")
    ]


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["dense", "prunde"], "'prunde' is no campaign and no model"),
        (["dense", "dense"], "is compared with itself"),
        (["dense", "night"], "do not name the same axes"),
        (["dense", "model=pruned,colour=red"], "'colour=red' is not KEY=VALUE"),
        (["dense", "model=x"], "'x' is no model"),
        (["dense", "pruned", "--board", "nowhere"], "has a mate"),
        (["dense", "pruned", "--alpha", "2"], "--alpha 2.0"),
    ],
)
def test_what_cannot_be_compared_is_a_usage_error_in_one_line(lab, capsys, arguments, fact):
    lab.pairs("night", "pi4-01", 1.0, n=2)
    assert main(["compare", "--store", str(lab.path), *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "fleetcut:" in line]
    assert len(errors) == 1
    assert fact in errors[0]
    assert "Next:" in errors[0]


def test_a_store_that_is_not_there_is_not_made(tmp_path, capsys):
    assert main(["compare", "--store", str(tmp_path / "none.db"), "a", "b"]) == 2
    assert "no such store" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()


def test_results_show_a_dash_for_percentiles_that_forty_samples_do_not_support(lab, capsys):
    lab.run("night", "pi4-01", "dense", 0)
    assert main(["results", "--store", str(lab.path)]) == 0
    assert "–" in capsys.readouterr().out
    assert main(["results", "--store", str(lab.path), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert run["latency"]["n"] == 40
    assert run["latency"]["p50_ns"] == run["p50_ns"]
    assert run["latency"]["p90_ns"] is None
