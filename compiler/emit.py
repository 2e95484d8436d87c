"""The last stage: every pruned network as every target's binary, and a last campaign to prove it.

Input: pruned networks and plans in the work folder. Output: Compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compiler import weights
from compiler.artifacts import Provenance, write_artifact
from compiler.dataset import Runs
from compiler.fine_tuning import Observe
from compiler.loading import load_dense, load_splits, predicted_intervals, slug
from compiler.proposals import Proposal, ProposedModel, load_proposal, propose
from compiler.pruning.surgery import slice_network
from compiler.pruning.widths import PruningPlan
from compiler.recipe import Recipe
from compiler.targets import TARGETS, TargetError
from compiler.targets.candidates import candidate
from compiler.work import WorkFolder, read_json, write_json
from device_agents.contract import Target


@dataclass(frozen=True)
class Compiled:
    """A finished compilation. final: the campaign that sets dense beside pruned on all boards."""

    folder: Path
    artifacts: tuple[Path, ...]
    final: Proposal
    notes: tuple[str, ...]


def pruned(work: WorkFolder, recipe: Recipe, name: str) -> tuple[nn.Module, PruningPlan]:
    plan = PruningPlan.from_json(work.plan(name).read_text(encoding="utf-8"))
    dense = load_dense(work, recipe, name)
    network = slice_network(dense.network, dense.space, plan)
    network.load_state_dict(weights.load(work.pruned_weights(name)))
    return network.eval(), plan


def emit(
    work: WorkFolder,
    recipe: Recipe,
    before: Sequence[Proposal],
    runs: Runs,
    notes: Sequence[str],
    observe: Observe,
) -> Compiled:
    """before, notes: what was proposed to measure, and what earlier stages have to tell."""
    artifacts: list[dict[str, Any]] = []
    skipped: list[str] = []
    finals: list[ProposedModel] = []
    forms = recipe.forms()
    for name in recipe.networks:
        network, plan = pruned(work, recipe, name)
        intervals = predicted_intervals(work, name, plan)
        example = load_splits(recipe, name).test_x[:1]
        for role, module in (
            ("dense", load_dense(work, recipe, name).network),
            ("pruned", network),
        ):
            model = candidate(recipe.runtime, module, example)
            finals.append(
                ProposedModel(f"{slug(name)}-{role}", model, {"network": name, "role": role})
            )
        for kind, target in forms:
            done, total = len(artifacts) + len(skipped), len(recipe.networks) * len(forms)
            observe("emit", done, total, f"{name} as {kind} {target.precision}")
            try:
                entry = _artifact(
                    work, recipe, name, network, plan, intervals, kind, target, example, runs
                )
                artifacts.append(entry)
            except TargetError as error:
                skipped.append(f"{name}: {error}")
    final = propose(
        work, recipe, "final", finals, boards=None, repeats=recipe.measuring.sample_repeats
    )
    write_json(
        work.compiled,
        {
            "name": recipe.name,
            "seed": recipe.seed,
            "recipe_sha256": recipe.sha256(),
            "dataset_sha256": runs.source_sha256,
            "networks": list(recipe.networks),
            "campaign_ids": [p.campaign_id for p in (*before, final)],
            "artifacts": artifacts,
            "notes": [*notes, *skipped],
        },
    )
    return compiled(work)


def _artifact(
    work: WorkFolder,
    recipe: Recipe,
    name: str,
    network: nn.Module,
    plan: PruningPlan,
    intervals: tuple[tuple[str, float, float], ...],
    kind: str,
    target: Target,
    example: torch.Tensor,
    runs: Runs,
) -> dict[str, Any]:
    built = TARGETS[kind](
        network,
        example,
        work.root / "targets" / f"{slug(name)}-{target.name}-{kind}-{target.precision}",
        target,
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
        predicted_interval_ms_by_cluster=intervals,
        predicted_runtime=recipe.runtime,
    )
    artifact = write_artifact(work.artifacts, built, provenance)
    return {
        "artifact_id": artifact.artifact_id,
        "network": name,
        "target": asdict(artifact.manifest.target),
    }


def compiled(work: WorkFolder) -> Compiled:
    overview = read_json(work.compiled)
    ids: Sequence[str] = [entry["artifact_id"] for entry in overview["artifacts"]]
    return Compiled(
        work.root,
        tuple(work.artifacts / artifact_id for artifact_id in ids),
        load_proposal(work, "final"),
        tuple(overview["notes"]),
    )
