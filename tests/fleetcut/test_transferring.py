"""The transfer verb on a dataset folder: verdicts, probes, the surviving models, refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from compiler.dataset import COLUMNS
from compiler.features import physics_features, total_macs
from compiler.pruning.widths import Group, LayerShape, PruneSpace
from compiler.recipe import Recipe, RecipeTarget
from compiler.sampling import sample_widths
from compiler.work import WorkFolder, write_json, write_text
from fleetcut.cli import main

NET = "tiny"
N = 60


def space() -> PruneSpace:
    layers = (
        LayerShape("stem", "conv", None, "g0", 3, 32, 9, 1024, 1024),
        LayerShape("next", "conv", "g0", "g1", 32, 64, 9, 1024, 256),
        LayerShape("fc", "linear", "g1", None, 64, 10, 1, 1, 1),
    )
    groups = (Group("g0", 32, ()), Group("g1", 64, ()))
    widths = tuple(tuple(range(4, g.channels + 1, 4)) for g in groups)
    return PruneSpace(NET, (3, 32, 32), groups, layers, widths)


WIDTHS = sample_widths(space(), N, 0)
NAMES = tuple(f"{NET}-{i:03d}" for i in range(N))


def latency_ms(board: str) -> np.ndarray:
    """arm-*: bound by work; dsp-1: slow where a width does not suit it."""
    rng = np.random.default_rng(sum(map(ord, board)))
    widths = np.array(WIDTHS, dtype=float)
    work = total_macs(space(), WIDTHS) / 1e6
    odd = 10 * (widths[:, 1] % 16 > 0) + 5 * (widths[:, 0] % 8 > 0) + 0.01 * work
    ms = work if board.startswith("arm") else odd
    speed = {"arm-1": 1.0, "arm-2": 1.5, "arm-3": 0.7, "dsp-1": 0.1}[board]
    return (0.5 + ms) * speed * np.exp(rng.normal(0, 0.01, N))


def row(board: str, model: int, **changes) -> dict:
    ns = round(latency_ms(board)[model] * 1e6)
    plain = dict.fromkeys(COLUMNS) | {
        "run_id": f"{board}-{model}-{sorted(changes.items())}", "campaign_id": "samples",
        "board_id": board, "model_sha256": f"sha-{model}", "model_name": NAMES[model],
        "runtime": "ort", "precision": "fp32", "threads": 1, "repeat": 0, "valid": True,
        "reasons": "", "p50_ns": ns, "latency_ns": [ns] * 3, "runtime_version": "1",
        "simulated": True, "governor": "performance", "freq_khz": 1_500_000,
    }  # fmt: skip
    return plain | changes


def write_dataset(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "runs.parquet")
    digest = hashlib.sha256((folder / "runs.parquet").read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps({"runs_sha256": digest}))
    return folder


def rows_of(*boards: str, models=range(N)) -> list[dict]:
    return [row(board, model) for board in boards for model in models]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Two arm boards and a DSP that measured all; a third arm board that measured a third."""
    rows = rows_of("arm-1", "arm-2", "dsp-1") + rows_of("arm-3", models=range(0, N, 3))
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", rows)


@pytest.fixture
def build(tmp_path) -> Path:
    """A work folder whose samples are the models."""
    targets = (RecipeTarget(kind="onnx", name="here", machine="x86_64"),)
    recipe = Recipe(version=1, name="t", networks=(NET,), targets=targets)
    work = WorkFolder(tmp_path / "build", recipe)
    write_text(work.space(NET), space().to_json())
    facts = {
        f"sha-{i}": {"name": NAMES[i], "network": NET, "widths": list(WIDTHS[i])} for i in range(N)
    }
    write_json(work.proposal("samples") / "models.json", {"campaign_id": "c", "models": facts})
    for name in NAMES:
        (work.proposal("samples") / f"{name}.onnx").write_bytes(name.encode())
    return work.root


def asked(capsys, dataset: Path, *arguments: str) -> dict:
    assert main(["transfer", str(dataset), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_all_pairs_with_their_intervals(dataset, capsys):
    pairs = asked(capsys, dataset)["pairs"]
    assert len(pairs) == 6
    by_pair = {(pair["from"], pair["to"]): pair for pair in pairs}
    alike, unlike = by_pair["arm-1", "arm-2"], by_pair["arm-1", "dsp-1"]
    assert alike["lower"] > 0.9 > unlike["upper"]
    assert alike["lower"] < alike["value"] <= alike["upper"]
    assert main(["transfer", str(dataset)]) == 0
    out = capsys.readouterr().out
    assert "(simulated boards)" in out
    assert "yes" in out


def test_a_valid_proxy_is_reused_and_what_is_not_optimal_is_dropped(dataset, build, capsys):
    answer = asked(
        capsys, dataset, "--from", "arm-1", "--to", "arm-3", "--work", str(build), "--probes", "3"
    )
    assert answer["verdict"] == "reuse"
    assert answer["srcc"]["lower"] >= 0.9
    assert (answer["measured"], answer["models"]) == (20, N)
    assert answer["optimal"]["from_proxy"] is True
    assert answer["optimal"]["kept"]
    assert len(answer["measure_next"]) == 3
    assert set(answer["measure_next"]) <= set(answer["optimal"]["not_measured"])
    predicted = answer["predicted_ms_by_model"]
    assert len(predicted) == N - 20
    truth = dict(zip(NAMES, latency_ms("arm-3"), strict=True))
    inside = [v["lower_ms"] <= truth[m] <= v["upper_ms"] for m, v in predicted.items()]
    assert np.mean(inside) > 0.5  # one draw; how often they cover is tested with the estimator
    assert all(v["ms"] == pytest.approx(truth[m], rel=0.2) for m, v in predicted.items())


def test_an_invalid_proxy_is_adapted(dataset, build, capsys):
    answer = asked(capsys, dataset, "--from", "dsp-1", "--to", "arm-3", "--work", str(build))
    assert answer["verdict"] == "adapt"
    assert answer["srcc"]["upper"] < 0.9 < answer["left_out_srcc"]["value"]
    assert answer["optimal"]["from_proxy"] is False
    assert "dsp-1 is not shown" in answer["reason"]


def test_a_new_board_is_told_its_probes_and_they_are_written_as_a_campaign(dataset, build, capsys):
    arguments = ["--from", "arm-1", "--to", "arm-9", "--work", str(build), "--probes", "4"]
    answer = asked(capsys, dataset, *arguments)
    assert answer["verdict"] == "measure"
    assert len(set(answer["measure_next"])) == 4
    campaign = yaml.safe_load(Path(answer["campaign"]).read_text())
    assert campaign["boards"] == {"ids": ["arm-9"]}
    assert [m["name"] for m in campaign["models"]] == answer["measure_next"]
    for model in campaign["models"]:
        found = Path(answer["campaign"]).parent / model["path"]
        assert found.read_bytes() == model["name"].encode()
    assert main(["transfer", str(dataset), *arguments]) == 0
    out = capsys.readouterr().out
    assert f"Next: fleetcut measure {answer['campaign']}" in out
    assert "0 of 60 models measured on the target" in out


def test_measuring_what_it_asked_for_settles_it(dataset, build, tmp_path, capsys):
    common = ["--from", "arm-1", "--work", str(build)]
    first = asked(capsys, dataset, *common, "--to", "arm-9", "--probes", "10")
    known = [NAMES.index(name) for name in first["measure_next"]]
    rows = rows_of("arm-1", "arm-2", "dsp-1") + rows_of("arm-3", models=known)
    second = asked(capsys, write_dataset(tmp_path / "d", rows), *common, "--to", "arm-3")
    assert second["measured"] == 10
    assert second["verdict"] in ("reuse", "adapt")
    assert second["measure_next"]
    assert not set(second["measure_next"]) & set(first["measure_next"])


def test_accuracies_of_ones_own_decide_what_is_optimal(dataset, tmp_path, capsys):
    path = tmp_path / "accuracy.yaml"
    # Only three models are worth anything: of the others none can be optimal but the fastest.
    best = {NAMES[5]: 0.9, NAMES[30]: 0.8, NAMES[50]: 0.95}
    path.write_text(yaml.safe_dump({name: best.get(name, 0.1) for name in NAMES}))
    answer = asked(capsys, dataset, "--from", "arm-1", "--to", "arm-2", "--accuracy", str(path))
    fastest = NAMES[int(np.argmin(latency_ms("arm-2")))]
    assert set(answer["optimal"]["kept"]) <= {*best, fastest}
    assert NAMES[50] in answer["optimal"]["kept"]
    assert answer["optimal"]["accuracy"] == str(path)
    assert answer["optimal"]["not_measured"] == []


def test_a_target_that_measured_all_has_nothing_left_to_predict(dataset, build, capsys):
    answer = asked(capsys, dataset, "--from", "arm-1", "--to", "dsp-1", "--work", str(build))
    assert answer["measured"] == N
    assert answer["predicted_ms_by_model"] == {}
    assert answer["optimal"]["not_measured"] == answer["measure_next"] == []


def test_without_accuracies_it_says_what_it_takes(dataset, capsys):
    assert main(["transfer", str(dataset), "--from", "arm-1", "--to", "arm-2"]) == 0
    assert "takes --accuracy FILE" in capsys.readouterr().out


def test_states_and_runtimes_are_sides_too(tmp_path, capsys):
    rows = rows_of("arm-1")
    rows += [
        row("arm-1", m, runtime="tflite", model_sha256=f"lite-{m}", p50_ns=10**6 * (1 + m * 37 % N))
        for m in range(N)
    ]
    rows += [
        row("arm-1", m, governor="userspace", freq_khz=khz, run_id=f"{khz}-{m}")
        for m in range(N)
        for khz in (600_000, 900_000)
    ]
    folder = write_dataset(tmp_path / "d", rows)
    assert len(asked(capsys, folder)["pairs"]) == 6
    ort = "board=arm-1,runtime=ort,governor=performance"
    answer = asked(capsys, folder, "--from", ort, "--to", "board=arm-1,freq_khz=600000")
    assert answer["verdict"] == "reuse"
    answer = asked(capsys, folder, "--from", ort, "--to", "runtime=tflite")
    assert answer["srcc"]["upper"] < 0.9
    assert main(["transfer", str(folder), "--from", "arm-1", "--to", "runtime=tflite"]) == 1
    error = capsys.readouterr().err
    assert "several of runtime, governor, freq_khz" in error
    assert "Next: name one, such as board=arm-1,runtime=" in error


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--from", "arm-1"], 2, "--from and --to belong together"),
        (["--from", "arm-7", "--to", "arm-1"], 1, "no run of arm-7"),
        (["--from", "arm-1", "--to", "arm-1"], 1, "name two"),
        (["--from", "arm-1", "--to", "colour=red"], 1, "colour=red"),
        (["--from", "arm-1", "--to", "arm-2", "--probes", "0"], 1, "0 probes"),
        (["--models", "resnet*"], 1, "no model is named resnet*"),
        (["--campaign", "none"], 1, "campaigns ['none']"),
        (["--from", "arm-1", "--to", "arm-2", "--work", "/nowhere"], 1, "/nowhere"),
        (["--from", "arm-1", "--to", "arm-2", "--accuracy", "/none.yaml"], 1, "/none.yaml"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(dataset, arguments, status, said, capsys):
    assert main(["transfer", str(dataset), *arguments]) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Next:" in error
    assert len([line for line in error.splitlines() if line.startswith("fleetcut:")]) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1, 2]", "no mapping"), ("a: [", "neither YAML nor JSON"), ("tiny-000: high", "'high'")],
)
def test_accuracies_that_are_none_are_refused(dataset, tmp_path, text, said, capsys):
    path = tmp_path / "accuracy.yaml"
    path.write_text(text)
    arguments = ["--from", "arm-1", "--to", "arm-2", "--accuracy", str(path)]
    assert main(["transfer", str(dataset), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_models_that_the_work_folder_does_not_know_are_named(dataset, build, tmp_path, capsys):
    rows = rows_of("arm-1", "arm-2") + [
        row(board, 0, model_name="mine", run_id=f"mine-{board}", model_sha256="mine")
        for board in ("arm-1", "arm-2")
    ]
    folder = write_dataset(tmp_path / "d", rows)
    sides = ["--from", "arm-1", "--to", "arm-2", "--work", str(build)]
    assert main(["transfer", str(folder), *sides]) == 1
    assert "the widths of mine" in capsys.readouterr().err
    assert asked(capsys, folder, *sides, "--models", f"{NET}-*")["models"] == N


def test_one_name_for_two_models_is_refused(tmp_path, capsys):
    rows = [*rows_of("arm-1", "arm-2"), row("arm-2", 0, model_sha256="else", run_id="x")]
    assert main(["transfer", str(write_dataset(tmp_path / "d", rows))]) == 1
    assert "stands for 2 different models" in capsys.readouterr().err


def test_features_are_those_of_the_surrogates(build):
    from compiler.transfer.shapes import read_shapes
    from fleetcut.fleet_questions import open_work

    shapes = read_shapes(open_work(build), NAMES[:3])
    assert (shapes.x == physics_features(space(), WIDTHS[:3])).all()
