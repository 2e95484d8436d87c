"""A killed search, called again, ends where an unbroken one does, and asks nothing twice."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compiler.features import physics_features
from compiler.pruning.judge import Accuracy, FleetLatency, SearchResult, SearchSettings
from compiler.pruning.objectives import BoardRatios, Objective, make_objective
from compiler.pruning.resume import SearchCheckpoint
from compiler.pruning.search import search
from compiler.pruning.widths import PruneSpace, Widths

SETTINGS = SearchSettings(generations=25, max_accuracy_evaluations=60)
BOARDS = BoardRatios([np.array([1.0, 1.03, 0.98]), np.array([1.0, 1.4])])
OBJECTIVES = {name: make_objective(name, BOARDS, 0.4) for name in ("mean", "p95", "slo")}


class Killed(Exception):  # noqa: N818
    """What a test kills with."""


def latency(space: PruneSpace) -> FleetLatency:
    """Two clusters: one bound by work, one by weights."""

    def fleet_ms(widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = physics_features(space, widths)
        work, weights = x[:, :6].sum(axis=1), x[:, 5:18:6].sum(axis=1)
        ms = np.stack([0.05 + work / 9e6, 0.05 + weights / 4e5], axis=1)
        return ms, 0.02 * ms

    return fleet_ms


def accuracy_of(space: PruneSpace) -> Accuracy:
    dense = np.asarray(space.dense_widths)
    share = np.linspace(0.002, 0.03, len(dense))
    return lambda widths: float(0.98 - (share * (1 - np.asarray(widths) / dense) ** 2).sum())


def dies_at(accuracy: Accuracy, call: int, asked: list[Widths]) -> Accuracy:
    def mortal(widths: Widths) -> float:
        if len(asked) == call:
            raise Killed
        asked.append(widths)
        return accuracy(widths)

    return mortal


def run(
    space: PruneSpace,
    accuracy: Accuracy,
    checkpoint: SearchCheckpoint | None = None,
    objective: Objective = OBJECTIVES["mean"],
    settings: SearchSettings = SETTINGS,
    seed: int = 3,
) -> SearchResult:
    return search(
        space,
        latency(space),
        accuracy,
        settings=settings,
        seed=seed,
        objective=objective,
        checkpoint=checkpoint,
    )


@pytest.mark.parametrize("name", ["mean", "p95", "slo"])
def test_the_same_seed_gives_the_same_plan(mobile_space: PruneSpace, name: str) -> None:
    first, second = (
        run(mobile_space, accuracy_of(mobile_space), objective=OBJECTIVES[name]) for _ in range(2)
    )
    assert first == second
    assert first.widths != run(mobile_space, accuracy_of(mobile_space), seed=4).widths


def test_each_objective_is_best_at_what_it_asks_for(mobile_space: PruneSpace) -> None:
    found = {
        name: run(mobile_space, lambda _: 1.0, objective=OBJECTIVES[name]) for name in OBJECTIVES
    }
    for name, objective in OBJECTIVES.items():
        values = {}
        for other, result in found.items():
            ms, spread = latency(mobile_space)(np.asarray([result.widths]))
            values[other] = objective.value(ms + SETTINGS.spread_penalty * spread)[0]
        assert values[name] == pytest.approx(found[name].objective_ms)
        assert values[name] <= min(values.values()) * 1.02


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("call", [0, 1, 5, 13, 14, 30, 59])
def test_killed_anywhere_it_ends_in_the_same_result(
    mobile_space: PruneSpace, tmp_path: Path, call: int, every: int
) -> None:
    accuracy = accuracy_of(mobile_space)
    asked_whole: list[Widths] = []
    whole = run(mobile_space, dies_at(accuracy, 10**6, asked_whole))
    checkpoint = SearchCheckpoint(tmp_path / "search.json", every=every)
    asked: list[Widths] = []
    if call < len(asked_whole):
        with pytest.raises(Killed):
            run(mobile_space, dies_at(accuracy, call, asked), checkpoint)
    assert run(mobile_space, dies_at(accuracy, 10**6, asked), checkpoint) == whole
    assert asked == asked_whole
    # Called once more, it has only to read.
    assert run(mobile_space, dies_at(accuracy, 0, []), checkpoint) == whole


def test_killed_again_and_again(mobile_space: PruneSpace, tmp_path: Path) -> None:
    accuracy = accuracy_of(mobile_space)
    checkpoint = SearchCheckpoint(tmp_path / "search.json", every=3)
    objective = OBJECTIVES["p95"]
    whole = run(mobile_space, accuracy, objective=objective)
    for _ in range(whole.n_accuracy_evaluations):
        try:
            found = run(mobile_space, dies_at(accuracy, 7, []), checkpoint, objective)
            break
        except Killed:
            continue
    assert found == whole


def test_it_goes_on_from_the_last_generation_and_not_from_the_start(
    mobile_space: PruneSpace, tmp_path: Path
) -> None:
    checkpoint = SearchCheckpoint(tmp_path / "search.json")
    whole = run(mobile_space, accuracy_of(mobile_space), checkpoint)
    told: list[int] = []
    document = json.loads(checkpoint.path.read_text())
    generation = document["snapshot"]["optimiser"]["generation"]
    assert generation == whole.history[-1].generation
    again = search(
        mobile_space,
        latency(mobile_space),
        accuracy_of(mobile_space),
        settings=SETTINGS,
        seed=3,
        objective=OBJECTIVES["mean"],
        checkpoint=checkpoint,
        progress=lambda p: told.append(p.generation),
    )
    assert again == whole
    assert told == []


@pytest.mark.parametrize("change", ["seed", "settings", "objective", "accuracies", "damage"])
def test_a_file_that_is_not_of_this_search_is_named_and_not_used(
    mobile_space: PruneSpace, tmp_path: Path, change: str
) -> None:
    notes: list[str] = []
    accuracy = accuracy_of(mobile_space)
    checkpoint = SearchCheckpoint(tmp_path / "search.json", note=notes.append)
    run(mobile_space, accuracy, checkpoint)
    assert notes == []
    others = {
        "seed": {"seed": 9},
        "settings": {"settings": dataclasses.replace(SETTINGS, max_accuracy_drop=0.02)},
        "objective": {"objective": OBJECTIVES["slo"]},
        "accuracies": {},
        "damage": {},
    }[change]
    if change == "accuracies":
        checkpoint = dataclasses.replace(checkpoint, accuracy_of="other weights")
    if change == "damage":
        checkpoint.path.write_text(checkpoint.path.read_text()[:-40])
    asked: list[Widths] = []
    found = run(mobile_space, dies_at(accuracy, 10**6, asked), checkpoint, **others)
    assert found == run(mobile_space, accuracy, **others)
    assert len(asked) == found.n_accuracy_evaluations
    (note,) = notes
    assert note.startswith("search.json is ")
    assert note.endswith("the search starts anew")


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_search_resume as t
from compiler.pruning.resume import SearchCheckpoint
from compiler.pruning.widths import PruneSpace
space = PruneSpace.from_json(Path(sys.argv[1]).read_text())
asked = []
def accuracy(widths):
    if len(asked) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    asked.append(widths)
    return t.accuracy_of(space)(widths)
t.run(space, accuracy, SearchCheckpoint(Path(sys.argv[2])))
"""


def test_killed_for_good_by_the_system(mobile_space: PruneSpace, tmp_path: Path) -> None:
    space_file, state = tmp_path / "space.json", tmp_path / "search.json"
    space_file.write_text(mobile_space.to_json())
    child = CHILD.format(tests=str(Path(__file__).parent))
    ended = subprocess.run(
        [sys.executable, "-c", child, space_file, state],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    asked: list[Widths] = []
    accuracy = accuracy_of(mobile_space)
    found = run(mobile_space, dies_at(accuracy, 10**6, asked), SearchCheckpoint(state))
    assert found == run(mobile_space, accuracy)
    assert len(asked) == found.n_accuracy_evaluations - 20
