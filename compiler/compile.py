"""The whole compilation, stage by stage: each reads what the last one left in the work folder.

Input: a Recipe and, as far as it was measured, a dataset folder. Output: a Proposal of what to
measure next, or Compiled once nothing is missing. Run again, finished stages are not repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from compiler import weights
from compiler.amortised.stage import shortcut
from compiler.anchors import ANCHORS, write_anchors
from compiler.clusters import DeviceClusters, anchor_latencies
from compiler.costs import fit_costs
from compiler.dataset import Runs
from compiler.dense import check_start, train_dense
from compiler.elites import (
    NothingToMeasureError,
    affordable,
    measured_shapes,
    propose_elites,
    settled,
    stage,
    write_elite_facts,
)
from compiler.emit import Compiled, compiled, emit
from compiler.fine_tuning import Observe
from compiler.fleet import Fleet, board_ratios, fit_fleet
from compiler.ladders import learn_widths, propose_ladders
from compiler.loading import example, load_dense, load_space, load_splits, measured, slug
from compiler.proposals import Proposal, ProposedModel, has_proposal, load_proposal, propose
from compiler.pruning.surgery import materialise
from compiler.pruning.widths import PruneSpace, Widths
from compiler.recipe import Recipe
from compiler.sampling import sample_widths
from compiler.shrink import Shortcut, shrink
from compiler.surrogates import LatencySurrogate
from compiler.switchable.stage import compile_switchable
from compiler.targets.candidates import candidate, from_onnx
from compiler.training import evaluate
from compiler.work import WorkFolder, read_json, write_json, write_text

__all__ = ["Compiled", "compile_fleet"]


def compile_fleet(
    recipe: Recipe, dataset: Path | None, folder: Path, observe: Observe
) -> Proposal | Compiled:
    """As far as the measurements reach. Raises CompilerError.

    dataset: an exported folder that holds every proposal measured so far, None before the first.
    """
    work = WorkFolder(folder, recipe)
    for name in recipe.networks:
        check_start(work, recipe, name)
    if work.compiled.exists():
        return compiled(work)
    for name in recipe.networks:
        train_dense(work, recipe, name, observe)
    anchors = _propose_anchors(work, recipe)
    runs = measured(dataset, anchors)
    if runs is None:
        return anchors
    clusters = _cluster(work, runs, recipe.seed)
    before = [anchors]
    if recipe.width_step is None:
        ladders = propose_ladders(work, recipe, clusters, observe)
        runs = measured(dataset, ladders)
        if runs is None:
            return ladders
        learn_widths(work, recipe, ladders, runs, clusters)
        before.append(ladders)
    if recipe.mode == "switchable":
        return compile_switchable(work, recipe, dataset, before, clusters, observe)
    return _compile_shapes(work, recipe, dataset, before, clusters, observe)


def _compile_shapes(
    work: WorkFolder,
    recipe: Recipe,
    dataset: Path | None,
    before: Sequence[Proposal],
    clusters: DeviceClusters,
    observe: Observe,
) -> Proposal | Compiled:
    """From legal widths to the end, where each network gets one shape for the whole fleet."""
    samples = _propose_samples(work, recipe, clusters, observe)
    runs = measured(dataset, samples)
    if runs is None:
        return samples
    notes: list[str] = []
    shapes = _with_elites(work, recipe, dataset, before, samples, clusters, notes, observe)
    runs = measured(dataset, *shapes)
    if runs is None:
        return shapes[-1]
    for name in recipe.networks:
        fleet = _fleet(work, recipe, name, shapes, runs, clusters)
        write_elite_facts(work, name, shapes[1:], fleet)
        instead = None
        known = measured(dataset, before[0], *shapes)
        if recipe.mode == "amortised" and known is not None:
            widths = _shapes_of(work, name, shapes)[1]
            representatives = list(clusters.representatives_.values())
            instead = shortcut(work, recipe, fleet, widths, known, representatives, observe)
        _shrink(work, recipe, name, fleet, observe, instead)
        shutil.rmtree(work.resume(name), ignore_errors=True)
    proposed = [*before, *shapes]
    return emit(work, recipe, dataset, proposed, clusters, runs, notes, observe)


def _propose_anchors(work: WorkFolder, recipe: Recipe) -> Proposal:
    if has_proposal(work, "anchors"):
        return load_proposal(work, "anchors")
    paths = write_anchors(work.proposal("anchors"), recipe.seed)
    models = [
        ProposedModel(name, from_onnx(recipe.runtime, path.read_bytes()), {})
        for name, path in paths.items()
    ]
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
        space = load_space(work, name)
        drawn = sample_widths(space, recipe.measuring.samples, recipe.seed)
        judges = _held_out(len(drawn), recipe)
        for position, widths in enumerate(drawn):
            network = materialise(name, space, widths, recipe.seed)
            facts = {"network": name, "widths": widths, "held_out": position in judges}
            model = candidate(recipe.runtime, network, example(space.input_shape))
            models.append(ProposedModel(f"{slug(name)}-{position:03d}", model, facts))
            observe("sample shapes", len(models), total, name)
    boards = list(clusters.representatives_.values())
    return propose(
        work, recipe, "samples", models, boards=boards, repeats=recipe.measuring.sample_repeats
    )


def _held_out(n: int, recipe: Recipe) -> set[int]:
    """Positions that judge the surrogate: drawn, but never the two corners (the first two)."""
    rng = np.random.default_rng([recipe.seed, n])
    return set((2 + rng.permutation(n - 2)[: recipe.measuring.held_out]).tolist())


def _with_elites(
    work: WorkFolder,
    recipe: Recipe,
    dataset: Path | None,
    before: Sequence[Proposal],
    samples: Proposal,
    clusters: DeviceClusters,
    notes: list[str],
    observe: Observe,
) -> list[Proposal]:
    """The samples, and rounds of elites; none follows one that is not measured yet.

    Rounds end early where the surrogates turn out right, nothing new is found, or the board-minutes
    are used up; of the last two notes tell.
    """
    shapes = [samples]
    representatives = clusters.representatives_
    rounds = recipe.search.remeasure if recipe.mode == "mean" else 0
    for number in range(1, rounds + 1):
        runs, all_runs = measured(dataset, *shapes), measured(dataset, *before, *shapes)
        if runs is None or all_runs is None:
            break
        if number > 1 and settled(shapes[-1], runs, representatives):
            break
        most = affordable(recipe, all_runs, len(representatives))
        try:
            elites = _propose_elites(work, recipe, number, shapes, runs, clusters, most, observe)
        except NothingToMeasureError as nothing:
            notes.append(str(nothing))
            break
        shapes.append(elites)
    return shapes


def _propose_elites(
    work: WorkFolder,
    recipe: Recipe,
    number: int,
    shapes: Sequence[Proposal],
    runs: Runs,
    clusters: DeviceClusters,
    most: int | None,
    observe: Observe,
) -> Proposal:
    """Raises NothingToMeasureError."""
    if has_proposal(work, stage(number)):
        return load_proposal(work, stage(number))
    fleets = {}
    for name in recipe.networks:
        space, widths, held_out = _shapes_of(work, name, shapes)
        surrogates, _ = fit_fleet(space, widths, held_out, runs, clusters, recipe.seed)
        fleets[name] = _as_fleet(work, space, widths, runs, clusters, surrogates)
    boards = list(clusters.representatives_.values())
    return propose_elites(work, recipe, number, fleets, boards, most, observe)


def _shapes_of(
    work: WorkFolder, name: str, shapes: Sequence[Proposal]
) -> tuple[PruneSpace, dict[str, Widths], list[str]]:
    """The network's space, its measured shapes by model, and which of these judge."""
    space = load_space(work, name)
    facts = {
        model: of_model
        for proposal in shapes
        for model, of_model in proposal.facts_by_model.items()
        if of_model["network"] == name
    }
    widths = {model: space.check(of_model["widths"]) for model, of_model in facts.items()}
    return space, widths, [model for model, of_model in facts.items() if of_model["held_out"]]


def _as_fleet(
    work: WorkFolder,
    space: PruneSpace,
    widths: Mapping[str, Widths],
    runs: Runs,
    clusters: DeviceClusters,
    surrogates: Mapping[str, LatencySurrogate],
) -> Fleet:
    boards = board_ratios(clusters, read_json(work.anchor_ratios))
    known = measured_shapes(widths, runs, clusters.representatives_)
    return Fleet(space, surrogates, boards, known)


def _fleet(
    work: WorkFolder,
    recipe: Recipe,
    name: str,
    shapes: Sequence[Proposal],
    runs: Runs,
    clusters: DeviceClusters,
) -> Fleet:
    """The fleet as all measurements show it; surrogates and their facts are kept."""
    space, widths, held_out = _shapes_of(work, name, shapes)
    labels = list(clusters.representatives_)
    if not work.surrogate_facts(name).exists():
        surrogates, facts = fit_fleet(space, widths, held_out, runs, clusters, recipe.seed)
        costs, cost_facts = fit_costs(space, widths, held_out, runs, clusters, recipe.seed)
        for (quantity, label), surrogate in costs.items():
            write_text(work.cost_surrogate(name, label, quantity), surrogate.to_json())
        write_json(work.cost_facts(name), cost_facts)
        for label in labels:
            write_text(work.surrogate(name, label), surrogates[label].to_json())
        write_json(work.surrogate_facts(name), facts)
    saved = {
        label: LatencySurrogate.from_json(work.surrogate(name, label).read_text(encoding="utf-8"))
        for label in labels
    }
    return _as_fleet(work, space, widths, runs, clusters, saved)


def _shrink(
    work: WorkFolder,
    recipe: Recipe,
    name: str,
    fleet: Fleet,
    observe: Observe,
    instead: Shortcut | None,
) -> None:
    if work.pruned_facts(name).exists():
        return
    splits = load_splits(recipe, name)
    dense = load_dense(work, recipe, name)
    small = shrink(dense, fleet, splits, recipe, observe, work.resume(name), instead)
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
