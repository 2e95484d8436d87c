"""What earlier stages left in the work folder, as objects.

Input: a WorkFolder, its recipe and a network's name. Output: pictures, networks, spaces, runs.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from compiler import data, networks, weights
from compiler.dataset import Runs, read_runs
from compiler.features import physics_features
from compiler.fine_tuning import Dense
from compiler.proposals import Proposal
from compiler.pruning.widths import PruneSpace, PruningPlan
from compiler.recipe import Recipe
from compiler.surrogates import LatencySurrogate
from compiler.work import WorkFolder, read_json


def measured(dataset: Path | None, *proposals: Proposal) -> Runs | None:
    """The proposals' runs together; None while the dataset lacks all of one of them."""
    if dataset is None or not (dataset / "dataset.json").exists():
        return None
    runs = read_runs(dataset)
    wanted = {proposal.campaign_id for proposal in proposals}
    if not wanted <= {run.campaign_id for run in runs.runs}:
        return None
    return runs.select(campaign_ids=sorted(wanted))


def load_splits(recipe: Recipe, name: str) -> data.Splits:
    return data.load(recipe.dataset, recipe.seed, networks.input_shape(name))


def load_dense(work: WorkFolder, recipe: Recipe, name: str) -> Dense:
    network = networks.build(name, recipe.seed)
    network.load_state_dict(weights.load(work.dense_weights(name)))
    network.eval()
    return Dense(network, load_space(work, name), read_json(work.dense_facts(name))["val_accuracy"])


def load_space(work: WorkFolder, name: str) -> PruneSpace:
    return PruneSpace.from_json(work.space(name).read_text(encoding="utf-8"))


def predicted_intervals(
    work: WorkFolder, name: str, plan: PruningPlan
) -> tuple[tuple[str, float, float], ...]:
    """(cluster label, lower, upper) of the planned shape in ms: the surrogates' 90 % intervals."""
    space = load_space(work, name)
    x = physics_features(space, [list(plan.widths(space))])
    intervals = []
    for label, _ in plan.predicted_ms_by_cluster:
        text = work.surrogate(name, label).read_text(encoding="utf-8")
        _, lower_ms, upper_ms = LatencySurrogate.from_json(text).predict(x, extrapolate=True)
        intervals.append((label, float(lower_ms[0]), float(upper_ms[0])))
    return tuple(intervals)


def slug(name: str) -> str:
    """A network's name as part of a file's: a user's own has the form module:factory."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def example(input_shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(1, *input_shape)
