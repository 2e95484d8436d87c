"""What watching the board costs the run that is timed: telemetry at 10 Hz, on and off.

    python -m benchmarks.measurement_telemetry ROOT MODEL --pairs 40

Input: a board's root (its sysfs tree) and an ONNX model. Output: a line of JSON, TelemetryCost.
The agent's own runner and sampler, in one process: blocks with telemetry beside blocks without it,
in random order, so that slow seconds of the machine disturb both.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.measurement_samples import keep, kept, ratio_interval
from benchmarks.result import Bar
from device_agents.platforms import Linux
from device_agents.platforms import select as select_platform
from device_agents.runtimes import RUNTIMES, Runner
from device_agents.sysfs import Root
from device_agents.telemetry import PERIOD_S, Sampler, observation_cpu_ns
from device_agents.tensors import draw

BLOCK_S = 0.5
WARMUPS = 50
OBSERVATIONS = 200
MOST_RATIO = 1.01

Row = dict[str, Any]


@dataclass(frozen=True)
class TelemetryCost:
    """on_ns, off_ns: [pair][inference]. observed: readings in all blocks with telemetry.

    observe_cpu_ns: CPU time of one reading, the median of many.
    """

    on_ns: Sequence[Sequence[int]]
    off_ns: Sequence[Sequence[int]]
    observed: int
    observe_cpu_ns: int


def measured(folder: Path, root: Path, model: Path, pairs: int) -> TelemetryCost:
    """The cost, from a process of its own, or what is stored of it."""
    path = folder / f"telemetry-{pairs}.json.z"
    if (stored := kept(path)) is None:
        argv = [sys.executable, "-m", "benchmarks.measurement_telemetry", str(root), str(model)]
        done = subprocess.run([*argv, "--pairs", str(pairs)], check=True, stdout=subprocess.PIPE)
        stored = json.loads(done.stdout)
        keep(path, stored)
    return TelemetryCost(**stored)


def telemetry_row(cost: TelemetryCost) -> Row:
    """Ratios of p50 and of mean, with telemetry over without, and a reading's own cost."""
    pairs = list(zip(cost.on_ns, cost.off_ns, strict=True))
    return {
        "part": "telemetry",
        "pairs": len(pairs),
        "p50_off_ms": median(median(off) for _, off in pairs) / 1e6,
        "p50_ratio": median(median(on) / median(off) for on, off in pairs),
        "p50_ratio_interval": ratio_interval(cost.off_ns, cost.on_ns),
        "mean_ratio": median(fmean(on) / fmean(off) for on, off in pairs),
        "observations": cost.observed,
        "observation_cpu_us": cost.observe_cpu_ns / 1e3,
        "share_of_a_core": cost.observe_cpu_ns / 1e9 / PERIOD_S,
    }


def telemetry_bars(row: Row) -> list[Bar]:
    return [
        Bar(
            f"telemetry at {1 / PERIOD_S:g} Hz: p50 with it over p50 without, median of "
            f"{row['pairs']} pairs",
            row["p50_ratio"], "<=", MOST_RATIO,
        )
    ]  # fmt: skip


def cost_of(platform: Linux, runner: Runner, pairs: int) -> TelemetryCost:
    """Timed here and now. pairs: blocks of BLOCK_S with telemetry, and as many without."""
    warm_ns = median(runner.time_batch(WARMUPS)[WARMUPS // 2 :])
    count = max(10, round(BLOCK_S * 1e9 / warm_ns))
    rng = random.Random(0)  # noqa: S311 - an order, not a secret
    latency_ns: dict[bool, list[list[int]]] = {True: [], False: []}
    observed = 0
    for _ in range(pairs):
        for on in rng.sample((True, False), 2):
            with Sampler(platform, PERIOD_S if on else None) as sampler:
                latency_ns[on].append(runner.time_batch(count))
            observed += len(sampler.states)
    return TelemetryCost(
        latency_ns[True], latency_ns[False], observed, observation_cpu_ns(platform, OBSERVATIONS)
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("root", type=Path)
    options.add_argument("model", type=Path)
    options.add_argument("--pairs", type=int, default=40)
    asked = options.parse_args()
    runner = RUNTIMES["ort"](asked.model, 1, asked.root)
    runner.set_inputs(draw(runner.inputs, 0))
    platform = select_platform(Root(str(asked.root)))
    print(json.dumps(asdict(cost_of(platform, runner, asked.pairs))))


if __name__ == "__main__":
    main()
