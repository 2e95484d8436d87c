from dataclasses import replace

import pytest

from device_agents.contract import BoardState, Condition, Reason
from device_agents.timed_loop import Timed
from device_agents.verdict import Observed, judge

CALM = BoardState(
    monotonic_ns=1,
    temp_c_by_zone=(("cpu", 50.0),),
    effective_freq_khz=1_500_000,
    battery_pct=80.0,
    throttled=False,
)
TIMED = Timed((100,) * 10, (), 0, 1_000_000_000)
RUN = Observed(CALM, CALM, (CALM, CALM), CALM, True, TIMED)


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
    assert reasons(Observed(capped, capped, (capped,), capped, True, TIMED)) == ()


def test_unreadable_throttling_says_nothing():
    blind = replace(CALM, throttled=None)
    assert reasons(Observed(blind, blind, (blind,), blind, True, TIMED)) == ()


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
    moving = replace(TIMED, latency_ns=(100,) * 5 + (120,) * 5)
    assert reasons(replace(RUN, timed=moving)) == ()
    assert reasons(replace(RUN, warmup_steady=False)) == ()
    assert reasons(replace(RUN, warmup_steady=False, timed=moving)) == (Reason.NOT_STEADY,)
    assert reasons(replace(RUN, warmup_steady=None, timed=moving)) == (Reason.NOT_STEADY,)


def test_a_weak_supply_is_no_state_to_measure_in():
    weak = replace(CALM, under_voltage=True)
    assert reasons(replace(RUN, before=weak)) == (Reason.UNDER_VOLTAGE,)
    assert reasons(replace(RUN, during=(CALM, weak))) == (Reason.UNDER_VOLTAGE,)
    assert reasons(replace(RUN, during=(replace(CALM, under_voltage=False),))) == ()


def test_another_power_source_or_mode_than_asked_for():
    on_battery = replace(CALM, power_source="battery", power_mode="10W")
    run = replace(RUN, after=on_battery)
    assert reasons(run) == ()
    assert reasons(run, Condition(power_source="mains")) == (Reason.LEFT_BAND,)
    assert reasons(run, Condition(power_mode="15W")) == (Reason.LEFT_BAND,)
    assert reasons(run, Condition(power_source="battery", power_mode="10W")) == ()
    assert reasons(RUN, Condition(power_source="mains")) == ()  # nobody can tell


def test_readings_while_the_heat_was_brought_back_do_not_count():
    hot = replace(CALM, monotonic_ns=500, temp_c_by_zone=(("cpu", 71.0),))
    run = replace(RUN, during=(CALM, hot, CALM))
    band = Condition(temp_c_min=40, temp_c_max=70)
    assert reasons(run, band) == (Reason.LEFT_BAND,)
    assert reasons(replace(run, timed=replace(TIMED, pauses=((400, 600),))), band) == ()
    assert reasons(replace(run, timed=replace(TIMED, pauses=((501, 600),))), band) == (
        Reason.LEFT_BAND,
    )


@pytest.mark.parametrize(
    ("wait_ns", "threads", "loaded"),
    [(101_000_000, 1, True), (99_000_000, 1, False), (301_000_000, 4, False), (None, 1, False)],
)
def test_waiting_for_a_cpu_is_foreign_load(wait_ns, threads, loaded):
    run = replace(RUN, cpu_wait_ns=wait_ns, threads=threads)
    assert (reasons(run) == (Reason.FOREIGN_LOAD,)) is loaded


def test_a_few_time_slices_of_a_short_run_are_none():
    short = replace(TIMED, timed_ns=10_000_000)
    assert reasons(replace(RUN, timed=short, cpu_wait_ns=15_000_000)) == ()
    assert reasons(replace(RUN, timed=short, cpu_wait_ns=25_000_000)) == (Reason.FOREIGN_LOAD,)


@pytest.mark.parametrize(
    ("busy_ns", "own_ns", "loaded"),
    [
        (1_260_000_000, 1_000_000_000, True),
        (1_240_000_000, 1_000_000_000, False),
        (1_000_000_000, 0, True),
        (1_000_000_000, None, False),
    ],
)
def test_cpu_time_of_others_is_foreign_load(busy_ns, own_ns, loaded):
    first = replace(CALM, monotonic_ns=0, cpu_busy_ns=7_000_000_000)
    last = replace(CALM, monotonic_ns=1_000_000_000, cpu_busy_ns=7_000_000_000 + busy_ns)
    run = replace(RUN, during=(first, CALM, last), cpu_own_ns=own_ns)
    assert (reasons(run) == (Reason.FOREIGN_LOAD,)) is loaded


def test_reboots_and_fallbacks_are_told_in_the_order_of_reasons():
    weak = replace(CALM, under_voltage=True)
    run = replace(RUN, rebooted=True, fell_back=True, during=(weak,))
    assert reasons(run) == (Reason.UNDER_VOLTAGE, Reason.REBOOTED, Reason.RUNTIME_FELL_BACK)
