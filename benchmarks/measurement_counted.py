"""Verdicts beside the truth on a board whose time is counted, so that no neighbour moves it.

Input: the emulated arm64 board, whose kernel lowers the clock by its own thermal governor. Output:
judged runs. An instruction takes as long as any other whatever else the machine does (QEMU's
-icount), so a run that physics left alone has one speed, which a virtual board on a shared machine
cannot promise. The truth is the clock's own log, kept by the board's physics (boardsim.c).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.measurement_boards import SEED, Bench, ModelFile, exported
from benchmarks.measurement_samples import keep, kept
from benchmarks.measurement_throttling import CLEAN, HEAT, HostLog, Judged, Span, judged
from benchmarks.prepared_board import PREPARED
from device_agents.contract import RunSpec, StoppingRule
from harness.virtual.vm.image import build_image, cached_image
from harness.virtual.vm.machine import Vm, VmSpec

BOARD = "vm-arm64"
_CPUFREQ = "/sys/devices/system/cpu/cpufreq/policy0"
_PHYSICS = "/sys/module/boardsim/parameters"
_COOL_MC, _FROST_MC = -20_000, -120_000
_WARM_MC = (11_000, 16_000)
"""The air in which a board that starts cool reaches its trip within the timed loop, or close to."""

CLEAN_A_SESSION = 10
SAMPLES = 100
"""Two seconds of the board's: nine times as long as its governor takes to look again."""

STOPPING = StoppingRule(
    warmup_min=10, warmup_max=50, samples_min=SAMPLES, samples_max=SAMPLES, max_seconds=50.0
)
RUN_TIMEOUT_S = 600.0


class CountedBoard(Bench):
    """The arm64 board, up. Raises RackError where this machine cannot emulate it."""

    def _up(self) -> Path:
        # A governor that follows the load would fill the log with what is no throttling.
        setup = (
            f"{PREPARED}\nchmod a+w {_PHYSICS}/ambient_mc\n"
            f"echo performance > {_CPUFREQ}/scaling_governor\n"
        )
        spec = VmSpec(BOARD, setup=setup, icount_shift=3, physics={"ambient_mc": _COOL_MC})
        self._vm = Vm(cached_image() or build_image(), self.folder / "vm", spec)
        self._vm.up()
        return self._vm.inventory

    def _down(self) -> None:
        self._vm.down()

    def settle(self, ambient_mc: int) -> None:
        """Cool and at its full clock again, in air of that temperature."""
        state = "/sys/class/thermal/cooling_device0/cur_state"
        temp = "/sys/class/thermal/thermal_zone0/temp"
        # On the board and in one command: each log-in would heat it again.
        script = (
            f"echo {_FROST_MC} > {_PHYSICS}/ambient_mc; "
            f"until [ $(cat {state}) = 0 ] && [ $(cat {temp}) -lt {ambient_mc + 15_000} ]; "
            f"do sleep 0.2; done; echo {ambient_mc} > {_PHYSICS}/ambient_mc"
        )
        self.run(BOARD, ["bash", "-c", script])

    def slow(self) -> list[Span]:
        """Spans of the board's CLOCK_MONOTONIC in which its clock was below the highest."""
        top, *log = self.run(
            BOARD, ["cat", f"{_CPUFREQ}/cpuinfo_max_freq", f"{_PHYSICS}/clock_log"]
        ).splitlines()
        changes = [line.split() for line in log]
        return spans_below(int(top), [(int(at_ns), int(khz)) for at_ns, khz in changes])


def small_model(folder: Path) -> ModelFile:
    """Three convolutions, 5 million multiply-adds: some 22 ms of the board's."""
    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    for channels in (3, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()]
    return exported(folder, "three-convolutions", nn.Sequential(*layers).eval(), (3, 32, 32))


def spans_below(top_khz: int, changes: Sequence[tuple[int, int]]) -> list[Span]:
    """changes: (ns, kHz from then on), ascending. What lasts has no end: the largest number."""
    ends = [*(at_ns for at_ns, _ in changes[1:]), 2**63 - 1]
    return [
        (at_ns, end_ns)
        for (at_ns, khz), end_ns in zip(changes, ends, strict=False)
        if khz < top_khz
    ]


def sessions(clean: int, heat: int) -> list[tuple[str, int]]:
    """(what it is set up for, runs) in random order: hot ones alone, each from a cool board."""
    whole, rest = divmod(clean, CLEAN_A_SESSION)
    sizes = [CLEAN_A_SESSION] * whole + ([rest] if rest else [])
    planned = [(CLEAN, size) for size in sizes] + [(HEAT, 1)] * heat
    random.Random(SEED).shuffle(planned)  # noqa: S311 - an order, not a secret
    return planned


def measured(
    board: CountedBoard, model: ModelFile, number: int, kind: str, runs: int
) -> list[Judged]:
    """One session, or as it is stored. Raises HarnessError."""
    path = board.folder / "sessions" / f"{number:03d}.json.z"
    if (stored := kept(path)) is None:
        stored = _watched(board, model, number, kind, runs)
        keep(path, stored)
    slow = [(start, end) for start, end in stored["slow"]]
    records = board.measure(_specs(model, number, stored["attempt"], runs), [model])
    return [judged(kind, slow, HostLog([], []), record) for record in records]


def _watched(
    board: CountedBoard, model: ModelFile, number: int, kind: str, runs: int
) -> dict[str, object]:
    """The first attempt of which nothing is known: a killed benchmark may leave a part of one,
    measured by a clock that began anew with the board.
    """
    rng = random.Random(f"{SEED}:{number}")  # noqa: S311
    ambient_mc = rng.randint(*_WARM_MC) if kind == HEAT else _COOL_MC
    for attempt in itertools.count():
        specs = _specs(model, number, attempt, runs)
        if not board.knows(specs):
            break
    board.settle(ambient_mc)
    board.measure(specs, [model])
    return {"attempt": attempt, "slow": board.slow()}


def _specs(model: ModelFile, number: int, attempt: int, runs: int) -> list[RunSpec]:
    first = RunSpec(
        campaign_id=f"counted-{number}-{attempt}",
        board_id=BOARD,
        model_sha256=model.sha256,
        runtime="ort",
        stopping=STOPPING,
        timeout_s=RUN_TIMEOUT_S,
    )
    return [replace(first, repeat=repeat) for repeat in range(runs)]
