"""ONNX, .ort and TFLite, fp32 and int8, on an arm64 kernel over SSH: each within its own bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compiler.artifacts import Provenance, write_artifact
from compiler.targets import TARGETS
from device_agents.contract.artifacts import Target
from fleetcut.cli import main
from harness.store import Store
from harness.virtual.vm.machine import VmSpec

RUNTIME = {"onnx": "ort", "ort": "ort", "tflite": "tflite"}
PROVENANCE = Provenance("small", 0.5, (), "a" * 64, "b" * 64, "c" * 64, "d" * 64, 0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_form_answers_there_as_it_does_here(boot, tmp_path: Path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6(),
        nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    ).eval()  # fmt: skip
    samples = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    built = {}
    folders = []
    for kind, runtime in RUNTIME.items():
        for precision in ("fp32", "int8"):
            target = Target("vm", "aarch64", "linux", runtime, precision=precision)
            out = tmp_path / kind / precision
            model = TARGETS[kind](network, samples[:1], out, target, samples)
            artifact = write_artifact(tmp_path / "artifacts", model, PROVENANCE)
            built[artifact.artifact_id] = model
            folders.append(str(tmp_path / "artifacts" / artifact.artifact_id))
    vm = boot(VmSpec(board_id="arm", physics={"trip_mc": 150_000}))
    rack = ["--inventory", str(vm.inventory), "--store", str(tmp_path / "store.db")]
    assert main(["deploy", *folders, *rack]) == 0
    main(["verify", *folders, *rack])  # whether its clock stayed still is not asked here
    store = Store(tmp_path / "store.db")
    try:
        records = [stored.record for stored in store.runs()]
    finally:
        store.close()
    assert {record.spec.artifact_id for record in records} == set(built)
    for record in records:
        model = built[record.spec.artifact_id]
        assert record.error is None, (model.kind, record.error)
        assert record.max_abs_err is not None
        assert record.max_abs_err <= model.atol, (model.kind, model.target.precision)
