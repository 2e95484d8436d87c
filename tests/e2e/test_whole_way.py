"""The whole way on simulated boards: real SSH, agent, runtimes, search, artifacts and proofs."""

import json
import platform

import pytest

from compiler.clusters import DeviceClusters
from compiler.recipe import Measuring, Recipe, RecipeTarget, Search, Training
from fleetcut.cli import main
from fleetcut.console import Console
from fleetcut.pipeline import run
from fleetcut.reporting import assemble
from harness.deploy import load_artifact
from harness.inventory import load_inventory
from harness.report import read_report, write_report
from harness.store import Store
from harness.virtual import rack
from harness.virtual.spec import RackSpec, VirtualBoardSpec

MACHINE = platform.machine()

RECIPE = Recipe(
    version=1,
    name="e2e",
    networks=("digits_resnet",),
    seed=1,
    training=Training(epochs=3, batch_size=32, learning_rate=0.005),
    fine_tuning=Training(epochs=2, batch_size=32, learning_rate=0.003),
    measuring=Measuring(
        anchor_repeats=2, sample_repeats=1, samples=14, held_out=4, max_seconds=0.1
    ),
    search=Search(
        population=3,
        generations=6,
        max_accuracy_evaluations=20,
        max_accuracy_drop=0.05,
        proxy_accuracy_drop=0.3,
    ),
    targets=(
        RecipeTarget(kind="onnx", precision="all", name="rack", machine=MACHINE),
        RecipeTarget(kind="executable", name="rack", machine=MACHINE),
    ),
)
SLOW = 2.5
"""So far apart that no noise of a busy machine hides which board is slow."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two boards, one of them 2.5 times slower, through everything once."""
    folder = tmp_path_factory.mktemp("whole")
    boards = (
        VirtualBoardSpec("fast"),
        VirtualBoardSpec("slow", speed_fraction=round(1 / SLOW, 3)),
    )
    status = rack.up(folder / "rack", RackSpec(boards=boards, seed=0))
    store = Store(folder / "lab.db")
    try:
        inventory = load_inventory(status.inventory)
        done = run(Console(), RECIPE, inventory, store, folder / "build")
        yield folder, inventory, store, done
    finally:
        store.close()
        rack.down(folder / "rack")


def test_every_artifact_is_released_with_a_proof_from_each_cluster(finished):
    _, _, _, done = finished
    assert done.refused == ()
    assert {load_artifact(a).manifest.kind for a in done.compiled.artifacts} == {
        "onnx",
        "executable",
    }
    for artifact in done.compiled.artifacts:
        release = json.loads((artifact / "release.json").read_text())["body"]
        assert release["state"] == "released"
        assert all(p["simulated"] for p in release["proofs"])
        atol = load_artifact(artifact).manifest.atol
        assert all(p["max_abs_err"] <= atol for p in release["proofs"])


def test_the_fastest_form_was_measured_and_is_recommended_on_each_cluster(finished):
    folder, _, _, done = finished
    shipped = {artifact.name for artifact in done.compiled.artifacts}
    recommended = done.compiled.recommended
    clusters = DeviceClusters.from_json((folder / "build" / "clusters.json").read_text())
    assert {entry["board"] for entry in recommended} == set(clusters.representatives_.values())
    for entry in recommended:
        assert entry["artifact_id"] in shipped
        forms = {(form["kind"], form["precision"]): form for form in entry["forms"]}
        # int8 takes part unless it lost too much accuracy, and then a note says so.
        assert {("onnx", "fp32"), ("executable", "fp32")} <= set(forms)
        floats = [f["median_ms"] for (_, precision), f in forms.items() if precision == "fp32"]
        assert entry["median_ms"] <= min(floats)
    names = {path.name for path in (folder / "build" / "artifacts").iterdir()}
    assert names == shipped
    int8 = [e for e in recommended if e["precision"] == "int8"]
    assert bool(int8) is not any("int8" in note for note in done.compiled.notes)


def test_the_report_holds_what_was_measured(finished):
    folder, inventory, store, _ = finished
    report = assemble(folder / "build", store, inventory.boards)
    page = write_report(folder / "report", report)
    assert read_report(page.parent / "report.json") == report
    assert report.simulated
    by_board = {b.board_id: b.latencies[0] for b in report.boards}
    assert by_board["slow"].dense_ms > 1.3 * by_board["fast"].dense_ms
    assert report.summary.speedup > 1
    assert "simulated" in page.read_text().lower()


def test_a_second_run_measures_and_compiles_nothing_again(finished):
    folder, inventory, store, done = finished
    before = len(store.summaries())
    again = run(Console(), RECIPE, inventory, store, folder / "build")
    assert again.compiled == done.compiled
    assert len(store.summaries()) == before


def test_verbs_on_a_released_artifact(finished, capsys):
    folder, inventory, _, done = finished
    artifact = str(done.compiled.artifacts[0])
    common = ["--inventory", str(inventory.path)]
    assert main(["deploy", artifact, *common]) == 0
    capsys.readouterr()
    store = str(folder / "verbs.db")
    assert main(["verify", artifact, "--board", "fast", "--store", store, "--json", *common]) == 0
    (release,) = json.loads(capsys.readouterr().out)
    proven = release["proofs"][0]["cluster"]
    assert release["state"] == "partial"
    assert proven is not None
    assert proven not in release["unproven_clusters"]
    assert main(["verify", artifact, "--store", store, "--json", *common]) == 0
    (release,) = json.loads(capsys.readouterr().out)
    assert (release["state"], len(release["proofs"])) == ("released", 2)
    for proof in release["proofs"]:
        assert proof["predicted_lower_ms"] <= proof["predicted_ms"] <= proof["predicted_upper_ms"]
        assert proof["throttled"] is False
    out = str(folder / "page")
    work = ["--work", str(folder / "build"), "--store", str(folder / "lab.db"), "--out", out]
    assert main(["report", *work, *common, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["boards"] == 2


def test_an_artifact_that_deviates_on_the_board_is_refused(finished, tmp_path, capsys):
    """A golden output that the network does not give: what a wrong runtime would look like."""
    import hashlib
    import shutil
    import struct
    from dataclasses import replace

    from device_agents.contract import canonical_json

    _, inventory, _, done = finished
    good = load_artifact(done.compiled.artifacts[0])
    bad = tmp_path / "bad"
    shutil.copytree(good.folder, bad)
    (bad / "release.json").unlink()
    golden = bad / good.manifest.golden_output
    golden.chmod(0o644)
    count = golden.stat().st_size // 4
    values = struct.unpack(f"<{count}f", golden.read_bytes())
    golden.write_bytes(struct.pack(f"<{count}f", *(v + 0.5 for v in values)))
    digest = hashlib.sha256(golden.read_bytes()).hexdigest()
    files = tuple(
        replace(f, sha256=digest) if f.name == good.manifest.golden_output else f
        for f in good.manifest.files
    )
    (bad / "manifest.json").chmod(0o644)
    (bad / "manifest.json").write_bytes(canonical_json(replace(good.manifest, files=files)))
    common = ["--inventory", str(inventory.path), "--board", "fast"]
    assert main(["deploy", str(bad), *common]) == 0
    store = str(tmp_path / "lab.db")
    assert main(["verify", str(bad), "--store", store, *common]) == 1
    assert "deviates 0.5" in capsys.readouterr().err
    assert json.loads((bad / "release.json").read_text())["body"]["state"] == "refused"
    assert main(["deploy", str(bad), *common]) == 1
    assert "was refused" in capsys.readouterr().err
    # The board runs the good one again, as the last test left it.
    assert main(["deploy", str(good.folder), *common]) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_as_a_newcomer_runs_it(tmp_path):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["boards"] == 6
    assert summary["simulated"] is True
    assert summary["speedup"] >= 2
    assert summary["accuracy_dense"] - summary["accuracy_pruned"] <= 0.01
    assert len(summary["artifacts"]) == 6
    assert all(a["verified"] for a in summary["artifacts"])
    assert not rack.status(tmp_path / "demo" / "rack").running
