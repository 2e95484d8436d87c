"""Shapes of equal work, side by side: fleetcut's search beside torch-pruning, dense as reference.

    python -m benchmarks.pruning_latency --json OUT

Every contender has the same multiply-accumulates within 3 % and no group under a tenth of its
width, so that only the shape differs; weights are random, latency does not depend on them.
Measured here, in one process, one thread, with onnxruntime and LiteRT. Needs torch-pruning
(the extra "benchmarks"), about an hour on one core; --quick: MobileNetV2 with onnxruntime.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.pruning_latency_fleet import fleet_contest
from benchmarks.pruning_latency_search import Band, Bench, Study
from benchmarks.result import Bar, finish, parser, write
from benchmarks.torch_pruning_contenders import contenders
from compiler.pruning.objectives import BoardRatios, make_objective
from compiler.pruning.widths import Widths

BAND_FRACTION = 0.03
"""How far below the budget of work a contender may stay."""
PEER_SLACK = 1.005
"""torch-pruning's rounded shapes may exceed the budget by this: 1.00 G to two decimals."""
CASES = {  # network: (budget as a fraction of dense, or in multiply-accumulates; least gain)
    "resnet50": (1.0e9, 0.05),
    "mobilenet_v1": (0.5, 0.10),
    "mobilenet_v2": (0.5, 0.10),
}
FLEET_NETWORK = "mobilenet_v2"
LEAST_SPEEDUP = 2.86
"""HDAP's headline for ResNet50 at 1.0 G (arXiv 2501.15240): mean over a fleet of one SKU."""
ROUNDS = 60
ELITE_ROUNDS = 12


def contest(bench: Bench, runtime: str, seed: int, quick: bool) -> list[dict[str, Any]]:
    """One network on one runtime: a row a contender, measured in one interleaved loop."""
    name, space, band = bench.network, bench.space, bench.band
    shapes: dict[str, Widths] = {"dense": space.dense_widths}
    for peer in contenders(name, space, band.least, band.most * PEER_SLACK):
        if peer.widths is None:
            print(f"{name}: {peer.name}: no ratio falls into the band", file=sys.stderr)
        else:
            shapes[peer.name] = peer.widths
    boards = {runtime: bench.board(runtime)}
    study = Study(bench, boards, seed=seed, rounds=ELITE_ROUNDS, quick=quick)
    found = study.find_shape(make_objective("mean", BoardRatios([np.ones(1)])))
    shapes["fleetcut"] = found.widths
    ms = bench.measure(runtime, list(shapes.values()), ROUNDS // (3 if quick else 1))
    p50 = dict(zip(shapes, np.median(ms, axis=0).tolist(), strict=True))
    low, high = np.quantile(ms, (0.25, 0.75), axis=0)
    return [
        {
            "network": name,
            "runtime": runtime,
            "contender": contender,
            "gmacs": space.macs(widths) / 1e9,
            "p50_ms": p50[contender],
            "p25_ms": float(low[i]),
            "p75_ms": float(high[i]),
            "speedup": p50["dense"] / p50[contender],
            "predicted_ms": found.predicted_ms if contender == "fleetcut" else None,
            "width_step": study.step if contender == "fleetcut" else None,
            "widths": list(widths),
            "seed": seed,
        }
        for i, (contender, widths) in enumerate(shapes.items())
    ]


def bars_of(rows: Sequence[dict[str, Any]], least_gain: float) -> list[Bar]:
    """The bars of one contest."""
    by_name = {row["contender"]: row for row in rows}
    ours, peers = by_name["fleetcut"], [r for r in rows if r["contender"].startswith("torch-")]
    best = min(peers, key=lambda row: row["p50_ms"])
    what = f"{ours['network']}, {ours['runtime']}"
    bars = [
        Bar(
            f"{what}: latency over the fastest of torch-pruning's ({best['contender']})",
            ours["p50_ms"] / best["p50_ms"],
            "<=",
            1 - least_gain,
        )
    ]
    if ours["network"] == "resnet50":
        bars.append(Bar(f"{what}: speed-up over dense", ours["speedup"], ">=", LEAST_SPEEDUP))
    return bars


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--networks", default=",".join(CASES), help="comma separated")
    options.add_argument("--runtimes", default="ort,litert", help="comma separated")
    options.add_argument("--no-fleet", action="store_true", help="leave the mixed fleet out")
    asked = options.parse_args()
    networks_asked, runtimes = asked.networks.split(","), asked.runtimes.split(",")
    if asked.quick:
        networks_asked, runtimes = ["mobilenet_v2"], ["ort"]
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    for name in networks_asked:
        budget, least_gain = CASES[name]
        bench = Bench(name, Band.of(name, budget, BAND_FRACTION))
        for runtime in runtimes:
            found = contest(bench, runtime, asked.seed, asked.quick)
            rows += found
            bars += bars_of(found, least_gain)
            write("pruning_latency", rows, bars, asked.json)
    if not asked.no_fleet and not asked.quick:
        name = FLEET_NETWORK
        bench = Bench(name, Band.of(name, CASES[name][0], BAND_FRACTION))
        fleet_rows, fleet_bars = fleet_contest(bench, asked.seed, asked.quick)
        rows += fleet_rows
        bars += fleet_bars
    return finish("pruning_latency", rows, bars, asked.json)


if __name__ == "__main__":
    sys.exit(main())
