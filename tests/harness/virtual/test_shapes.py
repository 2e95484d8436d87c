"""Boards that differ in shape, measured through the agent: which networks they slow, and which not.

Real execution on loopback boards; what is asserted are relations between networks on one board.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from sklearn.metrics import adjusted_rand_score

from compiler.anchors import write_anchors
from compiler.clusters import DeviceClusters, anchor_latencies
from compiler.dataset import Runs, read_runs
from device_agents.contract import RunSpec, StoppingRule
from harness.bundle import build_bundle
from harness.executor import Executor, Work
from harness.export import export
from harness.inventory import load_inventory
from harness.ssh import SshTransport
from harness.store import Store
from harness.virtual import rack
from harness.virtual.spec import (
    MEMORY_BOUND,
    NOMINAL,
    RUNTIME_BOUND,
    SLOW_BIN,
    RackSpec,
    behaviours_rack,
)

SHORT = StoppingRule(warmup_min=3, samples_min=20, samples_max=100, max_seconds=0.15)
TRIES = 5
"""Of a campaign, where other work on the machine may have disturbed the one before."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "lab.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def anchors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_anchors(tmp_path_factory.mktemp("anchors"), seed=0)


@pytest.fixture
def shapes(tmp_path: Path) -> Iterator[Callable[[RackSpec], Path]]:
    """Brings up a rack and gives its inventory."""
    folder = tmp_path / "rack"
    yield lambda spec: rack.up(folder, spec).inventory
    rack.down(folder)


def measure(
    store: Store, inventory: Path, models: Mapping[str, Path], campaign: str, repeats: int
) -> None:
    """Every model on every board, one inference thread; repeats are apart in time."""
    boards = load_inventory(inventory).boards
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in models.items()}
    specs = tuple(
        RunSpec(
            campaign_id=campaign,
            board_id=board.board_id,
            model_sha256=digest,
            runtime="ort",
            threads=1,
            stopping=SHORT,
            repeat=repeat,
        )
        for board in boards
        for repeat in range(repeats)
        for digest in digests.values()
    )
    blobs = {digests[name]: path for name, path in models.items()}
    names = {digest: name for name, digest in digests.items()}
    work = Work(campaign, boards, specs, blobs, names)
    outcomes = Executor(store, build_bundle(), SshTransport).measure(work)
    assert [o.failure for o in outcomes if o.failure] == []


def slowdowns(
    store: Store, campaigns: Sequence[str], planted: Mapping[str, str], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Behaviour → model → its latency over that on the nominal boards.

    Of the least 10th percentile of a run in any of them: other work on the machine only ever adds.
    """
    ns: dict[tuple[str, str], int] = {}
    for run in store.runs(list(campaigns)):
        assert run.record.error is None
        cell = (planted[run.record.spec.board_id], run.model_name)
        low_ns = sorted(run.record.latency_ns)[len(run.record.latency_ns) // 10]
        ns[cell] = min(low_ns, ns.get(cell, low_ns))
    return {
        behaviour: {name: ns[behaviour, name] / ns[NOMINAL, name] for name in names}
        for behaviour in set(planted.values())
    }


def undisturbed(runs: Runs) -> Runs:
    """The lowest fifth of each run's samples: those that other work did not prolong."""
    kept = (sorted(run.latency_ms)[: max(2, len(run.latency_ms) // 5)] for run in runs.runs)
    return replace(
        runs,
        runs=tuple(
            replace(run, latency_ms=tuple(low_ms))
            for run, low_ms in zip(runs.runs, kept, strict=True)
        ),
    )


def test_a_board_of_another_shape_slows_networks_unequally(
    store: Store, anchors: dict[str, Path], shapes: Callable[[RackSpec], Path]
) -> None:
    spec = behaviours_rack((NOMINAL, MEMORY_BOUND, RUNTIME_BOUND), each=1)
    inventory = shapes(spec)
    campaigns: list[str] = []
    for attempt in range(TRIES):
        campaigns.append(f"shapes-{attempt}")
        measure(store, inventory, anchors, campaigns[-1], 1)
        times = slowdowns(store, campaigns, spec.planted(), list(anchors))
        memory, runtime = times[MEMORY_BOUND], times[RUNTIME_BOUND]
        unequal = (
            # Weights and activations beyond the cache cost more, arithmetic within it does not.
            memory["anchor-linear"] > 1.25 * memory["anchor-conv"]
            and memory["anchor-memory"] > 1.25 * memory["anchor-conv"]
            # Eighty operators cost more than six of twice the latency.
            and runtime["anchor-depthwise"] > 1.25 * runtime["anchor-conv"]
            and runtime["anchor-conv"] < 1.3
        )
        if unequal:
            break
    assert unequal, f"slowdowns over nominal: {times}"


@pytest.mark.slow
def test_clusters_tell_shape_from_scale(
    store: Store, anchors: dict[str, Path], shapes: Callable[[RackSpec], Path], tmp_path: Path
) -> None:
    spec = behaviours_rack((NOMINAL, SLOW_BIN, MEMORY_BOUND, RUNTIME_BOUND), each=3)
    inventory = shapes(spec)
    planted = spec.planted()
    for attempt in range(TRIES):
        measure(store, inventory, anchors, f"clusters-{attempt}", 3)
        export(store, tmp_path / f"{attempt}", include_invalid=True)  # with those of earlier tries
        runs = undisturbed(read_runs(tmp_path / f"{attempt}", include_invalid=True))
        clusters = DeviceClusters().fit(anchor_latencies(runs, list(anchors)))
        truth = [planted[board] for board in clusters.board_ids_]
        agreement = adjusted_rand_score(truth, clusters.labels_)
        if agreement == 1.0:
            break
    found = dict(zip(clusters.board_ids_, clusters.labels_, strict=True))
    assert agreement == 1.0, f"{found} of {planted}"
