"""Engines over real SSH to a board without a GPU: what is refused here, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.artifacts import Provenance, write_artifact
from compiler.targets import BuiltFile, BuiltModel
from device_agents.contract import Target
from fleetcut.cli import main
from harness.virtual import rack
from harness.virtual.spec import uniform_rack

PROVENANCE = Provenance("net", 0.9, (), "p", "q", "d", "r", 0)


@pytest.fixture(scope="module")
def inventory(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    status = rack.up(folder, uniform_rack(1))
    yield status.inventory
    rack.down(folder)


@pytest.fixture
def artifact(tmp_path):
    def written(kind: str, precision: str) -> Path:
        (tmp_path / "model.onnx").write_bytes(b"a model that nobody loads")
        built = BuiltModel(
            kind=kind, target=Target("t", "any", "linux", "ort", precision=precision),
            model_file="model.onnx", files=(BuiltFile("model.onnx", tmp_path / "model.onnx"),),
            input_layout="NCHW", input_shape=(1,), output_shape=(1,), golden_input=bytes(4),
            golden_output=bytes(4), atol=1e-4, max_abs_err=0.0, tool_versions=(),
        )  # fmt: skip
        made = write_artifact(tmp_path / "out", built, PROVENANCE)
        return tmp_path / "out" / made.artifact_id

    return written


def test_a_board_without_trtexec_says_what_to_install(inventory, artifact, capsys):
    folder = str(artifact("onnx", "fp32"))
    assert main(["engine", folder, "--json", "--fp16", "--inventory", str(inventory)]) == 3
    out = capsys.readouterr()
    answer = json.loads(out.out)
    assert answer["engines"] == []
    (failure,) = answer["failures"].values()
    assert "there is no trtexec" in failure
    assert "libnvinfer-bin" in failure


@pytest.mark.parametrize(("kind", "precision"), [("tflite", "fp32"), ("onnx", "int8")])
def test_only_onnx_in_float_becomes_an_engine(inventory, artifact, capsys, kind, precision):
    folder = str(artifact(kind, precision))
    assert main(["engine", folder, "--inventory", str(inventory)]) == 1
    assert f"is {kind} in {precision}; engines are built from onnx in fp32" in (
        capsys.readouterr().err
    )
