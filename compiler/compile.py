"""The whole compilation, stage by stage: each reads what the last one left in the work folder.

Input: a Recipe and, as far as it was measured, a dataset folder. Output: a Proposal of what to
measure next, or Compiled once nothing is missing. Run again, finished stages are not repeated.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compiler import data, networks, weights
from compiler.anchors import ANCHORS, write_anchors
from compiler.artifacts import Provenance, write_artifact
from compiler.clusters import DeviceClusters, anchor_latencies
from compiler.costs import fit_costs
from compiler.dataset import Runs, read_runs
from compiler.errors import CompilerError
from compiler.fine_tuning import Dense, Observe, train_settings, watched
from compiler.fleet import Fleet, board_ratios, fit_fleet
from compiler.proposals import Proposal, ProposedModel, has_proposal, load_proposal, propose
from compiler.pruning.groups import trace
from compiler.pruning.surgery import materialise, slice_network
from compiler.pruning.widths import PruneSpace, PruningPlan
from compiler.recipe import Recipe, RecipeTarget
from compiler.sampling import sample_widths
from compiler.shrink import shrink
from compiler.surrogates import LatencySurrogate
from compiler.targets import TARGETS, TargetError, fast_onnx
from compiler.training import evaluate, train
from compiler.work import WorkFolder, read_json, write_json, write_text
from device_agents.contract import Target

RUNTIME_OF_KIND = {"onnx": "ort", "tflite": "tflite", "executable": "executable"}


@dataclass(frozen=True)
class Compiled:
    """A finished compilation. final: the campaign that sets dense beside pruned on all boards."""

    folder: Path
    artifacts: tuple[Path, ...]
    final: Proposal
    notes: tuple[str, ...]


def compile_fleet(
    recipe: Recipe, dataset: Path | None, folder: Path, observe: Observe
) -> Proposal | Compiled:
    """As far as the measurements reach. Raises CompilerError.

    dataset: an exported folder that holds every proposal measured so far, None before the first.
    """
    work = WorkFolder(folder, recipe)
    for name in recipe.networks:
        _check_start(work, recipe, name)
    if work.compiled.exists():
        return _compiled(work)
    for name in recipe.networks:
        _train_dense(work, recipe, name, observe)
    anchors = _propose_anchors(work, recipe)
    runs = _measured(dataset, anchors)
    if runs is None:
        return anchors
    clusters = _cluster(work, runs, recipe.seed)
    samples = _propose_samples(work, recipe, clusters, observe)
    runs = _measured(dataset, samples)
    if runs is None:
        return samples
    for name in recipe.networks:
        fleet = _surrogates(work, recipe, name, samples, runs, clusters)
        _shrink(work, recipe, name, fleet, observe)
        shutil.rmtree(work.resume(name), ignore_errors=True)
    return _emit(work, recipe, samples, runs, observe)


def _measured(dataset: Path | None, proposal: Proposal) -> Runs | None:
    """The proposal's runs; None while the dataset has none of them."""
    if dataset is None or not (dataset / "dataset.json").exists():
        return None
    runs = read_runs(dataset)
    if not any(run.campaign_id == proposal.campaign_id for run in runs.runs):
        return None
    return runs.select(campaign_ids=[proposal.campaign_id])


def _train_dense(work: WorkFolder, recipe: Recipe, name: str, observe: Observe) -> None:
    if work.dense_facts(name).exists():
        return
    splits = _splits(recipe, name)
    network = networks.build(name, recipe.seed)
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
    space = trace(
        network,
        networks.input_shape(name),
        name,
        width_step=recipe.width_step,
        min_fraction=recipe.min_width_fraction,
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


def _check_start(work: WorkFolder, recipe: Recipe, name: str) -> None:
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


def _splits(recipe: Recipe, name: str) -> data.Splits:
    return data.load(recipe.dataset, recipe.seed, networks.input_shape(name))


def _check_classes(network: nn.Module, splits: data.Splits, name: str) -> None:
    with torch.inference_mode():
        answers = int(network(splits.val_x[:1]).shape[-1])
    classes = 1 + max(int(y.max()) for y in (splits.train_y, splits.val_y, splits.test_y))
    if classes > answers:
        raise CompilerError(
            f"{name}: tells {answers} classes apart, data set {splits.name} has {classes}. "
            "Next: choose another network, or your own as module:factory"
        )


def _dense(work: WorkFolder, recipe: Recipe, name: str) -> Dense:
    network = networks.build(name, recipe.seed)
    network.load_state_dict(weights.load(work.dense_weights(name)))
    network.eval()
    return Dense(network, _space(work, name), read_json(work.dense_facts(name))["val_accuracy"])


def _space(work: WorkFolder, name: str) -> PruneSpace:
    return PruneSpace.from_json(work.space(name).read_text(encoding="utf-8"))


def _propose_anchors(work: WorkFolder, recipe: Recipe) -> Proposal:
    if has_proposal(work, "anchors"):
        return load_proposal(work, "anchors")
    paths = write_anchors(work.proposal("anchors"), recipe.seed)
    models = [ProposedModel(name, path.read_bytes(), {}) for name, path in paths.items()]
    repeats = recipe.measuring.anchor_repeats
    return propose(work, recipe, "anchors", models, boards=None, repeats=repeats)


def _cluster(work: WorkFolder, runs: Runs, seed: int) -> DeviceClusters:
    if not work.clusters.exists():
        latencies = anchor_latencies(runs, list(ANCHORS))
        clusters = DeviceClusters(seed=seed).fit(latencies)
        ratios = np.median(latencies.median_ms / np.median(latencies.median_ms, axis=0), axis=1)
        write_json(work.anchor_ratios, dict(zip(latencies.board_ids, ratios.tolist(), strict=True)))
        write_text(work.clusters, clusters.to_json())
    return DeviceClusters.from_json(work.clusters.read_text(encoding="utf-8"))


def _propose_samples(
    work: WorkFolder, recipe: Recipe, clusters: DeviceClusters, observe: Observe
) -> Proposal:
    if has_proposal(work, "samples"):
        return load_proposal(work, "samples")
    models: list[ProposedModel] = []
    total = recipe.measuring.samples * len(recipe.networks)
    for name in recipe.networks:
        space = _space(work, name)
        drawn = sample_widths(space, recipe.measuring.samples, recipe.seed)
        judges = _held_out(len(drawn), recipe)
        for position, widths in enumerate(drawn):
            network = materialise(name, space, widths, recipe.seed)
            facts = {"network": name, "widths": widths, "held_out": position in judges}
            model = fast_onnx(network, _example(space.input_shape))
            models.append(ProposedModel(f"{_slug(name)}-{position:03d}", model, facts))
            observe("sample shapes", len(models), total, name)
    boards = list(clusters.representatives_.values())
    return propose(
        work, recipe, "samples", models, boards=boards, repeats=recipe.measuring.sample_repeats
    )


def _held_out(n: int, recipe: Recipe) -> set[int]:
    """Positions that judge the surrogate: drawn, but never the two corners (the first two)."""
    rng = np.random.default_rng([recipe.seed, n])
    return set((2 + rng.permutation(n - 2)[: recipe.measuring.held_out]).tolist())


def _slug(name: str) -> str:
    """A network's name as part of a file's: a user's own has the form module:factory."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)


def _example(input_shape: tuple[int, ...]) -> torch.Tensor:
    return torch.zeros(1, *input_shape)


def _surrogates(
    work: WorkFolder,
    recipe: Recipe,
    name: str,
    samples: Proposal,
    runs: Runs,
    clusters: DeviceClusters,
) -> Fleet:
    space = _space(work, name)
    labels = list(clusters.representatives_)
    if not work.surrogate_facts(name).exists():
        of_network = {m: f for m, f in samples.facts_by_model.items() if f["network"] == name}
        widths = {m: space.check(f["widths"]) for m, f in of_network.items()}
        held_out = [m for m, f in of_network.items() if f["held_out"]]
        surrogates, facts = fit_fleet(space, widths, held_out, runs, clusters, recipe.seed)
        costs, cost_facts = fit_costs(space, widths, held_out, runs, clusters, recipe.seed)
        for (quantity, label), surrogate in costs.items():
            write_text(work.cost_surrogate(name, label, quantity), surrogate.to_json())
        write_json(work.cost_facts(name), cost_facts)
        for label in labels:
            write_text(work.surrogate(name, label), surrogates[label].to_json())
        write_json(work.surrogate_facts(name), facts)
    return Fleet(
        space,
        {
            label: LatencySurrogate.from_json(
                work.surrogate(name, label).read_text(encoding="utf-8")
            )
            for label in labels
        },
        board_ratios(clusters, read_json(work.anchor_ratios)),
    )


def _shrink(work: WorkFolder, recipe: Recipe, name: str, fleet: Fleet, observe: Observe) -> None:
    if work.pruned_facts(name).exists():
        return
    splits = _splits(recipe, name)
    dense = _dense(work, recipe, name)
    small = shrink(dense, fleet, splits, recipe, observe, work.resume(name))
    write_text(work.plan(name), small.plan.to_json())
    write_json(work.search_facts(name), small.facts)
    weights.save(small.network.state_dict(), work.pruned_weights(name))
    write_json(
        work.pruned_facts(name),
        {
            "accuracy": evaluate(small.network, splits.test_x, splits.test_y),
            "val_accuracy": small.val_accuracy,
            "macs": dense.space.macs(small.plan.widths(dense.space)),
            "weights_sha256": weights.sha256(small.network.state_dict()),
        },
    )


def _pruned(work: WorkFolder, recipe: Recipe, name: str) -> tuple[nn.Module, PruningPlan]:
    plan = PruningPlan.from_json(work.plan(name).read_text(encoding="utf-8"))
    dense = _dense(work, recipe, name)
    network = slice_network(dense.network, dense.space, plan)
    network.load_state_dict(weights.load(work.pruned_weights(name)))
    return network.eval(), plan


def _emit(
    work: WorkFolder, recipe: Recipe, samples: Proposal, runs: Runs, observe: Observe
) -> Compiled:
    artifacts: list[dict[str, Any]] = []
    notes: list[str] = []
    finals: list[ProposedModel] = []
    jobs = [(name, target) for name in recipe.networks for target in recipe.targets]
    for name in recipe.networks:
        network, plan = _pruned(work, recipe, name)
        example = _splits(recipe, name).test_x[:1]
        for role, module in (("dense", _dense(work, recipe, name).network), ("pruned", network)):
            model = fast_onnx(module, example)
            finals.append(
                ProposedModel(f"{_slug(name)}-{role}", model, {"network": name, "role": role})
            )
        for target in recipe.targets:
            observe("emit", len(artifacts) + len(notes), len(jobs), f"{name} as {target.kind}")
            try:
                entry = _artifact(work, recipe, name, network, plan, target, example, runs)
                artifacts.append(entry)
            except TargetError as error:
                notes.append(f"{name}: {error}")
    final = propose(
        work, recipe, "final", finals, boards=None, repeats=recipe.measuring.sample_repeats
    )
    anchors = load_proposal(work, "anchors")
    write_json(
        work.compiled,
        {
            "name": recipe.name,
            "seed": recipe.seed,
            "recipe_sha256": recipe.sha256(),
            "dataset_sha256": runs.source_sha256,
            "networks": list(recipe.networks),
            "campaign_ids": [p.campaign_id for p in (anchors, samples, final)],
            "artifacts": artifacts,
            "notes": notes,
        },
    )
    return _compiled(work)


def _artifact(
    work: WorkFolder,
    recipe: Recipe,
    name: str,
    network: nn.Module,
    plan: PruningPlan,
    target: RecipeTarget,
    example: torch.Tensor,
    runs: Runs,
) -> dict[str, Any]:
    built = TARGETS[target.kind](
        network,
        example,
        work.root / "targets" / f"{name}-{target.name}-{target.kind}",
        Target(
            name=target.name,
            machine=target.machine,
            os="linux",
            runtime=RUNTIME_OF_KIND[target.kind],
            threads=target.threads,
        ),
    )
    provenance = Provenance(
        network=name,
        accuracy=read_json(work.pruned_facts(name))["accuracy"],
        predicted_ms_by_cluster=plan.predicted_ms_by_cluster,
        plan_sha256=plan.sha256(),
        parent_sha256=plan.parent_sha256,
        dataset_sha256=runs.source_sha256,
        recipe_sha256=recipe.sha256(),
        seed=recipe.seed,
    )
    artifact = write_artifact(work.artifacts, built, provenance)
    return {
        "artifact_id": artifact.artifact_id,
        "network": name,
        "target": asdict(artifact.manifest.target),
    }


def _compiled(work: WorkFolder) -> Compiled:
    overview = read_json(work.compiled)
    ids: Sequence[str] = [entry["artifact_id"] for entry in overview["artifacts"]]
    return Compiled(
        work.root,
        tuple(work.artifacts / artifact_id for artifact_id in ids),
        load_proposal(work, "final"),
        tuple(overview["notes"]),
    )
