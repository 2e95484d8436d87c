"""Latencies of sampled shapes, measured over SSH on virtual boards at several clocks.

Input: a work folder and how much to measure. Output: for each board and network the shapes to
learn from and to judge. Execution is real; the boards' clocks are simulated. What was measured
stays in the work folder: a killed run goes on there, a finished one is only read.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.surrogate_contenders import SEED, Shapes
from compiler import networks
from compiler.dataset import Runs, make_dataset, read_runs
from compiler.features import feature_names, physics_features, total_macs
from compiler.proposals import ProposedModel, has_proposal, load_proposal, propose
from compiler.pruning.groups import trace
from compiler.pruning.surgery import materialise
from compiler.pruning.widths import PruneSpace, Widths
from compiler.recipe import Measuring, Recipe, RecipeTarget
from compiler.sampling import sample_widths
from compiler.targets.candidates import candidate
from compiler.work import WorkFolder, write_text
from fleetcut import verbs
from fleetcut.console import Console
from harness.campaign import load_campaign
from harness.executor import Work
from harness.export import export
from harness.inventory import load_inventory
from harness.store import Store
from harness.virtual import rack
from harness.virtual.spec import SLOW_BIN, RackSpec, VirtualBoardSpec

FLEET = "virtual boards: real execution over SSH, simulated clocks"

BOARDS = RackSpec(
    boards=(
        VirtualBoardSpec("full-clock-1500"),
        VirtualBoardSpec("powersave-600", governor="powersave"),
        VirtualBoardSpec(
            "slow-bin-1000",
            behaviour=SLOW_BIN,
            freqs_khz=(600_000, 750_000, 1_000_000),
            speed_fraction=0.78,
            base_stretch=1.02 * 1.5,
        ),
    ),
    seed=SEED,
)
"""At the host's own speed, and about 2.5 and 2.0 times slower."""

WIDTH_STEP = 8

TRIES = 3
"""Of a run that does not count, as the compiler's own pipeline has it."""

CORNERS = 2
"""sample_widths begins with the dense and the smallest shape."""


@dataclass(frozen=True)
class Effort:
    """How much is measured of each network on each board.

    sizes: points of the learning curve, ascending; the last is how many shapes are sampled.
    runtime: ort or tflite.
    """

    networks: tuple[str, ...]
    sizes: tuple[int, ...]
    held_out: int
    repeats: int
    runtime: Literal["ort", "tflite"] = "ort"

    def recipe(self) -> Recipe:
        """What the work folder is bound to, and how long each run goes on."""
        machine = platform.machine()
        return Recipe(
            version=1,
            name="surrogate",
            networks=self.networks,
            seed=SEED,
            width_step=WIDTH_STEP,
            runtime=self.runtime,
            measuring=Measuring(
                samples=self.sizes[-1] + self.held_out,
                held_out=self.held_out,
                sample_repeats=self.repeats,
                samples_max=400,
                max_seconds=0.15,
            ),
            targets=(RecipeTarget(kind="onnx", name=machine, machine=machine),),
        )


@dataclass(frozen=True)
class Measured:
    """One network on one board. train begins with the corners, where they were measured.

    repeat_difference: median relative difference of two runs of one held-out shape: no prediction
    can be better than about that. None where each was measured once.
    """

    board: str
    network: str
    train: Shapes
    judged: Shapes
    repeat_difference: float | None


def random_widths(
    space: PruneSpace, n: int, seed: int, without: frozenset[Widths]
) -> tuple[Widths, ...]:
    """Distinct legal shapes drawn at random, not with the sampler, and none of ``without``.

    Each group's width is uniform over its legal widths up to a share of them. Of every two shapes
    one has the share 1, the other a share drawn from 0..1, so that small networks occur as well.
    """
    rng = np.random.default_rng([seed, n])
    sizes = np.array([len(legal) for legal in space.widths_by_group])
    drawn: dict[Widths, None] = {}
    while len(drawn) < n:
        share = 1.0 if len(drawn) % 2 == 0 else rng.uniform()
        chosen = rng.integers(0, np.maximum(1, np.ceil(share * sizes)).astype(np.int64))
        widths = tuple(
            legal[position] for legal, position in zip(space.widths_by_group, chosen, strict=True)
        )
        if widths not in without:
            drawn[widths] = None
    return tuple(drawn)


def measured(folder: Path, effort: Effort, spec: RackSpec = BOARDS) -> list[Measured]:
    """Every board and network, measured now or read from the folder. Raises HarnessError."""
    recipe = effort.recipe()
    work = WorkFolder(folder, recipe)
    spaces = {name: _space(work, name, recipe) for name in effort.networks}
    if not has_proposal(work, "samples"):
        _propose(work, recipe, spaces, spec)
    proposal = load_proposal(work, "samples")
    dataset = folder / "dataset"
    if not (dataset / "dataset.json").exists():
        measure_campaign(folder, proposal.campaign_path, dataset, spec)
    runs = read_runs(dataset)
    return [
        _shapes(runs, proposal.facts_by_model, board.board_id, space)
        for board in spec.boards
        for space in spaces.values()
    ]


def _space(work: WorkFolder, name: str, recipe: Recipe) -> PruneSpace:
    path = work.space(name)
    if not path.exists():
        space = trace(
            networks.build(name, recipe.seed),
            networks.input_shape(name),
            name,
            width_step=WIDTH_STEP,
            min_fraction=recipe.min_width_fraction,
        )
        write_text(path, space.to_json())
    return PruneSpace.from_json(path.read_text(encoding="utf-8"))


def _propose(
    work: WorkFolder, recipe: Recipe, spaces: Mapping[str, PruneSpace], spec: RackSpec
) -> None:
    measuring = recipe.measuring
    models: list[ProposedModel] = []
    for name, space in spaces.items():
        train = sample_widths(space, measuring.samples - measuring.held_out, recipe.seed)
        judged = random_widths(space, measuring.held_out, recipe.seed, frozenset(train))
        for position, widths in enumerate((*train, *judged)):
            network = materialise(name, space, widths, recipe.seed)
            model = candidate(recipe.runtime, network, torch.zeros(1, *space.input_shape))
            facts = {
                "network": name,
                "widths": widths,
                "position": position,
                "held_out": position >= len(train),
            }
            models.append(ProposedModel(f"{name}-{position:03d}", model, facts))
    boards = [board.board_id for board in spec.boards]
    propose(work, recipe, "samples", models, boards=boards, repeats=measuring.sample_repeats)


def measure_campaign(folder: Path, campaign_path: Path, dataset: Path, spec: RackSpec) -> None:
    """Board after board, for two at a time would disturb each other on a small machine."""
    console = Console(json_mode=True)
    status = rack.up(folder / "rack", spec)
    store = Store(folder / "fleetcut.db")
    try:
        campaign = load_campaign(campaign_path, load_inventory(status.inventory))
        for board in campaign.boards:
            specs = tuple(s for s in campaign.specs if s.board_id == board.board_id)
            work = Work(
                campaign.campaign_id, (board,), specs, campaign.blobs(), campaign.model_names()
            )
            title = f"measure {len(specs)} runs on {board.board_id}"
            for outcome in verbs.run_work(console, store, work, title, tries=TRIES):
                if outcome.failure is not None:
                    raise outcome.failure
        export(store, dataset, [campaign.campaign_id])
    finally:
        store.close()
        rack.down(folder / "rack")


def _shapes(
    runs: Runs, facts_by_model: Mapping[str, Mapping[str, Any]], board: str, space: PruneSpace
) -> Measured:
    facts = {m: f for m, f in facts_by_model.items() if f["network"] == space.network}
    parts = []
    for held_out in (False, True):
        of_part = {m: f for m, f in facts.items() if f["held_out"] is held_out}
        # Of each model only its position goes through the dataset; all else follows from it.
        positions = {m: np.array([f["position"]], dtype=np.float64) for m, f in of_part.items()}
        data = make_dataset(runs, positions, ("position",), [board])
        widths_at = {f["position"]: space.check(f["widths"]) for f in of_part.values()}
        order = np.argsort(data.x[:, 0])
        widths = np.array([widths_at[int(data.x[row, 0])] for row in order], dtype=np.int64)
        parts.append(shapes_of(space, widths, data.y_ms[order]))
    judged = {m for m, f in facts.items() if f["held_out"]}
    difference = repeat_difference(runs, board, judged)
    return Measured(board, space.network, parts[0], parts[1], difference)


def shapes_of(space: PruneSpace, widths: NDArray[np.int64], ms: NDArray[np.float64]) -> Shapes:
    """What the contenders see of widths (n, n_groups) and ms (n,)."""
    return Shapes(
        macs=total_macs(space, widths),
        raw=widths.astype(np.float64),
        x=physics_features(space, widths),
        names=feature_names(space),
        ms=ms,
    )


def repeat_difference(runs: Runs, board: str, models: set[str]) -> float | None:
    """Median of abs(second / first - 1) over the models that this board measured twice."""
    by_model: dict[str, list[float]] = {}
    for run in sorted(runs.runs, key=lambda run: run.repeat):
        if run.board_id == board and run.model_sha256 in models:
            by_model.setdefault(run.model_sha256, []).append(run.p50_ms)
    apart = [abs(ms[1] / ms[0] - 1) for ms in by_model.values() if len(ms) > 1]
    return float(np.median(apart)) if apart else None
