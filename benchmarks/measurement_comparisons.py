"""False alarms and planted slow-downs: fleetcut's paired comparison beside its peers' rules.

Input: boards and a model. Output: a row a rule. Each comparison is one session over SSH in which
runs of A and B alternate in pairs, which of the two first by chance. In an A/A comparison B is A;
in an A/B comparison B's cpufreq is set 3 % lower, so that physics makes it 3 % slower.
Where fleetcut compare answers "unclear, N more pairs", as many are measured, up to MOST_LOOKS looks
and MOST_PAIRS pairs: as a user would. Every rule judges the same samples.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pyperf

from benchmarks.measurement_boards import SEED, Boards, ModelFile
from benchmarks.result import Bar
from device_agents.contract import Condition, MeasurementRecord, RunSpec, StoppingRule
from harness.comparison import compare_paired

FULL_KHZ = 1_500_000
SLOW_KHZ = 1_456_311
"""The two operating points: 1.03 apart."""

SAMPLES = 100
STOPPING = StoppingRule(
    warmup_min=10, warmup_max=30, samples_min=SAMPLES, samples_max=SAMPLES, max_seconds=30.0
)

MOST_LOOKS = 3
MOST_PAIRS = 100
"""Each look errs once in a hundred on equal things (ALPHA), all three at most three times."""

FLEETCUT = "fleetcut compare"
MOST_FALSE = 0.05
LEAST_FOUND = 0.90

Runs = Sequence[Sequence[int]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """a_ns[i] and b_ns[i] ran beside each other. planted: whether B really was slower."""

    name: str
    planted: bool
    a_ns: Runs
    b_ns: Runs


def measured(
    boards: Boards, board_id: str, model: ModelFile, *, name: str, planted: bool, pairs: int
) -> Comparison:
    """One comparison, now or as it is stored; pairs: of the first look. Raises HarnessError."""
    found = Comparison(name, planted, (), ())
    for look in range(MOST_LOOKS):
        campaign = name if look == 0 else f"{name}-more-{look}"
        a_ns, b_ns = _session(boards, board_id, model, campaign, planted, pairs)
        found = replace(found, a_ns=(*found.a_ns, *a_ns), b_ns=(*found.b_ns, *b_ns))
        answer = compare_paired(found.a_ns, found.b_ns)
        pairs = min(answer.more_pairs or 0, MOST_PAIRS - len(found.a_ns))
        if answer.verdict != "unclear" or pairs <= 0:
            break
    return found


def _session(
    boards: Boards, board_id: str, model: ModelFile, name: str, planted: bool, pairs: int
) -> tuple[Runs, Runs]:
    """Latencies of A and of B, run by run, in ns."""
    rng = random.Random(f"{SEED}:{name}")  # noqa: S311 - an order, not a secret
    slow_khz = SLOW_KHZ if planted else FULL_KHZ
    order: list[tuple[str, RunSpec]] = []
    for pair in range(pairs):
        for side in rng.sample("ab", 2):
            spec = RunSpec(
                campaign_id=name,
                board_id=board_id,
                model_sha256=model.sha256,
                runtime="ort",
                condition=Condition(freq_khz=slow_khz if side == "b" else FULL_KHZ),
                stopping=STOPPING,
                repeat=2 * pair + (side == "b"),
            )
            order.append((side, spec))
    records = boards.measure([spec for _, spec in order], [model])
    of_side: dict[str, list[Sequence[int]]] = {"a": [], "b": []}
    for (side, _), record in zip(order, records, strict=True):
        of_side[side].append(_latency_ns(record))
    return of_side["a"], of_side["b"]


def _latency_ns(record: MeasurementRecord) -> Sequence[int]:
    """Whatever the verdict is: every rule is given the same samples, disturbed ones too."""
    if not record.latency_ns:
        raise RuntimeError(f"run {record.run_id}: {record.error}")
    return record.latency_ns


def found_by_fleetcut(comparisons: Sequence[Comparison]) -> list[bool]:
    verdicts = [compare_paired(one.a_ns, one.b_ns).verdict for one in comparisons]
    return [verdict in ("slower", "faster") for verdict in verdicts]


def found_by_p50(
    comparisons: Sequence[Comparison], threshold: float, runs: int | None
) -> list[bool]:
    """Plain p50s further apart than threshold. runs: of how many runs a side; None: of all."""
    return [
        abs(median(_pooled(one.b_ns[:runs])) / median(_pooled(one.a_ns[:runs])) - 1) > threshold
        for one in comparisons
    ]


def found_by_pyperf(comparisons: Sequence[Comparison], least_pct: float | None) -> list[bool]:
    """What ``pyperf compare_to`` calls significant. least_pct: its --min-speed."""
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-") as folder:
        paths = [Path(folder) / "a.json", Path(folder) / "b.json"]
        for path, side in zip(paths, ("a_ns", "b_ns"), strict=True):
            suite = [_pyperf_benchmark(one.name, getattr(one, side)) for one in comparisons]
            pyperf.BenchmarkSuite(suite).dump(str(path))
        argv = [sys.executable, "-m", "pyperf", "compare_to", "--group-by-speed"]
        argv += [] if least_pct is None else ["--min-speed", str(least_pct)]
        done = subprocess.run(
            [*argv, *map(str, paths)], check=True, stdout=subprocess.PIPE, text=True
        )
    if len(comparisons) == 1:
        return ["not significant" not in done.stdout]
    significant = set(re.findall(r"^- (\S+): ", done.stdout, re.MULTILINE))
    return [one.name in significant for one in comparisons]


def _pyperf_benchmark(name: str, runs: Runs) -> Any:
    made = [
        pyperf.Run(
            [ns / 1e9 for ns in latency_ns],
            metadata={"name": name, "loops": 1, "inner_loops": 1},
            collect_metadata=False,
        )
        for latency_ns in runs
    ]
    return pyperf.Benchmark(made)


def _pooled(runs: Runs) -> list[int]:
    return [ns for latency_ns in runs for ns in latency_ns]


RULES: dict[str, Callable[[Sequence[Comparison]], list[bool]]] = {
    FLEETCUT: found_by_fleetcut,
    "p50 of one run each, 1 %": lambda of: found_by_p50(of, 0.01, 1),
    "p50 of one run each, 2 %": lambda of: found_by_p50(of, 0.02, 1),
    "p50 of all samples, 1 %": lambda of: found_by_p50(of, 0.01, None),
    "p50 of all samples, 2 %": lambda of: found_by_p50(of, 0.02, None),
    "pyperf compare_to": lambda of: found_by_pyperf(of, None),
    "pyperf compare_to --min-speed 1": lambda of: found_by_pyperf(of, 1.0),
}


def comparison_rows(comparisons: Sequence[Comparison]) -> list[Row]:
    """A row a rule: of the A/A comparisons those alarmed at, of the A/B those found.

    true_change: what was planted as the pairs of all A/B comparisons together show it.
    """
    same = [one for one in comparisons if not one.planted]
    slower = [one for one in comparisons if one.planted]
    ratios = [
        median(b) / median(a) for one in slower for a, b in zip(one.a_ns, one.b_ns, strict=True)
    ]
    rows: list[Row] = []
    for name, rule in RULES.items():
        alarms, found = rule(same), rule(slower)
        rows.append(
            {
                "part": "comparisons",
                "rule": name,
                "false_alarms": sum(alarms),
                "of_aa": len(alarms),
                "found": sum(found),
                "of_ab": len(found),
                "pairs": median(len(one.a_ns) for one in comparisons),
                "pairs_most": max(len(one.a_ns) for one in comparisons),
                "samples_a_run": SAMPLES,
                "true_change": median(ratios) - 1,
            }
        )
    return rows


def comparison_bars(rows: Sequence[Row]) -> list[Bar]:
    (ours,) = (row for row in rows if row["rule"] == FLEETCUT)
    return [
        Bar(
            f"{ours['of_aa']} A/A comparisons: false alarms",
            ours["false_alarms"] / ours["of_aa"], "<=", MOST_FALSE,
        ),
        Bar(
            f"{ours['of_ab']} A/B comparisons, 3 % planted ({ours['true_change']:.2%} seen over "
            "all): found",
            ours["found"] / ours["of_ab"], ">=", LEAST_FOUND,
        ),
    ]  # fmt: skip
