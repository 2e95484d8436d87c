"""The search's best shapes, measured before one of them is chosen: it exploits what is wrong with
a surrogate, so the surrogate is asked again with the truth of just these shapes.

Input: surrogates fitted so far, and the dense network. Output: a proposal of elites for the
representatives; once measured, they train the surrogates and answer for themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compiler.dataset import Runs, lower_median
from compiler.errors import CompilerError
from compiler.fine_tuning import Job, Observe
from compiler.fleet import Fleet
from compiler.loading import example, load_dense, load_splits, slug
from compiler.proposals import Proposal, ProposedModel, propose
from compiler.pruning.surgery import materialise
from compiler.pruning.widths import Widths
from compiler.recipe import Recipe
from compiler.shrink import first_search
from compiler.targets.candidates import candidate
from compiler.work import WorkFolder, write_json


def stage(number: int) -> str:
    """The name of a round's proposal; rounds count from 1."""
    return f"elites-{number}"


def propose_elites(
    work: WorkFolder,
    recipe: Recipe,
    number: int,
    fleets: Mapping[str, Fleet],
    boards: Sequence[str],
    left_minutes: float | None,
    observe: Observe,
) -> Proposal:
    """One round: the best shapes of a search for each network, none of them measured before.

    left_minutes: of timed inferences on the boards, None for any; the elites that do not fit are
    left out. Raises NothingToMeasureError where none fits or none is new.
    """
    models: list[ProposedModel] = []
    minutes = 0.0
    for name in recipe.networks:
        fleet = fleets[name]
        dense, pictures = load_dense(work, recipe, name), load_splits(recipe, name)
        job = Job(dense, pictures, recipe, observe, work.resume(name))
        result = first_search(job, fleet, job.folder / stage(number))
        fresh = [widths for widths in result.elites if widths not in fleet.measured]
        for place, widths in enumerate(fresh[: recipe.search.elites]):
            cost = len(boards) * recipe.measuring.sample_repeats * _timed_minutes(recipe)
            if left_minutes is not None and minutes + cost > left_minutes:
                observe(f"elites {name}", place, len(fresh), "the board-minutes are used up")
                break
            minutes += cost
            network = materialise(name, fleet.space, widths, recipe.seed)
            model = candidate(recipe.runtime, network, example(fleet.space.input_shape))
            facts = {
                "network": name,
                "widths": widths,
                "held_out": False,
                "predicted_ms_by_cluster": fleet.by_cluster_ms(widths),
            }
            models.append(ProposedModel(f"{slug(name)}-elite-{number}-{place}", model, facts))
    if not models:
        raise NothingToMeasureError(f"round {number} of elites has no new shape within its budget")
    repeats = recipe.measuring.sample_repeats
    return propose(work, recipe, stage(number), models, boards=boards, repeats=repeats)


class NothingToMeasureError(CompilerError):
    """A round without elites: the search goes on with what was measured."""


def _timed_minutes(recipe: Recipe) -> float:
    """Of one run, at most: the campaign's own bound on its timed loop."""
    return recipe.measuring.max_seconds / 60


def board_minutes(runs: Runs) -> float:
    """Timed inferences of all runs; warm-up and transfers are not counted."""
    return sum(sum(run.latency_ms) for run in runs.runs) / 60_000


def measured_shapes(
    widths_by_model: Mapping[str, Widths], runs: Runs, representatives: Mapping[str, str]
) -> dict[Widths, dict[str, float]]:
    """Widths → cluster label → ms, for shapes that every representative has a valid run of.

    Repeats count as in training: the lower median of them.
    """
    label_of = {board: label for label, board in representatives.items()}
    p50s: dict[Widths, dict[str, list[float]]] = {}
    for run in runs.runs:
        widths = widths_by_model.get(run.model_sha256)
        if run.valid and widths is not None and run.board_id in label_of:
            by_label = p50s.setdefault(widths, {})
            by_label.setdefault(label_of[run.board_id], []).append(run.p50_ms)
    return {
        widths: {label: lower_median(ms) for label, ms in by_label.items()}
        for widths, by_label in p50s.items()
        if set(by_label) == set(representatives)
    }


def write_elite_facts(
    work: WorkFolder, name: str, rounds: Sequence[Proposal], fleet: Fleet
) -> None:
    """Every elite's prediction, made before it was measured, beside its measurement."""
    facts = []
    for number, proposal in enumerate(rounds, start=1):
        for of_model in proposal.facts_by_model.values():
            if of_model["network"] != name:
                continue
            widths = tuple(of_model["widths"])
            facts.append(
                {
                    "round": number,
                    "widths": list(widths),
                    "predicted_ms_by_cluster": of_model["predicted_ms_by_cluster"],
                    "measured_ms_by_cluster": dict(fleet.measured.get(widths, {})),
                }
            )
    write_json(work.elite_facts(name), facts)
