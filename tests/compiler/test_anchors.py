"""The anchors: valid, old enough for the oldest runtime, the same bytes, and they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compiler.anchors import ANCHORS, write_anchors


@pytest.fixture(scope="module")
def anchors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_anchors(tmp_path_factory.mktemp("anchors") / "new", seed=1)


def test_the_same_seed_gives_the_same_bytes(anchors: dict[str, Path], tmp_path: Path) -> None:
    assert list(anchors) == list(ANCHORS)
    again = write_anchors(tmp_path / "again", seed=1)
    other = write_anchors(tmp_path / "other", seed=2)
    for name, path in anchors.items():
        assert path.read_bytes() == again[name].read_bytes()
        if name != "anchor-memory":  # it has no weights
            assert path.read_bytes() != other[name].read_bytes()


@pytest.mark.parametrize("name", ANCHORS)
def test_an_anchor_runs_without_denormals(name: str, anchors: dict[str, Path]) -> None:
    model = onnx.load(anchors[name])
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)]
    assert anchors[name].stat().st_size < 5e6
    session = onnxruntime.InferenceSession(anchors[name], providers=["CPUExecutionProvider"])
    (tensor,) = session.get_inputs()
    x = np.random.default_rng(0).standard_normal(tensor.shape).astype(np.float32)
    (y,) = session.run(None, {tensor.name: x})
    assert list(y.shape) == session.get_outputs()[0].shape
    assert np.isfinite(y).all()
    # Denormal numbers would slow some processors and not others.
    assert np.abs(y[y != 0]).min() > 1e-30
    assert np.abs(y).max() > 1e-3
