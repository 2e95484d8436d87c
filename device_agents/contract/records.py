"""What a board is, what it is asked to run, and what came of it.

Input: nothing. Output: DeviceProfile, StoppingRule, GoldenCheck, RunSpec, MeasurementRecord.
Every latency is a raw integer of nanoseconds; conversion to ms happens in compiler/dataset.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Optional, Tuple

from device_agents.contract.canonical import ADDED_LATER, canonical_json
from device_agents.contract.conditions import BoardState, Condition, Verdict


@dataclass(frozen=True)
class DeviceProfile:
    """One physical board, as its own agent read it.

    machine: ``uname -m``. opp_freqs_khz: the cpufreq operating points, ascending.
    runtime_versions: (distribution, version) of every inference runtime that imports.
    boot_id: changes with each boot. simulated: True when the board itself says that it is a
    stand-in (``DEPLOYMENT=simulated`` in /etc/machine-info).
    """

    hostname: str
    machine: str
    model: Optional[str]
    soc: Optional[str]
    isa_features: Tuple[str, ...]
    cores: int
    opp_freqs_khz: Tuple[int, ...]
    memory_bytes: Optional[int]
    kernel: str
    os: Optional[str]
    glibc: Optional[str]
    python: str
    runtime_versions: Tuple[Tuple[str, str], ...]
    boot_id: Optional[str]
    simulated: bool

    def sha256(self) -> str:
        """Hash of the whole profile: records with other profiles do not mix unseen."""
        return hashlib.sha256(canonical_json(self)).hexdigest()


@dataclass(frozen=True)
class StoppingRule:
    """When warm-up and the timed loop end.

    Warm-up: at least warmup_min and at most warmup_max inferences, ended early once steady.
    Timed loop: at least samples_min and at most samples_max inferences; between the two it ends
    once max_seconds have passed or, after min_seconds, the 95 % interval of the median is narrower
    than ci_fraction of it. All counts > 0.
    """

    warmup_min: int = 5
    warmup_max: int = 50
    samples_min: int = 30
    samples_max: int = 200
    ci_fraction: float = 0.02
    max_seconds: float = 10.0
    min_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.warmup_min <= self.warmup_max:
            raise ValueError(f"warm-up bounds {self.warmup_min}..{self.warmup_max}")
        if not 0 < self.samples_min <= self.samples_max:
            raise ValueError(f"sample bounds {self.samples_min}..{self.samples_max}")
        if not 0 < self.ci_fraction < 1 or not self.max_seconds > 0:
            raise ValueError("ci_fraction must be in (0, 1) and max_seconds > 0")
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise ValueError(f"bounds of seconds {self.min_seconds:g}..{self.max_seconds:g}")


@dataclass(frozen=True)
class GoldenCheck:
    """An input and the output it must give; both raw little-endian float32 blobs by hash.

    max_abs_err above ``atol`` is a failed check. The tensors' layout is the model's own.
    """

    input_sha256: str
    output_sha256: str
    atol: float


@dataclass(frozen=True)
class RunSpec:
    """One cell of a campaign on one board.

    runtime: a key of the agent's RUNTIMES ("ort", "tflite", "executable"). model_sha256 names the
    blob that the runtime loads; with artifact_id it is the model file of that installed artifact,
    run from the artifact's own folder. input_seed draws the input where ``golden`` is None.
    repeat tells equal cells of one campaign apart. operators: time each operator too, in a pass of
    its own after the timed loop.
    timeout_s bounds the whole run on the board, load and warm-up included.
    """

    campaign_id: str
    board_id: str
    model_sha256: str
    runtime: str
    precision: str = "fp32"
    threads: int = 1
    condition: Condition = Condition()  # noqa: RUF009 - frozen
    stopping: StoppingRule = StoppingRule()
    artifact_id: Optional[str] = None
    golden: Optional[GoldenCheck] = None
    input_seed: int = 0
    repeat: int = 0
    operators: bool = False
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.threads < 1 or not self.timeout_s > 0 or self.repeat < 0:
            raise ValueError("threads >= 1, timeout_s > 0 and repeat >= 0 are required")

    @property
    def run_id(self) -> str:
        """Hash of the content: the same cell asked for twice is one run."""
        return hashlib.sha256(canonical_json(self)).hexdigest()[:32]


@dataclass(frozen=True)
class RunError:
    """A run that gave no latency.

    kind: "timeout", "crashed", "model", "runtime", "condition", "missing_blob", "rebooted"
    or "agent".
    fact: what happened, in one line. next_step: what to do about it.
    """

    kind: str
    fact: str
    next_step: str

    @property
    def category(self) -> str:
        """Whose it is: "infrastructure", "board", "model" or "bug" (also of kinds not known)."""
        return _CATEGORIES.get(self.kind, "bug")


_CATEGORIES = {
    "timeout": "model",
    "crashed": "model",
    "model": "model",
    "runtime": "board",
    "condition": "board",
    "rebooted": "board",
    "missing_blob": "infrastructure",
    "agent": "bug",
}


@dataclass(frozen=True)
class Switch:
    """A switchable network's change from one sub-network to another, by position, 0 the widest.

    monotonic_ns: when the clock was seen. khz: the clock. took_ns: until the other was ready.
    """

    monotonic_ns: int
    khz: int
    before: int
    after: int
    took_ns: int


@dataclass(frozen=True)
class MeasurementRecord:
    """What came of one RunSpec: latencies and a verdict, or an error; exactly one of the two.

    latency_ns: every timed inference in order. load_ns: model load. first_inference_ns: the
    first one after it. warmup_count and warmup_steady: how warm-up ended.
    states: before, during (in order of time) and after. execution_provider: what really ran.
    max_abs_err: largest deviation from the golden output, None without a GoldenCheck.
    peak_rss_bytes: the most that the measuring process had resident from the model's load on; it
    includes the runtime, the interpreter and what earlier runs left there. None: unreadable.
    timed_ns: length of the timed loop. cpu_own_ns: CPU time of the measuring process in it, all
    threads. cpu_wait_ns: how long its threads were ready to run in it and had to wait for a CPU.
    operators: (operator, mean ns an inference) where the spec asked for it, in order of execution.
    operators_missing: why there are none although the spec asked.
    switches: of a switchable network, from the end of its golden check on, the first 10,000.
    started_unix_ns: the board's wall clock, for the reader only; nothing is computed from it.
    """

    spec: RunSpec
    profile_sha256: str
    agent_sha256: str
    boot_id: Optional[str]
    simulated: bool
    started_unix_ns: int
    states: Tuple[BoardState, ...] = ()
    runtime_version: Optional[str] = None
    execution_provider: Optional[str] = None
    load_ns: Optional[int] = None
    first_inference_ns: Optional[int] = None
    warmup_count: Optional[int] = None
    warmup_steady: Optional[bool] = None
    latency_ns: Tuple[int, ...] = ()
    max_abs_err: Optional[float] = None
    peak_rss_bytes: Optional[int] = None
    timed_ns: Optional[int] = None
    cpu_own_ns: Optional[int] = None
    cpu_wait_ns: Optional[int] = None
    operators: Tuple[Tuple[str, int], ...] = ()
    operators_missing: Optional[str] = None
    switches: Tuple[Switch, ...] = field(default=(), metadata=ADDED_LATER)
    verdict: Optional[Verdict] = None
    error: Optional[RunError] = None

    def __post_init__(self) -> None:
        if (self.error is None) == (self.verdict is None):
            raise ValueError("a record holds exactly one of verdict and error")
        if self.verdict is not None and not self.latency_ns:
            raise ValueError("a record with a verdict holds at least one latency")
        if any(ns <= 0 for ns in self.latency_ns):
            raise ValueError("latencies are positive nanoseconds")

    @property
    def run_id(self) -> str:
        return self.spec.run_id
