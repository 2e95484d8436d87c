"""The what-if verb on a prepared work folder: figures, labels of what is assumed, refusals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from compiler.anchors import ANCHORS
from compiler.clusters import AnchorLatencies, DeviceClusters
from compiler.dataset import COLUMNS, Dataset
from compiler.features import feature_names, physics_features
from compiler.pruning.widths import Group, LayerShape, PruneSpace, PruningPlan
from compiler.recipe import Recipe, RecipeTarget
from compiler.sampling import sample_widths
from compiler.surrogates import Surrogate
from compiler.work import WorkFolder, write_json, write_text
from fleetcut.cli import main
from fleetcut.scenarios import parse_scenario
from harness.errors import DocumentError

NET = "tiny"
FAST, SLOW = ("f1", "f2", "f3"), ("s1", "s2")
RATIO = {"f1": 1.0, "f2": 1.01, "f3": 0.99, "s1": 2.0, "s2": 2.02}
FIXED = {"f": 0.25, "s": 0.5}
TOP_KHZ = 1_500_000


def space() -> PruneSpace:
    layers = (
        LayerShape("stem", "conv", None, "g0", 3, 32, 9, 1024, 1024),
        LayerShape("next", "conv", "g0", "g1", 32, 64, 9, 1024, 256),
        LayerShape("fc", "linear", "g1", None, 64, 10, 1, 1, 1),
    )
    groups = (Group("g0", 32, ()), Group("g1", 64, ()))
    widths = tuple(tuple(range(8, g.channels + 1, 8)) for g in groups)
    return PruneSpace(NET, (3, 32, 32), groups, layers, widths)


def base_ms(widths) -> np.ndarray:
    x = np.atleast_2d(physics_features(space(), widths))
    macs = [i for i, n in enumerate(feature_names(space())) if n == "conv.macs"]
    return 1.0 + x[:, macs].sum(axis=1) / 1e6


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whatif") / "build"
    targets = (RecipeTarget(kind="onnx", name="here", machine="x86_64"),)
    work = WorkFolder(root, Recipe(version=1, name="t", networks=(NET,), targets=targets))
    write_text(work.space(NET), space().to_json())
    ids = tuple(RATIO)
    rng = np.random.default_rng(0)
    median_ms = np.outer(list(RATIO.values()), np.linspace(1, 3, len(ANCHORS)))
    median_ms *= np.exp(rng.normal(0, 0.005, median_ms.shape))
    noise = np.full(len(ANCHORS), 0.005)
    clusters = DeviceClusters(n_bootstrap=2).fit(
        AnchorLatencies(ids, tuple(ANCHORS), median_ms, noise, "0" * 64)
    )
    assert len(clusters.representatives_) == 2
    write_text(work.clusters, clusters.to_json())
    write_json(work.anchor_ratios, RATIO)
    sampled = sample_widths(space(), 24, 0)
    for label, board in clusters.representatives_.items():
        y = RATIO[board] * base_ms(sampled) * np.exp(rng.normal(0, 0.005, len(sampled)))
        data = Dataset(
            physics_features(space(), sampled), y, (board,) * len(y), feature_names(space()), "0"
        )
        write_text(work.surrogate(NET, label), Surrogate(("additive",)).fit(data).to_json())
    kept = (("g0", tuple(range(16))), ("g1", tuple(range(32))))
    write_text(work.plan(NET), PruningPlan(NET, "0" * 64, kept, (), 0).to_json())
    return root


def row(board: str, khz: int, ms: float, **changes) -> dict:
    ns = round(ms * 1e6)
    plain = dict.fromkeys(COLUMNS) | {
        "run_id": f"{board}-{khz}-{ns}", "campaign_id": "sweep", "board_id": board,
        "model_sha256": "m", "model_name": "m", "runtime": "ort", "precision": "fp32",
        "threads": 1, "repeat": 0, "valid": True, "reasons": "", "p50_ns": ns,
        "latency_ns": [ns] * 3, "runtime_version": "1", "simulated": True,
        "effective_freq_khz": khz, "board_model": "Pi", "throttled": False,
    }  # fmt: skip
    return plain | changes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Fast boards at two clocks, slow ones at one; one fast board throttled to 0.9 GHz."""
    folder = tmp_path_factory.mktemp("data")
    # Most runs at the present clock.
    rows = [row(board, TOP_KHZ, 10 + 0.01 * i) for board in RATIO for i in range(3)]
    share = FIXED["f"]
    rows += [row(b, TOP_KHZ // 2, 10 * (share + (1 - share) * 2)) for b in FAST]
    rows.append(row("f1", 900_000, 15.0, valid=False, reasons="throttled", throttled=True))
    pd.DataFrame(rows).to_parquet(folder / "runs.parquet")
    digest = hashlib.sha256((folder / "runs.parquet").read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps({"runs_sha256": digest}))
    return folder


def asked(capsys, build: Path, *arguments: str) -> dict:
    assert main(["whatif", str(build), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_dense_and_pruned_before_and_after_half_the_clock(build, dataset, capsys):
    answer = asked(
        capsys, build, "--dataset", str(dataset), "--scenario", "cluster=c0,clock=750MHz",
        "--slo-ms", "8",
    )  # fmt: skip
    dense, pruned = answer["results"]
    assert (dense["shape"], pruned["shape"]) == ("dense", "pruned")
    assert answer["boards"] == 5
    assert dense["boards_changed"] == 3
    truth = {name: base_ms([widths])[0] for name, widths in
             {"dense": (32, 64), "pruned": (16, 32)}.items()}  # fmt: skip
    for result in (dense, pruned):
        before = sum(RATIO.values()) / 5 * truth[result["shape"]]
        slower = 1 + (1 - FIXED["f"])
        after = (slower * 3.0 + 4.02) / 5 * truth[result["shape"]]
        for figure, true_ms in (("before", before), ("after", after)):
            mean = result[figure]["mean_ms"]
            assert mean["lower"] <= true_ms <= mean["upper"]
            assert mean["value"] == pytest.approx(true_ms, rel=0.03)
    assert 0 <= pruned["after"]["slo_share"]["lower"] <= 1
    assert "clock 750MHz: given, not measured" in dense["assumptions"]
    response = answer["clock_response_by_cluster"]
    assert response["c0"]["measured"] is True
    assert response["c0"]["fixed_share"] == pytest.approx(FIXED["f"], abs=0.02)
    assert response["c1"]["measured"] is False
    assert not any(note.startswith("cluster") for note in dense["assumptions"])
    assert answer["simulated"] is True


def test_without_measured_clocks_it_is_an_assumption_with_a_wide_interval(build, dataset, capsys):
    scenario = ("--scenario", "cluster=c0,clock_fraction=0.5")
    guessed = asked(capsys, build, *scenario)["results"][0]
    known = asked(capsys, build, *scenario, "--dataset", str(dataset))["results"][0]
    assert guessed["mean_ratio"]["lower"] < known["mean_ratio"]["value"]
    assert known["mean_ratio"]["value"] < guessed["mean_ratio"]["upper"]
    width = {k: r["mean_ratio"]["upper"] - r["mean_ratio"]["lower"] for k, r in
             (("guessed", guessed), ("known", known))}  # fmt: skip
    assert width["guessed"] > 3 * width["known"]
    assert any(note.startswith("cluster c0: latency is b/f") for note in guessed["assumptions"])
    assert not any(note.startswith("cluster") for note in known["assumptions"])


def test_heat_takes_boards_to_the_clock_that_was_recorded(build, dataset, capsys):
    result = asked(
        capsys, build, "--dataset", str(dataset), "--scenario", "board=f1,heat=recorded"
    )["results"][0]
    assert result["boards_changed"] == 1
    assert result["assumptions"] == []
    # 0.25 stays, the rest takes 1500/900 as long, on one board of a fleet of 7.02 units.
    expected = 1 + (0.25 + 0.75 * 1500 / 900 - 1) / 7.02
    assert result["mean_ratio"]["value"] == pytest.approx(expected, rel=0.01)


def test_the_table_names_what_is_assumed_and_the_page_draws_it(build, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text(
        "version: 1\nscenarios:\n  - {name: old, share: 0.4, slowdown: 1.5}\n"
    )
    page = tmp_path / "page.html"
    arguments = ["--scenario", str(tmp_path / "s.yaml"), "--picture", str(page), "--slo-ms", "9"]
    assert main(["whatif", str(build), *arguments]) == 0
    out = capsys.readouterr().out
    assert "2 of 5" in out
    assert "Assumed: old: slowdown 1.5: given, not measured" in out
    assert "Assumed: old: which boards: drawn by seed 0" in out
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "SLO 9 ms" in text
    assert "slowdown 1.5: given, not measured" in text


def test_another_plan_can_be_compared(build, tmp_path, capsys):
    kept = (("g0", tuple(range(8))), ("g1", tuple(range(16))))
    path = tmp_path / "smaller.json"
    path.write_text(PruningPlan(NET, "0" * 64, kept, (), 0).to_json())
    answer = asked(capsys, build, "--plan", str(path), "--scenario", "slowdown=1.1")
    means = [r["before"]["mean_ms"]["value"] for r in answer["results"]]
    assert [r["shape"] for r in answer["results"]] == ["dense", "pruned", "smaller"]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "status", "fact"),
    [
        ([], 1, "no scenario. Next: add --scenario"),
        (["--scenario", "share=0.3"], 2, "nothing happens: give clock"),
        (["--scenario", "share=1.3,slowdown=2"], 2, "write for example 'share=0.3'"),
        (["--scenario", "share"], 2, "'share' is not KEY=VALUE"),
        (["--scenario", "clock=7"], 2, "'7' is no clock with its unit"),
        (["--scenario", "clock=1GHz,heat=recorded"], 2, "clock and heat each set the clock"),
        (["--scenario", "battery=15-0"], 2, "'15-0' is no band of percents"),
        (["--scenario", "speed=2"], 2, "speed is not a key known here"),
        (["--scenario", "slowdown=x"], 2, "slowdown: input should be a valid number"),
        (["--scenario", "cluster=c9,slowdown=2"], 1, "no cluster 'c9'. Next: use one of c0, c1"),
        (["--scenario", "board=b9,slowdown=2"], 1, "no board 'b9' in the compiled fleet"),
        (["--scenario", "label.room=x,slowdown=2"], 1, "fits none of 5 boards"),
        (["--scenario", "clock=1GHz"], 1, "their clock was never read. Next: give --dataset"),
        (["--scenario", "heat=recorded"], 1, "no run throttled by heat is in the dataset"),
        (["--scenario", "slowdown=2", "--network", "x"], 1, "no network 'x'. Next: use one of"),
        (["--scenario", "slowdown=2", "--slo-ms", "0"], 1, "--slo-ms 0 is no latency"),
        (["--scenario", "slowdown=2", "--draws", "5"], 1, "--draws 5 gives no interval"),
        (["--scenario", "slowdown=2", "--plan", "none.json"], 1, "none.json: is no pruning plan"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_write(build, arguments, status, fact, capsys):
    assert main(["whatif", str(build), *arguments]) == status
    err = capsys.readouterr().err
    assert fact in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_that_compile_has_not_begun_is_named(tmp_path, capsys):
    assert main(["whatif", str(tmp_path / "none"), "--scenario", "slowdown=2"]) == 1
    assert "recipe.json: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_scenarios_read_back_as_they_were_written():
    text = "board=a,board=b,label.room=lab-2,share=0.5,clock=1.2GHz,slowdown=1.5"
    scenario = parse_scenario(text)
    assert scenario.boards == ("a", "b")
    assert scenario.labels == {"room": "lab-2"}
    assert scenario.clock_khz == 1_200_000
    assert parse_scenario(scenario.title()) == scenario
    assert parse_scenario("battery=0-15").battery_band_pct == (0.0, 15.0)
    with pytest.raises(DocumentError, match="share stands twice"):
        parse_scenario("share=0.1,share=0.2,slowdown=2")
