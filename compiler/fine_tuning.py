"""One attempt at a smaller network: the shape found, cut out, fine-tuned, and kept on disk.

Input: a network cut so far, a search for the next shape, the dense teacher, and a folder. Output:
a smaller Cut. Killed and run again on the same folder, an attempt goes on where it was: after the
search, after an epoch, or at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compiler import weights
from compiler.checkpoints import Checkpoint
from compiler.data import Splits
from compiler.pruning.composition import Kept, composed, everything, narrowed, relative
from compiler.pruning.importance import Scores, keep
from compiler.pruning.surgery import slice_channels
from compiler.pruning.widths import PruneSpace, Widths
from compiler.recipe import Recipe, Training
from compiler.time_left import show
from compiler.training import (
    Distillation,
    TrainSettings,
    distil,
    evaluate,
    recalibrate_batch_norm,
)
from compiler.work import read_json, write_json

Observe = Callable[[str, int, int, str], None]
"""Called with a stage's title, how much is done, of how much, and what came last."""

RECALIBRATION_PICTURES = 256
SEARCH_FILE = "search.json"
"""Of an attempt's folder: what a killed search goes on from."""


@dataclass(frozen=True)
class Dense:
    """The trained parent. val_accuracy: fraction of the validation part."""

    network: nn.Module
    space: PruneSpace
    val_accuracy: float


@dataclass(frozen=True)
class Cut:
    """A network on the way from dense to small.

    space: the shapes that it can still be cut to. kept: of the dense network's channels, by group.
    """

    network: nn.Module
    space: PruneSpace
    kept: Kept
    val_accuracy: float

    @classmethod
    def none(cls, dense: Dense) -> Cut:
        """Nothing is cut yet."""
        return cls(dense.network, dense.space, everything(dense.space), dense.val_accuracy)

    @property
    def widths(self) -> Widths:
        return self.space.dense_widths


@dataclass(frozen=True)
class Found:
    """What a search came to. facts: plain data for the report."""

    widths: Widths
    facts: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What every attempt at one network shares. folder: of this network and recipe."""

    dense: Dense
    splits: Splits
    recipe: Recipe
    observe: Observe
    folder: Path


def found(
    before: Cut, scores: Scores, search: Callable[[], Found], folder: Path
) -> tuple[Kept, dict[str, Any]]:
    """Channels of the dense network that the attempt keeps, and the search's facts.

    scores: of before's channels. search: called unless the folder holds its outcome.
    """
    path = folder / "found.json"
    if not path.exists():
        result = search()
        inner = dict(keep(before.space, scores, result.widths))
        write_json(path, {"kept": composed(before.kept, inner), "facts": result.facts})
        (folder / SEARCH_FILE).unlink(missing_ok=True)
    document = read_json(path)
    kept = document["kept"]
    return {group.name: tuple(kept[group.name]) for group in before.space.groups}, document["facts"]


def tuned(job: Job, before: Cut, kept: Kept, title: str, folder: Path) -> Cut:
    """The cut that keeps these channels of the dense network, fine-tuned from before's weights.

    Not trained again where the folder holds it; a training cut short there goes on.
    """
    local = relative(before.kept, kept)
    network = slice_channels(before.network, before.space.groups, local).eval()
    space = narrowed(before.space, [len(indices) for indices in local.values()])
    state, facts = folder / "tuned.safetensors", folder / "tuned.json"
    if not facts.exists():
        checkpoint = folder / "training.safetensors"
        val_accuracy = _fine_tune(job, network, title, checkpoint)
        weights.save(network.state_dict(), state)
        write_json(facts, {"val_accuracy": val_accuracy})
        checkpoint.unlink(missing_ok=True)
    network.load_state_dict(weights.load(state))
    return Cut(network, space, kept, read_json(facts)["val_accuracy"])


def _fine_tune(job: Job, network: nn.Module, title: str, checkpoint: Path) -> float:
    """Trains a cut network towards the dense one; its accuracy on the validation part."""
    recipe, splits = job.recipe, job.splits
    recalibrate_batch_norm(network, splits.train_x[:RECALIBRATION_PICTURES])
    distil(
        network,
        job.dense.network,
        splits,
        train_settings(recipe.fine_tuning, recipe.seed),
        Distillation(),
        *watched(recipe.fine_tuning, job.observe, title, checkpoint),
    )
    return evaluate(network, splits.val_x, splits.val_y)


def train_settings(training: Training, seed: int) -> TrainSettings:
    """The recipe's part as the trainer takes it."""
    return TrainSettings(
        epochs=training.epochs,
        lr=training.learning_rate,
        batch=training.batch_size,
        seed=seed,
        precision=training.precision,
    )


def watched(
    training: Training, observe: Observe, title: str, path: Path
) -> tuple[Callable[[int, int, Any], None], Checkpoint]:
    """Progress and checkpoint of a training, as the trainer takes them."""

    def progress(done: int, total: int, figures: Any) -> None:
        observe(title, done, total, show(figures))

    def note(text: str) -> None:
        observe(title, 0, training.epochs, text)

    return progress, Checkpoint(path, training.checkpoint_epochs, note)
