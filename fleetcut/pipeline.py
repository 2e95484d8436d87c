"""Measure → compile → deploy → verify → report, stage by stage, resumable.

Input: a recipe and an inventory. Output: a work folder with released artifacts and the report.
The compiler proposes what to measure; the proposal goes to the harness as a campaign, on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.clusters import DeviceClusters
from compiler.compile import Compiled, compile_fleet
from compiler.proposals import Proposal
from compiler.recipe import Recipe
from compiler.work import read_json
from fleetcut import shipping, verbs
from fleetcut.compiling import StageSteps, show_recommended
from fleetcut.console import Console
from harness.campaign import load_campaign
from harness.deploy import load_artifact, vouched
from harness.errors import HarnessError
from harness.executor import BoardOutcome, Work
from harness.export import export
from harness.inventory import Inventory
from harness.store import Store
from harness.verify import PROOF_STOPPING

TRIES = 3
"""Of a run that was throttled, drifted or crashed: the compiler needs every cell once."""


@dataclass(frozen=True)
class Finished:
    """What the whole way left behind. refused: artifacts that must not ship."""

    compiled: Compiled
    refused: tuple[str, ...]


def run(
    console: Console, recipe: Recipe, inventory: Inventory, store: Store, work: Path
) -> Finished:
    """From boards to proven artifacts. Raises HarnessError or CompilerError; run again to go on."""
    dataset = work / "dataset"
    measured = _measured_before(dataset)
    while True:
        with StageSteps(console) as observe:
            outcome = compile_fleet(recipe, dataset, work, observe)
        if isinstance(outcome, Compiled):
            break
        _measure(console, store, inventory, outcome)
        measured = list(dict.fromkeys([*measured, outcome.campaign_id]))
        # Nothing that others measured into the same store.
        export(store, dataset, measured)
    for note in outcome.notes:
        console.error(note)
    show_recommended(console, outcome)
    _measure(console, store, inventory, outcome.final)
    refused = _prove(console, store, inventory, outcome)
    return Finished(outcome, refused)


def _measured_before(dataset: Path) -> list[str]:
    """Campaigns in the dataset that a run cut short left: stages go on from all of them."""
    path = dataset / "dataset.json"
    return list(read_json(path)["campaign_ids"]) if path.exists() else []


def _measure(console: Console, store: Store, inventory: Inventory, proposal: Proposal) -> None:
    campaign = load_campaign(proposal.campaign_path, inventory)
    work = Work(
        campaign.campaign_id,
        campaign.boards,
        campaign.specs,
        campaign.blobs(),
        campaign.model_names(),
    )
    title = f"measure {proposal.stage} ({len(campaign.specs)} runs, {len(campaign.boards)} boards)"
    outcomes = verbs.run_work(console, store, work, title, tries=TRIES)
    _refuse_failures(outcomes)


def _refuse_failures(outcomes: Sequence[BoardOutcome]) -> None:
    for outcome in outcomes:
        if outcome.failure is not None:
            raise outcome.failure


def _prove(
    console: Console, store: Store, inventory: Inventory, compiled: Compiled
) -> tuple[str, ...]:
    """Deploy to the representative of each cluster, run there, release or refuse."""
    clusters = DeviceClusters.from_json(
        (compiled.folder / "clusters.json").read_text(encoding="utf-8")
    )
    cluster_of = {board: label for label, board in clusters.representatives_.items()}
    boards = inventory.select(sorted(cluster_of))
    artifacts = tuple(load_artifact(folder) for folder in compiled.artifacts)
    vouched(artifacts, inventory.allowed_signers)
    failures = shipping.deploy_all(console, artifacts, boards, inventory.allowed_signers, store)
    if failures:
        raise HarnessError("; ".join(failures.values()))
    campaign_id = f"{compiled.final.campaign_id.removesuffix('-final')}-verify"
    releases = shipping.verify_all(
        console, store, artifacts, boards, cluster_of, campaign_id, PROOF_STOPPING
    )
    return tuple(r.artifact_id for r in releases if r.state != "released")
