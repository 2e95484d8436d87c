"""One run: load, warm up until steady, time every inference, judge.

Input: a RunSpec and the board it runs on. Output: a MeasurementRecord, also when it fails.
Raises only for a bug; whatever the model, the runtime or the board does is in the record.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Tuple

from device_agents.contract import (
    BoardState,
    GoldenCheck,
    MeasurementRecord,
    RunError,
    RunSpec,
)
from device_agents.errors import RunFailedError
from device_agents.heat import Burners, Heat
from device_agents.home import Inputs
from device_agents.memory import peak_rss_bytes, reset_peak_rss
from device_agents.platforms import Linux
from device_agents.privilege import is_machine
from device_agents.probe import boot_id
from device_agents.runtimes import RUNTIMES, Loader, Runner, Switching
from device_agents.scheduling import Meter
from device_agents.telemetry import Sampler
from device_agents.tensors import draw, max_abs_err
from device_agents.timed_loop import TimedLoop, after_reading, warm_up, worse
from device_agents.verdict import Observed, drifted, judge

_KEEP_SHARE = 0.8
"""Of the time that a run has, for bringing its heat back: the reason is told before the end."""

_CLOCK_LOOKS = 5

_PROFILED = 20
"""Inferences in the pass that times operators."""


@dataclass(frozen=True)
class Identity:
    """Whose numbers these are; the same in every record of a worker."""

    profile_sha256: str
    agent_sha256: str
    boot_id: Optional[str]
    simulated: bool


@dataclass(frozen=True)
class Bench:
    """What a run needs of its board. clock_khz: the measured clock of the calling thread.

    burners: the worker's, for a Heat that keeps the band during the run; None where no run of the
    session asks for a least temperature.
    """

    identity: Identity
    platform: Linux
    inputs: Inputs
    scratch: Path
    clock_khz: Callable[[], Optional[int]]
    burners: Optional[Burners] = None


def measure(spec: RunSpec, bench: Bench, limit_s: Optional[float] = None) -> MeasurementRecord:
    """The record of one run. Blocks for as long as it takes: the caller holds the timeout.

    limit_s: that timeout, where there is one.
    """
    started_unix_ns = time.time_ns()
    keep_until_s = None if limit_s is None else time.monotonic() + limit_s * _KEEP_SHARE
    try:
        return _measure(spec, bench, started_unix_ns, keep_until_s)
    except RunFailedError as failed:
        state = bench.platform.observe()
        return failed_record(spec, bench.identity, failed.error, started_unix_ns, (state,))


def failed_record(
    spec: RunSpec,
    identity: Identity,
    error: RunError,
    started_unix_ns: int,
    states: Tuple[BoardState, ...] = (),
) -> MeasurementRecord:
    """A run without latency, and why."""
    return MeasurementRecord(
        spec=spec,
        profile_sha256=identity.profile_sha256,
        agent_sha256=identity.agent_sha256,
        boot_id=identity.boot_id,
        simulated=identity.simulated,
        started_unix_ns=started_unix_ns,
        states=states,
        error=error,
    )


def _measure(
    spec: RunSpec, bench: Bench, started_unix_ns: int, keep_until_s: Optional[float]
) -> MeasurementRecord:
    load = _loader(spec.runtime)
    model = bench.inputs.model(spec)
    before = bench.platform.observe_fully(bench.clock_khz())
    with contextlib.ExitStack() as stack:
        heat = _heat(spec, bench)
        if heat is not None:
            stack.callback(heat.close)
        fresh_peak = reset_peak_rss(os.getpid())
        start_ns = time.perf_counter_ns()
        runner = load(model, spec.threads, bench.scratch)
        load_ns = time.perf_counter_ns() - start_ns
        stack.callback(runner.close)
        error, first_ns = _first(spec, bench.inputs, runner)
        if isinstance(runner, Switching):
            # Not earlier: the golden answer is the widest network's.
            runner.follow(bench.platform.root, bench.platform.policies)
        kept_back = after_reading(spec.stopping)
        warmup_ns, steady = warm_up(runner, spec.stopping, kept_back)
        warm = bench.platform.observe(_clock_since(bench, before))
        meter = Meter((os.getpid(), runner.pid), bench.platform.root)
        with Sampler(bench.platform) as sampler:
            warmup_ns += runner.time_batch(kept_back)
            loop = TimedLoop(runner, spec.stopping, warmup_ns, meter, heat, keep_until_s)
            timed = loop.run()
        after = bench.platform.observe_fully(_clock_since(bench, warm))
        # A process of its own has a peak of its own; ours keeps that of earlier runs unless reset.
        known = fresh_peak or runner.pid != os.getpid()
        peak_bytes = peak_rss_bytes(runner.pid) if known else None
        told_by_waiting = _waits_for_others(spec, bench, runner.pid)
        operators, operators_missing = _operators(runner) if spec.operators else ((), None)
    observed = Observed(
        before=before,
        warm=warm,
        during=tuple(s for s in sampler.states if not timed.in_pause(s.monotonic_ns)),
        after=after,
        warmup_steady=worse(steady, timed.steady),
        latency_ns=timed.latency_ns,
        timed_ns=timed.timed_ns,
        cpu_own_ns=meter.own_ns,
        cpu_wait_ns=meter.wait_ns if told_by_waiting else None,
        cpu_busy_ns=meter.busy_ns,
        threads=spec.threads,
        rebooted=_has_rebooted(bench),
        fell_back=runner.provider != runner.provider_asked,
    )
    return MeasurementRecord(
        spec=spec,
        profile_sha256=bench.identity.profile_sha256,
        agent_sha256=bench.identity.agent_sha256,
        boot_id=bench.identity.boot_id,
        simulated=bench.identity.simulated,
        started_unix_ns=started_unix_ns,
        states=observed.states,
        runtime_version=runner.version,
        execution_provider=runner.provider,
        load_ns=load_ns,
        first_inference_ns=first_ns,
        warmup_count=len(warmup_ns) + timed.warmup_count,
        warmup_steady=observed.warmup_steady,
        latency_ns=timed.latency_ns,
        max_abs_err=error,
        peak_rss_bytes=peak_bytes,
        timed_ns=timed.timed_ns,
        cpu_own_ns=meter.own_ns,
        cpu_wait_ns=meter.wait_ns,
        operators=operators,
        operators_missing=operators_missing,
        switches=runner.switches if isinstance(runner, Switching) else (),
        verdict=judge(spec.condition, observed),
    )


def _heat(spec: RunSpec, bench: Bench) -> Optional[Heat]:
    """To be made ahead of the runtime's threads: without the worker's burners it forks its own."""
    low_c, high_c = spec.condition.temp_c_min, spec.condition.temp_c_max
    if low_c is None and high_c is None:
        return None
    return Heat(bench.platform, low_c, high_c, time.sleep, burners=bench.burners)


def _waits_for_others(spec: RunSpec, bench: Bench, pid: int) -> bool:
    """Whether the wait for a CPU tells of foreign load on this board.

    A stand-in's scheduler is its host's, and more threads than CPUs wait for each other.
    """
    if bench.identity.simulated or not is_machine(bench.platform.root):
        return False
    return spec.threads <= len(os.sched_getaffinity(pid))


def _has_rebooted(bench: Bench) -> bool:
    now, then = boot_id(bench.platform.root), bench.identity.boot_id
    return now is not None and then is not None and now != then


def _loader(runtime: str) -> Loader:
    try:
        return RUNTIMES[runtime]
    except KeyError:
        raise RunFailedError(
            "runtime",
            f"this agent knows no runtime {runtime[:40]!r}",
            f"use one of {', '.join(RUNTIMES)}",
        ) from None


def _first(spec: RunSpec, inputs: Inputs, runner: Runner) -> Tuple[Optional[float], int]:
    """The first inference on the run's input: its distance from golden, and its ns."""
    golden = spec.golden
    if golden is None:
        runner.set_inputs(draw(runner.inputs, spec.input_seed))
        return None, runner.time_batch(1)[0]
    _check_golden_fits(runner)
    runner.set_inputs([inputs.tensor(golden.input_sha256, spec.artifact_id)])
    first_ns = runner.time_batch(1)[0]
    return _golden_error(golden, inputs, spec.artifact_id, runner), first_ns


def _check_golden_fits(runner: Runner) -> None:
    kinds = [spec.dtype for spec in (*runner.inputs, *runner.outputs)]
    if kinds != ["float32", "float32"]:
        raise RunFailedError(
            "model",
            f"a golden check takes one float32 input and output, the model has {kinds}",
            "export the model with float32 input and output",
        )


def _golden_error(
    golden: GoldenCheck, inputs: Inputs, artifact_id: Optional[str], runner: Runner
) -> float:
    expected = inputs.tensor(golden.output_sha256, artifact_id)
    return max_abs_err(expected, runner.read_outputs()[0])


def _operators(runner: Runner) -> Tuple[Tuple[Tuple[str, int], ...], Optional[str]]:
    """The profile, or why there is none: the latencies that were measured count all the same."""
    try:
        return runner.profile(_PROFILED), None
    except RunFailedError as failed:
        return (), f"{failed.error.fact}. Next: {failed.error.next_step}"


def _clock_since(bench: Bench, earlier: BoardState) -> Optional[int]:
    """The clock now; while a reading differs from the earlier one it is taken again, some times.

    Other work on the core can only lower a reading, so the highest is nearest the truth: on a host
    whose cores are slow for tenths of a second, two readings said of a fifth of calm runs that
    their clock had drifted.
    """
    khz = bench.clock_khz()
    for _ in range(_CLOCK_LOOKS - 1):
        if khz is None or not drifted(earlier.effective_freq_khz, khz):
            break
        khz = max(khz, bench.clock_khz() or 0)
    return khz
