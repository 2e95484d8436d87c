"""The embedded default: from nothing to a report, on a simulated rack on this machine.

Input: a folder. Output: FOLDER/report.html, report.json and summary.json; the rack is ended.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compiler.recipe import Measuring, Recipe, RecipeTarget, Search, Training
from compiler.work import write_json
from fleetcut.console import Console
from fleetcut.pipeline import Finished, run
from fleetcut.reporting import assemble
from fleetcut.verbs import CHECK_FAILED, DONE
from harness import report_schema as schema
from harness.inventory import load_inventory
from harness.report import write_report
from harness.store import Store
from harness.virtual.rack import down, up
from harness.virtual.spec import demo_rack

LEAST_SPEEDUP = 2.0
MOST_ACCURACY_LOST = 0.01


def demo_recipe(seed: int) -> Recipe:
    """Two networks on digits, small enough for minutes, real enough to show every part."""
    machine = platform.machine()
    return Recipe(
        version=1,
        name="demo",
        networks=("digits_mobilenet", "digits_resnet"),
        seed=seed,
        width_step=8,
        training=Training(epochs=5, batch_size=32, learning_rate=0.005),
        fine_tuning=Training(epochs=7, batch_size=32, learning_rate=0.003),
        measuring=Measuring(
            anchor_repeats=3, samples=26, held_out=6, samples_max=400, max_seconds=0.15
        ),
        search=Search(
            population=5,
            generations=30,
            max_accuracy_evaluations=80,
            proxy_accuracy_drop=0.1,
            elites=3,
        ),
        targets=(
            RecipeTarget(kind="onnx", precision="all", name=f"rack-{machine}", machine=machine),
            RecipeTarget(kind="tflite", name=f"rack-{machine}", machine=machine),
            RecipeTarget(kind="executable", name=f"rack-{machine}", machine=machine),
        ),
    )


def demo(console: Console, out: Path, *, seed: int) -> int:
    """The verb. Ends with 1 when a bar of the demo does not hold."""
    started_s = time.monotonic()
    _forget_finished(out)
    console.line("A simulated rack: six boards on this machine, not hardware.")
    with console.steps("start the rack"):
        rack = up(out / "rack", demo_rack(seed))
    try:
        inventory = load_inventory(rack.inventory)
        store = Store(out / "fleetcut.db")
        try:
            finished = run(console, demo_recipe(seed), inventory, store, out / "build")
            wall_s = time.monotonic() - started_s
            report = assemble(out / "build", store, inventory.boards, wall_s=wall_s)
        finally:
            store.close()
    finally:
        down(out / "rack")
    page = write_report(out, report)
    summary = summarise(report, finished)
    write_json(out / "summary.json", summary)
    return _verdict(console, report, finished, page, summary)


def _forget_finished(out: Path) -> None:
    """A demo that was finished starts from nothing; one that was cut goes on where it was."""
    if not (out / "summary.json").exists():
        return
    (out / "summary.json").unlink()
    shutil.rmtree(out / "build", ignore_errors=True)
    for path in out.glob("fleetcut.db*"):
        path.unlink()


def summarise(report: schema.Report, finished: Finished) -> dict[str, Any]:
    """summary.json: the report's figures, and what became of each artifact."""
    return {
        **asdict(report.summary),
        "networks": [
            {"name": n.name, "speedup": n.speedup, "accuracy_dense": n.accuracy_dense,
             "accuracy_pruned": n.accuracy_pruned, "dense_mean_ms": n.dense_mean_ms,
             "pruned_mean_ms": n.pruned_mean_ms, "predicted_mean_ms": n.predicted_mean_ms}
            for n in report.networks
        ],
        "artifacts": [
            {
                "id": a.artifact_id,
                "network": a.network,
                "kind": a.kind,
                "precision": a.precision,
                "target": a.target,
                "verified": a.state == "released",
                "measured_ms": {p.board_id: p.measured_ms for p in a.proofs},
            }
            for a in report.artifacts
        ],
        "recommended": [
            {key: entry[key] for key in ("network", "cluster", "kind", "precision", "median_ms")}
            for entry in finished.compiled.recommended
        ],
        "skipped": list(finished.compiled.notes),
        "simulated": report.simulated,
        "wall_s": round(report.provenance.wall_s, 1),
    }  # fmt: skip


def _verdict(
    console: Console, report: schema.Report, finished: Finished, page: Path, summary: dict[str, Any]
) -> int:
    failed = list(finished.refused) and [f"{len(finished.refused)} artifacts were refused"]
    for network in report.networks:
        lost = (network.accuracy_dense or 0.0) - (network.accuracy_pruned or 0.0)
        console.line(
            f"{network.name}: {network.dense_mean_ms:.2f} → {network.pruned_mean_ms:.2f} ms over "
            f"the simulated fleet ({network.speedup:.2f}×), accuracy "
            f"{network.accuracy_dense:.2%} → {network.accuracy_pruned:.2%}"
        )
        if not (network.speedup or 0.0) >= LEAST_SPEEDUP:
            failed.append(f"{network.name} is less than {LEAST_SPEEDUP:g}× faster")
        if lost > MOST_ACCURACY_LOST:
            failed.append(f"{network.name} lost {lost:.2%} of accuracy")
    for fact in failed:
        console.error(fact)
    console.line(f"Report: {page} (and {page.parent / 'summary.json'})")
    console.answer(json.loads(json.dumps(summary)))
    console.next("put your boards into inventory.yaml, then fleetcut check")
    return CHECK_FAILED if failed else DONE
