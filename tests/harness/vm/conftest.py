"""The arm64 board's image, built once into the cache; where it cannot be, tests are skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from benchmarks.prepared_board import PREPARED
from device_agents.contract import MeasurementRecord
from fleetcut.cli import main
from harness.store import Store
from harness.virtual.errors import RackError
from harness.virtual.vm.image import Image, build_image, cached_image, missing_to_build
from harness.virtual.vm.machine import Vm, VmSpec, missing_to_run

Boot = Callable[[VmSpec], Vm]
Measure = Callable[..., list[MeasurementRecord]]


@pytest.fixture(scope="session")
def prepared() -> str:
    return PREPARED


@pytest.fixture(scope="session")
def vm_image() -> Image:
    if (missing := missing_to_run()) is not None:
        pytest.skip(f"arm64 board, missing: {missing}")
    image = cached_image()
    if image is None and (tools := missing_to_build()):
        pytest.skip(f"arm64 image, missing: {', '.join(tools)}")
    try:
        return image or build_image()
    except RackError as error:
        pytest.skip(f"arm64 image: {error}")


@pytest.fixture
def boot(vm_image: Image, tmp_path: Path) -> Iterator[Boot]:
    """boot(spec): a board that is up; it is off again after the test."""
    running: list[Vm] = []

    def start(spec: VmSpec) -> Vm:
        vm = Vm(vm_image, tmp_path / f"vm{len(running)}", spec)
        running.append(vm)
        vm.up()
        return vm

    yield start
    for vm in running:
        vm.down()


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """measure(vm, name, **campaign): the records that `fleetcut measure` stored, in order."""

    def run(vm: Vm, name: str, **campaign: object) -> list[MeasurementRecord]:
        save_network(tmp_path / "net.onnx")
        text = {"version": 1, "campaign_id": name, "runtimes": ["ort"]} | campaign
        text["models"] = [{"name": "net", "path": "net.onnx"}]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(text))
        database = tmp_path / f"{name}.db"
        argv = ["measure", str(path), "--inventory", str(vm.inventory), "--store", str(database)]
        assert main(argv) == 0
        store = Store(database)
        try:
            return [stored.record for stored in store.runs()]
        finally:
            store.close()

    return run


def save_network(path: Path) -> None:
    """Three convolutions of 16 channels on 32 × 32: some 5 million multiply-accumulates."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for index in range(3):
        shape = (16, 3 if index == 0 else 16, 3, 3)
        weights.append(
            numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), f"w{index}")
        )
        nodes.append(
            helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"x{index + 1}"],
                             pads=[1, 1, 1, 1])
        )  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("x3", TensorProto.FLOAT, [1, 16, 32, 32])],
        weights,
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    built.ir_version = 8
    onnx.save(built, path)
