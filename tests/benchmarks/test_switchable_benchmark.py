"""What the switchable benchmark makes of its figures; the figures themselves are measured there."""

import pytest

from benchmarks.switchable import clock_bars, memory
from benchmarks.switchable_boards import Clocks
from benchmarks.switchable_memory import Footprint


def rows(unpruned: list[float], switched: list[float], covered: list[bool]) -> list[dict]:
    return [
        {"unpruned_ms": u, "switched_ms": s, "covered": c}
        for u, s, c in zip(unpruned, switched, covered, strict=True)
    ]


def test_clocks_that_no_width_reaches_are_counted_and_judge_nothing():
    found = rows(
        [1.0, 1.5, 2.0, 3.0, 5.0, 9.0], [1.0, 1.02, 0.98, 1.0, 1.0, 4.0], [True] * 5 + [False]
    )
    clocks, cov, gain, spread = clock_bars("it", found)
    assert (clocks.value, clocks.limit) == (5, 5)
    assert cov.value == pytest.approx(0.0126, abs=1e-3)
    assert gain.value > 40
    assert spread.value == pytest.approx(1.02 / 0.98)
    assert all(bar.holds for bar in (clocks, cov, gain, spread))


def test_a_network_that_switches_nothing_does_not_hold():
    same = [1.0, 1.5, 2.0, 3.0, 5.0]
    _, cov, gain, spread = clock_bars("it", rows(same, same, [True] * 5))
    assert gain.value == pytest.approx(1.0)
    assert not any(bar.holds for bar in (cov, gain, spread))


def test_clocks_none_of_which_is_covered_hold_nothing():
    assert not any(bar.holds for bar in clock_bars("it", rows([1.0], [1.0], [False])))


def test_memory_is_set_beside_the_dense_network_s_own(monkeypatch, tmp_path):
    dense, narrow, artifact = (tmp_path / name for name in ("dense", "narrow", "artifact"))
    for path, size in ((dense, 1000), (narrow, 500), (artifact, 1050)):
        path.write_bytes(bytes(size))
    found = {
        ("ort", 1): Footprint(100.0, 40.0, 10.0),
        ("ort", 2): Footprint(120.0, 60.0, 20.0),
        ("switchable", 1): Footprint(102.0, 42.0, 50.0, (1.0, 0.5), (4.0, 1.0)),
    }
    monkeypatch.setattr(
        "benchmarks.switchable.footprint", lambda runtime, models: found[runtime, len(models)]
    )
    storage, peak, switching = memory("net", [dense, narrow], artifact).bars
    assert storage.value == pytest.approx(1.05)
    assert peak.value == pytest.approx(1.05)
    assert switching.value == pytest.approx(0.5)


def test_a_law_is_taught_at_the_lowest_and_the_highest_clock_at_least():
    khz = (600, 750, 1000, 1200, 1500)
    assert Clocks(khz, repeats=1, judged=1, teaching=2).to_teach().khz == (600, 1500)
    assert Clocks(khz, repeats=1, judged=1, teaching=3).to_teach().khz == (600, 1000, 1500)
    assert Clocks(khz, repeats=1, judged=1).to_teach().khz == khz
