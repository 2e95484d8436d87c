"""The last steps of a search: channels go from where they cost much to where they cost little.

Input: a feasible shape and the judgements of it as callables. Output: a shape at least as good,
of which no neighbour is better and feasible, or the patience ran out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from compiler.pruning.widths import PruneSpace, Widths

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

STEPS = (1, 2, 4)
"""How many legal widths a group moves at once."""
_LEAST_GAIN = 1e-5
"""Fraction of the objective; less is rounding."""


def refine(
    space: PruneSpace,
    start: Widths,
    objective: Callable[[IntArray], FloatArray],
    allowed: Callable[[IntArray], BoolArray],
    feasible: Callable[[Widths, float], bool],
    *,
    patience: int,
    seed: int,
    max_neighbours: int = 20_000,
) -> Widths:
    """Best-improvement descent over single moves and exchanges between two groups.

    A random search in many dimensions ends near the border of what is feasible, and from there
    on nearly every step that saves time costs accuracy: only a step that gives as it takes leads
    on. objective: (n, n_groups) → (n,), lower is better, inf where unknown. allowed: the cheap
    constraints of the same rows. feasible: the costly one, asked of (widths, objective) in the
    order of their objectives. patience: how many neighbours it may refuse in one step before
    the descent ends. max_neighbours: of more, a random choice by seed.
    """
    rng = np.random.default_rng(seed)
    here, value = start, float(objective(np.asarray([start]))[0])
    while True:
        near = neighbours(space, here)
        if len(near) > max_neighbours:
            near = near[rng.choice(len(near), max_neighbours, replace=False)]
        near = near[allowed(near)]
        if not len(near):
            return here
        values = objective(near)
        order = np.argsort(values, kind="stable")
        better = order[values[order] < value * (1 - _LEAST_GAIN)][:patience]
        for row in better:
            candidate = tuple(int(width) for width in near[row])
            if feasible(candidate, float(values[row])):
                here, value = candidate, float(values[row])
                break
        else:
            return here


def neighbours(space: PruneSpace, widths: Widths) -> IntArray:
    """One group a few legal widths up or down, or one up and another down: (n, n_groups)."""
    places = [
        legal.index(width) for legal, width in zip(space.widths_by_group, widths, strict=True)
    ]
    moves = {-1: _moves(space, places, -1), 1: _moves(space, places, 1)}
    found: list[list[int]] = []
    for group, width in moves[-1] + moves[1]:
        found.append([*widths[:group], width, *widths[group + 1 :]])
    for up, more in moves[1]:
        for down, less in moves[-1]:
            if up != down:
                both = list(widths)
                both[up], both[down] = more, less
                found.append(both)
    return np.asarray(found, dtype=np.int64).reshape(len(found), len(widths))


def _moves(space: PruneSpace, places: list[int], sign: int) -> list[tuple[int, int]]:
    """(group, its new width) for every step that stays among the legal widths."""
    return [
        (group, legal[place + sign * step])
        for group, (legal, place) in enumerate(zip(space.widths_by_group, places, strict=True))
        for step in STEPS
        if 0 <= place + sign * step < len(legal)
    ]
