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
SAMPLES = (100,) * 10
RUN = Observed(CALM, CALM, (CALM, CALM), CALM, True, SAMPLES, 1_000_000_000)


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
    assert reasons(Observed(capped, capped, (capped,), capped, True, SAMPLES, 1)) == ()


def test_unreadable_throttling_says_nothing():
    blind = replace(CALM, throttled=None)
    assert reasons(Observed(blind, blind, (blind,), blind, True, SAMPLES, 1)) == ()


@pytest.mark.parametrize(
    ("after_khz", "last_ns", "drifts"),
    [
        (1_420_000, 103, True),
        (1_430_000, 103, False),
        (1_420_000, 102, False),
        (900_000, 100, False),
    ],
)
def test_a_clock_that_fell_is_believed_when_the_latencies_rose(after_khz, last_ns, drifts):
    """Turbo's steps of some milliseconds made 7 of 101 calm runs drifted, none of them slower."""
    low = replace(CALM, effective_freq_khz=after_khz)
    run = replace(RUN, after=low, latency_ns=(100,) * 6 + (last_ns,) * 2)
    assert (Reason.CLOCK_DRIFTED in reasons(run)) is drifts


@pytest.mark.parametrize(("last_ns", "drifts"), [(100, False), (97, False), (95, True)])
def test_a_clock_that_rose_is_believed_when_the_latencies_fell(last_ns, drifts):
    """A reading disturbed before the loop is too low, and called a fifth of calm runs drifted."""
    low = replace(CALM, effective_freq_khz=1_380_000)
    run = replace(RUN, warm=low, latency_ns=(100,) * 6 + (last_ns,) * 2)
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


def test_a_weak_supply_is_no_state_to_measure_in():
    weak = replace(CALM, under_voltage=True)
    assert reasons(replace(RUN, before=weak)) == (Reason.UNDER_VOLTAGE,)
    assert reasons(replace(RUN, during=(CALM, weak))) == (Reason.UNDER_VOLTAGE,)
    assert reasons(replace(RUN, during=(replace(CALM, under_voltage=False),))) == ()


def test_another_power_source_mode_or_governor_than_asked_for():
    other = replace(CALM, power_source="battery", power_mode="10W", governor="ondemand")
    run = Observed(CALM, other, (other,), other, True, SAMPLES, 1)
    assert reasons(run) == ()  # nobody can tell what it was before
    assert reasons(run, Condition(power_source="mains")) == (Reason.LEFT_BAND,)
    assert reasons(run, Condition(power_mode="15W")) == (Reason.LEFT_BAND,)
    assert reasons(run, Condition(governor="performance")) == (Reason.LEFT_BAND,)
    same = Condition(power_source="battery", power_mode="10W", governor="ondemand")
    assert reasons(run, same) == ()
    assert reasons(RUN, Condition(power_source="mains")) == ()  # nobody can tell


@pytest.mark.parametrize("change", [{"power_source": "battery"}, {"governor": "powersave"}])
def test_a_state_that_changes_is_none_to_measure_in_whoever_asked(change):
    plain = replace(CALM, power_source="mains", power_mode="15W", governor="ondemand")
    run = replace(RUN, before=plain, after=plain)
    assert reasons(run) == ()
    assert reasons(replace(run, after=replace(plain, **change))) == (Reason.LEFT_BAND,)


def test_heat_counts_in_the_timed_loop_alone_and_charge_from_its_warm_up_on():
    off = replace(CALM, temp_c_by_zone=(("cpu", 71.0),), battery_pct=50.0)
    heat, charge = Condition(temp_c_min=40, temp_c_max=70), Condition(battery_pct_min=60)
    assert reasons(replace(RUN, before=off), charge) == ()
    assert reasons(replace(RUN, warm=off), charge) == (Reason.LEFT_BAND,)
    assert reasons(replace(RUN, before=off, warm=off, after=off), heat) == ()
    assert reasons(replace(RUN, during=(CALM, off)), heat) == (Reason.LEFT_BAND,)


@pytest.mark.parametrize(
    ("wait_ns", "threads", "loaded"),
    [(101_000_000, 1, True), (99_000_000, 1, False), (301_000_000, 4, False), (None, 1, False)],
)
def test_waiting_for_a_cpu_is_foreign_load(wait_ns, threads, loaded):
    run = replace(RUN, cpu_wait_ns=wait_ns, threads=threads)
    assert (reasons(run) == (Reason.FOREIGN_LOAD,)) is loaded


def test_a_few_time_slices_of_a_short_run_are_none():
    short = replace(RUN, timed_ns=10_000_000)
    assert reasons(replace(short, cpu_wait_ns=15_000_000)) == ()
    assert reasons(replace(short, cpu_wait_ns=25_000_000)) == (Reason.FOREIGN_LOAD,)


@pytest.mark.parametrize(
    ("busy_ns", "own_ns", "loaded"),
    [
        (1_260_000_000, 1_000_000_000, True),
        (1_240_000_000, 1_000_000_000, False),
        (1_000_000_000, 0, True),
        (1_000_000_000, None, False),
        (None, 0, False),
        (10_000_000, 1_000_000_000, False),
    ],
)
def test_cpu_time_of_others_is_foreign_load(busy_ns, own_ns, loaded):
    run = replace(RUN, cpu_busy_ns=busy_ns, cpu_own_ns=own_ns)
    assert (reasons(run) == (Reason.FOREIGN_LOAD,)) is loaded


def test_reboots_and_fallbacks_are_told_in_the_order_of_reasons():
    weak = replace(CALM, under_voltage=True)
    run = replace(RUN, rebooted=True, fell_back=True, during=(weak,))
    assert reasons(run) == (Reason.UNDER_VOLTAGE, Reason.REBOOTED, Reason.RUNTIME_FELL_BACK)
