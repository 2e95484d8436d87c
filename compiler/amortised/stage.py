"""The compilation's way to a shape without a search: a Designer learned once, its answers checked.

Input: what earlier stages measured, and the dense network's proxy accuracy. Output: a Designer in
the work folder; the fleet's shape, or None where its answers fall short and a search must do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compiler.amortised.designer import Designer
from compiler.amortised.device import device_features
from compiler.amortised.optimizer import Effort
from compiler.amortised.predictor import KnownDevices, known_devices
from compiler.amortised.shapes import ShapeCosts
from compiler.amortised.teaching import Budget, teach
from compiler.dataset import Runs, lower_median
from compiler.fine_tuning import Found, Observe
from compiler.fleet import Fleet
from compiler.loading import load_splits
from compiler.pruning.judge import Accuracy, as_widths
from compiler.pruning.objectives import Objective
from compiler.pruning.widths import PruneSpace, Widths
from compiler.recipe import Recipe
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

    def designed(accuracy: Accuracy, objective: Objective, max_drop: float) -> Found | None:
        folder = work.designer(fleet.space.network)
        if not (folder / "designer.json").exists():
            known = _known(recipe, fleet.space, widths_by_model, runs, representatives)
            n_classes = 1 + int(load_splits(recipe, fleet.space.network).train_y.max())
            budget = Budget(recipe.search.max_accuracy_evaluations, max_drop, n_classes)
            effort = Effort(boards=recipe.amortised.boards, steps=recipe.amortised.steps)
            teach(fleet.space, known, accuracy, budget, effort, recipe.seed, observe).save(folder)
        found = fleet_shape(Designer.load(folder), fleet, objective, accuracy, max_drop)
        if found is None:
            title = f"design {fleet.space.network}"
            observe(title, 0, 1, "no design keeps the accuracy: searching")
        return found

    return designed


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


def fleet_shape(
    designer: Designer, fleet: Fleet, objective: Objective, accuracy: Accuracy, max_drop: float
) -> Found | None:
    """The best shape for the whole fleet among what the designer answers for its representatives.

    By the surrogates' latency and the objective; of the best CHECKED the first whose proxy
    accuracy, asked in truth, is within max_drop of the dense network's. None where none is.
    """
    dense_accuracy = accuracy(fleet.space.dense_widths)
    answers = [designer.candidates(device.vector()) for device in designer.known.devices]
    rows = np.unique(np.concatenate([*answers, np.array(list(designer.judged))]), axis=0)
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
