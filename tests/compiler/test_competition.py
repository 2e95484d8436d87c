"""Forms compete on made-up latencies: who meets whom, who wins a cluster, and what ships."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pandas as pd
import pytest
import yaml

from compiler.clusters import DeviceClusters, anchor_latencies
from compiler.competition import choose, form_runs, propose_forms, unanswered
from compiler.dataset import COLUMNS, Run, Runs
from compiler.forms import Form
from compiler.recipe import Recipe, RecipeTarget
from compiler.work import WorkFolder
from device_agents.contract import ArtifactFile, Manifest, Target
from harness.campaign import load_campaign
from harness.inventory import load_inventory

RUNTIME = {"onnx": "ort", "ort": "ort", "tflite": "tflite", "executable": "executable"}
SPEED = {"a": 1.0, "b": 2.0}
"""Two boards, so far apart that each is a cluster of its own."""


def run(board: str, sha256: str, ms: float, **changes) -> Run:
    fields = {field.name: None for field in dataclasses.fields(Run)} | {
        "run_id": f"{board}{sha256[:6]}{ms}{changes}", "campaign_id": "c", "board_id": board,
        "model_sha256": sha256, "model_name": "m", "runtime": "ort", "precision": "fp32",
        "threads": 1, "repeat": 0, "valid": True, "reasons": (), "p50_ms": ms,
        "latency_ms": (ms,), "simulated": True, "isa_features": (), "machine": "aarch64",
    }  # fmt: skip
    return Run(**fields | changes)


@pytest.fixture(scope="module")
def clusters() -> DeviceClusters:
    anchors = [
        run(board + i, f"anchor{k}", ms * speed)
        for board, speed in SPEED.items()
        for i in "12"
        for k, ms in enumerate((1.0, 2.0, 3.0))
    ]
    anchors = [dataclasses.replace(r, model_name=r.model_sha256) for r in anchors]
    latencies = anchor_latencies(Runs(tuple(anchors), "t", "0"), ["anchor0", "anchor1", "anchor2"])
    found = DeviceClusters(seed=0).fit(latencies)
    assert len(found.representatives_) == 2
    return found


@pytest.fixture
def form(tmp_path):
    def made(
        kind: str, precision: str = "fp32", name: str = "pi", data: bytes | None = None, **target
    ) -> Form:
        content = data or f"{kind}{precision}".encode()
        folder = tmp_path / f"{name}-{kind}-{precision}"
        folder.mkdir(exist_ok=True)
        (folder / "model").write_bytes(content)
        file = ArtifactFile("model", hashlib.sha256(content).hexdigest(), len(content))
        manifest = Manifest(
            network="net", kind=kind, model_file="model", golden_input="model",
            golden_output="model", input_shape=(1,), output_shape=(1,), files=(file,), atol=1e-4,
            max_abs_err=0.0, accuracy=0.97, predicted_ms_by_cluster=(), plan_sha256="",
            parent_sha256="", dataset_sha256="", recipe_sha256="", seed=0, tool_versions=(),
            target=Target(**{"name": name, "machine": "aarch64", "os": "linux",
                             "runtime": RUNTIME[kind], "precision": precision} | target),
        )  # fmt: skip
        return Form(folder.name, folder, manifest)

    return made


def measured(form_: Form, board: str, *repeats_ms: float) -> list[Run]:
    sha256 = form_.manifest.files[0].sha256
    return [
        run(board, sha256, ms, precision=form_.target.precision, repeat=i)
        for i, ms in enumerate(repeats_ms)
    ]


def boards(clusters: DeviceClusters) -> list[str]:
    return list(clusters.representatives_.values())


def test_the_fastest_form_is_recommended_cluster_by_cluster(clusters, form):
    onnx, tflite = form("onnx"), form("tflite")
    one, other = boards(clusters)
    runs = [
        *measured(onnx, one, 1.0, 1.1), *measured(tflite, one, 1.2, 1.3),
        *measured(onnx, other, 3.0, 3.1), *measured(tflite, other, 2.0, 2.9),
    ]  # fmt: skip
    choice = choose([onnx, tflite], clusters, runs)
    found = {entry["board"]: (entry["kind"], entry["median_ms"]) for entry in choice.recommended}
    assert found == {one: ("onnx", 1.0), other: ("tflite", 2.0)}
    assert [entry["network"] for entry in choice.recommended] == ["net", "net"]
    assert [f["kind"] for f in choice.recommended[1]["forms"]] == ["tflite", "onnx"]
    assert choice.shipped == (onnx, tflite)
    assert choice.notes == ()


def test_int8_ships_where_every_run_of_it_beats_every_run_of_the_best_float(clusters, form):
    onnx, int8 = form("onnx"), form("onnx", "int8")
    one, other = boards(clusters)
    slower = [*measured(onnx, other, 2.0, 2.2), *measured(int8, other, 2.3, 2.4)]
    runs = [*measured(onnx, one, 2.0, 2.2), *measured(int8, one, 1.0, 1.1), *slower]
    choice = choose([onnx, int8], clusters, runs)
    assert [e["precision"] for e in choice.recommended] == ["int8", "fp32"]
    assert choice.shipped == (onnx, int8)
    assert choice.notes == ()


def test_int8_that_is_not_clearly_faster_anywhere_does_not_ship(clusters, form):
    onnx, int8 = form("onnx"), form("onnx", "int8")
    one, other = boards(clusters)
    runs = [
        # Its median is less, but one run of it was as slow as the float form.
        *measured(onnx, one, 2.0, 2.2), *measured(int8, one, 1.0, 2.1),
        *measured(onnx, other, 2.0, 2.2), *measured(int8, other, 2.3, 2.4),
    ]  # fmt: skip
    choice = choose([onnx, int8], clusters, runs)
    assert [entry["precision"] for entry in choice.recommended] == ["fp32", "fp32"]
    assert choice.shipped == (onnx,)
    (note,) = choice.notes
    assert note.startswith("net: onnx int8 for pi is not shipped: 2.300 ms on ")
    assert "onnx fp32 for pi takes 2.000 ms" in note


def test_what_no_board_measured_is_neither_recommended_nor_shipped_in_int8(clusters, form):
    onnx, int8 = form("onnx"), form("onnx", "int8")
    choice = choose([onnx, int8], clusters, [])
    assert choice.recommended == ()
    assert choice.shipped == (onnx,)
    assert choice.notes == (
        "net: onnx int8 for pi is not shipped: no board of this fleet measured it",
    )


def test_equal_files_for_two_boards_stand_for_each_other(clusters, form):
    floats = [form("onnx", name=name) for name in ("pi4", "pi5")]
    ints = [form("onnx", "int8", name=name) for name in ("pi4", "pi5")]
    one, _ = boards(clusters)
    runs = [*measured(floats[0], one, 2.0), *measured(ints[0], one, 1.0)]
    choice = choose([*floats, *ints], clusters, runs)
    (entry,) = choice.recommended
    assert (entry["target"], len(entry["forms"])) == ("pi4", 2)
    assert choice.shipped == (*floats, *ints)


@pytest.fixture
def recipe() -> Recipe:
    targets = (RecipeTarget(kind="all", precision="all", name="pi", machine="aarch64"),)
    return Recipe(version=1, name="t", networks=("digits_resnet",), targets=targets)


def test_every_form_is_measured_on_the_representatives_in_its_own_runtime(
    clusters, form, recipe, tmp_path
):
    forms = [
        form("onnx"), form("onnx", "int8"), form("tflite"), form("executable"),
        form("tflite", "int8", threads=4),
        form("onnx", name="pi5"),
        form("executable", name="pc", data=b"for another machine", machine="x86_64"),
    ]  # fmt: skip
    known = Runs(tuple(run(board, "s", 1.0) for board in boards(clusters)), "t", "0")
    work = WorkFolder(tmp_path / "work", recipe)
    (proposal,) = propose_forms(work, recipe, forms, clusters, known)
    inventory = tmp_path / "inventory.yaml"
    lines = [f"  - {{board_id: {b}{i}, model: m, host: h, user: u}}\n" for b in "ab" for i in "12"]
    inventory.write_text("version: 1\nboards:\n" + "".join(lines))
    campaign = load_campaign(proposal.campaign_path, load_inventory(inventory))
    cells = {
        (facts["kind"], spec.runtime, spec.precision, spec.threads)
        for spec in campaign.specs
        for facts in [proposal.facts_by_model[spec.model_sha256]]
    }
    assert cells == {
        ("onnx", "ort", "fp32", 1),
        ("onnx", "ort", "int8", 1),
        ("tflite", "tflite", "fp32", 1),
        ("tflite", "tflite", "int8", 4),
        ("executable", "executable", "fp32", 1),
    }
    assert {spec.board_id for spec in campaign.specs} == set(boards(clusters))
    assert len(campaign.specs) == 5 * 2 * recipe.measuring.sample_repeats
    assert propose_forms(work, recipe, forms, clusters, known) == [proposal]


def test_boards_of_two_machines_get_a_campaign_each(clusters, form, recipe, tmp_path):
    one, other = boards(clusters)
    known = Runs((run(one, "s", 1.0), run(other, "s", 1.0, machine="x86_64")), "t", "0")
    pc = {"name": "pc", "machine": "x86_64"}
    forms = [
        form("executable"), form("tflite", name="both", machine="any"),
        form("executable", data=b"other", **pc),
    ]  # fmt: skip
    work = WorkFolder(tmp_path / "work", recipe)
    first, second = propose_forms(work, recipe, forms, clusters, known)
    assert {first.stage, second.stage} == {"forms-aarch64", "forms-x86_64"}
    for proposal, board in ((first, one), (second, other)):
        campaign = yaml.safe_load(proposal.campaign_path.read_text())
        assert campaign["boards"] == {"ids": [board]}
        assert len(campaign["models"]) == 2


def test_a_form_without_a_rival_is_not_measured(clusters, form, recipe, tmp_path):
    known = Runs((run("a1", "s", 1.0),), "t", "0")
    work = WorkFolder(tmp_path / "work", recipe)
    lone = [form("onnx"), form("onnx", name="pi5")]
    assert propose_forms(work, recipe, lone, clusters, known) == []
    assert unanswered(None, []) is None
    assert form_runs(None, []) == ()


def test_a_campaign_that_only_failed_is_not_proposed_for_ever(clusters, form, recipe, tmp_path):
    known = Runs(tuple(run(board, "s", 1.0) for board in boards(clusters)), "t", "0")
    work = WorkFolder(tmp_path / "work", recipe)
    proposals = propose_forms(work, recipe, [form("onnx"), form("tflite")], clusters, known)
    assert unanswered(None, proposals) == proposals[0]
    data = tmp_path / "data"
    row = dict.fromkeys(COLUMNS) | {
        "run_id": "r", "campaign_id": "earlier", "board_id": "a1", "model_sha256": "s",
        "model_name": "m", "runtime": "ort", "precision": "fp32", "threads": 1, "repeat": 0,
        "valid": True, "reasons": "", "p50_ns": 1, "latency_ns": [1], "simulated": True,
    }  # fmt: skip
    data.mkdir()
    pd.DataFrame([row]).to_parquet(data / "runs.parquet")
    digest = hashlib.sha256((data / "runs.parquet").read_bytes()).hexdigest()
    facts: dict[str, object] = {"runs_sha256": digest}
    (data / "dataset.json").write_text(json.dumps(facts))
    assert unanswered(data, proposals) == proposals[0]
    facts["asked_campaign_ids"] = ["earlier", proposals[0].campaign_id]
    (data / "dataset.json").write_text(json.dumps(facts))
    assert unanswered(data, proposals) is None
    assert form_runs(data, proposals) == ()


def test_int8_alone_is_refused_for_it_has_nothing_to_beat():
    alone = RecipeTarget(kind="onnx", precision="int8", name="pi", machine="aarch64")
    with pytest.raises(ValueError, match="precision: all asks for both"):
        Recipe(version=1, name="t", networks=("digits_resnet",), targets=(alone,))
