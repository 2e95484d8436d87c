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

SETTLED = 0.03
"""Relative error of the surrogates' favourite at which another round has nothing to correct."""


def stage(number: int) -> str:
    """The name of a round's proposal; rounds count from 1."""
    return f"elites-{number}"


def propose_elites(
    work: WorkFolder,
    recipe: Recipe,
    number: int,
    fleets: Mapping[str, Fleet],
    boards: Sequence[str],
    most: int | None,
    observe: Observe,
) -> Proposal:
    """One round: the best shapes of a search for each network, none of them measured before.

    most: shapes in all, None for as many as the recipe says; the networks' best come first. Raises
    NothingToMeasureError where none is allowed or none is new.
    """
    if most == 0:
        raise NothingToMeasureError(
            f"the board-minutes are used up before round {number} of elites"
        )
    by_place: list[tuple[int, ProposedModel]] = []
    for name in recipe.networks:
        fleet = fleets[name]
        dense, pictures = load_dense(work, recipe, name), load_splits(recipe, name)
        job = Job(dense, pictures, recipe, observe, work.resume(name))
        result = first_search(job, fleet, job.folder / stage(number))
        fresh = [widths for widths in result.elites if widths not in fleet.measured]
        for place, widths in enumerate(fresh[: recipe.search.elites]):
            network = materialise(name, fleet.space, widths, recipe.seed)
            model = candidate(recipe.runtime, network, example(fleet.space.input_shape))
            facts = {
                "network": name,
                "widths": widths,
                "held_out": False,
                "favourite": widths == result.widths,
                "predicted_ms_by_cluster": fleet.by_cluster_ms(widths),
            }
            by_place.append(
                (place, ProposedModel(f"{slug(name)}-elite-{number}-{place}", model, facts))
            )
    models = [model for _, model in sorted(by_place, key=lambda pair: pair[0])][:most]
    if not models:
        raise NothingToMeasureError(f"round {number} of elites has no new shape")
    repeats = recipe.measuring.sample_repeats
    return propose(work, recipe, stage(number), models, boards=boards, repeats=repeats)


class NothingToMeasureError(CompilerError):
    """A round without elites: the search goes on with what was measured."""


def affordable(recipe: Recipe, runs: Runs, n_boards: int) -> int | None:
    """How many more shapes the recipe's board-minutes allow; None for any number.

    runs: all measured so far; one more run takes as long as one of them on average.
    """
    if recipe.measuring.board_minutes is None:
        return None
    used = board_minutes(runs)
    of_shape = used / len(runs.runs) * n_boards * recipe.measuring.sample_repeats
    return max(0, int((recipe.measuring.board_minutes - used) / of_shape))


def board_minutes(runs: Runs) -> float:
    """Timed inferences of all runs; warm-up and transfers are not counted."""
    return sum(sum(run.latency_ms) for run in runs.runs) / 60_000


def settled(proposal: Proposal, runs: Runs, representatives: Mapping[str, str]) -> bool:
    """Whether every network's favourite of this round measured within SETTLED on every cluster.

    Then the surrogates are right where the search looks, and it ends where it would anyway. A
    network whose favourite was measured before counts as settled.
    """
    for model, facts in proposal.facts_by_model.items():
        if not facts["favourite"]:
            continue
        widths = tuple(facts["widths"])
        ms = measured_shapes({model: widths}, runs, representatives).get(widths)
        if ms is None:
            return False
        for label, predicted_ms in facts["predicted_ms_by_cluster"].items():
            if abs(ms[label] / predicted_ms - 1) > SETTLED:
                return False
    return True


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
