from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.virtual import physics
from harness.virtual.physics import (
    THROTTLE_CAPPED,
    THROTTLE_SOFT_LIMIT,
    BoardPhysics,
    KernelRefusal,
    initial_physics,
    step,
    stretch,
    write_policy,
)
from harness.virtual.spec import BatterySpec, VirtualBoardSpec

PLAIN = VirtualBoardSpec("plain")
HOT = VirtualBoardSpec("hot", thermal_resistance_c_per_w=22.0, heat_capacity_j_per_c=1.0)
BATTERY = VirtualBoardSpec("battery", battery=BatterySpec(charge_pct=15.01, energy_full_wh=1.0))


def run(
    spec: VirtualBoardSpec, state: BoardPhysics, seconds: float, busy_cores: float
) -> list[BoardPhysics]:
    series = []
    for _ in range(round(seconds * 4)):
        state = step(spec, state, 0.25, busy_cores * 0.25)
        series.append(state)
    return series


def write(state: BoardPhysics, *writes: tuple[str, str]) -> BoardPhysics:
    for name, text in writes:
        state = write_policy(PLAIN, state, name, text)
    return state


def test_an_idle_board_stays_at_its_idle_temperature() -> None:
    state = initial_physics(PLAIN)
    assert step(PLAIN, state, 300.0, 0.0).temp_c == pytest.approx(state.temp_c, abs=0.01)


def test_load_heats_to_ohms_law_of_heat_and_rest_cools_again() -> None:
    idle = initial_physics(PLAIN)
    warm = run(PLAIN, idle, 300, busy_cores=1)[-1]
    expected_c = PLAIN.ambient_c + PLAIN.thermal_resistance_c_per_w * (
        PLAIN.idle_power_w + PLAIN.core_power_w
    )
    assert warm.temp_c == pytest.approx(expected_c, abs=0.1)
    assert warm.power_w == pytest.approx(3.5)
    assert run(PLAIN, warm, 300, busy_cores=0)[-1].temp_c == pytest.approx(idle.temp_c, abs=0.1)


def test_heat_moves_visibly_within_half_a_minute() -> None:
    idle = initial_physics(PLAIN)
    assert run(PLAIN, idle, 30, busy_cores=1)[-1].temp_c > idle.temp_c + 5


def test_past_the_trip_the_clock_falls_and_says_so() -> None:
    series = run(HOT, initial_physics(HOT), 120, busy_cores=1)
    throttled = [state for state in series if state.cooling_state > 0]
    assert throttled
    assert throttled[0].temp_c >= HOT.soft_trip_c - 1
    for state in throttled:
        assert state.requested_khz < HOT.freqs_khz[-1]
        assert state.throttle_bits & THROTTLE_CAPPED
        assert state.throttle_bits & THROTTLE_SOFT_LIMIT
        assert stretch(HOT, state) > stretch(HOT, initial_physics(HOT))
    assert max(state.temp_c for state in series) < HOT.soft_trip_c + 5


def test_between_trip_and_hysteresis_the_clock_holds() -> None:
    inside_c = HOT.soft_trip_c - HOT.hysteresis_c / 2
    held = replace(
        initial_physics(HOT), cooling_state=2, temp_c=inside_c, ambient_c=inside_c - 44.0
    )
    assert {state.cooling_state for state in run(HOT, held, 10, busy_cores=0)} == {2}
    below = replace(held, temp_c=inside_c - 4, ambient_c=inside_c - 48.0)
    assert run(HOT, below, 10, busy_cores=0)[-1].cooling_state == 0


def test_the_sticky_bits_stay_when_the_live_ones_clear() -> None:
    hot = run(HOT, initial_physics(HOT), 60, busy_cores=2)[-1]
    cool = run(HOT, physics.with_ambient(hot, 0.0), 120, busy_cores=0)[-1]
    assert cool.throttle_bits & 0xFFFF == 0
    assert cool.throttle_bits >> 16 & THROTTLE_CAPPED


def test_above_the_hard_trip_the_clock_is_the_lowest() -> None:
    burning = replace(initial_physics(HOT), temp_c=HOT.hard_trip_c + 20)
    assert run(HOT, burning, 1.25, busy_cores=0)[-1].running_khz == HOT.freqs_khz[0]


def test_low_battery_caps_what_runs_and_not_what_cpufreq_reports() -> None:
    full = initial_physics(BATTERY)
    assert full.running_khz == 1_500_000
    low = run(BATTERY, full, 60, busy_cores=1)[-1]
    assert low.running_khz == 750_000
    assert low.requested_khz == 1_500_000
    assert low.throttle_bits & THROTTLE_CAPPED
    assert not low.throttle_bits & THROTTLE_SOFT_LIMIT
    assert stretch(BATTERY, low) == pytest.approx(2 * stretch(BATTERY, full))
    charged = physics.with_charge(BATTERY, low, 90.0)
    assert charged.running_khz == 1_500_000


def test_a_battery_gives_what_the_board_draws() -> None:
    spent = step(BATTERY, initial_physics(BATTERY), 36.0, 0.0)
    assert physics.charge_pct(BATTERY, spent) == pytest.approx(15.01 - 2.0, abs=0.001)
    assert physics.charge_pct(BATTERY, step(BATTERY, spent, 1e4, 0.0)) == 0.0
    assert physics.charge_pct(PLAIN, initial_physics(PLAIN)) is None
    with pytest.raises(ValueError, match="no battery"):
        physics.with_charge(PLAIN, initial_physics(PLAIN), 50.0)


@pytest.mark.parametrize(
    ("writes", "running_khz"),
    [
        ([("scaling_governor", "powersave\n")], 600_000),
        ([("scaling_governor", "powersave"), ("scaling_min_freq", "1000000")], 1_000_000),
        ([("scaling_max_freq", "1000000")], 1_000_000),
        ([("scaling_max_freq", "1100000")], 1_000_000),
        ([("scaling_governor", "userspace"), ("scaling_setspeed", "750000")], 750_000),
        ([("scaling_governor", "userspace"), ("scaling_setspeed", "700000")], 750_000),
        ([("scaling_governor", "userspace")], 1_500_000),
        ([("scaling_max_freq", "750000"), ("scaling_max_freq", "9999999")], 1_500_000),
    ],
)
def test_what_is_written_to_cpufreq_is_honoured(
    writes: list[tuple[str, str]], running_khz: int
) -> None:
    state = write(initial_physics(PLAIN), *writes)
    assert state.running_khz == running_khz
    assert stretch(PLAIN, state) == pytest.approx(1.02 * 1_500_000 / running_khz)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scaling_governor", "turbo"),
        ("scaling_governor", ""),
        ("scaling_max_freq", "fast"),
        ("scaling_max_freq", "-1"),
        ("scaling_max_freq", ""),
        ("scaling_min_freq", "1.5e6"),
        ("scaling_setspeed", "750000"),
        ("scaling_cur_freq", "750000"),
    ],
)
def test_what_a_kernel_refuses_is_refused(name: str, text: str) -> None:
    with pytest.raises(KernelRefusal):
        write_policy(PLAIN, initial_physics(PLAIN), name, text)


def test_max_stays_at_or_above_min() -> None:
    state = write(initial_physics(PLAIN), ("scaling_min_freq", "1000000"))
    with pytest.raises(KernelRefusal):
        write_policy(PLAIN, state, "scaling_max_freq", "750000")
    state = write(state, ("scaling_max_freq", "1000000"))
    with pytest.raises(KernelRefusal):
        write_policy(PLAIN, state, "scaling_min_freq", "1200000")


def test_ondemand_reports_a_low_clock_when_idle_and_runs_at_the_high_one() -> None:
    state = write(initial_physics(PLAIN), ("scaling_governor", "ondemand"))
    idle = step(PLAIN, state, 1.0, 0.0)
    assert (idle.requested_khz, idle.running_khz) == (600_000, 1_500_000)
    assert step(PLAIN, idle, 0.25, 0.2).requested_khz == 1_500_000


def test_cpu_time_reported_late_still_becomes_heat() -> None:
    idle = initial_physics(PLAIN)
    at_once = run(PLAIN, step(PLAIN, idle, 0.25, 10.0), 4.75, busy_cores=0)[-1]
    in_time = run(PLAIN, idle, 5.0, busy_cores=2)[-1]
    assert at_once.temp_c == pytest.approx(in_time.temp_c, abs=0.1)


@given(
    dt_s=st.floats(0.01, 100.0),
    busy_cores=st.floats(0.0, 8.0),
    ambient_c=st.floats(-20.0, 60.0),
)
def test_any_load_in_any_room_stays_physical(
    dt_s: float, busy_cores: float, ambient_c: float
) -> None:
    state = physics.with_ambient(initial_physics(HOT), ambient_c)
    for _ in range(5):
        state = step(HOT, state, dt_s, busy_cores * dt_s)
    assert min(ambient_c, 60.0) <= state.temp_c < HOT.hard_trip_c + 40
    assert state.running_khz in HOT.freqs_khz
    assert 0 <= state.utilisation <= HOT.cores + 1e-9
    assert stretch(HOT, state) >= 1


@pytest.mark.parametrize(("dt_s", "busy_core_s"), [(0.0, 0.0), (-1.0, 0.0), (1.0, -0.1)])
def test_time_runs_forward(dt_s: float, busy_core_s: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        step(PLAIN, initial_physics(PLAIN), dt_s, busy_core_s)
