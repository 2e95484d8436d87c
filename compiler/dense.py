"""The dense stage: a network trained, or started from a file, and traced for pruning.

Input: the recipe. Output: weights, their accuracy and the PruneSpace, in the work folder.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compiler import data, networks, weights
from compiler.errors import CompilerError
from compiler.fine_tuning import Observe, train_settings, watched
from compiler.loading import load_splits
from compiler.pruning.groups import trace
from compiler.recipe import Recipe
from compiler.targets.candidates import candidate
from compiler.training import evaluate, train
from compiler.work import WorkFolder, read_json, write_json, write_text


def train_dense(work: WorkFolder, recipe: Recipe, name: str, observe: Observe) -> None:
    if work.dense_facts(name).exists():
        return
    splits = load_splits(recipe, name)
    network = networks.build(name, recipe.seed)
    # Before it is trained: what cannot be pruned or measured is told at once.
    space = trace(
        network,
        networks.input_shape(name),
        name,
        width_step=recipe.width_step or 1,
        min_fraction=recipe.min_width_fraction,
    )
    candidate(recipe.runtime, network, splits.val_x[:1])
    _check_classes(network, splits, name)
    start = _start(recipe, name)
    file_sha256 = started_from = None
    if start is not None:
        file_sha256 = weights.file_sha256(start)
        weights.load_into(network, start, name)
        started_from = weights.sha256(network.state_dict())
    checkpoint = work.resume(name) / "dense.safetensors"
    if recipe.training.epochs:
        train(
            network,
            splits,
            train_settings(recipe.training, recipe.seed),
            *watched(recipe.training, observe, f"train {name}", checkpoint),
        )
    write_text(work.space(name), space.to_json())
    weights.save(network.state_dict(), work.dense_weights(name))
    facts = {
        "accuracy": evaluate(network, splits.test_x, splits.test_y),
        "val_accuracy": evaluate(network, splits.val_x, splits.val_y),
        "macs": space.macs(space.dense_widths),
        "weights_sha256": weights.sha256(network.state_dict()),
        "started_from_sha256": started_from,
        "weights_file_sha256": file_sha256,
    }
    write_json(work.dense_facts(name), facts)
    checkpoint.unlink(missing_ok=True)


def _start(recipe: Recipe, name: str) -> Path | None:
    path = recipe.weights.get(name)
    return None if path is None else Path(path).expanduser()


def check_start(work: WorkFolder, recipe: Recipe, name: str) -> None:
    """The recipe names a file, not its content: another content is another compilation.

    A file that is gone does no harm, for the dense stage has read it.
    """
    start = _start(recipe, name)
    if start is None or not start.exists() or not work.dense_facts(name).exists():
        return
    used = read_json(work.dense_facts(name)).get("weights_file_sha256")
    if used not in (None, weights.file_sha256(start)):
        raise CompilerError(
            f"{start}: changed since {work.root} was made from it. "
            "Next: put the old file back, or name another --work folder"
        )


def _check_classes(network: nn.Module, splits: data.Splits, name: str) -> None:
    with torch.inference_mode():
        answers = int(network(splits.val_x[:1]).shape[-1])
    classes = 1 + max(int(y.max()) for y in (splits.train_y, splits.val_y, splits.test_y))
    if classes > answers:
        raise CompilerError(
            f"{name}: tells {answers} classes apart, data set {splits.name} has {classes}. "
            "Next: choose another network, or your own as module:factory"
        )
