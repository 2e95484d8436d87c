"""Native executables beside onnxruntime and LiteRT: latency, start, memory, size, faithfulness.

    python -m benchmarks.binaries --json OUT

Three networks at 1 × 3 × 224 × 224, one thread, one CPU, each form in a process of its own, all of
them in one interleaved loop; random weights, as latency does not depend on them. There is a native
form for each engine, built for this CPU; bars are those of the faster one, which is what a compile
recommends. Then two trained ResNets on CIFAR-10 (--data, --weights), fine-tuned there and kept in
--work, in int8: how often their class is the float32 network's. Some 30 minutes; --quick:
MobileNetV2 and fewer pictures.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.binaries_contenders import Command, latencies_ms, starts
from benchmarks.pruning_accuracy_data import absent, load
from benchmarks.pruning_accuracy_search import precision
from benchmarks.result import Bar, finish, parser, write
from compiler import networks, weights
from compiler.data import Splits
from compiler.pruning.groups import trace
from compiler.pruning.surgery import materialise
from compiler.pruning.widths import PruneSpace, Widths
from compiler.targets import (
    BuiltModel,
    build_executable,
    build_onnx,
    build_ort_executable,
    build_tflite,
)
from compiler.targets.board_file import board_of_profile
from compiler.training import TrainSettings, recalibrate_batch_norm, train
from device_agents.contract.artifacts import Target
from device_agents.probe import probe
from device_agents.sysfs import Root

SHARED = Path("../shared/data")
WORKER = Path(__file__).with_name("binaries_worker.py")
HERE = Target("workstation", platform.machine(), "linux", "executable")
SEED = 0

NATIVE = ("native, xnnpack", "native, onnxruntime")

PRUNED_MACS = 1.0e9
WIDTH_STEP = 16
CONTENDERS = ("resnet50", "mobilenet_v2", "resnet50 pruned")
ROUNDS, QUICK_ROUNDS = 60, 8
RUNS = 5
STARTS, QUICK_STARTS = 21, 3

TRAINED = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
"""Networks and their published weights; the bar is each one's."""
EPOCHS, LEARNING_RATE, BATCH = 2, 1e-3, 128
"""Of fine-tuning, as pruning_accuracy does before it prunes."""
PICTURES, QUICK_PICTURES = (None, None), (2_000, 1_000)
"""To fine-tune on and to judge by; None for all."""
CALIBRATION = 256

LATENCY_OF_ORT, LATENCY_OF_BEST = 1.0, 1.05
START_OF_ORT, MEMORY_OF_ORT = 0.2, 0.5
PARITY, AGREEMENT = 1e-4, 0.99


def network_of(contender: str) -> nn.Module:
    """In eval mode; its batch norms know its own activations, so that logits are of order 1."""
    name, _, pruned = contender.partition(" ")
    network = networks.build(name, SEED)
    if pruned:
        space = trace(network, networks.input_shape(name), name, WIDTH_STEP)
        network = materialise(name, space, uniform_widths(space, PRUNED_MACS), SEED)
    x = torch.randn(8, *networks.input_shape(name), generator=generator())
    recalibrate_batch_norm(network, x)
    return network.eval()


def uniform_widths(space: PruneSpace, macs: float) -> Widths:
    """The largest uniform fraction of every group, in legal widths, within that much work."""
    for fraction in np.arange(1, 0, -0.005):
        widths = tuple(
            max((w for w in legal if w <= fraction * group.channels), default=legal[0])
            for group, legal in zip(space.groups, space.widths_by_group, strict=True)
        )
        if space.macs(widths) <= macs:
            return widths
    raise ValueError(f"{space.network} has no uniform shape of {macs:g} multiply-accumulates")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def contest(contender: str, folder: Path, quick: bool) -> list[dict[str, Any]]:
    """A row a form of one network, all measured in one loop."""
    network = network_of(contender)
    example = torch.randn(1, *networks.input_shape(contender.split()[0]), generator=generator())
    here = replace(HERE, cpu=this_cpu())
    forms = {
        "native, xnnpack": build_executable(network, example, folder / "xnnpack", here),
        "native, onnxruntime": build_ort_executable(network, example, folder / "ort", here),
        "onnxruntime": build_onnx(network, example, folder, replace(HERE, runtime="ort")),
        "litert": build_tflite(network, example, folder, replace(HERE, runtime="tflite")),
    }
    commands = {name: command(name, form, folder) for name, form in forms.items()}
    started = starts(commands, QUICK_STARTS if quick else STARTS)
    first_ms = {name: np.array([s.first_ms for s in taken]) for name, taken in started.items()}
    ms = latencies_ms(commands, QUICK_ROUNDS if quick else ROUNDS, RUNS)
    return [
        {
            "network": contender,
            "form": name,
            "p50_ms": float(np.median(ms[name])),
            "p25_ms": float(np.quantile(ms[name], 0.25)),
            "p75_ms": float(np.quantile(ms[name], 0.75)),
            "of_onnxruntime": paired(ms[name], ms["onnxruntime"]),
            "of_litert": paired(ms[name], ms["litert"]),
            "first_ms": float(np.median(first_ms[name])),
            "first_of_onnxruntime": paired(first_ms[name], first_ms["onnxruntime"]),
            "peak_mib": float(np.median([start.peak_mib for start in started[name]])),
            "file_mib": forms[name].files[0].path.stat().st_size / 2**20,
            "runtime_mib": runtime_mib(name),
            "max_abs_err": forms[name].max_abs_err,
        }
        for name in forms
    ]


def paired(ms: np.ndarray[Any, Any], other_ms: np.ndarray[Any, Any]) -> float:
    """The median over rounds of the ratio within a round: what drifts drops out."""
    return float(np.median(ms / other_ms))


def this_cpu() -> str:
    """As a probe of this machine says it: programs may use what its CPU has."""
    return board_of_profile("workstation", probe(Root("/"))).cpu


def command(name: str, form: BuiltModel, folder: Path) -> Command:
    path = form.files[0].path
    if name in NATIVE:
        return (str(path), "--serve")
    source = folder / f"{name}.f32"
    source.write_bytes(form.golden_input)
    runtime = {"onnxruntime": "ort", "litert": "litert"}[name]
    return (sys.executable, str(WORKER), runtime, str(path), str(source))


def runtime_mib(name: str) -> float:
    """What must be installed beside the file: the runtime's package, without numpy and Python."""
    package = {"onnxruntime": "onnxruntime", "litert": "ai_edge_litert"}.get(name)
    if package is None:
        return 0.0
    spec = importlib.util.find_spec(package)
    assert spec is not None, "it was measured"
    assert spec.origin is not None, "it is a package with a file"
    folder = Path(spec.origin).parent
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20


def bars_of(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """The bars of one contest: of the fastest native form."""
    *natives, ort, _ = rows
    native = min(natives, key=lambda row: row["of_onnxruntime"])
    what = f"{native['network']}, {native['form']}"
    best = max(native["of_onnxruntime"], native["of_litert"])
    return [
        Bar(f"{what}: latency over onnxruntime's", native["of_onnxruntime"], "<=", LATENCY_OF_ORT),
        Bar(f"{what}: latency over the better of the two", best, "<=", LATENCY_OF_BEST),
        Bar(
            f"{what}: start to first answer over Python's with onnxruntime",
            native["first_of_onnxruntime"],
            "<=",
            START_OF_ORT,
        ),
        Bar(
            f"{what}: peak memory over Python's with onnxruntime",
            native["peak_mib"] / ort["peak_mib"],
            "<=",
            MEMORY_OF_ORT,
        ),
        Bar(f"{what}: largest deviation from PyTorch", native["max_abs_err"], "<=", PARITY),
    ]


def agreement(asked: argparse.Namespace, trained: str, work: Path) -> tuple[dict[str, Any], Bar]:
    """The int8 executable's classes beside the float32 network's, on pictures of the test part."""
    splits = load(asked.data, work, SEED, *(QUICK_PICTURES if asked.quick else PICTURES))
    network = fine_tuned(trained, asked.weights / TRAINED[trained], splits, work)
    samples = splits.val_x[:CALIBRATION]
    with tempfile.TemporaryDirectory() as folder:
        built = build_executable(
            network, samples[:1], Path(folder), replace(HERE, precision="int8"), samples
        )
        x = splits.test_x[:]
        with torch.inference_mode():
            logits = torch.cat([network(part) for part in torch.split(x, 100)])
        assert built.answers is not None, "it is int8"
        float_class, int8_class = logits.argmax(1).numpy(), built.answers(x.numpy()).argmax(1)
        file_mib = built.files[0].path.stat().st_size / 2**20
    truth = np.asarray(splits.test_y)
    agreed = float(np.mean(int8_class == float_class))
    row = {
        "network": f"{trained}, trained on CIFAR-10",
        "pictures": len(truth),
        "agreement": agreed,
        "fp32_accuracy": float(np.mean(float_class == truth)),
        "int8_accuracy": float(np.mean(int8_class == truth)),
        "file_mib": file_mib,
    }
    return row, Bar(f"{trained}: int8's class is float32's", agreed, ">=", AGREEMENT)


def fine_tuned(name: str, published: Path, splits: Splits, work: Path) -> nn.Module:
    """The published network made at home in this copy of the data, which went through JPEG.

    Kept in ``work``, where a second call finds it.
    """
    network = networks.build(name, SEED)
    stored = work / f"{name}-{EPOCHS}x{len(splits.train_y)}.safetensors"
    if stored.exists():
        weights.load_into(network, stored, name)
        return network.eval()
    weights.load_into(network, published, name)
    print(f"fine-tuning {name}: {EPOCHS} epochs", file=sys.stderr, flush=True)
    settings = TrainSettings(EPOCHS, LEARNING_RATE, BATCH, seed=SEED, precision=precision())
    train(network, splits, settings)
    weights.save(network.state_dict(), stored)
    return network


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, default=SHARED / "cifar10-jpg")
    options.add_argument("--weights", type=Path, default=SHARED / "resnet-cifar10", metavar="DIR")
    options.add_argument("--work", type=Path, metavar="DIR", help="fine-tuned weights stay there")
    asked = options.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    for contender in CONTENDERS[1:2] if asked.quick else CONTENDERS:
        with tempfile.TemporaryDirectory() as folder:
            found = contest(contender, Path(folder), asked.quick)
        rows += found
        bars += bars_of(found)
        write("binaries", rows, bars, asked.json)
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = asked.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for trained, name in TRAINED.items():
            if missing := absent(asked.data, asked.weights / name):
                print(f"int8 agreement is skipped: {missing}. Next: name them, --data, --weights")
                continue
            row, bar = agreement(asked, trained, work)
            rows.append(row)
            bars.append(bar)
    return finish("binaries", rows, bars, asked.json)


if __name__ == "__main__":
    sys.exit(main())
