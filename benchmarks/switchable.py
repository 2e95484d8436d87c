"""Latency over clocks, unpruned and switched; accuracy at each width; memory; switching time.

    python -m benchmarks.switchable [--quick] [--no-vm] [--work DIR] --json OUT

Trains digits networks (built-in data) beside networks of their own at each width. A policy is
learned from every sub-network at each clock of a virtual board; then the dense network and the one
file that switches by itself are measured there (real execution over SSH, SIMULATED clocks; OpenSSH
in a namespace where that is possible, else the embedded server), and again on an emulated arm64
board whose time is counted in instructions. Memory and switching time are this machine's, beside
keeping separate models. What was trained and measured stays in --work: a killed run goes on there.
Some 100 minutes, most of it training; --quick: one network, fewer epochs and clocks,
no arm64 board.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.result import Bar, finish, parser, write
from benchmarks.switchable_boards import Clocks, Measured, Model, arm64, measure, stand_in
from benchmarks.switchable_memory import footprint
from benchmarks.switchable_training import Budget, Trained, real_network, trained
from compiler.errors import CompilerError
from compiler.switchable.artifact import build_switchable
from compiler.switchable.policy import Policy, coefficient_of_variation, learn_policy
from compiler.targets import fast_onnx
from device_agents.contract import Target
from harness.errors import HarnessError

FULL_KHZ = (600_000, 750_000, 900_000, 1_050_000, 1_200_000, 1_350_000, 1_500_000)
QUICK_KHZ = (600_000, 900_000, 1_200_000, 1_500_000)
VM_KHZ = (600_000, 750_000, 1_000_000, 1_200_000, 1_500_000)
REAL = ("resnet56", "mobilenet_v2")
"""Random weights: memory and time do not depend on them."""

COVERED = 0.10
"""Of the target: a clock at which no sub-network comes as near is none that the ratios cover."""

MOST_COV = 0.10
LEAST_GAIN = 5.0
MOST_LOST = 0.005
MOST_STORAGE = 1.1
MOST_MEMORY = 1.1
MOST_SWITCHING = 1.0

Row = dict[str, Any]
PORTABLE = Target("benchmark", "any", "linux", "switchable")


@dataclass(frozen=True)
class Effort:
    networks: tuple[str, ...]
    real: tuple[str, ...]
    budget: Budget
    clocks: Clocks
    vm_clocks: Clocks | None


FULL = Effort(
    ("digits_resnet", "digits_mobilenet"),
    REAL,
    Budget(),
    Clocks(FULL_KHZ, repeats=15, judged=21),
    Clocks(VM_KHZ, repeats=1, judged=1, samples_max=20, max_seconds=60.0, teaching=2),
)
QUICK = Effort(
    ("digits_mobilenet",),
    (),
    Budget(ratios=(0.0, 0.25, 0.5, 0.75), epochs=2, pictures=512),
    Clocks(QUICK_KHZ, repeats=2, judged=2),
    None,
)


@dataclass
class Result:
    rows: list[Row]
    bars: list[Bar]


def contest(folder: Path, name: str, effort: Effort) -> Result:
    """One network: its accuracies, its latencies on each kind of board, its memory."""
    found = trained(folder / name, name, effort.budget)
    here = folder / name
    models = _write_sub_networks(here, name, found)
    rows, bars = accuracy_rows(name, found), accuracy_bars(name, found)
    boards: list[tuple[str, AbstractContextManager[Path], Clocks]] = [
        ("x86-64, stretched", stand_in(here, effort.clocks.khz), effort.clocks)
    ]
    if effort.vm_clocks is not None:
        boards.append(("arm64, counted", arm64(here), effort.vm_clocks))
    for board, context, clocks in boards:
        more = over_clocks(here, name, board, context, clocks, found, models)
        rows += more.rows
        bars += more.bars
    policy = learn_policy({p: {1.0: 2.0, 2.0: 1.0} for p in range(len(models))})
    artifact = _build(here / "portable", found, policy)
    more = memory(name, [model.path for model in models], artifact)
    return Result([*rows, *more.rows], [*bars, *more.bars])


def over_clocks(
    here: Path,
    name: str,
    board: str,
    context: AbstractContextManager[Path],
    clocks: Clocks,
    found: Trained,
    models: list[Model],
) -> Result:
    """Sub-networks teach the policy; dense and switching are then measured side by side."""
    kind = board.split(",")[0].replace("-", "")
    with context as inventory:
        teaching = clocks.to_teach()
        taught = measure(here, f"taught-{kind}", inventory, models, teaching)
        policy = _policy(taught.undisturbed_ms(), teaching.khz)
        artifact = _build(here / kind, found, policy)
        pair = [models[0], Model(artifact, "switchable")]
        judged = measure(here, f"judged-{kind}", inventory, pair, clocks.to_judge())
    rows = clock_rows(name, board, policy, judged, clocks.khz)
    return Result(rows, clock_bars(f"{name} on {board}", rows))


def _policy(ms: np.ndarray, khz: tuple[int, ...]) -> Policy:
    """ms: (n_clocks, n_sub_networks)."""
    return learn_policy(
        {
            position: dict(zip(map(float, khz), column.tolist(), strict=True))
            for position, column in enumerate(ms.T)
        }
    )


def _build(folder: Path, found: Trained, policy: Policy) -> Path:
    built = build_switchable(found.network, policy, found.example, folder, PORTABLE)
    return built.files[0].path


def _write_sub_networks(folder: Path, name: str, found: Trained) -> list[Model]:
    models = []
    for position, network in enumerate(found.sub_networks):
        path = folder / f"{name}-{position}.onnx"
        path.write_bytes(fast_onnx(network, torch.zeros_like(found.example)))
        models.append(Model(path))
    return models


def accuracy_rows(name: str, found: Trained) -> list[Row]:
    return [
        {
            "network": name,
            "ratio": ratio,
            "mmacs": found.macs[position] / 1e6,
            "accuracy_switchable": found.accuracies[position],
            "accuracy_alone": found.accuracies_alone[position],
        }
        for position, ratio in enumerate(found.ratios)
    ]


def accuracy_bars(name: str, found: Trained) -> list[Bar]:
    lost = max(
        alone - together
        for alone, together in zip(found.accuracies_alone, found.accuracies, strict=True)
    )
    return [Bar(f"{name}: accuracy lost to a network of its own, worst", lost, "<=", MOST_LOST)]


def clock_rows(
    name: str,
    board: str,
    policy: Policy,
    judged: Measured,
    khz: tuple[int, ...],
) -> list[Row]:
    """judged: dense, then switching, at these clocks."""
    rows: list[Row] = []
    ms = judged.undisturbed_ms()
    for at, clock in reversed(list(enumerate(khz))):
        # Each run begins with the widest, for its golden answer.
        chosen = policy.choose(clock, 0)
        rows.append(
            {
                "network": name,
                "board": board,
                "clock_khz": clock,
                "covered": policy.covers(clock, COVERED),
                "unpruned_ms": float(ms[at, 0]),
                "chosen": chosen,
                "switched_ms": float(ms[at, 1]),
                "expected_ms": policy.laws[chosen].latency_ms(clock),
                "target_ms": policy.target_ms,
            }
        )
    return rows


def clock_bars(what: str, rows: list[Row]) -> list[Bar]:
    covered = [row for row in rows if row["covered"]]
    unpruned = [row["unpruned_ms"] for row in covered]
    held = [row["switched_ms"] for row in covered]
    cov = coefficient_of_variation(held) if covered else float("inf")
    gain = coefficient_of_variation(unpruned) / cov if len(covered) > 1 else 0.0
    spread = max(held) / min(held) if covered else float("inf")
    what = f"{what}, {len(covered)} of {len(rows)} clocks covered"
    dense_spread = max(unpruned) / min(unpruned) if covered else float("inf")
    return [
        Bar(f"{what}: clocks", len(covered), ">=", min(5, len(rows))),
        Bar(f"{what}: CoV of switched latency", cov, "<=", MOST_COV),
        Bar(f"{what}: CoV unpruned over switched", gain, ">=", LEAST_GAIN),
        Bar(f"{what}: max/min switched (unpruned {dense_spread:.2f})", spread, "<", dense_spread),
    ]


def memory(name: str, models: list[Path], artifact: Path) -> Result:
    """Of the dense network alone, of all apart, of the file that switches."""
    dense = footprint("ort", models[:1])
    apart = footprint("ort", models)
    one = footprint("switchable", [artifact])
    bytes_apart = sum(path.stat().st_size for path in models)
    bytes_dense, bytes_one = models[0].stat().st_size, artifact.stat().st_size
    rows = [
        {
            "network": name,
            "kept": kept,
            "file_mb": size / 2**20,
            "peak_model_mb": found.model_mb,
            "peak_process_mb": found.process_mb,
            "load_ms": found.load_ms,
            "switch_ms": list(found.switch_ms),
            "inference_ms": list(found.inference_ms),
        }
        for kept, size, found in (
            ("dense alone", bytes_dense, dense),
            ("all apart", bytes_apart, apart),
            ("switchable", bytes_one, one),
        )
    ]
    worst = max(s / i for s, i in zip(one.switch_ms, one.inference_ms, strict=True))
    memory_over = one.model_mb / dense.model_mb
    apart_over = apart.model_mb / dense.model_mb
    return Result(
        rows,
        [
            Bar(
                f"{name}: file over the dense network's ({len(models)} apart: "
                f"{bytes_apart / bytes_dense:.2f})",
                bytes_one / bytes_dense,
                "<=",
                MOST_STORAGE,
            ),
            Bar(
                f"{name}: peak memory over the dense network's (apart: {apart_over:.2f})",
                memory_over,
                "<=",
                MOST_MEMORY,
            ),
            Bar(f"{name}: worst switch over an inference", worst, "<", MOST_SWITCHING),
        ],
    )


def real(folder: Path, name: str, ratios: tuple[float, ...]) -> Result:
    """Memory and switching time of a network that edge boards really run."""
    here = folder / name
    here.mkdir(parents=True, exist_ok=True)
    network, example = real_network(name, ratios)
    policy = learn_policy({p: {1.0: 2.0, 2.0: 1.0} for p in range(len(network.widths))})
    built = build_switchable(network, policy, example, here, PORTABLE)
    models = []
    for position in range(len(network.widths)):
        path = here / f"{name}-{position}.onnx"
        path.write_bytes(fast_onnx(network.sub_network(position), example))
        models.append(path)
    return memory(name, models, built.files[0].path)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--work", type=Path, help="kept, and gone on with")
    options.add_argument("--no-vm", action="store_true", help="without the arm64 board")
    asked = options.parse_args()
    effort = QUICK if asked.quick else FULL
    if asked.no_vm:
        effort = Effort(effort.networks, effort.real, effort.budget, effort.clocks, None)
    whole = Result([], [])
    with tempfile.TemporaryDirectory(prefix="fleetcut-switchable-") as temporary:
        folder = (asked.work or Path(temporary)).absolute()
        try:
            for name in effort.networks:
                _add(whole, contest(folder, name, effort), asked.json)
            for name in effort.real:
                _add(whole, real(folder, name, (0.0, 0.25, 0.5, 0.7)), asked.json)
        except (HarnessError, CompilerError) as error:
            print(f"switchable: {error}", file=sys.stderr)
            return 2
    # Rows of one kind stand together, whatever network they are of.
    whole.rows.sort(key=lambda row: tuple(row))
    return finish("switchable", whole.rows, whole.bars, asked.json)


def _add(whole: Result, more: Result, out: Path | None) -> None:
    whole.rows += more.rows
    whole.bars += more.bars
    write("switchable", whole.rows, whole.bars, out)


if __name__ == "__main__":
    sys.exit(main())
