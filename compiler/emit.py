"""The last stage: every pruned network in the forms that boards chose, and a last campaign.

Input: pruned networks and plans in the work folder. Output: a Proposal of forms to measure, or
Compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler.artifacts import publish
from compiler.clusters import DeviceClusters
from compiler.competition import choose, form_runs, propose_forms, unanswered
from compiler.dataset import Runs
from compiler.fine_tuning import Observe
from compiler.forms import build_forms, pruned
from compiler.loading import load_dense, load_splits, slug
from compiler.proposals import Proposal, ProposedModel, load_proposal, propose
from compiler.recipe import Recipe
from compiler.targets.candidates import candidate
from compiler.work import WorkFolder, read_json, write_json


@dataclass(frozen=True)
class Compiled:
    """A finished compilation. final: the campaign that sets dense beside pruned on all boards.

    recommended: the form to run of each network on each cluster (competition.Choice).
    """

    folder: Path
    artifacts: tuple[Path, ...]
    final: Proposal
    notes: tuple[str, ...]
    recommended: tuple[Mapping[str, Any], ...] = ()


def emit(
    work: WorkFolder,
    recipe: Recipe,
    dataset: Path | None,
    before: Sequence[Proposal],
    clusters: DeviceClusters,
    runs: Runs,
    notes: Sequence[str],
    observe: Observe,
) -> Proposal | Compiled:
    """A campaign of forms while boards have not measured those that compete, then the end.

    before, notes: what was proposed to measure, and what earlier stages have to tell.
    """
    built = build_forms(work, recipe, runs.source_sha256, observe)
    contests = propose_forms(work, recipe, built.forms, clusters, runs)
    missing = unanswered(dataset, contests)
    if missing is not None:
        return missing
    choice = choose(built.forms, clusters, form_runs(dataset, contests))
    for form in choice.shipped:
        publish(form.folder, work.artifacts)
    final = _propose_final(work, recipe)
    write_json(
        work.compiled,
        {
            "name": recipe.name,
            "seed": recipe.seed,
            "recipe_sha256": recipe.sha256(),
            "dataset_sha256": built.dataset_sha256,
            "networks": list(recipe.networks),
            "campaign_ids": [p.campaign_id for p in (*before, *contests, final)],
            "artifacts": [
                {
                    "artifact_id": form.artifact_id,
                    "network": form.network,
                    "target": asdict(form.target),
                }
                for form in choice.shipped
            ],
            "recommended": list(choice.recommended),
            "notes": [*notes, *built.notes, *choice.notes],
        },
    )
    return compiled(work)


def _propose_final(work: WorkFolder, recipe: Recipe) -> Proposal:
    """Dense beside pruned, in the recipe's runtime, on all boards."""
    models: list[ProposedModel] = []
    for name in recipe.networks:
        example = load_splits(recipe, name).test_x[:1]
        for role, network in (
            ("dense", load_dense(work, recipe, name).network),
            ("pruned", pruned(work, recipe, name)[0]),
        ):
            model = candidate(recipe.runtime, network, example)
            facts = {"network": name, "role": role}
            models.append(ProposedModel(f"{slug(name)}-{role}", model, facts))
    repeats = recipe.measuring.sample_repeats
    return propose(work, recipe, "final", models, boards=None, repeats=repeats)


def compiled(work: WorkFolder) -> Compiled:
    overview = read_json(work.compiled)
    ids: Sequence[str] = [entry["artifact_id"] for entry in overview["artifacts"]]
    return Compiled(
        work.root,
        tuple(work.artifacts / artifact_id for artifact_id in ids),
        load_proposal(work, "final"),
        tuple(overview["notes"]),
        tuple(overview.get("recommended", ())),
    )
