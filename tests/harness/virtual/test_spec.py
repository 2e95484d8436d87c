from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from harness.virtual.physics import initial_physics, step, stretch
from harness.virtual.spec import (
    BEHAVIOURS,
    DEMO_BEHAVIOURS,
    MEMORY_BOUND,
    NOMINAL,
    RUNTIME_BOUND,
    SLOW_BIN,
    WORN_BATTERY,
    RackSpec,
    VirtualBoardSpec,
    behaviours_rack,
    demo_rack,
    uniform_rack,
)

SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_demo_rack_plants_two_boards_of_each_behaviour(seed: int) -> None:
    spec = demo_rack(seed)
    assert [b.board_id for b in spec.boards] == [f"vb-0{i}" for i in range(1, 7)]
    assert Counter(spec.planted().values()) == dict.fromkeys(DEMO_BEHAVIOURS, 2)
    assert demo_rack(seed) == spec


def test_names_say_nothing_of_behaviour() -> None:
    at_first = {demo_rack(seed).planted()["vb-01"] for seed in SEEDS}
    assert at_first == set(DEMO_BEHAVIOURS)


@pytest.mark.parametrize("seed", SEEDS)
def test_behaviours_stretch_as_planted(seed: int) -> None:
    bounds = {NOMINAL: (1.0, 1.04), SLOW_BIN: (1.28, 1.34), WORN_BATTERY: (2.0, 2.08)}
    for board in demo_rack(seed).boards:
        low, high = bounds[board.behaviour]
        assert low <= stretch(board, initial_physics(board)) <= high


@pytest.mark.parametrize("seed", SEEDS)
def test_full_load_moves_the_heat_of_demo_boards_but_not_their_clock(seed: int) -> None:
    settled_c = []
    for board in demo_rack(seed).boards:
        idle = initial_physics(board)
        hot = step(board, idle, 600.0, 600.0 * board.cores)
        assert hot.running_khz == idle.running_khz
        assert hot.temp_c < board.soft_trip_c
        settled_c.append(idle.temp_c)
        if board.behaviour != WORN_BATTERY:
            assert hot.temp_c > idle.temp_c + 10
    assert max(settled_c) > min(settled_c) + 4


def test_worn_battery_holds_for_hours_of_full_load() -> None:
    for board in demo_rack(0).boards:
        initial = initial_physics(board)
        later = step(board, initial, 2 * 3600.0, 2 * 3600.0 * board.cores)
        assert stretch(board, later) == stretch(board, initial)


def test_a_rack_of_chosen_behaviours_has_as_many_boards_of_each() -> None:
    spec = behaviours_rack(BEHAVIOURS, each=3, seed=1)
    assert Counter(spec.planted().values()) == dict.fromkeys(BEHAVIOURS, 3)
    assert behaviours_rack(BEHAVIOURS, each=3, seed=1) == spec
    for board in spec.boards:
        assert (board.memory_bytes_per_s is not None) == (board.behaviour == MEMORY_BOUND)
        assert (board.malloc_ns > 0) == (board.behaviour == RUNTIME_BOUND)


@pytest.mark.parametrize(
    ("behaviours", "each"), [(("turbo",), 2), ((), 2), ((NOMINAL, NOMINAL), 2), ((NOMINAL,), 0)]
)
def test_behaviours_that_are_none_are_refused(behaviours: tuple[str, ...], each: int) -> None:
    with pytest.raises(ValueError, match="name some of nominal, slow-bin"):
        behaviours_rack(behaviours, each=each)


def test_uniform_rack_has_as_many_boards_as_asked_for() -> None:
    ids = [board.board_id for board in uniform_rack(120).boards]
    assert len(set(ids)) == 120
    assert ids[0] == "vb-001"


@pytest.mark.parametrize(
    "fault",
    [
        {"freqs_khz": (1_500_000, 600_000)},
        {"freqs_khz": ()},
        {"governor": "turbo"},
        {"speed_fraction": 1.2},
        {"heat_capacity_j_per_c": 0.0},
        {"memory_bytes_per_s": 0},
        {"cache_bytes": 0},
        {"malloc_ns": -1},
    ],
)
def test_impossible_boards_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="b1"):
        replace(VirtualBoardSpec("b1"), **fault)  # type: ignore[arg-type]


def test_a_rack_names_each_board_once() -> None:
    with pytest.raises(ValueError, match="each id once"):
        RackSpec(boards=(VirtualBoardSpec("a"), VirtualBoardSpec("a")), seed=0)
