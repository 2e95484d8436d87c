"""Nights judged from records made here; what real boards say is in tests/e2e/test_nightly.py."""

import datetime
import json
import math
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import harness.nightly
from device_agents.contract import Condition, MeasurementRecord, Reason, RunError, RunSpec, Verdict
from harness.campaign_axes import FIRST_CANARY_REPEAT
from harness.errors import DocumentError, SelectionError, StoreError
from harness.nightly.judging import Rules, blame, confirm, judge, look, usual_change
from harness.nightly.metrics import write_metrics
from harness.nightly.night import cell_of, in_words, night_of, pairs_needed, refuse_too_few
from harness.nightly.outcomes import BoardOutcome, NightReport
from harness.nightly.page import render
from harness.store import BaselineCell, StoredRun

MODELS = {"dense": "d" * 64, "pruned": "e" * 64, "conv": "c" * 64}
N = 14
RULES = Rules(alpha=0.01, min_change=0.03, pairs_needed=10)
THROTTLED = Verdict(False, (Reason.THROTTLED,))
TIMEOUT = RunError("timeout", "took 60 s", "raise timeout_s")


class Lab:
    """Runs of 1 ms × factor with 0.3 % noise, in the order in which they are made."""

    def __init__(self):
        self.rng = random.Random(0)
        self.runs = []

    def cell(self, night, board, model, factor=1.0, *, n=N, canary=False, **outcome):
        for i in range(n):
            repeat = FIRST_CANARY_REPEAT + i if canary else i
            self.run(night, board, model, repeat, factor, **outcome)

    def run(self, night, board, model, repeat, factor=1.0, *, verdict=Verdict(True), error=None):
        spec = RunSpec(f"nightly.{night}", board, MODELS[model], "ort", repeat=repeat)
        ns = 1e6 * factor * math.exp(self.rng.gauss(0, 0.003))
        record = MeasurementRecord(
            spec=spec,
            profile_sha256="p",
            agent_sha256="a",
            boot_id="x",
            simulated=True,
            started_unix_ns=1,
            latency_ns=()
            if error
            else tuple(round(ns * self.rng.uniform(1, 1.01)) for _ in "1234"),
            verdict=None if error else verdict,
            error=error,
        )
        self.runs.append(StoredRun(record, model))

    def judged(self, baseline_of=lambda cell: "nightly.n1", *, dead=(), night="n2", rules=RULES):
        """Every cell of tonight's or of the baseline's, by (board, cell in words)."""
        cells = {cell_of(run.record.spec, run.model_name) for run in self.runs}
        baselines = {cell: baseline_of(cell) for cell in cells if baseline_of(cell)}
        expected = dict.fromkeys(cells, N)
        seen = look(self.runs, f"nightly.{night}", baselines, RULES.alpha)
        return by_name(judge(expected, baselines, dead, seen, rules))

    def confirmed(self, judged):
        candidates = [cell for cell in judged.values() if cell.state == "regression"]
        cells = {BaselineCell(c.board_id, c.cell) for c in candidates}
        baselines = dict.fromkeys(cells, "nightly.n1")
        again = look(self.runs, "nightly.n2.again", baselines, RULES.alpha, cells)
        return by_name(confirm(candidates, again, dict.fromkeys(cells, N), RULES))


def by_name(cells):
    return {(cell.board_id, cell.name): cell for cell in cells}


@pytest.fixture
def lab():
    made = Lab()
    for board in ("b1", "b2"):
        for model in ("dense", "pruned"):
            made.cell("n1", board, model)
    return made


def tonight(lab, factors):
    """b1 and b2, dense and pruned, tonight; factors: (board, model) → how much slower."""
    for board in ("b1", "b2"):
        for model in ("dense", "pruned"):
            lab.cell("n2", board, model, factors.get((board, model), 1.0))


def test_a_calm_night(lab):
    tonight(lab, {})
    assert {cell.state for cell in lab.judged().values()} == {"same"}


def test_one_cell_that_got_slower(lab):
    tonight(lab, {("b2", "pruned"): 1.06})
    judged = lab.judged()
    (slower,) = [cell for cell in judged.values() if cell.state == "regression"]
    assert (slower.board_id, slower.model) == ("b2", "pruned")
    assert slower.change() == pytest.approx(0.06, abs=0.01)
    assert slower.row.comparison.p_value <= RULES.alpha
    assert {cell.state for cell in judged.values()} == {"same", "regression"}


def test_a_sure_change_that_is_small_is_no_regression(lab):
    tonight(lab, {("b2", "pruned"): 1.02})
    slower = lab.judged()["b2", "pruned ort fp32"]
    assert slower.row.comparison.verdict == "slower"
    assert (slower.state, slower.fact) == ("same", "slower, by less than matters")


def test_a_change_as_nights_show_it_by_themselves_is_no_regression(lab):
    tonight(lab, {("b1", "dense"): 1.1, ("b2", "dense"): 1.1})
    unsteady = BaselineCell("b1", "model=dense runtime=ort precision=fp32 threads=1")
    judged = lab.judged(rules=replace(RULES, by_cell={unsteady: 0.15}))
    assert judged["b1", "dense ort fp32"].state == "same"
    assert judged["b1", "dense ort fp32"].fact.endswith("up to 15.0%")
    assert judged["b2", "dense ort fp32"].state == "regression"


def test_how_much_nights_differ_by_themselves():
    rng = random.Random(1)
    nights = [round(1e6 * math.exp(rng.gauss(0, 0.02))) for _ in range(200)]
    # Of two nights with 2 % each: three sigmas of √2 × 2 %.
    assert usual_change(nights) == pytest.approx(0.085, rel=0.2)
    # A regression that stays, and one night that was bad, count for little.
    stepped = nights[:100] + [2 * p50 for p50 in nights[100:]]
    stepped[50] *= 5
    assert usual_change(stepped) == pytest.approx(usual_change(nights), rel=0.1)
    assert usual_change(nights[:5]) is None
    assert usual_change([1_000_000] * 6) == 0.0


def test_what_got_faster_is_no_alarm(lab):
    tonight(lab, {("b1", "dense"): 0.8})
    assert lab.judged()["b1", "dense ort fp32"].state == "faster"


def test_a_regression_has_to_be_seen_twice(lab):
    tonight(lab, {("b1", "dense"): 1.2, ("b2", "dense"): 1.2})
    judged = lab.judged()
    lab.cell("n2.again", "b1", "dense", 1.2)
    lab.cell("n2.again", "b2", "dense", 1.0)
    confirmed = lab.confirmed(judged)
    assert confirmed["b1", "dense ort fp32"].state == "regression"
    assert confirmed["b1", "dense ort fp32"].again.comparison.change == pytest.approx(0.2, abs=0.02)
    assert confirmed["b2", "dense ort fp32"].state == "unconfirmed"


def test_a_candidate_that_cannot_be_measured_again_says_so(lab):
    tonight(lab, {("b1", "dense"): 1.2, ("b2", "dense"): 1.2})
    judged = lab.judged()
    lab.cell("n2.again", "b1", "dense", 1.2, verdict=THROTTLED)
    lab.cell("n2.again", "b2", "dense", error=TIMEOUT)
    confirmed = lab.confirmed(judged)
    assert {key[0]: cell.state for key, cell in confirmed.items()} == {
        "b1": "invalid",
        "b2": "missing",
    }
    assert "to confirm: 0 of 14 runs" in confirmed["b2", "dense ort fp32"].fact


def test_missing_and_invalid_say_how_many_and_why(lab):
    lab.cell("n2", "b1", "dense", n=4)
    lab.cell("n2", "b1", "pruned", n=9, error=TIMEOUT)
    lab.cell("n2", "b2", "dense", verdict=THROTTLED)
    lab.cell("n2", "b2", "pruned")
    judged = lab.judged()
    assert judged["b1", "dense ort fp32"].state == "missing"
    assert "4 of 14 runs, 10 are needed (10 × no record)" in judged["b1", "dense ort fp32"].fact
    assert "9 × timeout: took 60 s; 5 × no record" in judged["b1", "pruned ort fp32"].fact
    assert judged["b2", "dense ort fp32"].state == "invalid"
    assert "0 of 14 runs count, 10 are needed (14 × throttled)" in (
        judged["b2", "dense ort fp32"].fact
    )
    assert judged["b2", "pruned ort fp32"].state == "same"


def test_a_run_that_counted_in_its_second_try_counts_once(lab):
    for repeat in range(N):
        lab.run("n2", "b1", "dense", repeat, 5.0, verdict=THROTTLED)
        lab.run("n2", "b1", "dense", repeat + 1000)
    cell = lab.judged()["b1", "dense ort fp32"]
    assert (cell.measured, cell.valid, cell.state) == (N, N, "same")


def test_the_few_that_do_not_count_on_either_side_cost_no_more_than_themselves(lab):
    """Nights are paired by rank: the first that counts with the first."""
    lab.runs = [run for run in lab.runs if run.record.spec.repeat not in (0, 1)]
    tonight(lab, {})
    lab.runs = [
        run
        for run in lab.runs
        if run.record.spec.repeat not in (5, 6) or "n1" in run.record.spec.campaign_id
    ]
    assert lab.judged()["b1", "dense ort fp32"].row.comparison.n_pairs == 12


def test_a_dead_board_s_cells_are_nothing_else(lab):
    tonight(lab, {("b2", "dense"): 2.0})
    judged = lab.judged(dead={"b2"})
    assert {cell.state for (board, _), cell in judged.items() if board == "b2"} == {"dead"}


def test_new_cells_are_compared_with_nothing_and_each_with_its_own_night(lab):
    """b2 came later: its baseline is another night; one cell has none yet."""
    lab.cell("n1b", "b2", "dense", 3.0)
    tonight(lab, {("b2", "dense"): 3.0, ("b1", "pruned"): 9.0})
    of = {("b2", "dense"): "nightly.n1b", ("b1", "pruned"): None}

    def baseline_of(cell):
        model = in_words(cell.cell).split()[0]
        return of.get((cell.board_id, model), "nightly.n1")

    judged = lab.judged(baseline_of)
    assert judged["b2", "dense ort fp32"].state == "same"
    assert judged["b1", "pruned ort fp32"].state == "new"


def test_a_new_build_of_a_model_is_compared_by_its_name(lab):
    MODELS["dense"] = "a" * 64
    tonight(lab, {("b1", "dense"): 1.5})
    MODELS["dense"] = "d" * 64
    assert lab.judged()["b1", "dense ort fp32"].state == "regression"


@pytest.mark.parametrize(("canary", "suspect"), [(1.3, "board"), (1.0, "model"), (None, None)])
def test_the_canary_tells_the_board_from_the_model(lab, canary, suspect):
    if canary is not None:
        lab.cell("n1", "b1", "conv", n=5, canary=True)
        lab.cell("n2", "b1", "conv", canary, n=5, canary=True)
    tonight(lab, {("b1", "dense"): 1.3, ("b1", "pruned"): 1.3})
    cells = by_name(blame(tuple(lab.judged().values())))
    assert cells["b1", "dense ort fp32"].state == "regression"
    assert cells["b1", "dense ort fp32"].suspect == suspect
    if canary is not None:
        assert cells["b1", "conv (canary) ort fp32"].model == "conv"
        assert cells["b1", "conv (canary) ort fp32"].state in ("same", "unclear", "regression")


def test_of_many_equal_cells_none_is_called_slower():
    """A hundred cells at 1 % would give one false alarm a night without control."""
    lab = Lab()
    for night in ("n1", "n2"):
        for board in range(50):
            for model in ("dense", "pruned"):
                lab.cell(night, f"b{board}", model, n=12)
    states = [cell.state for cell in lab.judged().values()]
    assert "regression" not in states


ALIVE = (BoardOutcome("b1", None, True),)


def report(*cells, boards=ALIVE):
    return NightReport("nightly", "nightly.n2", 1.0e9, 1.0e9 + 60, 0.01, 0.03, 10, boards, cells)


def outcome(lab, state):
    (cell, *_) = lab.judged().values()
    return type(cell)(**{**vars(cell), "state": state})


@pytest.mark.parametrize(
    ("states", "dead", "outcomes", "status"),
    [
        (["same", "new", "unconfirmed", "faster", "unclear"], False, ("calm",), 0),
        (["invalid"], False, ("invalid",), 13),
        (["invalid", "missing"], False, ("missing", "invalid"), 12),
        (["dead", "missing"], True, ("dead_board", "missing"), 11),
        (["invalid", "regression"], True, ("regression", "dead_board", "invalid"), 10),
    ],
)
def test_the_worst_decides_the_exit_status(lab, states, dead, outcomes, status):
    tonight(lab, {})
    boards = (BoardOutcome("b1", "b1: gone. Next: x" if dead else None, True),)
    night = report(*(outcome(lab, state) for state in states), boards=boards)
    assert (night.outcomes(), night.exit_status()) == (outcomes, status)
    assert json.loads(json.dumps(night.document()))["exit_status"] == status


def test_names_from_files_and_boards_are_harmless_on_the_page_and_in_the_metrics(lab, tmp_path):
    from prometheus_client.parser import text_string_to_metric_families

    lab.cell("n1", 'b"1\\\n', "dense")
    lab.cell("n2", 'b"1\\\n', "dense", 2.0)
    night = report(
        *lab.judged().values(), boards=(BoardOutcome("b1", "<script>alert(1)</script>", True),)
    )
    assert "<script>" not in render(night)
    path = tmp_path / "metrics" / "fleetcut.prom"
    write_metrics(path, night, {('b"1\\\n', "dense", "valid"): 14})
    families = {f.name: f for f in text_string_to_metric_families(path.read_text())}
    assert families["fleetcut_runs"].samples[0].labels["board"] == 'b"1\\\n'
    names = {s.name for f in families.values() for s in f.samples}
    assert all(name.startswith("fleetcut_") for name in names)
    assert path.stat().st_mode & 0o777 == 0o644


def test_metrics_that_cannot_be_written_name_the_file(lab, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/x\.prom: metrics cannot be written .*Next:"):
        write_metrics(tmp_path / "file" / "x.prom", report(), {})


def test_nights_are_named_by_their_date_in_utc():
    late = datetime.datetime(
        2031, 5, 4, 23, 30, tzinfo=datetime.timezone(-datetime.timedelta(hours=2))
    )
    assert night_of("lab", None, late).night_id == "lab.2031-05-05"
    assert night_of("lab", "x", late).again_id == "lab.x.again"
    for campaign, name in (("lab", "../x"), ("lab", "a b"), ("l" * 60, None)):
        with pytest.raises(SelectionError, match="Next: shorten"):
            night_of(campaign, name, late)


def test_the_fewest_pairs_are_those_by_which_the_test_can_speak(lab):
    for n_cells, alpha in ((1, 0.01), (4, 0.05), (200, 0.01)):
        needed = pairs_needed(n_cells, alpha)
        assert n_cells * 2 / 2**needed <= alpha < n_cells * 2 / 2 ** (needed - 1)


def test_a_night_that_could_show_nothing_is_refused():
    cells = {BaselineCell(f"b{i}", "model=x runtime=ort"): 5 for i in range(10)}
    with pytest.raises(DocumentError, match=r"repeats: 5 can never show .*'repeats: 13'"):
        refuse_too_few(Path("c.yaml"), cells, 0.01)
    assert refuse_too_few(Path("c.yaml"), dict.fromkeys(cells, 11), 0.01) == 11


def test_conditions_tell_cells_apart():
    spec = RunSpec("nightly.n1", "b1", "d" * 64, "ort", threads=4)
    hot = RunSpec("nightly.n1", "b1", "d" * 64, "ort", condition=Condition(freq_khz=600_000))
    assert in_words(cell_of(spec, "dense").cell) == "dense ort fp32 threads=4"
    assert in_words(cell_of(hot, "dense").cell) == "dense ort fp32 freq_khz=600000"


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="missing: systemd is not installed"
)
def test_the_units_are_what_systemd_accepts(tmp_path):
    shipped = Path(harness.nightly.__file__).parent / "systemd"
    for unit in ("fleetcut-nightly.service", "fleetcut-nightly.timer"):
        text = (shipped / unit).read_text()
        # Where fleetcut is installed is the lab's; systemd wants a program that is there.
        (tmp_path / unit).write_text(text.replace("/opt/fleetcut/bin/fleetcut", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(p) for p in sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
    )
    ours = [line for line in done.stderr.splitlines() if "fleetcut" in line]
    assert (done.returncode, ours) == (0, [])
