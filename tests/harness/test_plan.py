"""A plan's durations: measured where something like it was measured, else bounds that are named."""

import itertools
from dataclasses import replace

import pytest

from device_agents.contract import BoardState, MeasurementRecord, RunError, Verdict
from harness.campaign import load_campaign
from harness.campaign_axes import is_canary
from harness.inventory import load_inventory
from harness.plan import History, Span, is_waited_for, make_plan

CAMPAIGN = """\
version: 1
campaign_id: c1
models: [{name: one, path: one.onnx}, {name: two, path: two.onnx}]
runtimes: [ort]
repeats: 2
stopping: {max_seconds: 4.0}
timeout_s: 50
"""
BANDS = "conditions: {temp_c: [[45, 55], [65, 75]]}\n"
LOAD_S, LONGEST_S = 1.0, 1.0 + 2 * 4.0


def boards(*groups: str | None) -> str:
    return "version: 1\nboards:\n" + "".join(
        f"  - {{board_id: b{i}, model: m, host: h, user: u"
        + (f", exclusive_group: {group}" if group else "")
        + "}\n"
        for i, group in enumerate(groups)
    )


@pytest.fixture
def campaign_of(tmp_path):
    (tmp_path / "one.onnx").write_bytes(b"1")
    (tmp_path / "two.onnx").write_bytes(b"2")

    def load(text=CAMPAIGN, groups=(None,)):
        (tmp_path / "inventory.yaml").write_text(boards(*groups))
        (tmp_path / "campaign.yaml").write_text(text)
        return load_campaign(
            tmp_path / "campaign.yaml", load_inventory(tmp_path / "inventory.yaml")
        )

    return load


def record(spec, start_s, end_s, *, boot_id="x", error=None) -> MeasurementRecord:
    states = tuple(BoardState(round(s * 1e9)) for s in (start_s, end_s))
    return MeasurementRecord(
        spec=spec,
        profile_sha256="p",
        agent_sha256="a",
        boot_id=boot_id,
        simulated=True,
        started_unix_ns=1,
        states=states if error is None else states[:1],
        latency_ns=() if error else (1,),
        verdict=None if error else Verdict(True),
        error=error,
    )


def history_of(specs, run_s: float, pause_s: float, change_s: float, **how) -> History:
    """As if these runs had been measured, one after the other on each board."""
    now_s: dict[str, float] = {}
    before: dict = {}
    records = []
    for spec in specs:
        changed = is_waited_for(before.get(spec.board_id), spec)
        start_s = now_s.get(spec.board_id, 0.0) + (change_s if changed else pause_s)
        records.append(record(spec, start_s, start_s + run_s, **how))
        now_s[spec.board_id] = start_s + run_s
        before[spec.board_id] = spec
    return History(records)


def n_changes(specs) -> int:
    return sum(is_waited_for(a, b) for a, b in itertools.pairwise((None, *specs)))


def test_without_records_a_plan_gives_the_bounds_of_the_stopping_rule(campaign_of):
    plan = make_plan(campaign_of(), (), History())
    assert plan.wall_clock == Span(4 * LOAD_S, 4 * LONGEST_S)
    assert any("4 runs, never measured with this stopping rule" in said for said in plan.assumed)


def test_a_run_is_never_longer_than_its_timeout(campaign_of):
    plan = make_plan(campaign_of(CAMPAIGN.replace("timeout_s: 50", "timeout_s: 5")), (), History())
    assert plan.wall_clock == Span(4 * LOAD_S, 4 * 5.0)


def test_cells_are_listed_once_with_their_repeats(campaign_of):
    text = CAMPAIGN + BANDS + "canary: {model: one, every: 3}\n"
    campaign = campaign_of(text, (None, None))
    plan = make_plan(campaign, (), History())
    plain = [cell for cell in plan.cells if not cell.canary]
    assert [cell.model for cell in plain] == ["one", "one", "two", "two"]
    assert {(cell.runs, cell.boards) for cell in plain} == {(4, 2)}
    canaries = sum(cell.runs for cell in plan.cells if cell.canary)
    assert canaries == sum(map(is_canary, campaign.specs)) == 2 * 4


def test_in_a_band_that_was_never_measured_each_run_may_take_its_whole_timeout(campaign_of):
    plan = make_plan(campaign_of(CAMPAIGN + BANDS), (), History())
    assert plan.wall_clock == Span(8 * LOAD_S, 8 * 50.0)
    assert any("8 runs in a band" in said for said in plan.assumed)


def test_a_band_that_was_not_reached_last_time_may_not_be_reached_again(campaign_of):
    specs = campaign_of(CAMPAIGN + BANDS).specs
    failure = RunError("condition", "45..55 °C was not reached in time", "n")
    cold = [s for s in specs if s.condition.temp_c_max == 55]
    warm = [s for s in specs if s.condition.temp_c_max == 75]
    history = History(
        [record(s, 0, 3) for s in specs] + [record(s, 0, 1, error=failure) for s in cold]
    )
    assert {history.reached(s) for s in cold} == {False}
    assert {history.reached(s) for s in warm} == {True}
    plan = make_plan(campaign_of(CAMPAIGN + BANDS), (), history)
    assert plan.wall_clock == Span(8 * 3.0, 4 * 3.0 + 4 * 50.0)
    assert any("4 runs under a condition that was not reached last" in s for s in plan.assumed)


def test_measured_durations_and_changes_are_taken_as_they_were(campaign_of):
    campaign = campaign_of(CAMPAIGN + BANDS)
    history = history_of(campaign.specs, run_s=3.0, pause_s=0.5, change_s=20.0)
    plan = make_plan(campaign, (), history)
    changes = n_changes(campaign.specs)
    expected_s = 8 * 3.0 + changes * 20.0 + (8 - changes) * 0.5
    assert plan.wall_clock.low_s == plan.wall_clock.high_s == pytest.approx(expected_s)
    assert any("the same cell on the same board" in said for said in plan.assumed)
    assert any(f"{changes} changes of heat or charge: the median" in said for said in plan.assumed)


def test_the_closest_likeness_decides(campaign_of):
    here, there = (
        campaign_of(groups=(None, None)).specs[:4],
        campaign_of(groups=(None, None)).specs[4:],
    )
    one = [s for s in here if s.model_sha256 == here[0].model_sha256]
    hot = [replace(s, condition=replace(s.condition, temp_c_min=60.0)) for s in one]
    assert History().run_s(one[0]) == (None, 3)
    assert history_of(there, 7.0, 0, 0).run_s(one[0]) == (7.0, 2)
    both = History([record(s, 0, 7) for s in there] + [record(s, 0, 5) for s in hot])
    assert both.run_s(one[0]) == (5.0, 1)
    exact = History([record(s, 0, 5) for s in hot] + [record(one[0], 0, 2)])
    assert exact.run_s(one[0]) == (2.0, 0)
    stopping = replace(one[0].stopping, max_seconds=1.0)
    assert exact.run_s(replace(one[0], stopping=stopping)) == (None, 3)


def test_failures_and_reboots_say_nothing_of_pauses(campaign_of):
    first, second = campaign_of().specs[:2]
    failed = record(first, 0, 1, error=RunError("timeout", "f", "n"))
    assert History([failed, record(second, 9, 10)]).pause_s("b0", changed=False) is None
    rebooted = History([record(first, 0, 1), record(second, 9, 10, boot_id="y")])
    assert rebooted.pause_s("b0", changed=False) is None
    assert history_of((first, second), 1, 2, 3).pause_s("elsewhere", changed=False) == 2


def test_what_is_stored_is_not_planned_again(campaign_of):
    campaign = campaign_of()
    stored = {spec.run_id for spec in campaign.specs[:3]}
    plan = make_plan(campaign, stored, History())
    assert (plan.boards[0].runs, plan.boards[0].stored) == (4, 3)
    assert plan.wall_clock == Span(LOAD_S, LONGEST_S)
    done = make_plan(campaign, {spec.run_id for spec in campaign.specs}, History())
    assert done.wall_clock == Span(0.0, 0.0)


@pytest.mark.parametrize(
    ("groups", "one_after_another"),
    [((None, None, None), 1), (("g", "g", None), 2), (("g", "g", "g"), 3), ((None,) * 65, 2)],
)
def test_boards_of_a_group_wait_for_each_other_and_the_rest_does_not(
    campaign_of, groups, one_after_another
):
    plan = make_plan(campaign_of(groups=groups), (), History())
    assert plan.wall_clock == Span(
        one_after_another * 4 * LOAD_S, one_after_another * 4 * LONGEST_S
    )
    assert {b.span for b in plan.boards} == {Span(4 * LOAD_S, 4 * LONGEST_S)}
