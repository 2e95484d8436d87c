"""One run: load, warm up until steady, time every inference, judge.

Input: a RunSpec and the board it runs on. Output: a MeasurementRecord, also when it fails.
Raises only for a bug; whatever the model, the runtime or the board does is in the record.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Optional, Tuple

from device_agents.contract import (
    BoardState,
    GoldenCheck,
    MeasurementRecord,
    RunError,
    RunSpec,
    StoppingRule,
)
from device_agents.errors import RunFailedError
from device_agents.heat import Burners, Heat
from device_agents.home import Inputs
from device_agents.memory import peak_rss_bytes, reset_peak_rss
from device_agents.platforms import Linux
from device_agents.probe import boot_id
from device_agents.runtimes import RUNTIMES, Loader, Runner
from device_agents.scheduling import CpuTimes, cpu_times
from device_agents.stopping import is_steady, window_size
from device_agents.telemetry import Sampler
from device_agents.tensors import draw, max_abs_err
from device_agents.timed_loop import REWARM, time_until_enough
from device_agents.verdict import Observed, drifted, judge

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


def measure(spec: RunSpec, bench: Bench) -> MeasurementRecord:
    """The record of one run. Blocks for as long as it takes: the caller holds the timeout."""
    started_unix_ns = time.time_ns()
    try:
        return _measure(spec, bench, started_unix_ns)
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


def _measure(spec: RunSpec, bench: Bench, started_unix_ns: int) -> MeasurementRecord:
    load = _loader(spec.runtime)
    model = bench.inputs.model(spec)
    before = bench.platform.observe_fully(bench.clock_khz())
    fresh_peak = reset_peak_rss(os.getpid())
    start_ns = time.perf_counter_ns()
    runner = load(model, spec.threads, bench.scratch)
    load_ns = time.perf_counter_ns() - start_ns
    try:
        error, first_ns = _first(spec, bench.inputs, runner)
        warmup_ns, steady = _warm_up(runner, spec.stopping)
        warm = bench.platform.observe(_clock_since(bench, before))
        heat = _heat(spec, bench)
        pids = (os.getpid(), runner.pid)
        with Sampler(bench.platform) as sampler:
            warmup_ns += runner.time_batch(_rewarm_count(spec.stopping))
            cpu_before = cpu_times(pids)
            timed = time_until_enough(runner, spec.stopping, warmup_ns, heat)
            cpu_after = cpu_times(pids)
        after = bench.platform.observe_fully(_clock_since(bench, warm))
        # A process of its own has a peak of its own; ours keeps that of earlier runs unless reset.
        known = fresh_peak or runner.pid != os.getpid()
        peak_bytes = peak_rss_bytes(runner.pid) if known else None
        version, provider = runner.version, runner.provider
        operators, operators_missing = _operators(runner) if spec.operators else ((), None)
    finally:
        runner.close()
    own_ns, wait_ns = _spent(cpu_before, cpu_after)
    observed = Observed(
        before=before,
        warm=warm,
        during=sampler.states,
        after=after,
        warmup_steady=steady,
        timed=timed,
        threads=spec.threads,
        cpu_own_ns=own_ns,
        # A stand-in's CPU is its host's: what it waits for says nothing of the board it stands for.
        cpu_wait_ns=None if bench.identity.simulated else wait_ns,
        rebooted=_has_rebooted(bench),
        fell_back=provider != runner.provider_asked,
    )
    return MeasurementRecord(
        spec=spec,
        profile_sha256=bench.identity.profile_sha256,
        agent_sha256=bench.identity.agent_sha256,
        boot_id=bench.identity.boot_id,
        simulated=bench.identity.simulated,
        started_unix_ns=started_unix_ns,
        states=observed.states,
        runtime_version=version,
        execution_provider=provider,
        load_ns=load_ns,
        first_inference_ns=first_ns,
        warmup_count=len(warmup_ns) + timed.rewarmed,
        warmup_steady=steady,
        latency_ns=timed.latency_ns,
        max_abs_err=error,
        peak_rss_bytes=peak_bytes,
        timed_ns=timed.timed_ns,
        cpu_own_ns=own_ns,
        cpu_wait_ns=wait_ns,
        operators=operators,
        operators_missing=operators_missing,
        verdict=judge(spec.condition, observed),
    )


def _heat(spec: RunSpec, bench: Bench) -> Optional[Heat]:
    low_c, high_c = spec.condition.temp_c_min, spec.condition.temp_c_max
    if low_c is None and high_c is None:
        return None
    return Heat(bench.platform, low_c, high_c, time.sleep, burners=bench.burners)


def _has_rebooted(bench: Bench) -> bool:
    now, then = boot_id(bench.platform.root), bench.identity.boot_id
    return now is not None and then is not None and now != then


def _spent(
    before: Optional[CpuTimes], after: Optional[CpuTimes]
) -> Tuple[Optional[int], Optional[int]]:
    """(ns run, ns waited) between two looks; a thread that ended meanwhile took its part along."""
    if before is None or after is None:
        return None, None
    return max(0, after.run_ns - before.run_ns), max(0, after.wait_ns - before.wait_ns)


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


def _warm_up(runner: Runner, rule: StoppingRule) -> Tuple[List[int], Optional[bool]]:
    """Latencies of the warm-up and whether it got steady; None where it was too short to say.

    What `_rewarm_count` keeps back is run later, and counts towards the rule's bounds.
    """
    most = rule.warmup_max - _rewarm_count(rule)
    window = window_size(rule.warmup_min, most)
    latency_ns: List[int] = []
    while len(latency_ns) < most:
        wanted = max(window or 1, rule.warmup_min - len(latency_ns))
        latency_ns += runner.time_batch(min(wanted, most - len(latency_ns)))
        if is_steady(latency_ns, window):
            return latency_ns, True
    return latency_ns, False if window else None


def _rewarm_count(rule: StoppingRule) -> int:
    """Inferences kept back from the warm-up for after the clock was measured.

    Reading the board's state empties caches: the first inference after it took up to 20 times the
    median of a small model.
    """
    return min(REWARM, rule.warmup_max - 1)


def _clock_since(bench: Bench, earlier: BoardState) -> Optional[int]:
    """The clock now; a reading that differs from the earlier one is taken once more.

    Other work on the core can only lower a reading, so the higher of the two is nearer the truth.
    """
    first_khz = bench.clock_khz()
    if first_khz is None or not drifted(earlier.effective_freq_khz, first_khz):
        return first_khz
    return max(first_khz, bench.clock_khz() or 0)
