"""Planted fleets whose latency is a + b/f: the answer is found and its interval is honest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compiler.clock_response import (
    ASSUMED,
    charge_clocks,
    clock_responses,
    fixed_share,
    hot_clocks,
    present_clocks,
)
from compiler.dataset import Run, Runs
from compiler.whatif import (
    Boards,
    Effect,
    Prediction,
    WhatIfError,
    choose,
    p95_rank,
    what_if,
)

Z90 = 1.6449


def boards(n: int, **changes: object) -> Boards:
    plain = Boards(
        board_ids=tuple(f"b{i:06d}" for i in range(n)),
        cluster=np.arange(n) % 2,
        ratio=np.ones(n),
        ratio_sd=np.full(n, 0.02),
        fixed_share=np.full(n, 0.25),
        fixed_sd=np.full(n, 0.02),
        shared_fixed_sd=np.full(2, 0.03),
    )
    return replace(plain, **changes)


def prediction(center: float = 10.0, sd: float = 0.03) -> Prediction:
    median = np.array([center, 2 * center])
    return Prediction(median, median * np.exp(-Z90 * sd), median * np.exp(Z90 * sd))


def halved(n: int, chosen: np.ndarray | None = None) -> Effect:
    return Effect(np.ones(n, dtype=bool) if chosen is None else chosen, np.full(n, 2.0))


def test_half_the_clock_doubles_what_follows_it() -> None:
    answer = what_if(boards(200), prediction(), halved(200), slo_ms=15.0)
    # 0.25 stays, 0.75 doubles.
    assert answer.mean_ratio.value == pytest.approx(1.75, rel=0.01)
    assert answer.before.mean_ms.value == pytest.approx(15.0, rel=0.02)
    assert answer.after.mean_ms.value == pytest.approx(26.25, rel=0.02)
    assert answer.before.slo_share is not None
    assert answer.after.slo_share is not None
    assert answer.before.slo_share.value == pytest.approx(0.5, abs=0.1)
    assert answer.after.slo_share.value == 0.0
    assert answer.board_ms_after == pytest.approx(1.75 * answer.board_ms_before)
    assert answer.n_changed == 200


def test_steeper_than_the_clock_is_taken_as_measured_but_no_higher_clock_gives_time_back() -> None:
    steep = boards(50, fixed_share=np.full(50, -1.5), shared_fixed_sd=np.zeros(2))
    half = what_if(steep, prediction(), halved(50))
    # 2.5 times of what doubles, less 1.5.
    assert half.mean_ratio.value == pytest.approx(3.5, rel=0.01)
    twice = what_if(steep, prediction(), Effect(np.ones(50, dtype=bool), np.full(50, 0.5)))
    assert twice.mean_ratio.lower == pytest.approx(0.5, rel=0.01)
    assert twice.board_ms_after == pytest.approx(0.5 * twice.board_ms_before)


def test_only_the_chosen_boards_change() -> None:
    chosen = np.arange(200) < 60
    answer = what_if(boards(200), prediction(), halved(200, chosen))
    assert answer.n_changed == 60
    assert answer.mean_ratio.value == pytest.approx(1 + 0.3 * 0.75, rel=0.01)
    assert np.array_equal(answer.board_ms_after[~chosen], answer.board_ms_before[~chosen])
    assert answer.before.slo_share is None


def test_the_same_seed_gives_the_same_answer_and_another_nearly() -> None:
    first, same, other = (
        what_if(boards(50), prediction(), halved(50), seed=seed) for seed in (3, 3, 4)
    )
    assert first.after == same.after
    assert first.after != other.after
    assert first.after.mean_ms.value == pytest.approx(other.after.mean_ms.value, rel=0.01)


def test_intervals_cover_the_planted_fleet_nine_times_in_ten() -> None:
    """A true fleet is drawn as the model says; what it takes lies in the interval at 90 %."""
    n, trials, hits = 60, 400, {"before": 0, "after": 0, "p95": 0}
    rng = np.random.default_rng(0)
    chosen = np.arange(n) < 40
    for trial in range(trials):
        known = boards(n)
        cluster_error = rng.normal(0, 0.03, 2)
        true_ms = (
            prediction().median_ms[known.cluster]
            * np.exp(cluster_error[known.cluster])
            * np.exp(rng.normal(0, 0.02, n))
        )
        share = 0.25 + rng.normal(0, 0.03) + rng.normal(0, 0.02, n)
        a, b = share * true_ms, (1 - share) * true_ms
        after_ms = np.where(chosen, a + b * 2.0, true_ms)
        answer = what_if(known, prediction(), halved(n, chosen), draws=500, seed=trial)
        figures = {
            "before": (answer.before.mean_ms, true_ms.mean()),
            "after": (answer.after.mean_ms, after_ms.mean()),
            "p95": (answer.after.p95_ms, np.sort(after_ms)[p95_rank(n)]),
        }
        for name, (figure, truth) in figures.items():
            hits[name] += figure.lower <= truth <= figure.upper
    # Standard error of 400 trials at 0.9 is 1.5 points; 500 draws leave about as much.
    for name, count in hits.items():
        assert 0.85 <= count / trials <= 0.95, (name, count / trials)


def test_a_large_fleet_is_played_in_blocks() -> None:
    n = 60_000
    answer = what_if(boards(n), prediction(), halved(n), draws=100)
    assert answer.mean_ratio.value == pytest.approx(1.75, rel=0.02)
    assert answer.after.mean_ms.lower < answer.after.mean_ms.value < answer.after.mean_ms.upper


def test_p95_is_the_nearest_rank() -> None:
    assert [p95_rank(n) for n in (1, 2, 20, 21, 100)] == [0, 1, 18, 19, 94]


def test_a_share_is_drawn_by_the_seed_and_never_empty() -> None:
    eligible = np.arange(10) < 8
    assert choose(eligible, None, 0).sum() == 8
    chosen = choose(eligible, 0.25, 1)
    assert chosen.sum() == 2
    assert not chosen[8:].any()
    assert np.array_equal(chosen, choose(eligible, 0.25, 1))
    assert choose(eligible, 0.01, 0).sum() == 1
    with pytest.raises(WhatIfError, match="no board is chosen"):
        choose(np.zeros(3, dtype=bool), 0.5, 0)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="3 boards and arrays of"):
        what_if(boards(3), prediction(), halved(4))
    with pytest.raises(ValueError, match="99 draws"):
        what_if(boards(3), prediction(), halved(3), draws=99)
    with pytest.raises(WhatIfError, match="no board is chosen"):
        what_if(boards(3), prediction(), halved(3, np.zeros(3, dtype=bool)))


def run(board: str, khz: int | None, ms: float, **changes: object) -> Run:
    plain = Run(
        run_id=f"{board}{khz}{ms}", campaign_id="c", board_id=board, model_sha256="m",
        model_name="n", runtime="ort", precision="fp32", threads=1, repeat=0, valid=True,
        reasons=(), p50_ms=ms, latency_ms=(ms,), temp_c_before=None, temp_c_max=None,
        freq_khz=None, effective_freq_khz=khz, governor=None, throttled=False,
        board_model="pi", cores=4, runtime_version="1", simulated=True,
    )  # fmt: skip
    return replace(plain, **changes)


def runs(*measured: Run) -> Runs:
    return Runs(measured, "runs.parquet", "0" * 64)


def test_two_clocks_of_one_board_give_its_share() -> None:
    # 4 ms stay, 6 ms at 1.5 GHz follow the clock.
    points = [(khz, 4 + 6 * 1_500_000 / khz) for khz in (1_500_000, 1_000_000, 600_000)]
    assert fixed_share(points, 1_500_000) == pytest.approx(0.4)
    assert fixed_share(points[:2], 1_500_000) == pytest.approx(0.4)
    assert fixed_share(points[:1], 1_500_000) is None
    assert fixed_share([(1_500_000, 10.0), (1_450_000, 10.2)], 1_500_000) is None


def test_responses_are_pooled_over_a_cluster_and_assumed_elsewhere() -> None:
    rng = np.random.default_rng(0)
    measured = []
    for board, share in (("p1", 0.2), ("p2", 0.3), ("p3", 0.25)):
        for model, more in (("m0", 0.0), ("m1", 0.1)):
            for khz in (1_500_000, 1_000_000, 750_000):
                s = share + more
                ms = 10 * (s + (1 - s) * 1_500_000 / khz) * np.exp(rng.normal(0, 0.001))
                measured.append(run(board, khz, ms, model_sha256=model))
    measured.append(run("q1", 1_500_000, 5.0))
    labels = {"p1": "c0", "p2": "c0", "p3": "c0", "p4": "c0", "q1": "c1"}
    present = dict.fromkeys(labels, 1_500_000.0)
    found = clock_responses(runs(*measured), labels, present)
    assert found["c1"] is ASSUMED
    assert found["c0"].measured
    assert found["c0"].fixed_share == pytest.approx(0.30, abs=0.01)
    assert found["c0"].board_sd == pytest.approx(0.05, abs=0.01)
    assert found["c0"].n_models == 2
    assert found["c0"].fixed_share_by_board["p2"] == pytest.approx(0.35, abs=0.01)
    # Two models 0.1 apart: another network may lie as far off.
    assert 0.07 < found["c0"].shared_sd < 0.12


def test_invalid_runs_and_runs_without_a_clock_say_nothing_of_the_slope() -> None:
    measured = [run("p1", 1_500_000, 10.0), run("p1", None, 30.0)]
    measured.append(run("p1", 500_000, 99.0, valid=False, reasons=("throttled",)))
    found = clock_responses(runs(*measured), {"p1": "c0"}, {"p1": 1_500_000.0})
    assert found["c0"] is ASSUMED
    assert present_clocks(measured) == {"p1": 1_500_000.0}
    assert present_clocks([run("p2", None, 1.0, freq_khz=600_000)]) == {"p2": 600_000.0}


def test_the_clock_of_hot_boards_is_the_one_recorded_last() -> None:
    measured = [
        run("p1", 1_500_000, 10.0),
        run(
            "p1", 1_500_000, 14.0, valid=False, reasons=("throttled",),
            effective_freq_khz_after=900_000,
        ),
        # A worn battery, capped from the start: its charge explains it.
        run("w1", 750_000, 20.0, throttled=True, battery_pct=10.0),
    ]  # fmt: skip
    hot = hot_clocks(measured, {"p1": "pi", "p2": "pi", "w1": "phone"})
    assert hot.khz_by_board == {"p1": 900_000.0, "p2": 900_000.0}
    with pytest.raises(WhatIfError, match=r"no run throttled by heat is in the dataset\. Next:"):
        hot_clocks([measured[0], measured[2]], {"p1": "pi"})


def test_the_clock_at_a_low_charge_is_the_one_recorded_there() -> None:
    measured = [
        run("w1", 1_500_000, 10.0, battery_pct=80.0),
        run("w1", 750_000, 20.0, battery_pct=9.0, throttled=True),
    ]
    low = charge_clocks(measured, {"w1": "phone", "w2": "phone", "p1": "pi"}, 0, 15)
    assert low.khz_by_board == {"w1": 750_000.0, "w2": 750_000.0}
    with pytest.raises(WhatIfError, match=r"no run with a charge of 20 to 30 % is in"):
        charge_clocks(measured, {"w1": "phone"}, 20, 30)
