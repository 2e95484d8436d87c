"""The parts of the surrogate benchmark: held-out shapes, cells, contenders and bars."""

import itertools

import numpy as np
import pytest

from benchmarks import surrogate
from benchmarks.surrogate_boards import BOARDS, CORNERS, Effort, random_widths, shapes_of
from benchmarks.surrogate_contenders import FLEETCUT, PEERS, Shapes, errors, judge, nested
from benchmarks.surrogate_oneproxy import (
    CONV1,
    CONV3,
    NONE,
    POOL,
    SKIP,
    features,
    live,
    needed,
    read,
    shapes,
)
from compiler import networks
from compiler.errors import CompilerError
from compiler.features import total_macs
from compiler.pruning.groups import trace
from compiler.sampling import sample_widths


@pytest.fixture(scope="module")
def space():
    name = "digits_resnet"
    return trace(networks.build(name, 0), networks.input_shape(name), name)


@pytest.fixture(scope="module")
def measured(space) -> Shapes:
    """Milliseconds that add up: 10 µs, the work, and 1 % noise."""
    widths = np.array(sample_widths(space, 90, 0))
    macs = total_macs(space, widths)
    noise = np.random.default_rng(0).normal(0, 0.01, len(widths))
    return shapes_of(space, widths, (0.01 + macs / 1e8) * np.exp(noise))


def test_held_out_shapes_are_legal_distinct_and_none_of_the_sample(space):
    sample = frozenset(sample_widths(space, 40, 0))
    drawn = random_widths(space, 60, 0, sample)
    assert len(set(drawn)) == 60
    assert not set(drawn) & sample
    assert all(space.check(widths) == widths for widths in drawn)
    assert drawn == random_widths(space, 60, 0, sample)
    macs = [space.macs(widths) for widths in drawn]
    assert max(macs) > 10 * min(macs)


def test_the_boards_run_at_several_clocks():
    stretches = {b.base_stretch / b.speed_fraction * b.freqs_khz[-1] for b in BOARDS.boards}
    assert len(BOARDS.boards) >= 3
    assert len(stretches) > 1
    assert len({b.governor for b in BOARDS.boards}) > 1


def test_the_full_run_measures_no_more_than_was_promised():
    assert surrogate.FULL.sizes[-1] <= 200
    assert surrogate.FULL.held_out >= 100
    recipe = Effort(("digits_resnet",), (12, 24), held_out=12, repeats=2).recipe()
    assert recipe.measuring.samples == 36


def test_each_point_of_the_learning_curve_holds_the_one_before():
    curve = nested(90, (25, 50, 200), CORNERS)
    assert [len(rows) for rows in curve] == [25, 50, 90]
    for fewer, more in itertools.pairwise(curve):
        assert set(fewer) < set(more)
    assert set(range(CORNERS)) <= set(curve[0])


def test_every_contender_is_judged_on_what_it_did_not_see(measured):
    rows = judge(measured.take(np.arange(60)), measured.take(np.arange(60, 90)))
    assert [row["contender"] for row in rows] == [FLEETCUT, *PEERS]
    by_name = {row["contender"]: row for row in rows}
    assert by_name["multiply-adds"]["mape"] < 0.03
    assert by_name[FLEETCUT]["mape"] < by_name["raw boosted trees"]["mape"]
    assert by_name[FLEETCUT]["coverage"] > 0.7
    assert by_name["raw ridge"]["coverage"] is None
    assert all(row["n_train"] == 60 and row["n_held_out"] == 30 for row in rows)


def test_errors_are_fractions_of_what_was_measured():
    found = errors(np.array([1.0, 2.0, 4.0]), np.array([1.05, 2.0, 3.0]))
    assert found == pytest.approx(
        {"mape": 0.1, "within10": 2 / 3, "median_ape": 0.05, "worst_ape": 0.25}
    )


def test_operators_that_nothing_flows_through_are_not_live():
    # Node 1 gets nothing, so the convolutions from it compute zeros; node 2 leads nowhere.
    cell = (NONE, CONV3, CONV1, POOL, CONV3, NONE)
    assert needed(cell) == (NONE, NONE, NONE, POOL, CONV3, NONE)
    assert live(cell) == (NONE, NONE, NONE, POOL, NONE, NONE)
    counted = features(cell)
    assert (counted["all.conv3"], counted["needed.conv3"], counted["live.conv3"]) == (2, 1, 0)
    assert (counted["all.0-2.conv3"], counted["live.0-2.conv3"]) == (1, 0)


def test_what_is_computed_twice_from_one_value_is_one_distinct_operator():
    counted = features((CONV3, CONV3, SKIP, CONV3, CONV1, SKIP))
    assert counted["live.conv3"] == 3
    assert counted["distinct.conv3"] == 1
    assert counted["live.sums"] == 3
    assert (counted["depth"], counted["depth.conv3"]) == (2, 1)


def test_cells_that_do_not_run_are_left_out():
    cells = [(CONV3,) * 6, (SKIP,) * 6, (CONV1,) * 6]
    found = shapes(cells, np.array([2.0, -1.0, 1.0]))
    assert found.ms.tolist() == [2.0, 1.0]
    assert found.macs[0] == 9 * found.macs[1]
    assert found.raw.sum() == 12


def test_another_file_of_latencies_is_refused(tmp_path):
    (tmp_path / "nb201_1999x18_latency_ms.npz").write_bytes(b"not it")
    with pytest.raises(CompilerError, match="another file"):
        read(tmp_path)


def _row(board, contender, mape, n_train=200):
    return {
        "board": board,
        "network": "net",
        "contender": contender,
        "n_train": n_train,
        "n_held_out": 100,
        "mape": mape,
        "within10": 1 - mape,
        "coverage": 0.9,
    }


def test_bars_are_of_the_worst_board_at_the_most_shapes():
    rows = [_row("a", FLEETCUT, 0.5, 25), _row("a", FLEETCUT, 0.02), _row("b", FLEETCUT, 0.04)]
    mape, within, coverage = surrogate.bars("boards", rows, 200)
    assert (mape.value, mape.holds) == (0.04, True)
    assert "net on b" in mape.what
    assert within.value == 0.96
    assert coverage.limit == pytest.approx(0.9 - 2 * (0.09 / 200) ** 0.5)
    assert coverage.holds


def test_a_peer_that_is_better_on_one_board_fails_the_bar():
    rows = [_row(board, name, 0.05) for board in "ab" for name in PEERS]
    rows += [_row("a", FLEETCUT, 0.02), _row("b", FLEETCUT, 0.06)]
    for bar in surrogate.peer_bars("boards", rows, 200):
        assert bar.value == pytest.approx(1.2)
        assert not bar.holds
        assert "net on b" in bar.what


def test_a_row_of_several_draws_is_their_mean_with_the_worst_error():
    one = {"n_train": 50, "mape": 0.02, "worst_ape": 0.1, "family": "ridge"}
    two = {"n_train": 50, "mape": 0.04, "worst_ape": 0.3, "family": "additive"}
    assert surrogate.mean_row([one, two]) == {
        "n_train": 50, "mape": pytest.approx(0.03), "worst_ape": 0.3, "family": "ridge, additive"
    }  # fmt: skip
    peer = {"mape": 0.1, "worst_ape": 0.2, "family": None}
    assert surrogate.mean_row([peer, peer])["family"] is None
