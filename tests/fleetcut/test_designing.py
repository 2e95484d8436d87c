"""fleetcut design: a board's anchors in, widths out, without a search."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from compiler import networks
from compiler.amortised.accuracy import fit_accuracy
from compiler.amortised.designer import Designer
from compiler.amortised.device import device_features
from compiler.amortised.optimizer import Effort
from compiler.amortised.predictor import known_devices
from compiler.amortised.shapes import ShapeCosts
from compiler.amortised.spread import Spread
from compiler.anchors import ANCHORS
from compiler.dataset import COLUMNS, read_runs
from compiler.pruning.groups import trace
from compiler.recipe import Recipe, RecipeTarget
from compiler.sampling import sample_widths
from compiler.work import WorkFolder
from fleetcut.cli import main

NAME = "digits_mobilenet"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Anchor runs of two boards; the latencies are made up."""
    rows = [
        dict.fromkeys(COLUMNS)
        | {
            "run_id": f"{board}{anchor}",
            "campaign_id": "anchors",
            "board_id": board,
            "model_sha256": anchor,
            "model_name": anchor,
            "runtime": "ort",
            "precision": "fp32",
            "threads": 1,
            "repeat": 0,
            "valid": True,
            "reasons": "",
            "p50_ns": round(ms * slower * 1e6),
            "latency_ns": [round(ms * slower * 1e6)] * 5,
            "cores": 4,
            "effective_freq_khz": round(1_500_000 / slower),
            "runtime_version": "1",
            "simulated": True,
        }
        for board, slower in (("pi4-01", 1.0), ("pi4-17", 1.4))
        for anchor, ms in zip(ANCHORS, (4.0, 3.0, 2.0, 5.0), strict=True)
    ]
    folder = tmp_path_factory.mktemp("dataset")
    pd.DataFrame(rows).to_parquet(folder / "runs.parquet")
    digest = hashlib.sha256((folder / "runs.parquet").read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps({"runs_sha256": digest}))
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    recipe = Recipe(
        version=1,
        name="t",
        mode="amortised",
        networks=(NAME,),
        targets=(RecipeTarget(kind="onnx", name="here", machine="x86_64"),),
    )
    folder = WorkFolder(tmp_path_factory.mktemp("work"), recipe)
    network = networks.build(NAME, 0).eval()
    space = trace(network, networks.input_shape(NAME), NAME, width_step=8)
    shapes, widths = ShapeCosts(space), sample_widths(space, 40, 0)
    ms = shapes.exact(torch.tensor(widths)).numpy().sum(axis=1) / 20
    device = device_features(read_runs(dataset), "pi4-01", "ort")
    known = known_devices(shapes, [device], [widths], [ms])
    kept = np.asarray(widths) / np.asarray(space.dense_widths)
    accuracies = 0.1 + 0.8 * np.exp(-0.2 * ((1 - kept) ** 2).sum(axis=1))
    model = fit_accuracy(space, widths, accuracies.tolist(), 0.9, 10, 0)
    effort = Effort(boards=64, steps=100, batch=32)
    designer = Designer(space, known, model, Spread(), {}).train(effort, 0, lambda *_: None)
    designer.save(folder.designer(NAME))
    return folder.root


def test_a_board_that_was_never_searched_for_gets_legal_widths(work, dataset, capsys):
    asked = ["design", str(work), "--dataset", str(dataset), "--board", "pi4-17"]
    assert main([*asked, "--max-drop", "0.2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["designs"][NAME]
    Designer.load(work / "designers" / NAME).space.check(answer["widths"])
    assert answer["accuracy"] >= 0.9 - 0.2 - 1e-9
    assert answer["predicted_ms"] < answer["dense_ms"]
    limit_ms = answer["dense_ms"] / 2
    assert main([*asked, "--latency-ms", str(limit_ms)]) == 0
    assert "pi4-17" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--latency-ms", "1e-6"], 1, "Next: search"),
        (["--latency-ms", "1", "--max-drop", "0.1"], 2, "two bounds"),
        (["--network", "resnet50"], 1, "has no designer of resnet50"),
    ],
)
def test_what_cannot_be_designed_is_said(work, dataset, capsys, options, status, said):
    asked = ["design", str(work), "--dataset", str(dataset), "--board", "pi4-17"]
    assert main([*asked, *options]) == status
    assert said in capsys.readouterr().err


def test_a_board_without_anchors_is_named_with_what_to_measure(work, dataset, capsys):
    assert main(["design", str(work), "--dataset", str(dataset), "--board", "pi5-99"]) == 1
    assert "pi5-99: anchor-conv was not measured with ort" in capsys.readouterr().err
