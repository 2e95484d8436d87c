"""One run with a runtime that is made here: every number is known beforehand."""

import os
import struct
import time
from dataclasses import replace

import pytest

from device_agents import bench as module
from device_agents.bench import Bench, Identity, measure
from device_agents.contract import (
    BoardState,
    Condition,
    GoldenCheck,
    MeasurementRecord,
    Reason,
    RunSpec,
    StoppingRule,
    decode,
    encode,
)
from device_agents.errors import RunFailedError
from device_agents.home import Home, Inputs
from device_agents.platforms import Linux
from device_agents.runtimes import TensorSpec

SPEC = RunSpec("campaign", "board", "", "fake")
IDENTITY = Identity("p" * 64, "a" * 64, "boot", simulated=True)


class FakeRunner:
    """Answers twice its input; its latencies follow ``latency(i)`` for the i-th inference."""

    version, provider, provider_asked = "1.0", "FakeProvider", "FakeProvider"
    pid = os.getpid()
    inputs = outputs = (TensorSpec("x", "float32", (2,)),)

    def __init__(self, latency=lambda i: 1000) -> None:
        self.latency = latency
        self.count = 0
        self.batches = []
        self.given = None
        self.closed = False

    def set_inputs(self, tensors):
        self.given = tensors

    def time_batch(self, count):
        self.batches.append(count)
        self.count += count
        return [self.latency(i) for i in range(self.count - count, self.count)]

    def read_outputs(self):
        values = struct.unpack("<2f", self.given[0])
        return [struct.pack("<2f", *(2 * value for value in values))]

    def close(self):
        self.closed = True


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    made.create()
    return made


@pytest.fixture
def run(tree, home, monkeypatch):
    """run(runner, spec, clocks) → record."""

    def go(runner, spec=SPEC, clocks=(1_000_000,)) -> MeasurementRecord:
        monkeypatch.setattr(module, "RUNTIMES", {"fake": lambda model, threads, scratch: runner})
        readings = list(clocks)
        bench = Bench(
            IDENTITY,
            Linux(tree.root),
            Inputs(home),
            home.scratch,
            lambda: readings.pop(0) if len(readings) > 1 else readings[0],
        )
        record = measure(replace(spec, model_sha256=spec.model_sha256 or put(home, b"m")), bench)
        assert decode(MeasurementRecord, encode(record)) == record
        return record

    return go


def put(home, data: bytes) -> str:
    import hashlib

    sha256 = hashlib.sha256(data).hexdigest()
    home.blob(sha256).write_bytes(data)
    return sha256


def test_a_record_holds_everything(run):
    runner = FakeRunner()
    record = run(runner)
    assert record.error is None
    assert record.verdict.valid
    assert record.warmup_steady is True
    assert record.warmup_count == 13  # two windows of 5, and 3 after the clock was measured
    assert record.first_inference_ns == 1000
    assert record.load_ns > 0
    assert record.latency_ns == (1000,) * 30  # at once narrow enough, but not before the minimum
    assert runner.count == 1 + 13 + 30
    assert (record.runtime_version, record.execution_provider) == ("1.0", "FakeProvider")
    assert record.simulated
    assert record.boot_id == "boot"
    assert record.max_abs_err is None
    assert record.peak_rss_bytes > 1_000_000  # Python itself is larger
    assert runner.closed
    before, warm, *during, after = record.states
    assert [s.effective_freq_khz for s in (before, warm, after)] == [1_000_000] * 3
    assert during
    assert all(state.effective_freq_khz is None for state in during)
    times = [state.monotonic_ns for state in record.states]
    assert times == sorted(times)


class Profiled(FakeRunner):
    def profile(self, count):
        assert self.count == 1 + 13 + 30  # the timed loop is over
        return (("conv (Conv)", 900), ("relu (Relu)", 100))


def test_operators_are_timed_after_the_loop_where_they_are_asked_for(run):
    record = run(Profiled(), replace(SPEC, operators=True))
    assert record.operators == (("conv (Conv)", 900), ("relu (Relu)", 100))
    assert record.operators_missing is None
    assert run(Profiled()).operators == ()


def test_a_runtime_without_a_profile_costs_no_latency(run):
    class Silent(FakeRunner):
        def profile(self, count):
            raise RunFailedError("runtime", "fake 1.0 tells no time an operator", "leave it out")

    record = run(Silent(), replace(SPEC, operators=True))
    assert len(record.latency_ns) == 30
    assert record.operators == ()
    assert record.operators_missing == "fake 1.0 tells no time an operator. Next: leave it out"


def test_the_input_comes_from_the_seed(run):
    first, same, other = FakeRunner(), FakeRunner(), FakeRunner()
    run(first)
    run(same, replace(SPEC, repeat=1))
    run(other, replace(SPEC, input_seed=1))
    assert first.given == same.given
    assert first.given != other.given


def test_warm_up_that_never_settles_is_bounded(run):
    rule = StoppingRule(warmup_min=5, warmup_max=20, samples_min=10, samples_max=10)
    runner = FakeRunner(lambda i: 1000 + 400 * i)
    record = run(runner, replace(SPEC, stopping=rule))
    assert record.warmup_count == 20
    assert record.warmup_steady is False
    assert Reason.NOT_STEADY in record.verdict.reasons


def test_a_warm_up_too_short_to_judge(run):
    rule = StoppingRule(warmup_min=1, warmup_max=1, samples_min=5, samples_max=5)
    record = run(FakeRunner(), replace(SPEC, stopping=rule))
    assert (record.warmup_count, record.warmup_steady) == (1, None)
    assert record.verdict.valid


def golden(home, output: bytes, atol: float = 0.1) -> RunSpec:
    check = GoldenCheck(put(home, struct.pack("<2f", 1, 2)), put(home, output), atol)
    return replace(SPEC, golden=check)


def test_golden(run, home):
    record = run(FakeRunner(), golden(home, struct.pack("<2f", 2, 4.5)))
    assert record.max_abs_err == 0.5
    assert record.verdict.valid  # above atol: it is for the harness to judge
    assert run(FakeRunner(), golden(home, struct.pack("<2f", 2, 4))).max_abs_err == 0.0


def failure(record: MeasurementRecord) -> tuple[str, str]:
    assert record.verdict is None
    assert record.latency_ns == ()
    assert record.error.next_step
    assert len(record.states) == 1
    return record.error.kind, record.error.fact


def test_golden_of_another_shape_or_with_nan(run, home):
    runner = FakeRunner()
    assert failure(run(runner, golden(home, struct.pack("<3f", 2, 4, 5))))[0] == "model"
    assert runner.closed
    kind, fact = failure(run(FakeRunner(), golden(home, struct.pack("<2f", 2, float("nan")))))
    assert (kind, fact) == ("model", "the output holds 4.0 where nan is expected")


def test_golden_of_a_model_without_float32(run, home):
    runner = FakeRunner()
    runner.inputs = (TensorSpec("x", "int8", (8,)),)
    kind, fact = failure(run(runner, golden(home, b"")))
    assert kind == "model"
    assert "int8" in fact


def test_missing_and_damaged_blobs(run, home):
    assert failure(run(FakeRunner(), replace(SPEC, model_sha256="0" * 64))) == (
        "missing_blob",
        "000000000000 cannot be read (No such file or directory)",
    )
    sha256 = put(home, b"model")
    home.blob(sha256).write_bytes(b"m0del")
    assert failure(run(FakeRunner(), replace(SPEC, model_sha256=sha256)))[0] == "missing_blob"
    assert home.present([sha256]) == ([], [sha256])  # pushed anew the next time
    check = GoldenCheck("1" * 64, "2" * 64, 0.1)
    assert failure(run(FakeRunner(), replace(SPEC, golden=check)))[0] == "missing_blob"
    missing = replace(SPEC, artifact_id="3" * 64)
    assert failure(run(FakeRunner(), missing)) == (
        "missing_blob",
        f"artifact {'3' * 12} is not installed whole ([Errno 2] No such file or directory: "
        f"'{home.artifacts}/{'3' * 64}/manifest.json')",
    )


def test_an_unknown_runtime(run):
    kind, fact = failure(run(FakeRunner(), replace(SPEC, runtime="tvm")))
    assert (kind, fact) == ("runtime", "this agent knows no runtime 'tvm'")


def test_what_the_runtime_says_is_in_the_record(run):
    class Failing(FakeRunner):
        def time_batch(self, count):
            raise RunFailedError("runtime", "no\n  kernel", "update")

    runner = Failing()
    assert failure(run(runner)) == ("runtime", "no kernel")
    assert runner.closed


def test_a_bug_raises(run):
    class Buggy(FakeRunner):
        def time_batch(self, count):
            raise ZeroDivisionError

    runner = Buggy()
    with pytest.raises(ZeroDivisionError):
        run(runner)
    assert runner.closed


def test_a_clock_that_falls_is_measured_again(run):
    hiccup = run(FakeRunner(), clocks=(1_000_000, 1_000_000, 800_000, 700_000, 990_000))
    assert hiccup.states[-1].effective_freq_khz == 990_000
    assert hiccup.verdict.valid
    slower_at_the_end = FakeRunner(lambda i: 1000 if i < 1 + 13 + 20 else 1250)
    spec = replace(SPEC, stopping=StoppingRule(samples_max=30))
    fallen = run(slower_at_the_end, spec, clocks=(1_000_000, 1_000_000, 800_000, 810_000))
    assert fallen.verdict.reasons == (Reason.CLOCK_DRIFTED,)


def test_no_clock(run):
    record = run(FakeRunner(), clocks=(None,))
    assert record.verdict.valid
    assert all(state.effective_freq_khz is None for state in record.states)


def test_a_board_that_booted_meanwhile_and_a_runtime_that_fell_back(run, tree):
    tree.put({"proc/sys/kernel/random/boot_id": "another\n"})
    runner = FakeRunner()
    runner.provider = "SlowProvider"
    verdict = run(runner).verdict
    assert verdict.reasons == (Reason.REBOOTED, Reason.RUNTIME_FELL_BACK)


def test_the_record_holds_the_cpu_time_of_its_loop(run):
    record = run(FakeRunner())
    assert record.timed_ns > 0
    assert record.cpu_own_ns >= 0
    assert record.cpu_wait_ns >= 0


def test_throttling_is_seen_in_the_record(run, tree):
    device = "sys/class/thermal/cooling_device0"
    tree.put({f"{device}/type": "cpufreq-cpu0", f"{device}/cur_state": "0"})

    def latency(i):
        if i == 20:
            tree.put({f"{device}/cur_state": "1"})
        return 1000

    assert run(FakeRunner(latency)).verdict.reasons == (Reason.THROTTLED,)


class FakeHeat:
    """Left once, before the loop; a reading that nobody should count is taken meanwhile."""

    def __init__(self, platform, low_c, high_c, wait, burners=None) -> None:
        self.asked = (low_c, high_c, burners)
        self.closed = False
        self.kept_ns = []
        FakeHeat.made = self

    def keep(self, deadline_s=None):
        self.kept_ns.append(time.monotonic_ns())
        return len(self.kept_ns) == 1

    def close(self):
        self.closed = True


class FakeSampler:
    """Reads 50 °C but for the moment in which the heat was brought back."""

    def __init__(self, platform) -> None:
        self.states = ()

    def __enter__(self):
        self.began_ns = time.monotonic_ns()
        return self

    def __exit__(self, *_):
        times_ns = (self.began_ns, FakeHeat.made.kept_ns[0], time.monotonic_ns())
        self.states = tuple(
            BoardState(ns, temp_c_by_zone=(("cpu", temp_c),))
            for ns, temp_c in zip(times_ns, (50.0, 90.0, 50.0), strict=True)
        )


BAND = replace(SPEC, condition=Condition(temp_c_min=40, temp_c_max=70))


def test_the_band_is_kept_and_readings_while_the_loop_stood_still_are_none_of_its_own(
    run, monkeypatch
):
    monkeypatch.setattr(module, "Heat", FakeHeat)
    monkeypatch.setattr(module, "Sampler", FakeSampler)
    runner = FakeRunner()
    record = run(runner, BAND)
    assert record.verdict.valid
    assert [state.temp_c() for state in record.states[2:-1]] == [50.0, 50.0]
    assert record.warmup_count == 13 + 13
    assert runner.count == 1 + 26 + len(record.latency_ns)
    heat = FakeHeat.made
    assert heat.asked == (40, 70, None)
    assert heat.closed


def test_a_band_that_cannot_be_held_is_a_record_with_its_reason(run, monkeypatch):
    def never(self, deadline_s=None):
        raise RunFailedError("condition", "40..70 °C was not reached in time", "wait")

    monkeypatch.setattr(module, "Heat", FakeHeat)
    monkeypatch.setattr(FakeHeat, "keep", never)
    runner = FakeRunner()
    assert failure(run(runner, BAND)) == ("condition", "40..70 °C was not reached in time")
    assert runner.closed
    assert FakeHeat.made.closed


def test_what_the_loop_used_is_in_the_record(run, tree):
    tree.put({"proc/stat": "cpu  1 0 0 0 0 0 0 0 0 0\n"})
    record = run(FakeRunner())
    assert record.timed_ns > 0
    assert record.cpu_own_ns is not None
    assert record.cpu_wait_ns is not None


def test_others_that_keep_a_cpu_busy_are_foreign_load(run, tree):
    ticks_per_s = os.sysconf("SC_CLK_TCK")

    def latency(i):
        tree.put({"proc/stat": f"cpu  {i * ticks_per_s} 0 0 0 0 0 0 0 0 0\n"})
        return 1000

    assert run(FakeRunner(latency)).verdict.reasons == (Reason.FOREIGN_LOAD,)
