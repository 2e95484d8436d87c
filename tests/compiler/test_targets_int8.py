"""int8 and .ort: as accurate as float on digits, the same bytes each time, read by old runtimes."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from compiler import data
from compiler.targets import TARGETS, TargetError
from compiler.targets.built import BuiltModel
from compiler.targets.onnx import onnx_answer
from compiler.targets.onnx_graph import operators
from compiler.targets.ort_canonical import canonical_ort
from compiler.targets.ort_format import ort_format
from compiler.training import TrainSettings, evaluate, train
from device_agents.contract.artifacts import Target

RUNTIME = {"onnx": "ort", "ort": "ort", "tflite": "tflite"}
MOST_LOST = 0.01
"""Of accuracy on the held-out digits, by int8."""


def target(kind: str, precision: str, machine: str = "aarch64") -> Target:
    return Target(f"pi-{kind}", machine, "linux", RUNTIME[kind], precision=precision)


def small() -> nn.Module:
    def block(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    torch.manual_seed(0)
    return nn.Sequential(
        block(3, 16), block(16, 32), block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> data.Splits:
    return data.load("digits", 0, (3, 32, 32))


@pytest.fixture(scope="module")
def network(digits) -> nn.Module:
    trained = small()
    train(trained, digits, TrainSettings(epochs=4, lr=0.02))
    assert evaluate(trained, digits.test_x, digits.test_y) > 0.9
    return trained.eval()


@pytest.fixture(scope="module")
def build(network, digits, tmp_path_factory):
    @functools.cache
    def built(kind: str, precision: str, machine: str = "aarch64") -> BuiltModel:
        return TARGETS[kind](
            network,
            digits.test_x[:1],
            tmp_path_factory.mktemp(kind),
            target(kind, precision, machine),
            digits.train_x[:64],
        )

    return built


@pytest.fixture(scope="module")
def int8(build) -> dict[str, BuiltModel]:
    return {kind: build(kind, "int8") for kind in RUNTIME}


def content(built: BuiltModel) -> bytes:
    (file,) = built.files
    return file.path.read_bytes()


@pytest.mark.parametrize("kind", RUNTIME)
def test_int8_is_as_accurate_as_float_on_held_out_digits(int8, network, digits, kind):
    answers = int8[kind].answers(digits.test_x.numpy())
    accuracy = float(np.mean(answers.argmax(axis=1) == digits.test_y.numpy()))
    assert accuracy >= evaluate(network, digits.test_x, digits.test_y) - MOST_LOST


@pytest.mark.parametrize("kind", RUNTIME)
def test_the_golden_output_of_int8_is_its_own_and_says_how_far_a_board_may_be(int8, digits, kind):
    built = int8[kind]
    golden = np.frombuffer(built.golden_output, "<f4")
    np.testing.assert_array_equal(golden, built.answers(digits.test_x[:1].numpy())[0])
    assert built.atol == pytest.approx(5 / 255 * np.ptp(golden))
    # It is no float model by another name, and near the float model all the same.
    assert 1e-4 < built.max_abs_err < 0.2 * np.ptp(golden)


@pytest.mark.parametrize("kind", RUNTIME)
def test_int8_weights_take_a_quarter_of_the_room(int8, build, kind):
    assert len(content(int8[kind])) < 0.5 * len(content(build(kind, "fp32")))


def test_onnx_int8_has_unsigned_activations_and_signed_weights_a_channel(int8):
    model = onnx.load_model_from_string(content(int8["onnx"]))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not model.metadata_props
    weights = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert weights[node.input[2]].data_type == onnx.TensorProto.UINT8
    quantised = [t for t in weights.values() if t.data_type == onnx.TensorProto.INT8 and t.dims]
    scales = [t for name, t in weights.items() if name.endswith("_scale") and len(t.dims) == 1]
    assert len([t for t in quantised if len(t.dims) == 4]) == 3
    assert len([t for t in scales if t.dims[0] > 1]) >= len(
        [t for t in quantised if len(t.dims) == 4]
    )


def test_weights_take_seven_bits_where_pairs_of_products_may_saturate(int8, build):
    def largest(model: bytes) -> int:
        tensors = onnx.load_model_from_string(model).graph.initializer
        signed = [t for t in tensors if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
        return max(int(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max()) for t in signed)

    assert largest(content(int8["onnx"])) == 127
    assert largest(content(build("onnx", "int8", "x86_64"))) <= 64


def test_tflite_int8_is_integers_between_its_float_ends(int8):
    model = schema.ModelT.InitFromPackedBuf(content(int8["tflite"]), 0)
    (graph,) = model.subgraphs
    ends = [*graph.inputs, *graph.outputs]
    kinds = {graph.tensors[i].type for i in range(len(graph.tensors)) if i not in ends}
    assert kinds <= {schema.TensorType.INT8, schema.TensorType.INT32}
    assert {graph.tensors[i].type for i in ends} == {schema.TensorType.FLOAT32}
    assert all(buffer.offset == 0 for buffer in model.buffers)


@pytest.mark.parametrize("machine", ["aarch64", "armv7l", "x86_64"])
def test_an_ort_file_answers_as_pytorch_does_and_holds_no_layout_of_this_cpu(build, machine):
    built = build("ort", "fp32", machine)
    assert built.kind == "ort"
    assert built.max_abs_err <= built.atol == 1e-4
    assert content(built)[4:8] == b"ORTM"
    # onnxruntime's domain of operators in blocks of channels, as wide as this CPU's vectors.
    assert b"ReorderInput" not in content(built)


def test_an_ort_file_names_its_machine(build):
    with pytest.raises(TargetError, match=r"^pi-ort: an \.ort file is fixed .* Next: set machine"):
        build("ort", "fp32", "any")


@pytest.mark.parametrize("kind", RUNTIME)
def test_int8_without_real_samples_is_refused(network, digits, tmp_path, kind):
    for calibration in (None, digits.train_x[:2], digits.train_x[:16, :1]):
        with pytest.raises(TargetError, match=rf"^pi-{kind}: int8 needs real samples .* Next: "):
            TARGETS[kind](network, digits.test_x[:1], tmp_path, target(kind, "int8"), calibration)


PROGRAM = """
import sys
from pathlib import Path
import torch
from torch import nn
from compiler.targets import TARGETS
from device_agents.contract.artifacts import Target

def build(out):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for kind, precision in (("onnx", "int8"), ("ort", "fp32"), ("ort", "int8"), ("tflite", "int8")):
        target = Target("t", "aarch64", "linux", "ort", precision=precision)
        TARGETS[kind](network, x[:1], out / kind / precision, target, x)
"""


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes_in_two_processes(tmp_path):
    here: dict[str, Any] = {}
    exec(PROGRAM, here)
    here["build"](tmp_path / "here")
    elsewhere = tmp_path / "elsewhere"
    program = f"{PROGRAM}\nbuild(Path({str(elsewhere)!r}))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    built = sorted(path.relative_to(elsewhere) for path in elsewhere.rglob("model.*"))
    assert len(built) == 4
    for path in built:
        assert (elsewhere / path).read_bytes() == (tmp_path / "here" / path).read_bytes(), path


def test_an_ort_file_stays_itself_when_made_canonical_again(build):
    model = content(build("onnx", "int8"))
    data_ = ort_format(model, arm=True)
    assert canonical_ort(data_) == data_
    assert {ort_format(model, arm=True) for _ in range(5)} == {data_}
    assert "QLinearConv" not in operators(model)
    x = np.zeros((1, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(onnx_answer(data_)(x), onnx_answer(model)(x))


OLD = {
    "3.8": ("tflite-runtime==2.13.0", "onnxruntime==1.19.2", "numpy<2"),
    "3.11": ("tflite-runtime==2.14.0", "onnxruntime==1.19.2", "numpy<2"),
}
"""Python → the oldest runtimes that docs/targets.md names for boards with it."""

ASK = """
import sys
import numpy as np
model, given, answer = sys.argv[1:]
x = np.load(given)
if model.endswith(".tflite"):
    from tflite_runtime.interpreter import Interpreter
    interpreter = Interpreter(model_path=model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    np.save(answer, interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.save(answer, session.run(None, {session.get_inputs()[0].name: x})[0])
"""


@pytest.fixture(scope="module", params=sorted(OLD))
def old_python(request, tmp_path_factory) -> Path:
    """A virtual environment with a board's old runtimes, where pip can make one."""
    version = request.param
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python"))
    found = shutil.which(f"python{version}") if version == "3.11" else None
    python = found or (str(installed[-1]) if installed else shutil.which(f"python{version}"))
    if python is None:
        pytest.skip(f"python{version} missing: install it, or `pyenv install {version}`")
    folder = tmp_path_factory.mktemp("old")
    subprocess.run([python, "-m", "venv", str(folder)], check=True, capture_output=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    done = subprocess.run([*pip, *OLD[version]], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {' '.join(OLD[version])} for Python {version}")
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", RUNTIME)
def test_the_oldest_runtimes_of_the_table_load_it_and_answer_alike(
    old_python, build, tmp_path, kind, precision
):
    built = build(kind, precision, "x86_64")
    given, answer = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(given, np.frombuffer(built.golden_input, "<f4").reshape(built.input_shape))
    model = str(built.files[0].path)
    subprocess.run([old_python, "-c", ASK, model, str(given), str(answer)], check=True)
    golden = np.frombuffer(built.golden_output, "<f4").reshape(built.output_shape)
    np.testing.assert_allclose(np.load(answer), golden, rtol=0, atol=built.atol)
