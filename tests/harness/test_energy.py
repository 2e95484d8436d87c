"""Energy of an inference: figures that can be worked out by hand."""

import math

import pytest

from device_agents.contract import BoardState, MeasurementRecord, RunSpec, Verdict
from harness.energy import energy_uj, mean_power_mw

SPEC = RunSpec("campaign", "board", "m" * 64, "ort")
MS = 1_000_000


def states(*power_mw: int | None, every_ms: int = 100) -> tuple[BoardState, ...]:
    return tuple(
        BoardState(monotonic_ns=(i + 1) * every_ms * MS, power_mw=mw)
        for i, mw in enumerate(power_mw)
    )


def record(power_mw: tuple[int | None, ...], latency_ns=(2 * MS, 4 * MS), timed_ns=None):
    """before, after warm-up, the loop's first, the others of the loop, after."""
    seen = states(9, 9, 9, *power_mw, 9)
    return MeasurementRecord(
        SPEC, "p" * 64, "a" * 64, None, False, 0,
        states=seen, latency_ns=latency_ns, timed_ns=timed_ns, verdict=Verdict(True),
    )  # fmt: skip


def test_mean_draw_by_mean_time():
    # 5 W for 3 ms is 15 mJ
    assert energy_uj(record((5000, 5000, 5000))) == pytest.approx(15_000)


def test_what_lies_between_inferences_is_theirs_too():
    assert energy_uj(record((5000, 5000), timed_ns=8 * MS)) == pytest.approx(20_000)


def test_the_board_at_rest_before_and_after_does_not_count():
    assert energy_uj(record((4000, 6000, 8000))) == pytest.approx(18_000)


@pytest.mark.parametrize("power_mw", [(), (5000,), (None, None, None), (5000, None), (0, 0)])
def test_too_few_readings_are_no_energy(power_mw):
    assert energy_uj(record(power_mw)) is None


def test_a_run_without_latency_has_none():
    failed = record((5000, 5000), latency_ns=(1,))
    object.__setattr__(failed, "latency_ns", ())
    assert energy_uj(failed) is None


def test_uneven_samples_weigh_by_their_time():
    # 1 W for 100 ms, a ramp of 100 ms to 3 W, 3 W for 200 ms
    seen = [
        BoardState(monotonic_ns=ms * MS, power_mw=mw)
        for ms, mw in ((0, 1000), (100, 1000), (200, 3000), (400, 3000))
    ]
    assert mean_power_mw(seen) == pytest.approx((100 + 200 + 600) * 1000 / 400)


def test_a_sample_without_a_reading_is_bridged():
    assert mean_power_mw(states(1000, None, 3000)) == pytest.approx(2000)


def test_a_known_wave_comes_out():
    wave = states(*(2000 + round(500 * math.sin(i / 10 * math.tau)) for i in range(101)))
    assert mean_power_mw(wave) == pytest.approx(2000, rel=1e-3)
