"""Every form of every pruned network: built, judged, and kept until boards have chosen.

Input: pruned networks and plans in the work folder. Output: Forms, which forms.json keeps, so that
nothing is built again while boards measure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from compiler import weights
from compiler.artifacts import Provenance, read_artifact, write_artifact
from compiler.data import Splits
from compiler.fine_tuning import Observe
from compiler.loading import load_dense, load_splits, predicted_intervals, slug
from compiler.pruning.surgery import slice_network
from compiler.pruning.widths import PruningPlan
from compiler.recipe import Recipe
from compiler.targets import TARGETS, BuiltModel, TargetError
from compiler.training import evaluate
from compiler.work import WorkFolder, read_json, write_json
from device_agents.contract import Artifact, Manifest, Target

CALIBRATION_PICTURES = 128
"""Of the training part, from which int8 learns its ranges: neither of the parts it is judged on."""

MOST_JUDGED = 2000
"""Pictures of a part that a form answers one by one."""

CANDIDATE_KIND = {"ort": "onnx", "tflite": "tflite"}
"""By the recipe's runtime: the form, in fp32, that the surrogates were taught with and predict."""


@dataclass(frozen=True)
class Form:
    """One network for one target. folder: its artifact, which waits for the boards' choice."""

    artifact_id: str
    folder: Path
    manifest: Manifest

    @property
    def network(self) -> str:
        return self.manifest.network

    @property
    def target(self) -> Target:
        return self.manifest.target

    @property
    def title(self) -> str:
        """For people: "onnx int8 for pi4-64"."""
        return f"{self.manifest.kind} {self.target.precision} for {self.target.name}"


@dataclass(frozen=True)
class Forms:
    """What could be built. notes: what could not, and why. dataset_sha256: what it was built of."""

    forms: tuple[Form, ...]
    notes: tuple[str, ...]
    dataset_sha256: str


def pruned(work: WorkFolder, recipe: Recipe, name: str) -> tuple[nn.Module, PruningPlan]:
    plan = PruningPlan.from_json(work.plan(name).read_text(encoding="utf-8"))
    dense = load_dense(work, recipe, name)
    network = slice_network(dense.network, dense.space, plan)
    network.load_state_dict(weights.load(work.pruned_weights(name)))
    return network.eval(), plan


def build_forms(work: WorkFolder, recipe: Recipe, dataset_sha256: str, observe: Observe) -> Forms:
    """All that the recipe asks for; what cannot be built or is too inaccurate becomes a note."""
    if work.forms.exists():
        return _kept(work)
    built: list[Artifact] = []
    notes: list[str] = []
    asked = recipe.forms()
    for name in recipe.networks:
        case = _Case.load(work, recipe, name, dataset_sha256)
        for kind, target in asked:
            done, total = len(built) + len(notes), len(recipe.networks) * len(asked)
            observe("emit", done, total, f"{name} as {kind} {target.precision}")
            try:
                built.append(_artifact(work, recipe, case, kind, target))
            except TargetError as error:
                notes.append(f"{name}: {error}")
    write_json(
        work.forms,
        {
            "artifact_ids": list(dict.fromkeys(a.artifact_id for a in built)),
            "notes": notes,
            "dataset_sha256": dataset_sha256,
        },
    )
    return _kept(work)


def _kept(work: WorkFolder) -> Forms:
    document = read_json(work.forms)
    folders = [work.waiting / artifact_id for artifact_id in document["artifact_ids"]]
    return Forms(
        tuple(Form(f.name, f, read_artifact(f).manifest) for f in folders),
        tuple(document["notes"]),
        str(document["dataset_sha256"]),
    )


@dataclass(frozen=True)
class _Case:
    """A pruned network and what its forms share."""

    name: str
    network: nn.Module
    splits: Splits
    calibration: Tensor
    provenance: Provenance

    @classmethod
    def load(cls, work: WorkFolder, recipe: Recipe, name: str, dataset_sha256: str) -> _Case:
        network, plan = pruned(work, recipe, name)
        splits = load_splits(recipe, name)
        provenance = Provenance(
            network=name,
            accuracy=read_json(work.pruned_facts(name))["accuracy"],
            predicted_ms_by_cluster=plan.predicted_ms_by_cluster,
            plan_sha256=plan.sha256(),
            parent_sha256=plan.parent_sha256,
            dataset_sha256=dataset_sha256,
            recipe_sha256=recipe.sha256(),
            seed=recipe.seed,
            predicted_interval_ms_by_cluster=predicted_intervals(work, name, plan),
            predicted_runtime=recipe.runtime,
        )
        return cls(name, network, splits, splits.train_x[:CALIBRATION_PICTURES], provenance)


def _artifact(work: WorkFolder, recipe: Recipe, case: _Case, kind: str, target: Target) -> Artifact:
    """Raises TargetError."""
    built = TARGETS[kind](
        case.network,
        case.splits.test_x[:1],
        work.root / "targets" / f"{slug(case.name)}-{target.name}-{kind}-{target.precision}",
        target,
        case.calibration,
    )
    provenance = case.provenance
    if (kind, target.precision) != (CANDIDATE_KIND[recipe.runtime], "fp32"):
        provenance = replace(provenance, predicted_runtime="")
    if target.precision != "fp32":
        allowed = recipe.search.max_accuracy_drop - _lost_by_pruning(work, case.name)
        provenance = replace(provenance, accuracy=_accuracy(built, case, allowed))
    return write_artifact(work.waiting, built, provenance)


def _lost_by_pruning(work: WorkFolder, name: str) -> float:
    dense, small = read_json(work.dense_facts(name)), read_json(work.pruned_facts(name))
    return float(dense["val_accuracy"] - small["val_accuracy"])


def _accuracy(built: BuiltModel, case: _Case, allowed: float) -> float:
    """On the test part. TargetError where it loses more than ``allowed`` on the validation part."""
    splits = case.splits
    lost = _lost(built, case.network, splits.val_x[:MOST_JUDGED], splits.val_y[:MOST_JUDGED])
    if lost > allowed + 1e-9:
        raise TargetError(
            built.target,
            f"{built.kind} in {built.target.precision} loses {lost:.2%} of accuracy against "
            f"float32; max_accuracy_drop leaves {max(allowed, 0.0):.2%} after pruning",
            "ship float32 there, or allow a larger max_accuracy_drop",
        )
    test_x, test_y = splits.test_x[:MOST_JUDGED], splits.test_y[:MOST_JUDGED]
    return case.provenance.accuracy - _lost(built, case.network, test_x, test_y)


def _lost(built: BuiltModel, network: nn.Module, x: Tensor, y: Tensor) -> float:
    """How much less accurate the form is than the network, as fractions of these pictures."""
    if built.answers is None:
        raise TargetError(
            built.target,
            f"how accurate {built.kind} in {built.target.precision} is cannot be told here",
            "ship float32 there",
        )
    found = np.argmax(built.answers(np.ascontiguousarray(x.numpy())), axis=1)
    return evaluate(network, x, y) - float(np.mean(found == y.numpy()))
