from dataclasses import replace

import pytest

from device_agents.contract import BoardState, Condition, Reason
from device_agents.verdict import Observed, judge

CALM = BoardState(
    monotonic_ns=1,
    temp_c_by_zone=(("cpu", 50.0),),
    effective_freq_khz=1_500_000,
    battery_pct=80.0,
    throttled=False,
)
RUN = Observed(CALM, CALM, (CALM, CALM), CALM, True, (100,) * 10)


def reasons(run: Observed, condition: Condition = Condition()) -> tuple[Reason, ...]:
    verdict = judge(condition, run)
    assert verdict.valid == (not verdict.reasons)
    return verdict.reasons


def test_a_calm_run_is_valid():
    assert reasons(RUN) == ()


@pytest.mark.parametrize("before", [False, None])
def test_throttling_that_comes(before):
    capped = replace(CALM, throttled=True)
    run = replace(RUN, before=replace(CALM, throttled=before))
    assert reasons(replace(run, during=(CALM, capped, CALM))) == (Reason.THROTTLED,)
    assert reasons(replace(run, after=capped)) == (Reason.THROTTLED,)
    assert reasons(replace(run, warm=capped)) == (Reason.THROTTLED,)


def test_a_permanent_cap_is_a_state_to_measure_in():
    capped = replace(CALM, throttled=True)
    assert reasons(Observed(capped, capped, (capped,), capped, True, (100,) * 10)) == ()


def test_unreadable_throttling_says_nothing():
    blind = replace(CALM, throttled=None)
    assert reasons(Observed(blind, blind, (blind,), blind, True, (100,) * 10)) == ()


@pytest.mark.parametrize(("after_khz", "drifts"), [(1_420_000, True), (1_430_000, False)])
def test_the_measured_clock(after_khz, drifts):
    run = replace(RUN, after=replace(CALM, effective_freq_khz=after_khz))
    assert (Reason.CLOCK_DRIFTED in reasons(run)) is drifts


def test_a_clock_that_was_idle_before_the_load_does_not_count():
    assert reasons(replace(RUN, before=replace(CALM, effective_freq_khz=600_000))) == ()


def test_a_clock_that_cannot_be_measured():
    assert reasons(replace(RUN, after=replace(CALM, effective_freq_khz=None))) == ()


def test_bands():
    hot = replace(CALM, temp_c_by_zone=(("cpu", 71.0), ("gpu", None)))
    run = replace(RUN, during=(hot,))
    assert reasons(run) == ()
    assert reasons(run, Condition(temp_c_min=40, temp_c_max=70)) == (Reason.LEFT_BAND,)
    assert reasons(RUN, Condition(battery_pct_max=79)) == (Reason.LEFT_BAND,)
    assert reasons(RUN, Condition(battery_pct_min=80, temp_c_max=50)) == ()
    blind = replace(CALM, temp_c_by_zone=())
    assert reasons(replace(RUN, during=(blind,)), Condition(temp_c_max=70)) == ()


def test_not_steady_needs_both():
    moving = (100,) * 5 + (120,) * 5
    assert reasons(replace(RUN, latency_ns=moving)) == ()
    assert reasons(replace(RUN, warmup_steady=False)) == ()
    assert reasons(replace(RUN, warmup_steady=False, latency_ns=moving)) == (Reason.NOT_STEADY,)
    assert reasons(replace(RUN, warmup_steady=None, latency_ns=moving)) == (Reason.NOT_STEADY,)
