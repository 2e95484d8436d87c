"""Memory and switching time of one model, of many apart, of one that switches: each in a process.

Input: a runner's name and model files. Output: Footprint; as a program, one line of JSON. Runners
are the agent's own. Peaks are what the process held resident at most, from the load on, over what
it held before: interpreter, numpy and onnxruntime's import are no part of a model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

INFERENCES = 40
TURNS = 31
"""A switch and inferences after it, of one sub-network: both meet the same host."""


@dataclass(frozen=True)
class Footprint:
    """process_mb: the whole process's peak, model_mb: less what it held before the load.

    switch_ms, inference_ms: of each sub-network, the widest first; switched to it from another.
    load_ms: until the first inference may begin.
    """

    process_mb: float
    model_mb: float
    load_ms: float
    switch_ms: tuple[float, ...] = ()
    inference_ms: tuple[float, ...] = ()


def footprint(runtime: str, models: Sequence[Path]) -> Footprint:
    """In a fresh process. runtime: "ort", one runner a model, or "switchable"."""
    argv = [sys.executable, "-m", __name__, runtime, *map(str, models)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    for key in ("switch_ms", "inference_ms"):
        found[key] = tuple(found[key])
    return Footprint(**found)


def _measured(runtime: str, models: Sequence[Path]) -> Footprint:
    import time

    import numpy as np
    import onnxruntime  # noqa: F401 - before the model's memory is counted

    from device_agents.memory import peak_rss_bytes, reset_peak_rss
    from device_agents.runtimes import RUNTIMES
    from device_agents.runtimes.switchable import SwitchableRunner

    def peak_mb() -> float:
        return (peak_rss_bytes(os.getpid()) or 0) / 2**20

    reset_peak_rss(os.getpid())
    before_mb = peak_mb()
    with tempfile.TemporaryDirectory() as scratch:
        start_ns = time.perf_counter_ns()
        runners = [RUNTIMES[runtime](path, 1, Path(scratch)) for path in models]
        load_ms = (time.perf_counter_ns() - start_ns) / 1e6
        x = np.random.default_rng(0).random(runners[0].inputs[0].shape, dtype=np.float32)
        switch_ms: list[float] = []
        inference_ms: list[float] = []
        for runner in runners:
            runner.set_inputs([x.tobytes()])
            if isinstance(runner, SwitchableRunner):
                for position in range(runner.count):
                    took_ms = _switch_and_inference_ms(runner, position)
                    switch_ms.append(took_ms[0])
                    inference_ms.append(took_ms[1])
            else:
                runner.time_batch(5)
                inference_ms.append(median(runner.time_batch(INFERENCES)) / 1e6)
        process_mb = peak_mb()
        for runner in runners:
            runner.close()
    return Footprint(
        process_mb, process_mb - before_mb, load_ms, tuple(switch_ms), tuple(inference_ms)
    )


def _switch_and_inference_ms(runner: Any, position: int) -> tuple[float, float]:
    """Medians over turns; of a switch right after an inference of another sub-network."""
    import time

    switch_ns, inference_ns = [], []
    for _ in range(TURNS):
        runner.switch_to((position + 1) % runner.count)
        runner.time_batch(1)
        start_ns = time.perf_counter_ns()
        runner.switch_to(position)
        switch_ns.append(time.perf_counter_ns() - start_ns)
        runner.time_batch(2)
        inference_ns.append(median(runner.time_batch(3)))
    return median(switch_ns) / 1e6, median(inference_ns) / 1e6


if __name__ == "__main__":
    print(json.dumps(asdict(_measured(sys.argv[1], [Path(p) for p in sys.argv[2:]]))))
