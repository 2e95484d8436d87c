"""Designs in milliseconds for boards that were never searched for, beside a full search for each.

    python -m benchmarks.amortised [--quick] [--work DIR] --json OUT

Input: nothing; virtual boards are started and measured over SSH, and a network is trained on the
built-in digits. Output: for every board that the designer never saw, 50 simulated around the
measured ones and the held-out measured ones, time and latency of its design and of a search, at
one bound of the same proxy accuracy. A measured board's surrogate is what its search minimises and
what its design's candidates are scored by. Measurements stay in --work: a killed run goes on there.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import amortised_boards
from benchmarks.amortised_boards import KNOWN, Measured
from benchmarks.result import Bar, finish, parser
from benchmarks.surrogate_boards import Effort as Shapes
from benchmarks.surrogate_contenders import SEED
from compiler.amortised.designer import Designer, FallsShortError
from compiler.amortised.device import DeviceFeatures
from compiler.amortised.optimizer import Effort
from compiler.amortised.predictor import known_devices, pair_ms
from compiler.amortised.shapes import ShapeCosts
from compiler.amortised.spread import Spread, simulate
from compiler.amortised.teaching import Budget, teach
from compiler.dataset import Dataset
from compiler.dense import train_dense
from compiler.errors import CompilerError
from compiler.features import feature_names, physics_features
from compiler.fine_tuning import Job
from compiler.loading import load_dense, load_splits
from compiler.pruning.judge import Accuracy
from compiler.pruning.search import SearchSettings, search
from compiler.pruning.widths import PruneSpace, Widths
from compiler.recipe import Training
from compiler.shrink import proxy_accuracy
from compiler.surrogates import LatencySurrogate
from compiler.work import WorkFolder
from harness.errors import HarnessError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Row = dict[str, Any]

SIMULATED = "simulated around measured boards"
MEASURED = "virtual boards: real execution over SSH, simulated clocks"

MAX_DROP = 0.1
"""Of the proxy's accuracy, allowed to designs and searches alike."""
N_CLASSES = 10

MOST_MS = 100.0
MOST_SLOWER = 1.03
LEAST_TIMES_FASTER = 1000.0
LEAST_SHARE = 1.0


@dataclass(frozen=True)
class Size:
    """How much. judged: shapes for the designer. search: of every board."""

    shapes: Shapes
    dense: Training
    boards: int
    judged: int
    teaching: Effort
    search: SearchSettings


FULL = Size(
    shapes=Shapes(("digits_mobilenet",), (120,), held_out=12, repeats=2),
    dense=Training(epochs=12),
    boards=50,
    judged=600,
    teaching=Effort(),
    search=SearchSettings(max_accuracy_drop=MAX_DROP, generations=60, max_accuracy_evaluations=120),
)
"""Of search what a recipe has where it says nothing."""
QUICK = Size(
    shapes=Shapes(("digits_resnet",), (24,), held_out=2, repeats=1),
    dense=Training(epochs=2),
    boards=3,
    judged=60,
    teaching=Effort(boards=256, steps=300),
    search=SearchSettings(max_accuracy_drop=MAX_DROP, generations=10, max_accuracy_evaluations=30),
)


class TimedAccuracy:
    """A proxy accuracy with a memory, which charges each shape's time to whoever asks for it.

    So a search that meets a shape judged for another board still pays what judging it took.
    """

    def __init__(self, accuracy: Accuracy) -> None:
        self._accuracy = accuracy
        self._known: dict[Widths, tuple[float, float]] = {}
        self.saved_s = 0.0

    def __call__(self, widths: Widths) -> float:
        if widths in self._known:
            value, seconds = self._known[widths]
            self.saved_s += seconds
            return value
        start = time.perf_counter()
        value = self._accuracy(widths)
        self._known[widths] = (value, time.perf_counter() - start)
        return value


@dataclass(frozen=True)
class Board:
    """One that the designer never saw. truth_ms: widths (n, n_groups) → ms (n,), which the search
    minimises. surrogate: whether that is a surrogate of what was measured there: then answers are
    scored by it again, as the search's are. A simulated board has nothing but its features.
    """

    device: DeviceFeatures
    fleet: str
    truth_ms: Callable[[IntArray], FloatArray]
    surrogate: bool = False


def designed(designer: Designer, board: Board, accuracy: TimedAccuracy, size: Size) -> Row:
    """One board's row: its design and its search, or why there is no design.

    unscored_over_search: of the design by its features alone, where it was scored again.
    """
    dense_accuracy = accuracy(designer.space.dense_widths)
    least = dense_accuracy - MAX_DROP
    row: Row = {"fleet": board.fleet, "board": board.device.name}
    start = time.perf_counter()
    try:
        rescore = board.truth_ms if board.surrogate else None
        widths: Widths | None = designer.fastest(board.device, least, rescore).widths
        why = ""
    except FallsShortError as error:
        widths, why = None, str(error)
    row["design_ms"] = (time.perf_counter() - start) * 1e3
    saved_s, start = accuracy.saved_s, time.perf_counter()
    found = search(
        designer.space,
        lambda rows: (board.truth_ms(rows), np.zeros(len(rows))),
        accuracy,
        settings=size.search,
        seed=SEED,
    )
    row["search_s"] = time.perf_counter() - start + accuracy.saved_s - saved_s
    row["dense_ms"], row["search_ms"] = found.dense_ms, found.predicted_ms
    row["search_accuracy"] = found.accuracy
    # A design that falls short is a search: its time and its latency.
    chosen = widths or found.widths
    row["designed_ms"] = float(board.truth_ms(np.asarray([chosen]))[0])
    row["over_search"] = row["designed_ms"] / found.predicted_ms
    if board.surrogate and widths is not None:
        alone = designer.fastest(board.device, least).widths
        alone_ms = float(board.truth_ms(np.asarray([alone]))[0])
        row["unscored_over_search"] = alone_ms / found.predicted_ms
    row["design_accuracy"] = accuracy(chosen)
    row["least_accuracy"] = least
    row["falls_short"] = why
    return row


def bars(rows: Sequence[Row], n_unseen: int) -> list[Bar]:
    simulated = [row for row in rows if row["fleet"] == SIMULATED]
    held_out = [row for row in rows if row["fleet"] == MEASURED]
    designs = [row for row in rows if not row["falls_short"]]
    kept = [row for row in designs if row["design_accuracy"] >= row["least_accuracy"]]
    times = mean(row["search_s"] for row in rows) * 1e3 / mean(row["design_ms"] for row in rows)

    def fleet_ratio(of: Sequence[Row]) -> float:
        return float(sum(r["designed_ms"] for r in of) / sum(r["search_ms"] for r in of))

    return [
        Bar("boards never seen in training", len(rows), ">=", n_unseen),
        Bar("time for a design, the slowest, ms", max(r["design_ms"] for r in rows), "<=", MOST_MS),
        Bar(
            f"fleet latency of the designs over that of a search for every board, {len(simulated)} "
            "simulated boards",
            fleet_ratio(simulated), "<=", MOST_SLOWER,
        ),
        *(
            Bar(
                f"{row['board']}, measured: its design over its search",
                row["over_search"], "<=", MOST_SLOWER,
            )
            for row in held_out
        ),
        Bar("time of a search over that of a design, means", times, ">=", LEAST_TIMES_FASTER),
        Bar(
            f"designs that keep the search's bound of proxy accuracy ({len(rows) - len(designs)} "
            f"boards fell short; median accuracy of designs "
            f"{median(r['design_accuracy'] for r in rows):.4f}, of searches "
            f"{median(r['search_accuracy'] for r in rows):.4f})",
            len(kept) / len(rows), ">=", LEAST_SHARE,
        ),
    ]  # fmt: skip


def rows_of(folder: Path, size: Size) -> list[Row]:
    """Raises HarnessError and CompilerError."""
    boards = amortised_boards.measured(folder, size.shapes)
    space, accuracy = _trained(folder / "dense", size)
    known = boards[: len(KNOWN)]
    shapes = ShapeCosts(space)
    learned = known_devices(
        shapes, [b.device for b in known], [b.widths for b in known], [b.ms for b in known]
    )
    budget = Budget(size.judged, MAX_DROP, N_CLASSES)
    start = time.perf_counter()
    designer = teach(space, learned, accuracy, budget, size.teaching, SEED, _tell)
    print(f"taught in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    vectors, costs = simulate(learned, Spread(), size.boards, SEED + 1000)
    unseen = [
        Board(
            amortised_boards.simulated(known[0].device, f"simulated-{i:02d}", vectors[i].numpy()),
            SIMULATED,
            _of_costs(shapes, costs[i : i + 1]),
        )
        for i in range(size.boards)
    ]
    unseen += [
        Board(board.device, MEASURED, _of_surrogate(space, board), surrogate=True)
        for board in boards[len(KNOWN) :]
    ]
    designer.fastest(known[0].device, 0.0)  # the first call of anything in torch is slow
    rows = []
    for board in unseen:
        rows.append(designed(designer, board, accuracy, size))
        _tell("boards", len(rows), len(unseen), f"{rows[-1]['over_search']:.3f}")
    return rows


def _trained(folder: Path, size: Size) -> tuple[PruneSpace, TimedAccuracy]:
    recipe = size.shapes.recipe().model_copy(update={"training": size.dense})
    work = WorkFolder(folder, recipe)
    (name,) = recipe.networks
    train_dense(work, recipe, name, _tell)
    dense = load_dense(work, recipe, name)
    job = Job(dense, load_splits(recipe, name), recipe, _tell, folder)
    return dense.space, TimedAccuracy(proxy_accuracy(job))


def _of_costs(shapes: ShapeCosts, costs: torch.Tensor) -> Callable[[IntArray], FloatArray]:
    def truth_ms(widths: IntArray) -> FloatArray:
        return np.asarray(pair_ms(costs, shapes.exact(torch.tensor(widths))).numpy())

    return truth_ms


def _of_surrogate(space: PruneSpace, board: Measured) -> Callable[[IntArray], FloatArray]:
    """The held-out board's own surrogate, from shapes that the designer never saw."""
    names = feature_names(space)
    ids = (board.device.name,) * len(board.ms)
    surrogate = LatencySurrogate(seed=SEED).fit(
        Dataset(board.shapes.x, board.ms, ids, names, "measured by this benchmark")
    )

    def truth_ms(widths: IntArray) -> FloatArray:
        x = physics_features(space, widths)
        median_ms, _, _ = surrogate.predict(x, extrapolate=True)
        return np.where(surrogate.in_domain(x), median_ms, np.inf)

    return truth_ms


def _tell(title: str, done: int, total: int, last: str) -> None:
    print(f"{title}: {done}/{total} {last}", file=sys.stderr, flush=True)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--work", type=Path, metavar="DIR", help="keep measurements here")
    asked = options.parse_args()
    size = QUICK if asked.quick else FULL
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-") as temporary:
        folder = (asked.work or Path(temporary)) / ("quick" if asked.quick else "full")
        try:
            rows = rows_of(folder, size)
        except (CompilerError, HarnessError) as error:
            print(f"benchmarks.amortised: {error}", file=sys.stderr)
            return 2
    return finish("amortised", rows, bars(rows, size.boards), asked.json)


if __name__ == "__main__":
    sys.exit(main())
