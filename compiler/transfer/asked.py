"""One question whole: what of a board's measurements holds on another, and what to measure there.

Input: Cells, a proxy, a target that may be new, features and accuracies where they are known.
Output: Answer: the verdict, the models that stay optimal, and those to measure next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compiler.transfer.cells import Cell, Cells
from compiler.transfer.chosen import LEAST_JUDGED, ChosenTransfer
from compiler.transfer.estimators import Mixture
from compiler.transfer.pool import Pool
from compiler.transfer.probes import MOST_PROBES, choose_probes
from compiler.transfer.rank import TransferError
from compiler.transfer.reuse import Judged, Optimal, judge, optimal

IntArray = NDArray[np.int64]

MOSTLY = 0.9
"""Share of the proxy's models that another board must have measured to be of use."""


@dataclass(frozen=True)
class Answer:
    """models: (n,) names, by position in the pool: all that the proxy measured. measured: how many
    of them the target did. others: the labels of the other cells that know MOSTLY all of them.

    transfer, judged: None where the target measured fewer than LEAST_JUDGED; optimal: also where
    accuracies are unknown. ask_next: positions, most useful first; why_next: what they are.
    """

    models: tuple[str, ...]
    measured: int
    others: tuple[str, ...]
    transfer: ChosenTransfer | None
    judged: Judged | None
    optimal: Optimal | None
    ask_next: IntArray
    why_next: str

    @property
    def verdict(self) -> str:
        return "measure" if self.judged is None else self.judged.verdict

    @property
    def reason(self) -> str:
        if self.judged is not None:
            return self.judged.reason
        return f"the target measured {self.measured} of the models, {LEAST_JUDGED} judge a proxy"

    @property
    def names_next(self) -> tuple[str, ...]:
        return tuple(self.models[row] for row in self.ask_next.tolist())


def ask(
    cells: Cells,
    proxy: Cell,
    target: Cell | None,
    x: ArrayLike | None = None,
    accuracy: ArrayLike | None = None,
    probes: int = MOST_PROBES,
) -> Answer:
    """target: None for a board without any run. x: (n, n_features) and accuracy: (n,) of the models
    of ``cells.shared(proxy)``, in that order. probes: how many to name, at most.

    Raises TransferError where proxy and target are one, or probes < 1.
    """
    if proxy == target:
        raise TransferError(f"{cells.label(proxy)} is both proxy and target. Next: name two")
    if probes < 1:
        raise TransferError(f"{probes} probes tell nothing. Next: ask for {MOST_PROBES}")
    models = cells.shared(proxy)
    pool = _pool(cells, proxy, target, x)
    names = pool.names
    seen = () if target is None else cells.shared(proxy, target)
    rows = np.array([models.index(model) for model in seen], dtype=np.int64)
    fitted = judged = best = None
    if target is not None and len(rows) >= LEAST_JUDGED:
        fitted = ChosenTransfer().fit(pool, rows, cells.ms(target, seen))
        judged = judge(fitted, names[0])
        if accuracy is not None:
            best = optimal(fitted, names[0], judged, accuracy)
    asked, why = _next(pool, rows, judged, best, probes)
    return Answer(models, len(rows), names[1:], fitted, judged, best, asked, why)


def _pool(cells: Cells, proxy: Cell, target: Cell | None, x: ArrayLike | None) -> Pool:
    """The proxy's models; the proxy first, then the others that know MOSTLY all of them.

    A run that was not valid leaves a gap in a board. It is filled by what the boards without gaps
    say of this one, for without it the board or the model would be lost to all others.
    """
    models = cells.shared(proxy)
    others = [
        cell
        for cell in cells.ms_by_cell
        if cell not in (proxy, target) and len(cells.shared(proxy, cell)) >= MOSTLY * len(models)
    ]
    whole = [proxy, *(cell for cell in others if set(models) <= set(cells.ms_by_cell[cell]))]
    features = np.empty((len(models), 0)) if x is None else np.asarray(x, dtype=np.float64)
    pool = Pool(
        np.stack([cells.ms(cell, models) for cell in whole], axis=1),
        features,
        tuple(map(cells.label, whole)),
    )
    columns, names = [pool.proxies_ms], list(pool.names)
    for cell in (cell for cell in others if cell not in whole):
        known = cells.shared(proxy, cell)
        rows = np.array([models.index(model) for model in known], dtype=np.int64)
        ms = Mixture().fit(pool, rows, cells.ms(cell, known)).predict(np.arange(len(models)))
        ms[rows] = cells.ms(cell, known)
        columns.append(ms[:, None])
        names.append(cells.label(cell))
    return Pool(np.hstack(columns), features, tuple(names))


def _next(
    pool: Pool, rows: IntArray, judged: Judged | None, best: Optimal | None, most: int
) -> tuple[IntArray, str]:
    """What tells most of the target; once its order is known, what may be optimal there."""
    left = len(pool) - len(rows)
    if judged is not None and judged.verdict != "measure":
        unsettled = np.array([], dtype=np.int64) if best is None else best.unsettled
        return unsettled[:most], "may be optimal on the target and were not measured there"
    if not left:
        return np.array([], dtype=np.int64), ""
    return choose_probes(pool, min(most, left), rows), "say most about all the others"
