"""The stage that learns which widths are legal: ladders measured, staircases fitted, widths set.

Input: the clusters' representatives. Output: a proposal of ladder models; once measured, every
network's PruneSpace with the widths that its layers' kernels run at full speed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import nn

from compiler.clusters import DeviceClusters
from compiler.dataset import Runs, lower_median
from compiler.errors import CompilerError
from compiler.features import layer_kind
from compiler.fine_tuning import Observe
from compiler.loading import load_space
from compiler.proposals import Proposal, ProposedModel, has_proposal, load_proposal, propose
from compiler.pruning.groups import legal_widths
from compiler.pruning.widths import PruneSpace
from compiler.recipe import Recipe
from compiler.staircase import LADDER, fit_step
from compiler.targets.candidates import candidate
from compiler.work import WorkFolder, read_json, write_json, write_text

MOST_STEP = 32
LEAST_CHOICES = 4
"""Legal widths of a group: one that a coarse step leaves whole could not be cut at all."""
MATTERS = 0.1
"""Share of a group's multiply-accumulates below which a kind of layer has no say."""

_FIXED, _THIN = 64, 8
"""Channels of a ladder that stay as they are: many, and as few as leave depthwise layers the most
of the time."""

StepByKind = Mapping[str, int]


def ladder_network(kind: str, width: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Layers of one kind around a group of this width, and the input's shape without batch.

    kind: "conv", "pointwise" or "depthwise" (features.layer_kind). As in a network, the width is
    one layer's output and the next one's input, and their other sides stay as they are: work grows
    linearly with the width, so that what bends its latency is the kernels. Large enough that one
    inference takes a few tenths of a millisecond on a fast core.
    """
    if kind == "depthwise":
        parts: list[nn.Module] = [nn.Conv2d(_THIN, width, 1), nn.ReLU()]
        for _ in range(4):
            parts += [nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU()]
        parts += [nn.Conv2d(width, _THIN, 1), nn.ReLU()]
        return nn.Sequential(*parts).eval(), (_THIN, 56, 56)
    size, kernel = {"conv": (28, 3), "pointwise": (56, 1)}[kind]
    into = nn.Conv2d(_FIXED, width, kernel, padding=kernel // 2)
    out_of = nn.Conv2d(width, _FIXED, kernel, padding=kernel // 2)
    return nn.Sequential(into, nn.ReLU(), out_of, nn.ReLU()).eval(), (_FIXED, size, size)


def kinds_of(spaces: list[PruneSpace]) -> list[str]:
    """The kinds of layer that a ladder is needed for.

    None for linear layers: at batch 1 they stream their weights, whose bytes know no steps.
    """
    found = dict.fromkeys(layer_kind(layer) for space in spaces for layer in space.layers)
    return [kind for kind in found if kind != "linear"]


def propose_ladders(
    work: WorkFolder, recipe: Recipe, clusters: DeviceClusters, observe: Observe
) -> Proposal:
    """Every width of LADDER for every kind of layer, on the representatives."""
    if has_proposal(work, "ladders"):
        return load_proposal(work, "ladders")
    kinds = kinds_of([load_space(work, name) for name in recipe.networks])
    models: list[ProposedModel] = []
    for kind in kinds:
        for width in LADDER:
            torch.manual_seed(recipe.seed)
            network, shape = ladder_network(kind, width)
            model = candidate(recipe.runtime, network, torch.zeros(1, *shape))
            models.append(
                ProposedModel(f"ladder-{kind}-{width:03d}", model, {"kind": kind, "width": width})
            )
            observe("ladders of widths", len(models), len(kinds) * len(LADDER), kind)
    boards = list(clusters.representatives_.values())
    repeats = recipe.measuring.sample_repeats
    return propose(work, recipe, "ladders", models, boards=boards, repeats=repeats)


def learn_widths(
    work: WorkFolder, recipe: Recipe, ladders: Proposal, runs: Runs, clusters: DeviceClusters
) -> None:
    """Writes the staircases, and every network's space with the legal widths that they leave."""
    if not work.staircases.exists():
        document = {
            label: _staircases(ladders, runs, board, recipe.runtime)
            for label, board in clusters.representatives_.items()
        }
        write_json(work.staircases, document)
    by_cluster = read_json(work.staircases)
    steps = [
        {kind: int(entry["step"]) for kind, entry in entries.items()}
        for entries in by_cluster.values()
    ]
    for name in recipe.networks:
        space = with_legal_widths(load_space(work, name), steps, recipe.min_width_fraction)
        write_text(work.space(name), space.to_json())


def _staircases(
    ladders: Proposal, runs: Runs, board_id: str, runtime: str
) -> dict[str, dict[str, object]]:
    """Kind of layer → its step on this board, with the points that it was learned from."""
    points: dict[str, list[tuple[int, float]]] = {}
    for model, facts in ladders.facts_by_model.items():
        p50s = [
            run.p50_ms
            for run in runs.runs
            if run.model_sha256 == model and run.board_id == board_id and run.valid
        ]
        if p50s:
            points.setdefault(str(facts["kind"]), []).append(
                (int(facts["width"]), lower_median(p50s))
            )
    found: dict[str, dict[str, object]] = {}
    for kind, of_kind in points.items():
        widths = [width for width, _ in sorted(of_kind)]
        ms = [latency for _, latency in sorted(of_kind)]
        try:
            step = fit_step(widths, ms)
        except ValueError as error:
            raise CompilerError(
                f"{board_id}: {error} ({kind}, {runtime}). Next: measure the ladders again, or "
                "give the recipe a width_step"
            ) from None
        found[kind] = {**asdict(step), "runtime": runtime, "widths": widths, "ms": ms}
    return found


def with_legal_widths(
    space: PruneSpace, steps: Sequence[StepByKind], min_fraction: float
) -> PruneSpace:
    """The same network; a group's widths are multiples of what its layers' kernels work in.

    steps: for each cluster, kind of layer → step. Of a group those layers count that do a
    MATTERS-th of its work or more, on every cluster: their steps' least common multiple, at most
    MOST_STEP, and halved until the group has LEAST_CHOICES widths.
    """
    widths = []
    for group in space.groups:
        kinds = _kinds_that_matter(space, group.name)
        step = math.lcm(*(of_cluster.get(kind, 1) for of_cluster in steps for kind in kinds))
        step = min(step, MOST_STEP)
        while step > 1 and len(legal_widths(group.channels, step, min_fraction)) < LEAST_CHOICES:
            step //= 2
        widths.append(legal_widths(group.channels, step, min_fraction))
    return replace(space, widths_by_group=tuple(widths))


def _kinds_that_matter(space: PruneSpace, group: str) -> set[str]:
    work: dict[str, int] = {}
    for layer, c_in, c_out in space.layer_channels(space.dense_widths):
        if group in (layer.in_group, layer.out_group):
            work[layer_kind(layer)] = work.get(layer_kind(layer), 0) + layer.macs(c_in, c_out)
    least = MATTERS * sum(work.values())
    # A depthwise layer multiplies little and yet takes time: it waits for memory.
    return {kind for kind, macs in work.items() if macs >= least or kind == "depthwise"}
