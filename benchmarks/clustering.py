"""Behaviours planted in simulated fleets of up to 10⁶ boards: fleetcut beside scikit-learn.

    python -m benchmarks.clustering --json OUT

Input: nothing; fleets are simulated. Output: seconds, memory, adjusted Rand index and outliers of
each method, each in a process of its own. DBSCAN and HDBSCAN get the same scaled features.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.metrics import adjusted_rand_score

from benchmarks.result import Bar, arguments, finish
from compiler.cluster_stages import with_nearest
from compiler.clusters import AnchorLatencies, DeviceClusters

ANCHORS = ("conv", "wide", "depthwise", "pointwise", "memory", "copy", "linear", "tiny")
BASE_MS = (2.0, 4.0, 1.9, 1.2, 1.3, 0.9, 1.5, 0.3)
BEHAVIOURS = {  # share of the fleet, factor on each anchor
    "nominal": (0.38, (1.0,) * 8),
    "slower clock": (0.20, (1.12,) * 8),
    "aged": (0.14, (1.30,) * 8),
    "throttled": (0.10, (1.70,) * 8),
    "bandwidth-bound": (0.09, (1.0, 1.02, 1.25, 1.05, 1.6, 1.7, 1.35, 1.0)),
    "runtime-bound": (0.06, (1.05, 1.02, 1.1, 1.1, 1.0, 1.0, 1.08, 1.9)),
    "slower clock, bandwidth-bound": (0.03, (1.12, 1.14, 1.4, 1.18, 1.79, 1.9, 1.5, 1.12)),
}
COMMON_SPREAD = 0.015
"""Standard deviation between boards of one behaviour, the same factor on every anchor."""
ANCHOR_SPREAD = 0.01
"""The same, of each anchor on its own."""
NOISE = 0.01
"""Standard error of a measured median, as a fraction."""
DRIFT = 0.02
"""How much slower the last board is measured than the first: the rack warms."""
OUTLIERS = 0.01
BORDER = 0.05
"""One resolution: the smallest difference that counts, DeviceClusters' min_difference."""

TIME_LIMIT_S = 120.0
QUICK_TIME_LIMIT_S = 30.0
PEER_MEMORY_GB = 8
EPS = (0.2, 0.3, 0.5, 0.7)
"""DBSCAN's, all tried at 10⁴ boards; larger fleets get the one that did best there."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Found = tuple[IntArray, NDArray[np.bool_]]


def simulated(n_boards: int, seed: int) -> tuple[FloatArray, IntArray]:
    """Median ms (n_boards, 8) and the planted behaviour of each board, -1 for outliers.

    An outlier lies at least 2 resolutions from every planted behaviour, else anywhere from half
    to four times the nominal latency, each anchor 30 % on its own.
    """
    rng = np.random.default_rng(seed)
    shares, factors = zip(*BEHAVIOURS.values(), strict=True)
    planted = np.log(np.array(factors))
    truth = rng.choice(len(shares), n_boards, p=shares)
    ratios = planted[truth]
    ratios += rng.normal(0, COMMON_SPREAD, (n_boards, 1))
    ratios += rng.normal(0, math.hypot(ANCHOR_SPREAD, NOISE), ratios.shape)
    ratios += DRIFT * np.linspace(0, 1, n_boards)[:, None]
    odd = np.flatnonzero(rng.random(n_boards) < OUTLIERS)
    truth[odd] = -1
    while len(odd):
        common = rng.uniform(math.log(0.5), math.log(4), (len(odd), 1))
        ratios[odd] = common + rng.normal(0, 0.3, (len(odd), len(BASE_MS)))
        apart = (ratios[odd][:, None] - planted - DRIFT / 2) / BORDER
        odd = odd[np.sqrt((apart**2).mean(axis=2)).min(axis=1) < 2]
    return np.exp(ratios) * np.array(BASE_MS), truth


def fleetcut(median_ms: FloatArray) -> Found:
    """DeviceClusters as it comes, with its bootstrap trials."""
    ids = tuple(f"board-{number:07d}" for number in range(len(median_ms)))
    noise = np.full(len(ANCHORS), NOISE)
    fitted = DeviceClusters().fit(AnchorLatencies(ids, ANCHORS, median_ms, noise, "simulated"))
    numbers = {label: number for number, label in enumerate(fitted.weights_)}
    outlier = np.zeros(len(ids), dtype=bool)
    outlier[[int(board.removeprefix("board-")) for board in fitted.outliers_]] = True
    return np.array([numbers[label] for label in fitted.labels_.tolist()]), outlier


def scaled(median_ms: FloatArray) -> FloatArray:
    """The peers' features: in resolutions, root mean square over the anchors."""
    ratios = np.log(median_ms / np.median(median_ms, axis=0))
    return np.asarray(ratios / BORDER / math.sqrt(ratios.shape[1]), dtype=np.float64)


def dbscan(median_ms: FloatArray, eps: float) -> Found:
    points = scaled(median_ms)
    found = DBSCAN(eps=eps, min_samples=_smallest(points), n_jobs=-1).fit(points)
    return _completed(points, found.labels_)


def hdbscan(median_ms: FloatArray) -> Found:
    points = scaled(median_ms)
    found = HDBSCAN(min_cluster_size=_smallest(points), n_jobs=-1, copy=True).fit(points)
    return _completed(points, found.labels_)


def _smallest(points: FloatArray) -> int:
    """DeviceClusters' share, 0.5 % of the fleet."""
    return math.ceil(0.005 * len(points))


def _completed(points: FloatArray, labels: IntArray) -> Found:
    """Noise gets the nearest cluster's label, and is an outlier beyond 1, as in fleetcut."""
    if (labels < 0).all():
        return np.zeros(len(labels), dtype=np.int64), np.ones(len(labels), dtype=bool)
    return with_nearest(points, labels)


def _method(name: str) -> Callable[[FloatArray], Found]:
    if name.startswith("DBSCAN"):
        return lambda median_ms: dbscan(median_ms, float(name.rpartition(" ")[2]))
    return {"fleetcut": fleetcut, "HDBSCAN": hdbscan}[name]


def _work(folder: str, name: str, out: Connection) -> None:
    """In a process of its own: what the method found, how long it took, how much memory."""
    median_ms = np.load(f"{folder}/median_ms.npy")
    if name != "fleetcut":
        resource.setrlimit(resource.RLIMIT_AS, (PEER_MEMORY_GB * 2**30,) * 2)
    started = time.perf_counter()
    try:
        labels, outlier = _method(name)(median_ms)
    except MemoryError:
        gc.collect()
        out.send(f"out of memory at {PEER_MEMORY_GB} GB")
        return
    seconds = time.perf_counter() - started
    np.savez(f"{folder}/found.npz", labels=labels, outlier=outlier)
    # Not ru_maxrss: that one remembers the parent's size through fork and exec.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak_kb = next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmHWM"))
    out.send((seconds, peak_kb * 1024 / 1e9))


def measured(
    name: str, median_ms: FloatArray, truth: IntArray, seed: int, limit_s: float
) -> dict[str, Any]:
    """One row; where a method does not finish, its figures are None and status says why."""
    row: dict[str, Any] = {
        "fleet": "simulated", "boards": len(truth), "seed": seed, "method": name, "seconds": None,
        "peak_rss_gb": None, "ari": None, "clusters": None, "outlier_recall": None,
        "outlier_precision": None, "status": "finished",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-") as folder:
        np.save(f"{folder}/median_ms.npy", median_ms)
        spawn = multiprocessing.get_context("spawn")
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_work, args=(folder, name, sender))
        process.start()
        sender.close()
        answer: Any = f"not within {limit_s:g} s"
        if receiver.poll(limit_s):
            try:
                answer = receiver.recv()
            except EOFError:
                answer = "died"
        else:
            process.kill()
        process.join()
        if isinstance(answer, str):
            return row | {"status": answer}
        with np.load(f"{folder}/found.npz") as found:
            labels, outlier = found["labels"], found["outlier"]
    usual = truth >= 0
    row["seconds"], row["peak_rss_gb"] = answer
    row["ari"] = float(adjusted_rand_score(truth[usual], labels[usual]))
    row["clusters"] = len(np.unique(labels))
    row["outlier_recall"] = float(outlier[~usual].mean())
    row["outlier_precision"] = float((~usual)[outlier].mean()) if outlier.any() else None
    print(row, file=sys.stderr, flush=True)
    return row


def main() -> int:
    asked = arguments(__doc__)
    limit_s = QUICK_TIME_LIMIT_S if asked.quick else TIME_LIMIT_S
    rows: list[dict[str, Any]] = []
    peers = [*(f"DBSCAN eps {eps}" for eps in EPS), "HDBSCAN"]
    for n_boards in (10_000, 100_000) if asked.quick else (10_000, 100_000, 1_000_000):
        for seed in range(1 if asked.quick else 3):
            median_ms, truth = simulated(n_boards, seed)
            names = ["fleetcut", *(peers if seed == 0 and n_boards <= 100_000 else [])]
            found = [measured(name, median_ms, truth, seed, limit_s) for name in names]
            if seed == 0 and n_boards == 10_000:
                best = max(found[1 : 1 + len(EPS)], key=lambda row: row["ari"] or 0.0)
                peers = [best["method"], "HDBSCAN"]
            rows += found
    bars = []
    for n_boards in sorted({row["boards"] for row in rows} - {10_000}):
        ours = [r for r in rows if r["boards"] == n_boards and r["method"] == "fleetcut"]
        what = f"{n_boards} simulated boards"
        worst = min(row["ari"] or 0.0 for row in ours)
        bars.append(Bar(f"{what}: ARI without outliers, worst seed", worst, ">=", 0.95))
        if n_boards == 1_000_000:
            slowest = max(row["seconds"] or math.inf for row in ours)
            largest = max(row["peak_rss_gb"] or math.inf for row in ours)
            bars.append(Bar(f"{what}: seconds, slowest seed", slowest, "<=", 60))
            bars.append(Bar(f"{what}: peak RSS in GB, largest seed", largest, "<=", 2))
    return finish("clustering", rows, bars, asked.json)


if __name__ == "__main__":
    sys.exit(main())
