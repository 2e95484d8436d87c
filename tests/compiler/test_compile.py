"""The compilation's stages on made-up latencies: proposals, resumption, determinism, refusals.

The latencies are invented from multiply-accumulates, for these tests only; real ones are measured
in tests/e2e.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from compiler.artifacts import read_artifact
from compiler.compile import Compiled, compile_fleet
from compiler.dataset import COLUMNS
from compiler.errors import CompilerError
from compiler.proposals import Proposal
from compiler.recipe import Amortised, Measuring, Recipe, RecipeTarget, Search, Training
from compiler.work import read_json
from harness.campaign import load_campaign
from harness.inventory import load_inventory

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
BOARDS = {"a1": 1.0, "a2": 1.01, "b1": 1.6, "b2": 1.62}


@pytest.fixture(autouse=True)
def tiny_network(tmp_path, monkeypatch):
    (tmp_path / "tinynet.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))


def recipe(**changes) -> Recipe:
    return Recipe(
        **{
            "version": 1,
            "name": "t",
            "networks": ("tinynet:tiny",),
            "seed": 3,
            "training": Training(epochs=3, learning_rate=0.02),
            "fine_tuning": Training(epochs=2),
            "measuring": Measuring(samples=16, held_out=4),
            "width_step": 8,
            "search": Search(population=3, generations=4, max_accuracy_drop=0.3, remeasure=0),
            "targets": (RecipeTarget(kind="onnx", name="here", machine="x86_64"),),
        }
        | changes
    )


def silent(*_step) -> None:
    pass


def measured(proposals: list[Proposal], folder: Path) -> Path:
    """A dataset folder in which every board answered every proposal."""
    rows = []
    for proposal in proposals:
        for digest, facts in proposal.facts_by_model.items():
            work_ms = 0.5 + sum(facts.get("widths", [40])) / 100
            for board, factor in BOARDS.items():
                for repeat in range(2):
                    ns = round(work_ms * factor * (1 + 0.002 * repeat) * 1e6)
                    rows.append(
                        dict.fromkeys(COLUMNS)
                        | {
                            "run_id": f"{proposal.stage}{digest[:8]}{board}{repeat}",
                            "campaign_id": proposal.campaign_id,
                            "board_id": board,
                            "model_sha256": digest,
                            "model_name": facts["name"],
                            "runtime": "ort",
                            "precision": "fp32",
                            "threads": 1,
                            "repeat": repeat,
                            "valid": True,
                            "reasons": "",
                            "p50_ns": ns,
                            "cores": 4,
                            "latency_ns": [ns] * 5,
                            "runtime_version": "1",
                            "simulated": True,
                        }
                    )
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "runs.parquet")
    digest = hashlib.sha256((folder / "runs.parquet").read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps({"runs_sha256": digest}))
    return folder


def compiled(asked: Recipe, tmp_path: Path, name: str, observe=silent) -> Compiled:
    """Through all stages, answering each proposal; the samples may exist from an earlier call."""
    work, data = tmp_path / name, tmp_path / "data"
    proposals: list[Proposal] = []
    while True:
        outcome = compile_fleet(asked, data if proposals else None, work, observe)
        if isinstance(outcome, Compiled):
            return outcome
        proposals.append(outcome)
        measured(proposals, data)


def test_it_proposes_what_it_lacks_and_ends_in_verified_artifacts(tmp_path):
    work, data = tmp_path / "work", tmp_path / "data"
    anchors = compile_fleet(recipe(), None, work, silent)
    assert isinstance(anchors, Proposal)
    assert anchors.stage == "anchors"
    inventory = tmp_path / "inventory.yaml"
    lines = [f"  - {{board_id: {b}, model: m, host: h, user: u}}\n" for b in BOARDS]
    inventory.write_text("version: 1\nboards:\n" + "".join(lines))
    campaign = load_campaign(anchors.campaign_path, load_inventory(inventory))
    assert {s.board_id for s in campaign.specs} == set(BOARDS)

    samples = compile_fleet(recipe(), measured([anchors], data), work, silent)
    assert isinstance(samples, Proposal)
    assert samples.stage == "samples"
    campaign = load_campaign(samples.campaign_path, load_inventory(inventory))
    representatives = {s.board_id for s in campaign.specs}
    assert [{"a1", "a2"} & representatives != set(), {"b1", "b2"} & representatives != set()] == [
        True,
        True,
    ]
    assert len(representatives) == 2
    assert len(campaign.models) == 16

    done = compile_fleet(recipe(), measured([anchors, samples], data), work, silent)
    assert isinstance(done, Compiled)
    (folder,) = done.artifacts
    manifest = read_artifact(folder).manifest
    assert manifest.kind == "onnx"
    assert len(manifest.predicted_ms_by_cluster) == 2
    facts = read_json(work / "plans" / "tinynet:tiny.search.json")
    assert facts["predicted_fleet_ms"] <= facts["uniform_fleet_ms"] * 1.001
    assert sum(g["pruned_width"] for g in facts["groups"]) < 80
    # These boards recorded neither energy nor memory, and the facts say so.
    costs = read_json(work / "surrogates" / "tinynet:tiny.costs.json")
    assert len(costs) == 4
    assert all("recorded" in cost["missing"] for cost in costs)
    dense = read_json(work / "dense" / "tinynet:tiny.json")
    pruned = read_json(work / "pruned" / "tinynet:tiny.json")
    assert dense["val_accuracy"] - pruned["val_accuracy"] <= 0.3
    assert pruned["macs"] < dense["macs"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "stage",
    [
        *("search", "fine-tune"),
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("train", "sample shapes", "emit")),
    ],
)
def test_killed_in_any_stage_it_resumes_to_the_same_artifacts(tmp_path, stage):
    whole = compiled(recipe(), tmp_path, "whole")

    def kill(title: str, *_rest) -> None:
        if title.startswith(stage):
            raise Killed

    with pytest.raises(Killed):
        compiled(recipe(), tmp_path, "cut", kill)
    again = compiled(recipe(), tmp_path, "cut")
    assert [a.name for a in again.artifacts] == [a.name for a in whole.artifacts]


PROGRAM = """
import sys
from pathlib import Path
import torch
from compiler.compile import Compiled, compile_fleet
from compiler.recipe import Recipe
def observe(title, done, total, last):
    print(title, done, flush=True)
torch.set_num_threads(int(sys.argv[1]))  # as this process has them: sums depend on it
recipe, data, work = map(Path, sys.argv[2:])
asked = Recipe.model_validate_json(recipe.read_text())
assert isinstance(compile_fleet(asked, data, work, observe), Compiled)
"""


@pytest.mark.slow
def test_killed_for_real_at_any_moment_it_resumes_to_the_same_plan_and_weights(tmp_path):
    changes = {"population": 3, "generations": 4, "max_accuracy_drop": 0.5, "rounds": 2}
    asked = recipe(search=Search(**changes, proxy_accuracy_drop=0.5))
    lines: list[str] = []
    compiled(asked, tmp_path, "whole", lambda title, done, *_: lines.append(f"{title} {done}"))
    stages = {line.rsplit(" ", 1)[0] for line in lines}
    chosen = [
        random.Random(0).choice([line for line in lines if line.startswith(f"{stage} ")])
        for stage in stages
    ]
    (tmp_path / "recipe.json").write_text(asked.model_dump_json())
    inputs = (str(tmp_path / name) for name in ("recipe.json", "data"))
    start = [sys.executable, "-c", PROGRAM, str(torch.get_num_threads()), *inputs]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}

    def run(deadly: str | None) -> bool:
        """Kill at that line: soon after it, wherever the process is by then. Whether it was."""
        with subprocess.Popen(
            [*start, str(tmp_path / "cut")], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            for line in process.stdout:
                if line.strip() == deadly:
                    process.kill()
        assert process.returncode in (0, -9)
        return process.returncode == -9

    kills = [run(line) for line in sorted(chosen, key=lines.index)]
    assert any(kills)
    assert not run(None)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for part in ("dense", "plans", "pruned", "artifacts"):
        names = sorted(p.relative_to(whole) for p in (whole / part).rglob("*") if p.is_file())
        assert names == sorted(p.relative_to(cut) for p in (cut / part).rglob("*") if p.is_file())
        for name in names:
            assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    assert not any((cut / "resume").iterdir())


def test_mode_amortised_designs_without_a_search_or_says_that_it_searches(tmp_path):
    told: list[str] = []

    def observe(title: str, done: int, total: int, last: str) -> None:
        told.append(f"{title}: {last}")

    search = Search(population=3, generations=4, max_accuracy_drop=0.3, max_accuracy_evaluations=24)
    parts = {"mode": "amortised", "search": search, "amortised": Amortised(boards=64, steps=150)}
    compiled(recipe(**parts), tmp_path, "work", observe)
    folder = tmp_path / "work" / "designers" / "tinynet:tiny"
    assert sorted(path.name for path in folder.iterdir()) == [
        "designer.json",
        "designer.safetensors",
    ]
    designed = any("no design keeps" in text for text in told)
    assert any(text.startswith("search tinynet") for text in told) is designed
    facts = read_json(tmp_path / "work" / "plans" / "tinynet:tiny.search.json")
    assert facts["chosen"]["mean_ms"] < facts["dense"]["mean_ms"]


def test_a_finished_work_folder_is_not_compiled_again(tmp_path):
    first = compiled(recipe(), tmp_path, "work")

    def refuse(title: str, *_rest) -> None:
        raise AssertionError(f"{title} ran again")

    assert compile_fleet(recipe(), None, tmp_path / "work", refuse) == first


def test_a_work_folder_belongs_to_one_recipe(tmp_path):
    compile_fleet(recipe(), None, tmp_path / "work", silent)
    with pytest.raises(CompilerError, match=r"another recipe.*--work"):
        compile_fleet(recipe(seed=4), None, tmp_path / "work", silent)


def test_a_target_that_cannot_be_built_here_is_left_out_by_name(tmp_path):
    targets = (
        RecipeTarget(kind="executable", name="visionfive", machine="riscv64"),
        RecipeTarget(kind="onnx", name="here", machine="x86_64"),
    )
    done = compiled(recipe(targets=targets), tmp_path, "work")
    assert len(done.artifacts) == 1
    (note,) = done.notes
    assert "visionfive" in note
    assert "Next:" in note


def test_an_accuracy_that_no_shape_keeps_is_an_error_with_the_next_step(tmp_path):
    strict = recipe(
        search=Search(population=2, generations=2, max_accuracy_drop=0.0, proxy_accuracy_drop=0.9),
        fine_tuning=Training(epochs=1, learning_rate=1e-9),
    )
    with pytest.raises(CompilerError, match=r"no shape kept its accuracy.*Next:"):
        compiled(strict, tmp_path, "work")
