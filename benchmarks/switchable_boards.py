"""Latency of models at each clock of a virtual board, through the harness, over SSH.

Input: a board, models with their runtimes, clocks. Output: milliseconds. Execution is real, the
clock SIMULATED; what was measured stays in the work folder's store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.prepared_board import PREPARED
from benchmarks.switchable_training import SEED
from device_agents.contract import MeasurementRecord
from fleetcut import verbs
from fleetcut.console import Console
from harness.campaign import load_campaign
from harness.campaign_file import REPEATS_MAX
from harness.executor import Work
from harness.inventory import load_inventory
from harness.statistics import median_ns
from harness.store import Store
from harness.virtual import rack
from harness.virtual.spec import RackSpec, VirtualBoardSpec
from harness.virtual.vm.image import build_image, cached_image
from harness.virtual.vm.machine import Vm, VmSpec

BOARD = "clocks"
TRIES = 3
"""Of a run that does not count."""

NO_HEAT = {"trip_mc": 150_000}
"""The arm64 board stays at the clock it is set to."""


@dataclass(frozen=True)
class Clocks:
    """khz: ascending. repeats: of every model at every clock; judged: of the two that are compared.
    samples_max, max_seconds: of a run's timed loop. teaching: how many of the clocks, evenly
    chosen, the policy's law is fitted at.
    """

    khz: tuple[int, ...]
    repeats: int
    judged: int
    samples_max: int = 400
    max_seconds: float = 0.3
    teaching: int = 7

    def to_judge(self) -> Clocks:
        return replace(self, repeats=self.judged)

    def to_teach(self) -> Clocks:
        """The same at these alone, the lowest and the highest among them."""
        last, steps = len(self.khz) - 1, max(1, self.teaching - 1)
        chosen = sorted({round(step * last / steps) for step in range(steps + 1)})
        return replace(self, khz=tuple(self.khz[at] for at in chosen))


@dataclass(frozen=True)
class Model:
    """A file below the work folder, and what runs it."""

    path: Path
    runtime: str = "ort"


@contextmanager
def stand_in(folder: Path, khz: tuple[int, ...]) -> Iterator[Path]:
    """The inventory of an x86-64 board: the host's CPU, its clock stretched by a clockshim."""
    spec = RackSpec(boards=(VirtualBoardSpec(BOARD, freqs_khz=khz),), seed=SEED)
    # OpenSSH in a namespace of its own needs root; without it the board is an embedded server.
    status = rack.up(folder / "rack", spec, sshd=os.geteuid() == 0)
    try:
        yield status.inventory
    finally:
        rack.down(folder / "rack")


@contextmanager
def arm64(folder: Path) -> Iterator[Path]:
    """The inventory of an emulated arm64 board whose time is a count of instructions."""
    spec = VmSpec(setup=PREPARED, icount_shift=1, physics=NO_HEAT)
    with Vm(cached_image() or build_image(), folder / "vm", spec) as vm:
        yield vm.inventory


@dataclass(frozen=True)
class Measured:
    """ms: (repeats, n_clocks, n_models), p50 of each run. switches: of each record, in ns."""

    ms: NDArray[np.float64]
    switch_ns: tuple[int, ...]
    simulated: bool

    def undisturbed_ms(self) -> NDArray[np.float64]:
        """(n_clocks, n_models). What disturbs a run only slows it, and a host that is slow half of
        the time moves a median between two latencies: the lower quartile stays at one.
        """
        return np.nanquantile(self.ms, 0.25, axis=0)


def measure(
    folder: Path, name: str, inventory: Path, models: Sequence[Model], clocks: Clocks
) -> Measured:
    """Raises HarnessError. A run that the store in folder knows is not measured again."""
    campaign_path = _write_campaign(folder, name, models, clocks)
    store = Store(folder / "fleetcut.db")
    try:
        campaign = load_campaign(campaign_path, load_inventory(inventory))
        work = Work(
            campaign.campaign_id,
            campaign.boards,
            campaign.specs,
            campaign.blobs(),
            campaign.model_names(),
        )
        title = f"measure {len(campaign.specs)} runs of {name}"
        for outcome in verbs.run_work(Console(json_mode=True), store, work, title, tries=TRIES):
            if outcome.failure is not None:
                raise outcome.failure
        positions = {model.sha256: int(model.name.rsplit("-", 1)[1]) for model in campaign.models}
        records = [r.record for r in store.runs([campaign.campaign_id], valid_only=True)]
        ms = np.full((clocks.repeats, len(clocks.khz), len(models)), np.nan)
        for record in records:
            ms[_cell(record, clocks, positions)] = median_ns(record.latency_ns) / 1e6
        took_ns = tuple(switch.took_ns for record in records for switch in record.switches)
        return Measured(ms, took_ns, any(record.simulated for record in records))
    finally:
        store.close()


def _cell(
    record: MeasurementRecord, clocks: Clocks, positions: dict[str, int]
) -> tuple[int, int, int]:
    spec = record.spec
    assert spec.condition.freq_khz is not None
    clock = clocks.khz.index(spec.condition.freq_khz)
    return spec.repeat % REPEATS_MAX, clock, positions[spec.model_sha256]


def _write_campaign(folder: Path, name: str, models: Sequence[Model], clocks: Clocks) -> Path:
    names = [f"{name}-{position}" for position in range(len(models))]
    runtimes = list(dict.fromkeys(model.runtime for model in models))
    campaign = {
        "version": 1,
        "campaign_id": name,
        "seed": SEED,
        "models": [
            {"name": of, "path": str(model.path.relative_to(folder))}
            for of, model in zip(names, models, strict=True)
        ],
        "runtimes": runtimes,
        "skip": [
            {"model": of, "runtime": runtime}
            for of, model in zip(names, models, strict=True)
            for runtime in runtimes
            if runtime != model.runtime
        ],
        "repeats": clocks.repeats,
        "conditions": {"freq_khz": list(clocks.khz)},
        "stopping": {
            "warmup_max": 20,
            "samples_min": min(20, clocks.samples_max),
            "samples_max": clocks.samples_max,
            "max_seconds": clocks.max_seconds,
        },
        "timeout_s": 300,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(campaign, sort_keys=False), encoding="utf-8")
    return path
