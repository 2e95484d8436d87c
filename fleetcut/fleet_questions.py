"""A compiled fleet as the what-if model takes it, and a scenario as an effect on its boards.

Input: a work folder, where there is one a dataset folder and an inventory. Output: FleetModel:
boards, shapes and their predictions; then an Effect and what of it is assumed, not measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.anchors import ANCHORS
from compiler.clock_response import (
    ASSUMED,
    ClockResponse,
    RecordedClock,
    charge_clocks,
    clock_responses,
    hot_clocks,
    present_clocks,
)
from compiler.clusters import DeviceClusters, anchor_latencies
from compiler.dataset import Run, Runs, read_runs
from compiler.features import physics_features
from compiler.pruning.widths import PruneSpace, PruningPlan, Widths
from compiler.recipe import Recipe
from compiler.surrogates import OutOfDomainError, Surrogate
from compiler.whatif import Boards, Effect, Prediction, WhatIfError, choose
from compiler.work import WorkFolder, read_json
from fleetcut.scenarios import Scenario
from harness.inventory import Board

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """One network in one shape, and what is predicted of it on each cluster."""

    network: str
    name: str
    prediction: Prediction


@dataclass(frozen=True)
class FleetModel:
    """The fleet as it is now.

    labels: of clusters, by position. present_khz, model_by_board: where they are known. runs: of
    the dataset, invalid ones too; empty without one. assumptions: what was not measured.
    """

    boards: Boards
    labels: tuple[str, ...]
    responses: Mapping[str, ClockResponse]
    present_khz: Mapping[str, float]
    model_by_board: Mapping[str, str]
    labels_by_board: Mapping[str, Mapping[str, str]]
    runs: tuple[Run, ...]
    simulated: bool
    assumptions: tuple[str, ...]


def open_work(root: Path) -> WorkFolder:
    """A folder that compile has begun. Raises WhatIfError for any other."""
    path = root / "recipe.json"
    try:
        recipe = Recipe.model_validate(json.loads(path.read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        fact = error.strerror if isinstance(error, OSError) else "it does not fit this version"
        raise WhatIfError(
            f"{path}: cannot be read ({fact}). Next: name the --work folder of fleetcut compile"
        ) from None
    return WorkFolder(root, recipe)


def load_fleet(work: WorkFolder, dataset: Path | None, inventory: Sequence[Board]) -> FleetModel:
    """The fleet that ``work`` was compiled for. Raises CompilerError naming the file."""
    clusters = _clusters(work)
    runs = None if dataset is None else read_runs(dataset, include_invalid=True)
    every: tuple[Run, ...] = () if runs is None else runs.runs
    campaigns = _campaigns(work)
    present_khz = {
        **present_clocks(every),
        **present_clocks(run for run in every if run.campaign_id in campaigns.values()),
    }
    cluster_by_board = dict(zip(clusters.board_ids_, clusters.labels_.tolist(), strict=True))
    responses = (
        clock_responses(runs, cluster_by_board, present_khz)
        if runs is not None
        else dict.fromkeys(clusters.representatives_, ASSUMED)
    )
    spread, notes = _spread(clusters, runs, campaigns.get("anchors"))
    return FleetModel(
        boards=_boards(clusters, _ratios(work, clusters), spread, responses),
        labels=tuple(clusters.representatives_),
        responses=responses,
        present_khz=present_khz,
        model_by_board={b.board_id: b.model for b in inventory}
        | {run.board_id: run.board_model for run in every if run.board_model},
        labels_by_board={b.board_id: dict(b.labels) for b in inventory},
        runs=every,
        simulated=any(r.simulated for r in every) or any(b.simulated for b in inventory),
        assumptions=notes,
    )


def load_shapes(
    work: WorkFolder, labels: Sequence[str], networks: Sequence[str] | None, plans: Sequence[Path]
) -> tuple[Shape, ...]:
    """Dense, pruned and the plans given, of each network. Raises WhatIfError naming the file."""
    known = work.recipe.networks
    for name in networks or ():
        if name not in known:
            raise WhatIfError(
                f"{work.root}: no network {name!r}. Next: use one of {', '.join(known)}"
            )
    given = [(path, _plan(path)) for path in plans]
    for path, plan in given:
        if plan.network not in (networks or known):
            raise WhatIfError(
                f"{path}: is of {plan.network}. Next: use a plan of {', '.join(networks or known)}"
            )
    shapes = []
    for name in networks or known:
        space = _space(work, name)
        surrogates = [_surrogate(work, name, label) for label in labels]
        for shape, widths in _widths(work, space, name, given):
            shapes.append(Shape(name, shape, _prediction(space, surrogates, widths, name, shape)))
    return tuple(shapes)


def effect_of(fleet: FleetModel, scenario: Scenario, seed: int) -> tuple[Effect, tuple[str, ...]]:
    """What the scenario does, and what of it is given or assumed.

    Raises WhatIfError for boards, clusters or labels that do not exist, and where the dataset
    holds no clock that is asked for.
    """
    chosen = choose(_eligible(fleet, scenario), scenario.share, seed)
    notes = [] if scenario.share is None else [f"which boards: drawn by seed {seed}"]
    ratio, sd = np.ones(len(chosen)), 0.0
    if scenario.clock_fraction is not None:
        ratio[chosen] = 1 / scenario.clock_fraction
        notes.append(f"clock_fraction {scenario.clock_fraction:g}: given, not measured")
    elif scenario.clock_khz is not None:
        ratio[chosen] = _present(fleet, chosen) / scenario.clock_khz
        notes.append(f"clock {scenario.clock}: given, not measured")
    else:
        recorded = _recorded(fleet, scenario)
        if recorded is not None:
            new = _new_clocks(fleet, chosen, recorded)
            # A board that is held lower already stays there.
            ratio[chosen] = np.maximum(_present(fleet, chosen) / new, 1.0)
            sd = recorded.sd
    if scenario.slowdown is not None:
        notes.append(f"slowdown {scenario.slowdown:g}: given, not measured")
    notes += _unmeasured(fleet, chosen & (ratio != 1))
    return Effect(chosen, ratio, sd, scenario.slowdown or 1.0), tuple(notes)


def _unmeasured(fleet: FleetModel, changed: NDArray[np.bool_]) -> list[str]:
    """Clusters whose boards change their clock and of which none was measured at two."""
    return [
        f"cluster {fleet.labels[i]}: latency is b/f, 90 % between half as steep and half as steep "
        "again, for no board of it was measured at two clocks"
        for i in np.unique(fleet.boards.cluster[changed])
        if not fleet.responses[fleet.labels[i]].measured
    ]


def _recorded(fleet: FleetModel, scenario: Scenario) -> RecordedClock | None:
    if scenario.heat:
        return hot_clocks(fleet.runs, fleet.model_by_board)
    if scenario.battery_band_pct is not None:
        return charge_clocks(fleet.runs, fleet.model_by_board, *scenario.battery_band_pct)
    return None


def _eligible(fleet: FleetModel, scenario: Scenario) -> NDArray[np.bool_]:
    ids = fleet.boards.board_ids
    eligible = np.ones(len(ids), dtype=bool)
    if scenario.boards is not None:
        unknown = sorted(set(scenario.boards) - set(ids))
        if unknown:
            raise WhatIfError(
                f"{scenario.title()}: no board {unknown[0]!r} in the compiled fleet. "
                f"Next: use ids such as {', '.join(ids[:3])}"
            )
        eligible &= np.isin(ids, scenario.boards)
    if scenario.cluster is not None:
        if scenario.cluster not in fleet.labels:
            raise WhatIfError(
                f"{scenario.title()}: no cluster {scenario.cluster!r}. "
                f"Next: use one of {', '.join(fleet.labels)}"
            )
        eligible &= fleet.boards.cluster == fleet.labels.index(scenario.cluster)
    if scenario.labels:
        wanted = scenario.labels.items()
        eligible &= [wanted <= fleet.labels_by_board.get(board, {}).items() for board in ids]
    if not eligible.any():
        raise WhatIfError(
            f"{scenario.title()}: fits none of {len(ids)} boards. "
            "Next: choose others; labels need --inventory"
        )
    return eligible


def _present(fleet: FleetModel, chosen: NDArray[np.bool_]) -> FloatArray:
    return _clocks(
        fleet, chosen, fleet.present_khz, "their clock was never read",
        "give --dataset with runs of them, or clock_fraction instead of clock",
    )  # fmt: skip


def _new_clocks(
    fleet: FleetModel, chosen: NDArray[np.bool_], recorded: RecordedClock
) -> FloatArray:
    return _clocks(
        fleet, chosen, recorded.khz_by_board, "no board of their model was recorded so",
        "choose other boards, or give clock_fraction",
    )  # fmt: skip


def _clocks(
    fleet: FleetModel, chosen: NDArray[np.bool_], known: Mapping[str, float], fact: str, step: str
) -> FloatArray:
    ids = [board for board, yes in zip(fleet.boards.board_ids, chosen, strict=True) if yes]
    missing = [board for board in ids if board not in known]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise WhatIfError(f"{', '.join(missing[:3])}{more}: {fact}. Next: {step}")
    return np.array([known[board] for board in ids])


def _clusters(work: WorkFolder) -> DeviceClusters:
    path = work.clusters
    try:
        return DeviceClusters.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WhatIfError(
            f"{path}: cannot be read ({error}). Next: fleetcut compile, as far as its surrogates"
        ) from None


def _campaigns(work: WorkFolder) -> dict[str, str]:
    """The campaign id of each stage that made a proposal."""
    found = {}
    for path in sorted((work.root / "proposals").glob("*/models.json")):
        found[path.parent.name] = str(read_json(path)["campaign_id"])
    return found


def _ratios(work: WorkFolder, clusters: DeviceClusters) -> FloatArray:
    """Each board's latency over its cluster's representative's, as the anchors say."""
    known = read_json(work.anchor_ratios)
    of_cluster = {k: known[board] for k, board in clusters.representatives_.items()}
    labels = clusters.labels_.tolist()
    return np.array(
        [known[b] / of_cluster[k] for b, k in zip(clusters.board_ids_, labels, strict=True)]
    )


def _spread(
    clusters: DeviceClusters, runs: Runs | None, anchors_id: str | None
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Cluster → standard deviation of a board's log-ratio from one network to another."""
    labels = list(clusters.representatives_)
    if runs is not None and any(r.campaign_id == anchors_id for r in runs.runs):
        valid = Runs(tuple(r for r in runs.runs if r.valid), runs.source, runs.source_sha256)
        latencies = anchor_latencies(
            valid.select(campaign_ids=[str(anchors_id)], board_ids=clusters.board_ids_),
            list(ANCHORS),
        )
        return _spread_over_anchors(clusters, latencies.board_ids, latencies.median_ms), ()
    sd = float(np.mean(clusters.resolution_)) / 2
    note = f"boards of a cluster: {sd:.1%} apart, half of what counts as a difference"
    return dict.fromkeys(labels, sd), (note,)


def _spread_over_anchors(
    clusters: DeviceClusters, board_ids: Sequence[str], median_ms: FloatArray
) -> dict[str, float]:
    rows = {board: i for i, board in enumerate(board_ids)}
    members = clusters.labels_.tolist()
    found = {}
    for label, representative in clusters.representatives_.items():
        ids = [
            b
            for b, k in zip(clusters.board_ids_, members, strict=True)
            if k == label and b in rows and b != representative
        ]
        logs = np.log(median_ms[[rows[b] for b in ids]] / median_ms[rows[representative]])
        apart = logs - np.median(logs, axis=1, keepdims=True)
        n_anchors = max(2, median_ms.shape[1])
        squares = (apart**2).mean() * n_anchors / (n_anchors - 1) if ids else 0.0
        found[label] = float(np.sqrt(squares))
    return found


def _boards(
    clusters: DeviceClusters,
    ratios: FloatArray,
    spread: Mapping[str, float],
    responses: Mapping[str, ClockResponse],
) -> Boards:
    order = {label: i for i, label in enumerate(clusters.representatives_)}
    ids, labels = clusters.board_ids_, clusters.labels_.tolist()
    representatives = set(clusters.representatives_.values())
    pairs = list(zip(ids, labels, strict=True))
    return Boards(
        board_ids=ids,
        cluster=np.array([order[label] for label in labels]),
        ratio=ratios,
        # The surrogate was measured on the representative itself.
        ratio_sd=np.array([0.0 if b in representatives else spread[k] for b, k in pairs]),
        fixed_share=np.array(
            [responses[k].fixed_share_by_board.get(b, responses[k].fixed_share) for b, k in pairs]
        ),
        fixed_sd=np.array([responses[k].board_sd for _, k in pairs]),
        shared_fixed_sd=np.array([responses[k].shared_sd for k in order]),
    )


def _space(work: WorkFolder, name: str) -> PruneSpace:
    path = work.space(name)
    try:
        return PruneSpace.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WhatIfError(f"{path}: cannot be read ({error}). Next: fleetcut compile") from None


def _surrogate(work: WorkFolder, name: str, label: str) -> Surrogate:
    path = work.surrogate(name, label)
    try:
        return Surrogate.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WhatIfError(
            f"{path}: cannot be read ({error}). Next: fleetcut compile, which fits it"
        ) from None


def _widths(
    work: WorkFolder, space: PruneSpace, name: str, given: Sequence[tuple[Path, PruningPlan]]
) -> list[tuple[str, Widths]]:
    shapes: list[tuple[str, Widths]] = [("dense", space.dense_widths)]
    path = work.plan(name)
    if path.exists():
        shapes.append(("pruned", _fitting(path, _plan(path), space)))
    shapes += [(p.stem, _fitting(p, plan, space)) for p, plan in given if plan.network == name]
    return shapes


def _plan(path: Path) -> PruningPlan:
    try:
        return PruningPlan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WhatIfError(f"{path}: is no pruning plan ({error}). Next: name a plan") from None


def _fitting(path: Path, plan: PruningPlan, space: PruneSpace) -> Widths:
    try:
        return plan.widths(space)
    except ValueError as error:
        raise WhatIfError(
            f"{path}: {error}. Next: use a plan of this network in this work folder"
        ) from None


def _prediction(
    space: PruneSpace, surrogates: Sequence[Surrogate], widths: Widths, name: str, shape: str
) -> Prediction:
    x = physics_features(space, [list(widths)])
    try:
        intervals = [surrogate.predict(x) for surrogate in surrogates]
    except OutOfDomainError as error:
        raise WhatIfError(f"{name} {shape}: {error}") from None
    median, lower, upper = np.array([[float(v[0]) for v in three] for three in intervals]).T
    return Prediction(median, lower, upper, surrogates[0].coverage)
