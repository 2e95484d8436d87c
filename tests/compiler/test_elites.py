"""Elites: what a surrogate cannot see is measured before a shape is chosen.

Latencies are invented for these tests: boards on which one shape takes twice as long as its work
would say, for no reason that shows in any feature.
"""

import hashlib
import json
import math

import pandas as pd
import pytest

from compiler.compile import Compiled, compile_fleet
from compiler.dataset import COLUMNS, Run, Runs
from compiler.elites import affordable, board_minutes
from compiler.proposals import Proposal
from compiler.pruning.widths import PruneSpace, PruningPlan
from compiler.recipe import Measuring, Recipe, RecipeTarget, Search, Training
from compiler.work import read_json

NETWORK = """
from torch import nn
def tiny():
    def block(i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
    return nn.Sequential(
        block(3, 16), block(16, 32), block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )
tiny.input_shape = (3, 32, 32)
"""
NAME = "elitenet:tiny"
BOARDS = {"a1": 1.0, "a2": 1.01, "b1": 1.6, "b2": 1.62}


@pytest.fixture(autouse=True)
def tiny_network(tmp_path, monkeypatch):
    (tmp_path / "elitenet.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))


def recipe(*, remeasure, **measuring) -> Recipe:
    return Recipe(
        version=1,
        name="t",
        networks=(NAME,),
        seed=3,
        width_step=2,
        training=Training(epochs=2, learning_rate=0.02),
        fine_tuning=Training(epochs=1),
        measuring=Measuring(samples=16, held_out=4, **measuring),
        search=Search(
            population=3,
            generations=6,
            max_accuracy_drop=0.9,
            proxy_accuracy_drop=0.2,
            max_accuracy_evaluations=40,
            remeasure=remeasure,
            elites=4,
        ),
        targets=(RecipeTarget(kind="onnx", name="here", machine="x86_64"),),
    )


class Boards:
    """They answer every proposal. trap: widths that take twice as long as work would say."""

    def __init__(self):
        self.trap = None

    def ms(self, facts):
        """Of a model: a shape, a rung of a ladder in blocks of 8 channels, or an anchor."""
        if "widths" in facts:
            return self.truth_ms(facts["widths"])
        return 0.3 + 0.02 * math.ceil(facts["width"] / 8) if "kind" in facts else 1.0

    def truth_ms(self, widths):
        return (0.5 + sum(widths) / 100) * (2 if tuple(widths) == self.trap else 1)

    def answer(self, proposals, folder):
        rows = []
        for proposal in proposals:
            for digest, facts in proposal.facts_by_model.items():
                ms = self.ms(facts)
                for board, factor in BOARDS.items():
                    ns = round(ms * factor * 1e6)
                    told = {
                        "run_id": f"{proposal.stage}{digest[:8]}{board}", "board_id": board,
                        "campaign_id": proposal.campaign_id, "model_sha256": digest,
                        "model_name": facts["name"], "runtime": "ort", "precision": "fp32",
                        "threads": 1, "repeat": 0, "valid": True, "reasons": "", "p50_ns": ns,
                        "latency_ns": [ns] * 5, "runtime_version": "1", "simulated": True,
                    }  # fmt: skip
                    rows.append(dict.fromkeys(COLUMNS) | told)
        folder.mkdir(exist_ok=True)
        pd.DataFrame(rows).to_parquet(folder / "runs.parquet")
        digest = hashlib.sha256((folder / "runs.parquet").read_bytes()).hexdigest()
        (folder / "dataset.json").write_text(json.dumps({"runs_sha256": digest}))


def compiled(asked, boards, place):
    """The chosen widths, and the stages that were proposed on the way."""
    place.mkdir(exist_ok=True)
    proposals: list[Proposal] = []
    while True:
        data = place / "data" if proposals else None
        outcome = compile_fleet(asked, data, place / "work", lambda *_: None)
        if isinstance(outcome, Compiled):
            break
        proposals.append(outcome)
        boards.answer(proposals, place / "data")
    space = PruneSpace.from_json((place / "work" / "spaces" / f"{NAME}.json").read_text())
    plan = PruningPlan.from_json((place / "work" / "plans" / f"{NAME}.json").read_text())
    return plan.widths(space), [p.stage for p in proposals]


def test_a_shape_on_which_the_surrogate_errs_is_found_out_before_it_is_chosen(tmp_path):
    boards = Boards()
    blind, stages = compiled(recipe(remeasure=0), boards, tmp_path / "blind")
    assert stages == ["anchors", "samples"]
    # What it chose was never measured, so nobody knew.
    samples = read_json(tmp_path / "blind" / "work" / "proposals" / "samples" / "models.json")
    assert list(blind) not in [facts["widths"] for facts in samples["models"].values()]
    boards.trap = blind
    found, stages = compiled(recipe(remeasure=2), boards, tmp_path / "rounds")
    assert stages[:3] == ["anchors", "samples", "elites-1"]
    assert boards.truth_ms(found) < 0.75 * boards.truth_ms(blind)
    facts = read_json(tmp_path / "rounds" / "work" / "plans" / f"{NAME}.elites.json")
    trapped = [fact for fact in facts if tuple(fact["widths"]) == blind]
    assert len(trapped) == 1
    for label, predicted in trapped[0]["predicted_ms_by_cluster"].items():
        assert trapped[0]["measured_ms_by_cluster"][label] > 1.8 * predicted


def test_widths_are_legal_where_the_boards_kernels_work_in_whole_blocks(tmp_path):
    asked = recipe(remeasure=0).model_copy(update={"width_step": None})
    boards, work, data = Boards(), tmp_path / "work", tmp_path / "data"
    proposals: list[Proposal] = []
    while not proposals or proposals[-1].stage != "samples":
        where = data if proposals else None
        proposals.append(compile_fleet(asked, where, work, lambda *_: None))
        boards.answer(proposals, data)
    assert [p.stage for p in proposals] == ["anchors", "ladders", "samples"]
    assert len(proposals[1].facts_by_model) <= 40
    found = read_json(work / "staircases.json")
    assert [of["conv"]["step"] for of in found.values()] == [8, 8]
    assert len(found["c0"]["conv"]["ms"]) == len(found["c0"]["conv"]["widths"])
    space = PruneSpace.from_json((work / "spaces" / f"{NAME}.json").read_text())
    # 16 channels in blocks of 8 would leave two widths.
    assert space.widths_by_group == ((4, 8, 12, 16), (8, 16, 24, 32), (8, 16, 24, 32))


def test_used_up_board_minutes_end_the_rounds_with_a_note(tmp_path):
    _, stages = compiled(recipe(remeasure=2, board_minutes=1e-6), Boards(), tmp_path / "poor")
    assert stages == ["anchors", "samples"]
    (note,) = read_json(tmp_path / "poor" / "work" / "compiled.json")["notes"]
    assert "board-minutes are used up before round 1" in note


def test_surrogates_that_turn_out_right_end_the_rounds(tmp_path):
    _, stages = compiled(recipe(remeasure=3), Boards(), tmp_path / "right")
    assert stages == ["anchors", "samples", "elites-1"]


def test_board_minutes_allow_what_is_left_of_them_at_the_pace_so_far():
    runs = Runs(tuple(a_run(ms=[600.0] * 100) for _ in range(10)), "here", "0" * 64)
    assert board_minutes(runs) == pytest.approx(10.0)
    # Two repeats on three boards, a minute each: 6 of the 20 minutes left a shape.
    assert affordable(recipe(remeasure=1, board_minutes=30.0), runs, 3) == 3
    assert affordable(recipe(remeasure=1, board_minutes=9.0), runs, 3) == 0
    assert affordable(recipe(remeasure=1), runs, 3) is None


def a_run(ms):
    words = dict.fromkeys(("run_id", "campaign_id", "board_id", "model_sha256", "model_name"), "x")
    unread = dict.fromkeys(
        ("temp_c_before", "temp_c_max", "freq_khz", "effective_freq_khz", "governor", "throttled",
         "board_model", "cores", "runtime_version")
    )  # fmt: skip
    return Run(
        **words, **unread, runtime="ort", precision="fp32", threads=1, repeat=0, valid=True,
        reasons=(), p50_ms=ms[0], latency_ms=tuple(ms), simulated=True,
    )  # fmt: skip
