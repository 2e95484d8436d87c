"""Latency of sub-networks at each clock of a virtual board, through the harness, over SSH.

Input: a work folder, the sub-networks, the clocks. Output: milliseconds. Execution is real, the
clock SIMULATED by the board's clockshim; what was measured stays in the work folder's store.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from benchmarks.switchable_training import SEED, Trained
from compiler import networks
from compiler.targets import fast_onnx
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

BOARD = "clocks"
TRIES = 3
"""Of a run that does not count."""


@dataclass(frozen=True)
class Clocks:
    """khz: ascending. repeats: of every sub-network at every clock."""

    khz: tuple[int, ...]
    repeats: int


def latencies_ms(folder: Path, name: str, found: Trained, clocks: Clocks) -> NDArray[np.float64]:
    """(repeats, n_clocks, n_sub_networks): p50 of each run. Raises HarnessError."""
    campaign_path = _write_campaign(folder, name, found.sub_networks, clocks)
    spec = RackSpec(boards=(VirtualBoardSpec(BOARD, freqs_khz=clocks.khz),), seed=SEED)
    # OpenSSH in a namespace of its own needs root; without it the board is an embedded server.
    status = rack.up(folder / "rack", spec, sshd=os.geteuid() == 0)
    store = Store(folder / "fleetcut.db")
    try:
        campaign = load_campaign(campaign_path, load_inventory(status.inventory))
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
        ms = np.full((clocks.repeats, len(clocks.khz), len(found.sub_networks)), np.nan)
        for run in store.runs([campaign.campaign_id], valid_only=True):
            spec_of = run.record.spec
            assert spec_of.condition.freq_khz is not None
            ms[
                spec_of.repeat % REPEATS_MAX,
                clocks.khz.index(spec_of.condition.freq_khz),
                positions[spec_of.model_sha256],
            ] = median_ns(run.record.latency_ns) / 1e6
        return ms
    finally:
        store.close()
        rack.down(folder / "rack")


def _write_campaign(
    folder: Path, name: str, sub_networks: Sequence[nn.Module], clocks: Clocks
) -> Path:
    """The same bytes for the same networks: a run that is known is not measured again."""
    models = []
    for position, network in enumerate(sub_networks):
        path = folder / f"{name}-{position}.onnx"
        path.write_bytes(fast_onnx(network, torch.zeros(1, *networks.input_shape(name))))
        models.append({"name": path.stem, "path": path.name})
    campaign = {
        "version": 1,
        "campaign_id": f"switchable-{name}",
        "seed": SEED,
        "models": models,
        "runtimes": ["ort"],
        "repeats": clocks.repeats,
        "conditions": {"freq_khz": list(clocks.khz)},
        "stopping": {"samples_max": 400, "max_seconds": 0.3},
    }
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(campaign, sort_keys=False), encoding="utf-8")
    return path
