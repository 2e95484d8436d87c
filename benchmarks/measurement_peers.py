"""The peers' way to time a model: pyperf, and a plain loop over the runtime's own call.

    python3 measurement_peers.py {loop,pyperf} MODEL --warmups 20 --values 300

Input: an ONNX model. Output: a line of JSON, began_ns (CLOCK_MONOTONIC) and latency_ns. It is run
by its path on the board that the harness measures on, for an environment of other length alone
moved a model of 1 ms by 1 %. Session options and the input's kind are those of the agent; the code
is not, so that it can be wrong alone. onnxruntime's wheel holds no perf_test, and its profiler
slows small models by 8 %: its own loop is ``InferenceSession.run`` between two looks at the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyperf

INPUT_SEED = 0


def session(model: Path) -> Any:
    """One thread that does not spin, the CPU's provider: as the agent has it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(model), sess_options=options, providers=["CPUExecutionProvider"]
    )


def feed(loaded: Any) -> dict[str, Any]:
    """Uniform in [-1, 1), as the agent draws it for one float input."""
    (taken,) = loaded.get_inputs()
    rng = np.random.default_rng(INPUT_SEED)
    return {taken.name: rng.uniform(-1, 1, taken.shape).astype(np.float32)}


@dataclass(frozen=True)
class Timed:
    """When a loop began, and its latencies, one after the other."""

    began_ns: int
    latency_ns: list[int]


def loop(model: Path, warmups: int, values: int) -> Timed:
    """A tight loop around ``InferenceSession.run``."""
    loaded = session(model)
    inputs, run, clock_ns = feed(loaded), loaded.run, time.perf_counter_ns
    for _ in range(warmups):
        run(None, inputs)
    latency_ns = []
    began_ns = time.monotonic_ns()
    for _ in range(values):
        start_ns = clock_ns()
        run(None, inputs)
        latency_ns.append(clock_ns() - start_ns)
    return Timed(began_ns, latency_ns)


def by_pyperf(model: Path, warmups: int, values: int) -> Timed:
    """Pyperf's values of one worker process, each one inference. Its warm-up is in began_ns."""
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-") as folder:
        out, began = Path(folder) / "pyperf.json", Path(folder) / "began"
        options = ["--warmups", str(warmups), "--values", str(values), "--began", str(began)]
        argv = [sys.executable, __file__, "runner", str(model), *options, "--output", str(out)]
        argv += ["--inherit-environ", ",".join(os.environ)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        benchmark = pyperf.Benchmark.load(str(out))
        latency_ns = [round(value * 1e9) for value in benchmark.get_values()]
        return Timed(int(began.read_text(encoding="ascii")), latency_ns)


def _runner(asked: argparse.Namespace, rest: list[str]) -> None:
    """``pyperf.Runner.bench_func`` around one inference; pyperf starts us again as its worker."""
    runner = pyperf.Runner(
        processes=1,
        values=asked.values,
        warmups=asked.warmups,
        loops=1,
        program_args=(__file__, "runner", str(asked.model), "--began", str(asked.began)),
    )
    runner.parse_args([*rest, "--quiet"])
    if not runner.args.worker:  # pyperf's manager runs nothing itself
        runner.bench_func(asked.model.stem, time.perf_counter_ns)
        return
    loaded = session(asked.model)
    asked.began.write_text(str(time.monotonic_ns()), encoding="ascii")
    runner.bench_func(asked.model.stem, loaded.run, None, feed(loaded))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("way", choices=("loop", "pyperf", "runner"))
    options.add_argument("model", type=Path)
    options.add_argument("--warmups", type=int, default=1)
    options.add_argument("--values", type=int, default=1)
    options.add_argument("--began", type=Path, help="of runner: where to write when it began")
    asked, rest = options.parse_known_args()
    if asked.way == "runner":
        _runner(asked, rest)
        return
    way = {"loop": loop, "pyperf": by_pyperf}[asked.way]
    print(json.dumps(asdict(way(asked.model, asked.warmups, asked.values))))


if __name__ == "__main__":
    main()
