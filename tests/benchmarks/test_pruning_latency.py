"""What the latency benchmark builds its claims on: one budget of work, fair bars, quiet loops."""

from __future__ import annotations

import os

import numpy as np
import pytest

from benchmarks import pruning_latency, pruning_latency_fleet
from benchmarks.pruning_latency_search import Band, Bench, Study
from benchmarks.stopwatch import interleaved_ms
from benchmarks.stopwatch_worker import StopwatchWorker
from benchmarks.torch_pruning_contenders import LEAST_FRACTION, contenders
from compiler.features import physics_features
from compiler.pruning.objectives import BoardRatios, make_objective

NAME = "digits_mobilenet"


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(NAME, Band.of(NAME, 0.5, 0.03))


def test_every_contender_is_of_the_band_and_wide_enough(bench: Bench) -> None:
    found = list(contenders(NAME, bench.space, bench.band.least, bench.band.most))
    assert len(found) == 8
    inside = [c for c in found if c.widths is not None]
    assert inside
    for contender in inside:
        assert bench.band.least <= contender.macs <= bench.band.most
        assert bench.space.macs(contender.widths) == contender.macs
        assert all(
            width >= LEAST_FRACTION * group.channels
            for group, width in zip(bench.space.groups, contender.widths, strict=True)
        )


def test_a_study_ends_in_a_shape_of_the_band_that_no_sample_beats(bench: Bench) -> None:
    """Boards invented from the work that is read and written: only the shape decides."""

    def board(shapes: list[tuple[int, ...]]) -> np.ndarray:
        return 0.1 + physics_features(bench.space, shapes).sum(axis=1) / 1e8

    study = Study(bench, {"invented": board}, seed=0, rounds=1, quick=True)
    found = study.find_shape(make_objective("mean", BoardRatios([np.ones(1)])))
    assert bench.band.least <= bench.space.macs(found.widths) <= bench.band.most
    shapes = [tuple(s) for s in study._shapes]
    inside = [s for s in shapes if bench.band.least <= bench.space.macs(s) <= bench.band.most]
    assert found.measured_ms == pytest.approx(min(board(inside)))
    assert found.predicted_ms == pytest.approx(found.measured_ms, rel=0.1)


def test_bars_compare_with_the_fastest_peer() -> None:
    def row(contender: str, p50_ms: float) -> dict[str, object]:
        speedup = 40.0 / p50_ms
        return {"network": "resnet50", "runtime": "ort", "contender": contender, "p50_ms": p50_ms,
                "speedup": speedup}  # fmt: skip

    rows = [row("dense", 40.0), row("torch-pruning a", 13.0), row("torch-pruning b", 12.0)]
    gain, speedup = pruning_latency.bars_of([*rows, row("fleetcut", 11.5)], 0.05)
    assert gain.value == pytest.approx(11.5 / 12.0)
    assert not gain.holds
    assert speedup.holds
    assert pruning_latency.bars_of([*rows, row("fleetcut", 11.3)], 0.05)[0].holds


def test_the_mixed_fleet_has_every_kind_in_its_share() -> None:
    ratios = pruning_latency_fleet.fleet_ratios(0)
    assert {k: len(r) for k, r in ratios.items()} == {
        kind: round(share * pruning_latency_fleet.BOARDS)
        for kind, share in pruning_latency_fleet.KINDS.items()
    }


def test_models_take_turns_and_a_worker_times_alike(bench: Bench) -> None:
    order: list[int] = []
    ms = interleaved_ms([lambda n=n: order.append(n) for n in range(3)], 5)  # type: ignore[misc]
    assert ms.shape == (5, 3)
    assert [sorted(order[6 + 3 * i : 9 + 3 * i]) for i in range(5)] == [[0, 1, 2]] * 5

    narrow = bench.canary("ort")
    with StopwatchWorker(os.environ) as worker:
        assert worker.interleaved_ms("ort", [narrow, narrow], 4).shape == (4, 2)
    with StopwatchWorker(os.environ) as worker, pytest.raises(RuntimeError, match="ended with"):
        worker.interleaved_ms("ort", [b"not a model"], 1)
