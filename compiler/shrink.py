"""One network, from dense to small: rounds of search, slicing and fine-tuning, the loss bounded.

Input: a trained network, its PruneSpace and the fleet's latency. Output: a sliced network whose
accuracy on the validation part stays within the recipe's bound, its plan, and the search's facts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from compiler import devices
from compiler.accuracies import KnownAccuracies
from compiler.comparison import UNIFORM, Contest, compare
from compiler.data import Splits
from compiler.errors import CompilerError
from compiler.fine_tuning import (
    RECALIBRATION_PICTURES,
    SEARCH_FILE,
    Cut,
    Dense,
    Found,
    Job,
    Observe,
    found,
    tuned,
)
from compiler.fleet import Fleet
from compiler.pruning.importance import Scores, activation, keep, magnitude
from compiler.pruning.judge import Accuracy
from compiler.pruning.objectives import Objective
from compiler.pruning.resume import SearchCheckpoint
from compiler.pruning.search import SearchResult, SearchSettings, search
from compiler.pruning.surgery import slice_channels
from compiler.pruning.widths import PruningPlan, Widths
from compiler.recipe import Recipe
from compiler.training import evaluate, recalibrate_batch_norm
from compiler.weights import sha256
from compiler.work import read_json, write_json

SCORING_PICTURES = 256
STARTS_FILE = "starts.json"
MAX_ATTEMPTS = 3
"""Searches of a round at most: each after the first bounds the proxy's loss twice as tightly."""


@dataclass(frozen=True)
class Shrunk:
    """A network cut for the fleet. facts: plain data for the report."""

    network: nn.Module
    plan: PruningPlan
    val_accuracy: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class Round:
    """A round that kept the accuracy.

    number, attempts: from 1. drop: of the proxy's accuracy, allowed to it. search: its facts.
    """

    number: int
    attempts: int
    drop: float
    cut: Cut
    search: dict[str, Any]


Shortcut = Callable[[Accuracy, Objective, float], Found | None]
"""Proxy accuracy, objective, and the proxy's allowed drop → a shape without a search, or None."""


def shrink(
    dense: Dense,
    fleet: Fleet,
    splits: Splits,
    recipe: Recipe,
    observe: Observe,
    folder: Path,
    shortcut: Shortcut | None = None,
) -> Shrunk:
    """Search, slice and fine-tune, round after round, as long as the accuracy bound holds.

    Each round may lose its share of the proxy's drop; it starts from the last one's fine-tuned
    network and learns from the dense one. The bound is judged on the validation part: the test
    part only reports. folder: of this network and recipe; what a killed call left there is used.
    shortcut: asked in the first round; where it has no answer, and in later rounds, is searched.
    Raises CompilerError when no attempt of the first round keeps the bound.
    """
    job = Job(dense, splits, recipe, observe, folder)
    rounds: list[Round] = []
    for number in range(1, recipe.search.rounds + 1):
        before = rounds[-1].cut if rounds else Cut.none(dense)
        first = shortcut if number == 1 else None
        done = _round(job, fleet, number, before, folder / f"round-{number}", first)
        if done is None:
            break
        rounds.append(done)
    if not rounds:
        raise CompilerError(
            f"{dense.space.network}: no shape kept its accuracy within "
            f"{recipe.search.max_accuracy_drop:.2%} after {MAX_ATTEMPTS} searches. "
            "Next: allow more fine_tuning.epochs or a larger search.max_accuracy_drop"
        )
    last = rounds[-1].cut
    plan = PruningPlan(
        network=dense.space.network,
        parent_sha256=sha256(dense.network.state_dict()),
        kept_by_group=tuple(last.kept.items()),
        predicted_ms_by_cluster=tuple(sorted(fleet.by_cluster_ms(last.widths).items())),
        seed=recipe.seed,
    )
    return Shrunk(last.network, plan, last.val_accuracy, _facts(job, fleet, plan, rounds, folder))


def _round(
    job: Job, fleet: Fleet, number: int, before: Cut, folder: Path, shortcut: Shortcut | None
) -> Round | None:
    """None where no attempt keeps the accuracy, or a later round finds nothing to cut."""
    recipe = job.recipe
    scores = _scores(before, job.splits)
    drop = recipe.search.proxy_accuracy_drop / recipe.search.rounds
    for attempt in range(1, MAX_ATTEMPTS + 1):
        place = folder / f"attempt-{attempt}"
        which = _which(number, attempt, recipe.search.rounds)
        looked = partial(_look, job, fleet, before, scores, drop, which, place, shortcut)
        kept, facts = found(before, scores, looked, place)
        if number > 1 and kept == before.kept:
            return None
        title = f"fine-tune {job.dense.space.network}{which}"
        cut = tuned(job, before, kept, title, place)
        if job.dense.val_accuracy - cut.val_accuracy <= recipe.search.max_accuracy_drop:
            return Round(number, attempt, drop, cut, facts)
        drop /= 2
    return None


def _which(number: int, attempt: int, rounds: int) -> str:
    """For titles: "", or " (round 2 of 3)", or with the attempt where it is not the first."""
    parts = [f"round {number} of {rounds}"] if rounds > 1 else []
    parts += [f"attempt {attempt}"] if attempt > 1 else []
    return f" ({', '.join(parts)})" if parts else ""


def first_search(job: Job, fleet: Fleet, folder: Path) -> SearchResult:
    """The search of the first round by itself: its elites are worth measuring.

    folder: what a killed call left there is used.
    """
    whole = Cut.none(job.dense)
    drop = job.recipe.search.proxy_accuracy_drop / job.recipe.search.rounds
    return _result(job, fleet, whole, _scores(whole, job.splits), drop, " for elites", folder)


def _look(
    job: Job,
    fleet: Fleet,
    before: Cut,
    scores: Scores,
    max_drop: float,
    which: str,
    folder: Path,
    shortcut: Shortcut | None,
) -> Found:
    if shortcut is not None:
        accuracy = _known_accuracy(job, before, scores)
        answer = shortcut(accuracy, _objective(job, fleet), max_drop)
        if answer is not None:
            return answer
    result = _result(job, fleet, before, scores, max_drop, which, folder)
    return Found(result.widths, _search_facts(result))


def _result(
    job: Job,
    fleet: Fleet,
    before: Cut,
    scores: Scores,
    max_drop: float,
    which: str,
    folder: Path,
) -> SearchResult:
    title = f"search {job.dense.space.network}{which}"
    generations = job.recipe.search.generations
    accuracy = _known_accuracy(job, before, scores)
    return search(
        before.space,
        fleet.latency(),
        accuracy,
        settings=_settings(job.recipe, max_drop),
        seed=job.recipe.seed,
        objective=_objective(job, fleet),
        starts=_starts(fleet, accuracy, folder),
        scores=scores,
        progress=lambda p: job.observe(
            title, p.generation, generations, f"fleet mean {p.best_ms:.3f} ms predicted"
        ),
        checkpoint=SearchCheckpoint(
            folder / SEARCH_FILE,
            accuracy_of=accuracy.of,
            note=lambda text: job.observe(title, 0, generations, text),
        ),
    )


def _starts(fleet: Fleet, accuracy: KnownAccuracies, folder: Path) -> list[Widths]:
    """Elites of earlier searches: measured, and their accuracies are paid for.

    Written down as the search begins: killed, it has paid for more by the time it goes on, and
    would begin elsewhere.
    """
    path = folder / STARTS_FILE
    if not path.exists():
        write_json(path, [list(widths) for widths in fleet.measured if widths in accuracy.known])
    return [tuple(map(int, widths)) for widths in read_json(path)]


def proxy_accuracy(job: Job) -> Accuracy:
    """Of the dense network's shapes, as the first round's search asks for it; without a memory."""
    whole = Cut.none(job.dense)
    return _proxy(whole, _scores(whole, job.splits), job.splits)


def _known_accuracy(job: Job, before: Cut, scores: Scores) -> KnownAccuracies:
    weights_sha256 = sha256(before.network.state_dict())
    return KnownAccuracies(_proxy(before, scores, job.splits), job.folder, weights_sha256)


def _objective(job: Job, fleet: Fleet) -> Objective:
    search = job.recipe.search
    return fleet.objective(search.objective, search.slo_ms.get(job.dense.space.network))


def _settings(recipe: Recipe, max_drop: float) -> SearchSettings:
    return SearchSettings(
        population=recipe.search.population,
        generations=recipe.search.generations,
        max_accuracy_drop=max_drop,
        max_accuracy_evaluations=recipe.search.max_accuracy_evaluations,
    )


def _scores(cut: Cut, splits: Splits) -> Scores:
    return activation(cut.network, cut.space, splits.train_x[:SCORING_PICTURES])


def _proxy(cut: Cut, scores: Scores, splits: Splits) -> Callable[[Widths], float]:
    """Accuracy right after slicing, with batch norm recalibrated: quick, and ranks shapes well."""
    device = devices.chosen()

    def accuracy(widths: Widths) -> float:
        kept = dict(keep(cut.space, scores, widths))
        candidate = slice_channels(cut.network, cut.space.groups, kept).to(device)
        recalibrate_batch_norm(candidate, splits.train_x[:RECALIBRATION_PICTURES])
        return evaluate(candidate, splits.val_x, splits.val_y)

    return accuracy


def _search_facts(result: SearchResult) -> dict[str, Any]:
    return {
        "proxy_accuracy": result.accuracy,
        "n_latency_evaluations": result.n_latency_evaluations,
        "n_accuracy_evaluations": result.n_accuracy_evaluations,
        "history": [
            {"evaluations": p.n_accuracy_evaluations, "best_ms": p.best_ms} for p in result.history
        ],
    }


def _comparison(
    job: Job, fleet: Fleet, widths: Widths, max_drop: float, folder: Path
) -> dict[str, Any]:
    """With contenders that go the whole way at once, cut by the same scores of channels."""
    whole, search = Cut.none(job.dense), job.recipe.search
    scores = _scores(whole, job.splits)
    contest = Contest(
        space=whole.space,
        fleet=fleet,
        accuracy=_proxy(whole, scores, job.splits),
        scores=scores,
        l1_scores=magnitude(whole.network, whole.space, norm=1.0),
        settings=_settings(job.recipe, max_drop),
        objective=_objective(job, fleet),
        seed=job.recipe.seed,
        slo_ms=search.slo_ms.get(whole.space.network),
    )
    title = f"baselines {whole.space.network}"
    checkpoint = SearchCheckpoint(
        folder / "baselines.json",
        accuracy_of=sha256(whole.network.state_dict()),
        note=lambda text: job.observe(title, 0, 1, text),
    )
    return compare(contest, widths, checkpoint, partial(job.observe, title))


def _facts(
    job: Job, fleet: Fleet, plan: PruningPlan, rounds: Sequence[Round], folder: Path
) -> dict[str, Any]:
    """Of the whole way; its history counts evaluations through all rounds."""
    space = job.dense.space
    drop = sum(done.drop for done in rounds)
    compared = _comparison(job, fleet, plan.widths(space), drop, folder)
    history: list[dict[str, Any]] = []
    before = 0
    for done in rounds:
        for point in done.search["history"]:
            history.append({**point, "evaluations": before + point["evaluations"]})
        before += done.search["n_accuracy_evaluations"]
    return {
        "groups": [
            {"name": g.name, "dense_width": g.channels, "pruned_width": w}
            for g, w in zip(space.groups, plan.widths(space), strict=True)
        ],
        "predicted_ms_by_cluster": [list(pair) for pair in plan.predicted_ms_by_cluster],
        "predicted_fleet_ms": compared["chosen"]["mean_ms"],
        "uniform_fleet_ms": compared["baselines"][UNIFORM]["mean_ms"],
        **compared,
        "proxy_accuracy": rounds[-1].search["proxy_accuracy"],
        "proxy_accuracy_drop": drop,
        "n_latency_evaluations": sum(done.search["n_latency_evaluations"] for done in rounds),
        "n_accuracy_evaluations": before,
        "history": history,
        "rounds": [
            {
                "round": done.number,
                "attempts": done.attempts,
                "predicted_fleet_ms": fleet.mean_ms(done.cut.widths),
                "macs": space.macs(done.cut.widths),
                "val_accuracy": done.cut.val_accuracy,
            }
            for done in rounds
        ],
    }
