"""Which shapes to measure: legal width vectors spread over the whole range of work.

Input: a PruneSpace, a number and a seed. Output: distinct width vectors, dense and smallest first.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from compiler.features import total_macs
from compiler.pruning.widths import PruneSpace, Widths

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_POOL_PER_SAMPLE = 16
_ENUMERATE_UP_TO = 20_000


def decode(space: PruneSpace, kept: FloatArray) -> IntArray:
    """Fractions of the dense widths → the nearest legal widths.

    kept: (n, n_groups); 0 is the smallest legal width's side, 1 the dense width. Values outside
    0..1 are clipped by the ends of the legal widths. Returns (n, n_groups).
    """
    columns = []
    for position, legal in enumerate(space.widths_by_group):
        choices = np.asarray(legal, dtype=np.int64)
        # The border between two legal widths is their middle: one search instead of n distances.
        borders = (choices[1:] + choices[:-1]) / 2
        columns.append(choices[np.searchsorted(borders, kept[:, position] * choices[-1])])
    return np.stack(columns, axis=1) if columns else np.zeros((len(kept), 0), dtype=np.int64)


def sample_widths(space: PruneSpace, n: int, seed: int) -> tuple[Widths, ...]:
    """Distinct legal width vectors, n of them, the same for the same seed.

    The dense and the smallest shape come first: total work grows with every width, so the two
    bound the domain on which a surrogate may be asked. The others are Sobol points (Owen's
    scramble), thinned so that their total multiply-accumulates are spread evenly on a logarithmic
    axis: plain points crowd in the middle, since a sum over many groups hardly varies.
    Raises ValueError for n < 2 or more than the space holds.
    """
    if n < 2:
        raise ValueError(f"{n} samples: the dense and the smallest shape are always among them")
    held = math.prod(len(legal) for legal in space.widths_by_group)
    if n > held:
        raise ValueError(f"{space.network}: {n} samples asked, {held} legal shapes exist")
    corners = [space.dense_widths, tuple(legal[0] for legal in space.widths_by_group)]
    if held <= min(_ENUMERATE_UP_TO, n * _POOL_PER_SAMPLE):
        pool = np.asarray(list(itertools.product(*space.widths_by_group)), dtype=np.int64)
    else:
        pool = _sobol_pool(space, n, seed)
    pool = pool[~(pool[:, None, :] == np.asarray(corners)[None]).all(axis=2).any(axis=1)]
    chosen = _spread(np.log(total_macs(space, pool)), n - 2)
    rest = [tuple(int(width) for width in pool[row]) for row in chosen]
    return tuple(corners + rest)


def _sobol_pool(space: PruneSpace, n: int, seed: int) -> IntArray:
    """At least n + 2 distinct vectors.

    Half have one level for all groups and a deviation around it, half each group on its own.
    """
    n_groups = len(space.groups)
    exponent = math.ceil(math.log2(n * _POOL_PER_SAMPLE))
    while True:
        # Sobol' points are balanced only at powers of two.
        points = qmc.Sobol(n_groups + 1, rng=np.random.default_rng(seed)).random_base2(exponent)
        level, own = points[:, :1], points[:, 1:]
        levelled = np.arange(len(points))[:, None] % 2 == 0
        fractions = np.where(levelled, level + (own - 0.5) * 0.6, own)
        # Legal widths need not begin near zero: a fraction of 0 means the smallest of them.
        smallest = np.asarray([legal[0] / legal[-1] for legal in space.widths_by_group])
        widths = decode(space, smallest + np.clip(fractions, 0, 1) * (1 - smallest))
        _, first = np.unique(widths, axis=0, return_index=True)
        if len(first) >= n + 2:
            return widths[np.sort(first)]
        exponent += 1


def _spread(values: FloatArray, n: int) -> list[int]:
    """Indices of n entries whose values lie evenly between the smallest and the largest.

    For each of n even targets the nearest entry not yet taken; ties go to the earlier one.
    """
    free = np.ones(len(values), dtype=bool)
    chosen: list[int] = []
    if not n:
        return chosen
    for target in np.linspace(values.min(), values.max(), n + 2)[1:-1]:
        distance = np.where(free, np.abs(values - target), np.inf)
        nearest = int(np.argmin(distance))
        free[nearest] = False
        chosen.append(nearest)
    return chosen
