"""Reports made up for the tests of the page, and the text of a page.

Input: a seed inside, a number of boards. Output: Report, its HTML, its words.
"""

from __future__ import annotations

import functools
import math
import random
from html.parser import HTMLParser

from harness import report_page
from harness.report import (
    ArtifactReport,
    BoardLatency,
    BoardReport,
    Failure,
    HeldOutPoint,
    LatencyPoint,
    Network,
    Proof,
    Provenance,
    Report,
    SearchPoint,
    StatePoint,
    Summary,
    SurrogateFit,
    Timeline,
    WidthGroup,
)

PROVENANCE = Provenance(
    "0.1.0", "x86_64, 2 cores, Linux 6.1", 7, "2025-11-21T02:55:00+00:00", 312.4
)
SPEED = {"A": 0.78, "B": 1.0, "C": 1.62}
CLUSTER_OF = ("A", "A", "B", "B", "C", "C")
DENSE_MS = {"mobilenet_digits": 3.31, "resnet_digits": 4.92}
PRUNED_MS = {"mobilenet_digits": 1.42, "resnet_digits": 1.84}
WIDTHS = {
    "mobilenet_digits": (
        ("stem", 32),
        *((f"block{i}.pointwise", 64 * 2 ** (i // 2)) for i in range(8)),
    ),
    "resnet_digits": (
        ("stem", 16),
        *((f"layer{i}.inner", 16 * i) for i in (1, 2, 3)),
        ("layer3.trunk", 64),
    ),
}


def sample_boards(rng: random.Random, n_boards: int) -> tuple[BoardReport, ...]:
    boards = []
    for i in range(n_boards):
        cluster = CLUSTER_OF[i % 6]
        scale = SPEED[cluster] * rng.uniform(0.97, 1.03)
        latencies = []
        for name, dense in DENSE_MS.items():
            d, p = dense * scale, PRUNED_MS[name] * scale * rng.uniform(0.95, 1.05)
            predicted = p * rng.uniform(0.95, 1.05)
            d_ci, p_ci = (d * 0.985, d * 1.02), (p * 0.97, p * 1.04)
            latencies.append(BoardLatency(name, d, d_ci, p, p_ci, predicted, d / p))
        board = BoardReport(
            board_id=f"board-{i + 1:02}",
            model=("Raspberry Pi 4B (virtual)", "Jetson Nano (virtual)")[cluster == "C"],
            cluster=cluster,
            planted={"A": "cool", "B": "slow memory", "C": "throttling"}[cluster],
            representative=i < 6 and i % 2 == 0,
            outlier=i == 5,
            anchor_ratio=scale,
            latencies=tuple(latencies),
        )
        boards.append(board)
    return tuple(boards)


def sample_network(rng: random.Random, name: str) -> Network:
    dense, pruned = DENSE_MS[name], PRUNED_MS[name]
    fits = []
    for cluster, speed in SPEED.items():
        points = []
        for _ in range(24):
            ms = rng.uniform(pruned, dense) * speed
            predicted = ms * rng.gauss(1, 0.04)
            points.append(HeldOutPoint(ms, predicted, predicted * 0.92, predicted * 1.08))
        fits.append(SurrogateFit(cluster, "ridge", 96, 24, rng.uniform(0.03, 0.06), tuple(points)))
    history, best = [], dense * 0.9
    for step in range(30):
        best = max(pruned * 1.11, best * rng.uniform(0.93, 1.0))
        history.append(SearchPoint(64 * (step + 1), best))
    groups = tuple(
        WidthGroup(group, width, max(4, int(width * rng.uniform(0.25, 0.75)) // 4 * 4))
        for group, width in WIDTHS[name]
    )
    return Network(
        name=name,
        accuracy_dense=0.986,
        accuracy_pruned=0.983,
        macs_dense=12_345_678,
        macs_pruned=4_012_345,
        dense_mean_ms=dense * 1.13,
        pruned_mean_ms=pruned * 1.13,
        predicted_mean_ms=pruned * 1.11,
        speedup=dense / pruned,
        uniform_predicted_ms=pruned * 1.4,
        groups=groups,
        surrogates=tuple(fits),
        search_history=tuple(history),
    )


def sample_timeline(rng: random.Random, board_id: str, hot: bool) -> Timeline:
    states, latencies = [], []
    for i in range(60):
        t_s = 4.0 * i
        temp_c = 42 + (26 if hot else 12) * (1 - math.exp(-i / 15)) + rng.gauss(0, 0.4)
        throttled = temp_c > 64
        clock_mhz = 1100.0 if throttled else 1500.0
        battery = 98 - i * 0.3 if hot else None
        states.append(StatePoint(t_s, temp_c, 1500.0, clock_mhz * rng.gauss(0.995, 0.003), battery))
        ms = (3.3 if i % 2 else 1.9) * (1500 / clock_mhz) * rng.lognormvariate(0, 0.03)
        latencies.append(LatencyPoint(t_s + 1, ms, "mobilenet" if i % 2 else "anchor-conv"))
    return Timeline(board_id, tuple(states), tuple(latencies))


def sample_artifacts(rng: random.Random) -> tuple[ArtifactReport, ...]:
    artifacts = []
    for network in DENSE_MS:
        for kind, target in (("onnx", "ort"), ("tflite", "litert"), ("executable", "native")):
            refused = network == "resnet_digits" and kind == "tflite"
            proofs = tuple(
                Proof(
                    board_id=f"board-{2 * i + 1:02}",
                    cluster=cluster,
                    passed=not (refused and cluster == "C"),
                    measured_ms=PRUNED_MS[network] * SPEED[cluster],
                    predicted_ms=PRUNED_MS[network] * SPEED[cluster] * rng.uniform(0.95, 1.05),
                    max_abs_err=0.031 if refused and cluster == "C" else 1.4e-6,
                    reason="differs from golden by 0.031" if refused and cluster == "C" else None,
                )
                for i, cluster in enumerate(SPEED)
            )
            state = "refused" if refused else "released"
            digest = f"{rng.getrandbits(256):064x}"
            name = f"x86_64-linux-{target}-fp32"
            artifacts.append(
                ArtifactReport(
                    *(digest, network, kind, name, state, 184_320, 9.5e-7, proofs),
                    precision="int8" if kind == "tflite" else "fp32",
                    accuracy=0.978,
                    recommended_ms=(("A", 1.31), ("B", 2.04)) if kind == "executable" else (),
                )
            )
    return tuple(artifacts)


def sample_report(n_boards: int = 6, simulated: bool = True) -> Report:
    """Six boards, three clusters, two networks, six artifacts, as the demo makes them."""
    rng = random.Random(0)
    boards = sample_boards(rng, n_boards)
    summary = Summary(n_boards, 3, 3, 0.043, 4.65, 1.84, 2.53, 1.81, 0.986, 0.983)
    return Report(
        title="fleetcut demo on an embedded rack",
        simulated=simulated,
        provenance=PROVENANCE,
        summary=summary,
        networks=tuple(sample_network(rng, name) for name in DENSE_MS),
        boards=boards,
        artifacts=sample_artifacts(rng),
        timelines=tuple(sample_timeline(rng, b.board_id, b.cluster == "C") for b in boards),
        failures=(
            Failure("board-05", "2 of 140 runs timed out after 60 s", "fleetcut check board-05"),
        ),
        notes=("Anchors were measured at 40 to 70 °C.",),
    )


def small_report(title: str) -> Report:
    network = Network("net", groups=(WidthGroup("g", 8, 4),))
    return Report(title, False, PROVENANCE, Summary(1, 1), networks=(network,))


class Elements(HTMLParser):
    """The page's tags, attributes and text, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def rendered(report: Report) -> str:
    return report_page.render_page(report)


@functools.cache
def sample_page(n_boards: int, simulated: bool) -> str:
    return rendered(sample_report(n_boards, simulated))
