"""Small real artifacts and the keys that sign them, for what is done to artifacts and boards.

Input: a folder and a version's number. Output: artifact folders, signed; keys; allowed_signers.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compiler.artifacts import Provenance, write_artifact
from compiler.targets.built import ATOL_FP32, BuiltFile, BuiltModel, raw_bytes, versions
from device_agents.contract import Target
from harness.deploy import LocalArtifact, load_artifact
from harness.signing import sign_artifact

NAME = "tiny-onnx"
SIZE = 64


def make_key(folder: Path, who: str) -> Path:
    """An ed25519 key without a passphrase. Returns the private one's path."""
    path = folder / who
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", who, "-f", str(path)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return path


def write_signers(path: Path, *keys: Path) -> Path:
    """An allowed_signers file: each key under its own name."""
    lines = []
    for key in keys:
        kind, public = key.with_suffix(".pub").read_text(encoding="utf-8").split()[:2]
        lines.append(f'{key.name} namespaces="fleetcut-*" {kind} {public}\n')
    path.write_text("".join(lines), encoding="utf-8")
    return path


def make_artifact(out: Path, version: int, clusters: tuple[str, ...] = ("0",)) -> LocalArtifact:
    """One matrix product, other weights for each version. Its golden output is numpy's."""
    rng = np.random.default_rng(version)
    weight = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
    x = rng.standard_normal((1, SIZE)).astype(np.float32)
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{version}.onnx"
    onnx.save(_graph(weight), path)
    built = BuiltModel(
        kind="onnx",
        target=Target("rack", "any", "linux", "ort"),
        model_file="model.onnx",
        files=(BuiltFile("model.onnx", path),),
        input_layout="NCHW",
        input_shape=(1, SIZE),
        output_shape=(1, SIZE),
        golden_input=raw_bytes(x),
        golden_output=raw_bytes(x @ weight),
        atol=ATOL_FP32,
        max_abs_err=0.0,
        tool_versions=versions("numpy", "onnx"),
        licences=("None: random numbers.",),
    )
    provenance = Provenance(
        network="tiny",
        accuracy=0.5,
        predicted_ms_by_cluster=tuple((label, 1.0) for label in clusters),
        plan_sha256="0" * 64,
        parent_sha256="0" * 64,
        dataset_sha256="0" * 64,
        recipe_sha256="0" * 64,
        seed=version,
    )
    artifact = write_artifact(out / "artifacts", built, provenance)
    return load_artifact(out / "artifacts" / artifact.artifact_id)


def signed(artifact: LocalArtifact, key: Path, serial: int, name: str = NAME) -> LocalArtifact:
    """The same with signatures beside its manifest."""
    sign_artifact(artifact.folder, artifact.artifact_id, name, key, serial)
    return load_artifact(artifact.folder)


def _graph(weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, SIZE])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return model
