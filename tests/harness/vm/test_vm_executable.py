"""A program linked on this workstation, deployed to and proven on an arm64 kernel over SSH."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compiler.artifacts import Provenance, write_artifact
from compiler.targets import build_executable, build_ort_executable
from compiler.targets.toolchains import ONNXRUNTIME, RUNTIME, MissingToolError, find
from device_agents.contract.artifacts import Target
from fleetcut.cli import main
from harness.store import Store
from harness.virtual.vm.machine import VmSpec

PROVENANCE = Provenance(
    network="small",
    accuracy=0.5,
    predicted_ms_by_cluster=(),
    plan_sha256="a" * 64,
    parent_sha256="b" * 64,
    dataset_sha256="c" * 64,
    recipe_sha256="d" * 64,
    seed=0,
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("build", "engine"), [(build_executable, RUNTIME), (build_ort_executable, ONNXRUNTIME)]
)
def test_the_harness_runs_and_proves_it_there(boot, tmp_path: Path, precision, build, engine):
    try:
        find("aarch64", engine)
    except MissingToolError as missing:
        pytest.skip(str(missing))
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip
    samples = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    target = Target("vm", "aarch64", "linux", "executable", precision=precision)
    built = build(network, samples[:1], tmp_path / "build", target, samples)
    artifact = write_artifact(tmp_path / "artifacts", built, PROVENANCE)
    folder = str(tmp_path / "artifacts" / artifact.artifact_id)
    vm = boot(VmSpec(board_id="arm", physics={"trip_mc": 150_000}))
    rack = ["--inventory", str(vm.inventory), "--store", str(tmp_path / "store.db")]
    assert main(["deploy", folder, *rack]) == 0
    main(["verify", folder, *rack])  # whether its clock stayed still is not asked here
    store = Store(tmp_path / "store.db")
    try:
        records = [stored.record for stored in store.runs()]
    finally:
        store.close()
    assert records
    for record in records:
        assert record.error is None, record.error
        assert record.spec.runtime == "executable"
        assert record.max_abs_err is not None
        assert record.max_abs_err <= built.atol
        assert len(record.latency_ns) > 0
