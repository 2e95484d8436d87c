"""The parts of the measurement benchmark: ways, rules, truths, bars, and the order of runs."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import measurement_comparisons, measurement_peers
from benchmarks.measurement_boards import ModelFile
from benchmarks.measurement_comparisons import (
    FLEETCUT,
    FULL_KHZ,
    RULES,
    SLOW_KHZ,
    Comparison,
    comparison_bars,
    comparison_rows,
)
from benchmarks.measurement_counted import CLEAN_A_SESSION, sessions, spans_below
from benchmarks.measurement_p50 import p50_bars, p50_rows, together
from benchmarks.measurement_peers import Timed
from benchmarks.measurement_samples import keep, kept, ratio_interval
from benchmarks.measurement_telemetry import cost_of, telemetry_bars, telemetry_row
from benchmarks.measurement_throttling import (
    CLEAN,
    DURING,
    HEAT,
    HOST_MOVED,
    NEAR,
    NEVER,
    THROUGHOUT,
    HostLog,
    Judged,
    PhysicsLog,
    clean_bar,
    judged,
    next_kind,
    plan,
    spans_of,
    throttled_bar,
    throttling_rows,
    truth_of,
)
from device_agents.contract import (
    BoardState,
    MeasurementRecord,
    Reason,
    RunSpec,
    Verdict,
)
from device_agents.platforms import Linux
from device_agents.sysfs import Root
from harness.virtual.clock import ClockPage

SPEC = RunSpec(campaign_id="c", board_id="b", model_sha256="0" * 64, runtime="ort")


def record(spec: RunSpec = SPEC, *, valid: bool = True, latency_ns=(10, 10)) -> MeasurementRecord:
    """States at 0 (before), 100 (warm), 110 and 160 (during) and 200 (after)."""
    return MeasurementRecord(
        spec=spec,
        profile_sha256="",
        agent_sha256="",
        boot_id=None,
        simulated=True,
        started_unix_ns=0,
        states=tuple(BoardState(monotonic_ns=at) for at in (0, 100, 110, 160, 200)),
        latency_ns=tuple(latency_ns),
        timed_ns=40,
        verdict=Verdict(True) if valid else Verdict(False, (Reason.THROTTLED,)),
    )


def comparisons(n: int, slower: float, noise: float = 0.005) -> list[Comparison]:
    """n of A/A and n of A/B in which B's p50 is higher by the fraction ``slower``."""
    rng = np.random.default_rng(0)

    def runs(level: float) -> list[list[int]]:
        around = level * (1 + noise * rng.standard_normal((12, 20)))
        return [[round(ns) for ns in run] for run in around * 1e6]

    return [
        Comparison(f"{'ab' if planted else 'aa'}-{i}", planted, runs(1.0), runs(1.0 + change))
        for i in range(n)
        for planted, change in ((False, 0.0), (True, slower))
    ]


def test_ratios_are_medians_over_rounds_so_that_one_disturbed_round_decides_nothing():
    calm = {"net": {"fleetcut": [101] * 20, "pyperf": [100] * 20, "loop": [102] * 20}}
    disturbed = {"net": {"fleetcut": [160] * 20, "pyperf": [100] * 20, "loop": [102] * 20}}
    (row,) = p50_rows([calm, disturbed, calm])
    assert row["over_pyperf"] == pytest.approx(1.01)
    assert row["p10_over_loop"] == pytest.approx(101 / 102)
    assert row["over_pyperf_interval"] is None  # three pairs can exclude nothing
    assert [bar.holds for bar in p50_bars([row])] == [True, True]


def test_only_latencies_of_the_time_in_which_all_ways_were_in_their_loops_count():
    """The first begins alone and fast; the last two end alone."""
    timed = {
        "fleetcut": Timed(1000, [10] * 5 + [30] * 5),
        "pyperf": Timed(1050, [30] * 4 + [31] * 5),
        "loop": Timed(1045, [5] + [29] * 10),
    }
    assert together(timed) == {"fleetcut": [30] * 5, "pyperf": [30] * 4, "loop": [29] * 5}


def test_ways_that_never_ran_together_are_no_round():
    with pytest.raises(RuntimeError, match="same time"):
        together(
            {"fleetcut": Timed(0, [10] * 5), "pyperf": Timed(100, [10]), "loop": Timed(0, [9])}
        )


def test_a_p50_that_is_off_by_more_than_two_per_cent_breaks_its_bar_in_either_direction():
    ways = {"fleetcut": [100] * 20, "pyperf": [97] * 20, "loop": [103] * 20}
    assert [bar.holds for bar in p50_bars(p50_rows([{"net": ways}]))] == [False, False]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_a_plain_slow_down(rule):
    found = RULES[rule]([one for one in comparisons(2, slower=0.10) if one.planted])
    assert found == [True, True]


def test_equal_runs_alarm_no_rule_where_there_is_no_noise():
    same = [one for one in comparisons(1, slower=0.0, noise=1e-4) if not one.planted]
    quiet = [name for name in RULES if "compare_to" not in name or "min-speed" in name]
    assert all(RULES[name](same) == [False] for name in quiet)


def test_rows_count_alarms_and_finds_of_every_rule_on_the_same_samples():
    rows = comparison_rows(comparisons(3, slower=0.03))
    assert [row["rule"] for row in rows] == list(RULES)
    ours = next(row for row in rows if row["rule"] == FLEETCUT)
    assert (ours["false_alarms"], ours["of_aa"], ours["found"], ours["of_ab"]) == (0, 3, 3, 3)
    assert ours["true_change"] == pytest.approx(0.03, abs=0.005)
    assert all(bar.holds for bar in comparison_bars(rows))


class OneBoard:
    """Stands for Boards: keeps what is asked, and answers with the run's own clock."""

    def __init__(self) -> None:
        self.specs: list[RunSpec] = []

    def measure(self, specs, models):
        self.specs += specs
        return [record(spec, latency_ns=[spec.condition.freq_khz]) for spec in specs]


def test_pairs_stay_together_in_random_order_and_only_the_planted_side_is_slower():
    board, model = OneBoard(), ModelFile("net", Path("net.onnx"), "0" * 64)
    found = measurement_comparisons.measured(board, "b", model, name="x", planted=True, pairs=12)
    assert found.a_ns == ((FULL_KHZ,),) * 12
    assert found.b_ns == ((SLOW_KHZ,),) * 12
    assert [spec.repeat // 2 for spec in board.specs] == [n // 2 for n in range(24)]
    first = [spec.condition.freq_khz for spec in board.specs[::2]]
    assert set(first) == {FULL_KHZ, SLOW_KHZ}
    assert len({spec.run_id for spec in board.specs}) == 24


def test_the_two_sides_of_an_a_a_comparison_ask_for_the_same():
    board, model = OneBoard(), ModelFile("net", Path("net.onnx"), "0" * 64)
    measurement_comparisons.measured(board, "b", model, name="x", planted=False, pairs=3)
    first = board.specs[:6]
    assert {replace(spec, repeat=0) for spec in first} == {replace(first[0], repeat=0)}


def test_as_many_pairs_are_added_as_the_answer_asks_for_and_then_no_more():
    """Three pairs can show nothing at 1 %: eight are the fewest, and equal ones settle it."""
    board, model = OneBoard(), ModelFile("net", Path("net.onnx"), "0" * 64)
    found = measurement_comparisons.measured(board, "b", model, name="x", planted=False, pairs=3)
    assert len(found.a_ns) == len(found.b_ns) == 8
    assert [spec.campaign_id for spec in board.specs] == ["x"] * 6 + ["x-more-1"] * 10


@pytest.mark.parametrize(
    ("slow", "truth"),
    [
        ([], NEVER),
        ([(300, 400)], NEVER),
        ([(120, 400)], DURING),
        ([(50, 130)], DURING),
        ([(115, 116), (300, 400)], DURING),
        ([(-5, 400)], THROUGHOUT),
        ([(20, 90)], NEAR),
        ([(160, 400)], NEAR),
    ],
)
def test_the_truth_is_where_the_slow_clock_lay_in_the_run(slow, truth):
    assert truth_of(slow, *spans_of(record())) == truth


def test_the_timed_loop_begins_with_the_first_sample_and_lasts_as_long_as_the_agent_says():
    assert spans_of(record()) == ((0, 200), (110, 150))


STEADY = HostLog(list(range(110, 150)), [50] * 40)


def test_a_host_that_changed_its_own_speed_in_the_loop_is_told_and_excuses_no_verdict():
    slower = HostLog(list(range(110, 150)), [50] * 20 + [66] * 20)
    before = HostLog(list(range(70, 150)), [66] * 40 + [50] * 40)
    assert judged(CLEAN, [], slower, record(valid=False)).truth == HOST_MOVED
    assert judged(CLEAN, [], before, record(valid=False)).truth == NEVER
    assert judged(HEAT, [(120, 400)], slower, record(valid=False)).truth == DURING
    runs = [judged(CLEAN, [], host, record(valid=host is STEADY)) for host in (slower, STEADY)]
    assert clean_bar("here", runs).value == 0.5


def test_verdicts_are_held_against_the_truth_only_where_it_is_plain():
    runs = [
        judged(HEAT, [(120, 400)], STEADY, record(valid=False)),
        judged(HEAT, [(20, 90)], STEADY, record(valid=False)),
        judged(CLEAN, [], STEADY, record(valid=True)),
    ]
    marked, wrongly = throttled_bar("here", runs), clean_bar("here", runs)
    assert (marked.value, marked.holds) == (1.0, True)
    assert (wrongly.value, wrongly.holds) == (0.0, True)
    assert [row["clock_lowered"] for row in throttling_rows("part", runs)] == [NEVER, DURING, NEAR]


def test_one_missed_throttle_breaks_the_bar_and_so_does_having_planted_none():
    caught, missed = (Judged(HEAT, DURING, valid, ()) for valid in (False, True))
    assert not throttled_bar("here", [caught, missed]).holds
    assert not throttled_bar("here", []).holds
    assert not clean_bar("here", [caught, missed]).holds


def test_planting_goes_on_until_enough_runs_were_throttled_and_then_ends():
    planned = plan(4, 2)
    assert sorted(planned) == ["battery"] * 2 + [CLEAN] * 2 + [HEAT] * 2
    in_vain = [Judged(kind, NEVER, True, ()) for kind in planned]
    assert next_kind(planned, in_vain[:3], wanted=4) == planned[3]
    assert next_kind(planned, in_vain, wanted=4) == HEAT
    assert next_kind(planned, in_vain + in_vain[:4], wanted=4) is None
    assert next_kind(planned, [Judged(HEAT, DURING, False, ())] * 6, wanted=4) is None


def test_the_log_of_physics_holds_what_is_slow_from_its_begin_to_its_end(tmp_path):
    page = ClockPage(tmp_path / "page")
    with PhysicsLog(tmp_path / "page") as log:
        pass
    assert log.slow == []
    page.stretch = 2.0
    with PhysicsLog(tmp_path / "page") as log:
        pass
    assert len(log.slow) == 1
    page.close()


def test_the_host_is_probed_while_physics_is_watched(tmp_path):
    page = ClockPage(tmp_path / "page")
    with PhysicsLog(tmp_path / "page") as log:
        while not log.host.took_ns:
            pass
    assert len(log.host.at_ns) == len(log.host.took_ns)
    assert log.host.at_ns[0] >= log.begun_ns
    page.close()


class Steady:
    """A runner whose every inference takes a millisecond, as it says."""

    def time_batch(self, count):
        return [1_000_000] * count


def test_blocks_with_and_without_telemetry_are_as_many_and_as_long(tmp_path):
    cost = cost_of(Linux(Root(str(tmp_path))), Steady(), pairs=3)
    assert [len(block) for block in (*cost.on_ns, *cost.off_ns)] == [500] * 6
    assert cost.observed >= 3
    row = telemetry_row(cost)
    assert row["p50_ratio"] == 1.0
    assert row["observation_cpu_us"] > 0
    assert all(bar.holds for bar in telemetry_bars(row))


def test_samples_come_back_as_they_were_kept_and_nothing_is_kept_of_what_was_not(tmp_path):
    path = tmp_path / "deep" / "samples.json.z"
    assert kept(path) is None
    keep(path, {"a": [1, 2]})
    assert kept(path) == {"a": [1, 2]}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_ratio_has_an_interval_once_there_are_pairs_enough():
    rng = random.Random(0)
    a = [[round(1e6 * rng.gauss(1, 0.001)) for _ in range(9)] for _ in range(12)]
    low, high = ratio_interval(a, [[round(ns * 1.05) for ns in run] for run in a])
    assert low < 1.0501
    assert high > 1.0499
    assert ratio_interval(a[:2], a[:2]) is None


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """y = relu(x)."""
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", *([t] for t in tensors)
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("model") / "relu.onnx"
    onnx.save(made, str(path))
    return path


@pytest.mark.parametrize("way", ["loop", "pyperf"])
def test_each_peer_times_every_inference_that_it_was_asked_for(model, capsys, monkeypatch, way):
    argv = ["peers", way, str(model), "--warmups", "2", "--values", "7"]
    monkeypatch.setattr("sys.argv", argv)
    measurement_peers.main()
    latency_ns = json.loads(capsys.readouterr().out)["latency_ns"]
    assert len(latency_ns) == 7
    assert all(ns > 0 for ns in latency_ns)


@pytest.mark.parametrize(
    ("changes", "slow"),
    [
        ([], []),
        ([(5, 1500)], []),
        ([(5, 1200), (9, 600), (12, 1500), (20, 1000)], [(5, 9), (9, 12), (20, 2**63 - 1)]),
    ],
)
def test_a_log_of_clocks_becomes_spans_below_the_highest(changes, slow):
    assert spans_below(1500, changes) == slow


def test_hot_runs_have_a_session_each_and_clean_ones_share_theirs():
    planned = sessions(clean=2 * CLEAN_A_SESSION + 3, heat=4)
    assert sorted(planned) == [(CLEAN, 3)] + [(CLEAN, CLEAN_A_SESSION)] * 2 + [(HEAT, 1)] * 4
    assert planned == sessions(clean=2 * CLEAN_A_SESSION + 3, heat=4)
