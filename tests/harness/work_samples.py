"""A tiny network and work for boards, for tests that measure. Not a test: others import it."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from device_agents.contract import RunSpec, StoppingRule
from harness.executor import Work

QUICK = StoppingRule(warmup_min=1, warmup_max=5, samples_min=5, samples_max=10, max_seconds=0.5)


def save_tiny_model(path: Path) -> None:
    """1 × 16 through one matrix product."""
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(weight, "w")],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    built.ir_version = 8
    onnx.save(built, path)


def work(request, boards, model: Path, repeats: int = 2, **changes) -> Work:
    # The test's own name keeps its sessions on the shared boards apart from other tests'.
    campaign = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    specs = tuple(
        RunSpec(
            **{
                "campaign_id": campaign,
                "board_id": board.board_id,
                "model_sha256": digest,
                "runtime": "ort",
                "stopping": QUICK,
                "repeat": repeat,
            }
            | changes
        )
        for board in boards
        for repeat in range(repeats)
    )
    return Work(campaign, tuple(boards), specs, {digest: model}, {digest: "tiny"})
