"""The compilation's way to a shape without a search: a Designer learned once, its answers checked.

Input: what earlier stages measured, and the dense network's proxy accuracy. Output: a Designer in
the work folder; the fleet's shape, or None where its answers fall short and a search must do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.amortised.accuracy import AccuracyModel, fit_accuracy
from compiler.amortised.designer import Designer
from compiler.amortised.device import device_features
from compiler.amortised.optimizer import Effort, Watch
from compiler.amortised.predictor import KnownDevices, known_devices
from compiler.amortised.shapes import ShapeCosts
from compiler.amortised.spread import Spread
from compiler.dataset import Runs, lower_median
from compiler.fine_tuning import Found, Observe
from compiler.fleet import Fleet
from compiler.loading import load_splits
from compiler.pruning.judge import Accuracy, as_widths
from compiler.pruning.objectives import Objective
from compiler.pruning.widths import PruneSpace, Widths
from compiler.recipe import Recipe
from compiler.sampling import sample_widths
from compiler.shrink import Shortcut
from compiler.work import WorkFolder

CHECKED = 8
"""Designs whose proxy accuracy is judged in truth, the fastest first, before a search is used."""


def shortcut(
    work: WorkFolder,
    recipe: Recipe,
    fleet: Fleet,
    widths_by_model: Mapping[str, Widths],
    runs: Runs,
    representatives: Sequence[str],
    observe: Observe,
) -> Shortcut:
    """What shrink asks instead of a search; the designer is learned when it is first asked.

    runs: of anchors and of the shapes of widths_by_model, on the representatives.
    """
    title = f"design {fleet.space.network}"

    def designed(accuracy: Accuracy, objective: Objective, max_drop: float) -> Found | None:
        folder = work.designer(fleet.space.network)
        if not (folder / "designer.json").exists():
            model = _accuracy_model(recipe, fleet.space, accuracy, observe)
            known = _known(recipe, fleet.space, widths_by_model, runs, representatives)
            designer = Designer(fleet.space, known, model, Spread())
            effort = Effort(boards=recipe.amortised.boards, steps=recipe.amortised.steps)
            designer.train(effort, recipe.seed, _watching(title, observe)).save(folder)
        found = fleet_shape(Designer.load(folder), fleet, objective, accuracy, max_drop)
        if found is None:
            observe(title, 0, 1, "no design keeps the accuracy: searching")
        return found

    return designed


def _accuracy_model(
    recipe: Recipe, space: PruneSpace, accuracy: Accuracy, observe: Observe
) -> AccuracyModel:
    """From as many judged shapes as one search may judge, but once for all boards to come."""
    shapes = sample_widths(space, recipe.search.max_accuracy_evaluations, recipe.seed)
    judged = []
    for number, widths in enumerate(shapes, start=1):
        judged.append(accuracy(widths))
        observe(f"judge shapes of {space.network}", number, len(shapes), f"{judged[-1]:.1%}")
    n_classes = 1 + int(load_splits(recipe, space.network).train_y.max())
    dense = accuracy(space.dense_widths)
    return fit_accuracy(space, shapes, judged, dense, n_classes, recipe.seed)


def _known(
    recipe: Recipe,
    space: PruneSpace,
    widths_by_model: Mapping[str, Widths],
    runs: Runs,
    representatives: Sequence[str],
) -> KnownDevices:
    devices = [device_features(runs, board, recipe.runtime) for board in representatives]
    measured = [_measured(runs, board, widths_by_model) for board in representatives]
    widths, ms = zip(*measured, strict=True)
    return known_devices(ShapeCosts(space), devices, widths, ms)


def _watching(title: str, observe: Observe) -> Watch:
    def watch(done: int, total: int, loss: float) -> None:
        if done % 100 == 0 or done == total:
            observe(title, done, total, f"loss {loss:.4g}")

    return watch


def fleet_shape(
    designer: Designer, fleet: Fleet, objective: Objective, accuracy: Accuracy, max_drop: float
) -> Found | None:
    """The best shape for the whole fleet among what the designer answers for its representatives.

    By the surrogates' latency and the objective; of the best CHECKED the first whose proxy
    accuracy, asked in truth, is within max_drop of the dense network's. None where none is.
    """
    dense_accuracy = accuracy(fleet.space.dense_widths)
    rows = np.unique(
        np.concatenate([designer.candidates(device) for device in designer.known.devices]), axis=0
    )
    ms, _ = fleet.latency()(rows)
    value = objective.value(ms)
    least = dense_accuracy - max_drop
    fits = np.isfinite(value) & (designer.accuracy_of(rows) >= least)
    order = [place for place in np.argsort(value, kind="stable") if fits[place]]
    for tried, place in enumerate(order[:CHECKED], start=1):
        widths = as_widths(rows[place])
        found = accuracy(widths)
        if found >= least:
            return Found(
                widths,
                {
                    "proxy_accuracy": found,
                    "n_latency_evaluations": len(rows),
                    "n_accuracy_evaluations": tried + 1,
                    "history": [
                        {"evaluations": tried + 1, "best_ms": float(objective.mean_ms(ms)[place])}
                    ],
                },
            )
    return None


def _measured(
    runs: Runs, board: str, widths_by_model: Mapping[str, Widths]
) -> tuple[list[Widths], NDArray[np.float64]]:
    """Shapes that this board ran, and the lower median of each in ms."""
    p50s: dict[Widths, list[float]] = {}
    for run in runs.runs:
        if run.board_id == board and run.model_sha256 in widths_by_model:
            p50s.setdefault(widths_by_model[run.model_sha256], []).append(run.p50_ms)
    return list(p50s), np.array([lower_median(ms) for ms in p50s.values()])
