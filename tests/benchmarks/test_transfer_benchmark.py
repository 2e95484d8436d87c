"""The parts of the transfer benchmark: rows, bars that can fail, data that is not there."""

import sys

import numpy as np
import pytest

from benchmarks import transfer
from benchmarks.surrogate_boards import Measured
from benchmarks.surrogate_contenders import Shapes
from benchmarks.transfer import ACTIVE, CHOSEN, RANDOM, bars, fleet_rows, srcc_rows, summary
from benchmarks.transfer_data import Fleet, _fleet
from compiler.transfer.chosen import RAW
from compiler.transfer.estimators import METHODS


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (80, 3))
    ms = np.exp(3 * x @ rng.dirichlet(np.ones(3) * 3, 3).T + rng.normal(0, 0.02, (80, 3)))
    return Fleet("made up", "net", ("a", "b", "c"), ms, x)


@pytest.fixture(scope="module")
def rows(fleet):
    return fleet_rows(fleet, (10, 20, 100), 1)


def test_the_target_is_never_among_its_own_proxies(fleet):
    pool, ms = fleet.target("b")
    assert pool.names == ("a", "c")
    assert (ms == fleet.ms[:, 1]).all()
    assert not (pool.proxies_ms == ms[:, None]).any()


def test_each_target_size_and_method_has_a_row_where_enough_is_left_to_judge(rows):
    assert {row["n"] for row in rows} == {10, 20}
    assert len(rows) == 3 * (2 + 1) * (len(METHODS) + 1)
    assert {row["probes"] for row in rows if row["n"] == 20} == {RANDOM}
    assert {row["probes"] for row in rows if row["n"] == 10} == {RANDOM, ACTIVE}
    chosen = [row for row in rows if row["method"] == CHOSEN]
    assert all(0 <= row["mixture_weight"] <= 1 for row in chosen)
    assert all(0 <= row["coverage"] <= 1 for row in chosen)


def test_the_summary_has_the_median_and_the_worst(rows):
    of = [r["srcc"] for r in rows if (r["n"], r["method"]) == (20, RAW)]
    (line,) = [r for r in summary(rows) if (r["n"], r["method"]) == (20, RAW)]
    assert line["median_srcc"] == pytest.approx(np.median(of))
    assert line["worst_srcc"] == min(of)
    assert line["targets"] == 3


def test_bars_hold_for_a_good_choice_and_not_for_a_bad_one(fleet, rows):
    held = srcc_rows(fleet, (10, 20), 4)
    good = {bar.what: bar.holds for bar in bars("x", rows, held)}
    assert all(holds for what, holds in good.items() if "20 samples" in what)
    worse = [row | {"srcc": row["srcc"] - 0.05} if row["method"] == CHOSEN else row for row in rows]
    bad = [bar for bar in bars("x", worse, held) if "20 samples" in bar.what]
    assert not any(bar.holds for bar in bad if "within" in bar.what)
    missed = [row | {"srcc_coverage": 0.8} for row in held]
    assert not bars("x", rows, missed)[-1].holds


def test_of_boards_measured_here_only_shapes_that_all_measured_count():
    def shapes(raw):
        raw = np.array(raw, dtype=float)
        return Shapes(raw[:, 0], raw, 2 * raw, ("w",), raw[:, 0] + 1)

    one = Measured("a", "net", shapes([[1], [2]]), shapes([[3]]), None)
    two = Measured("b", "net", shapes([[2], [1]]), shapes([[4]]), None)
    merged = _fleet([one, two])
    assert merged.boards == ("a", "b")
    assert merged.ms.tolist() == [[2, 2], [3, 3]]
    assert merged.x.tolist() == [[2], [4]]


def test_data_that_is_not_there_is_skipped_by_name(tmp_path, monkeypatch, capsys):
    arguments = ["transfer", "--data", str(tmp_path), "--no-boards"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert transfer.main() == 2
    error = capsys.readouterr().err
    assert f"skipped: OneProxy's latencies, no {tmp_path}" in error
    assert "Next:" in error
