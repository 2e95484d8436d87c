"""torch-pruning's own cuts of one trained network at a budget of work, channels and all.

Input: the network, its PruneSpace and a band of multiply-accumulates. Output: Peers that can be
fine-tuned; which channels go is torch-pruning's own doing, only the ratio is sought.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from benchmarks.torch_pruning_contenders import LEAST_FRACTION, cut_network, read_widths
from compiler.pruning.widths import PruneSpace, Widths

SCOPES = ("uniform", "global")
IMPORTANCES = ("magnitude", "bn-scale")
ROUNDINGS = (None, 8, 16)
_TRIES = 10


@dataclass(frozen=True)
class Peer:
    """One cut network. macs: multiply-accumulates of one inference; ratio: the pruner's."""

    name: str
    network: nn.Module
    widths: Widths
    macs: int
    ratio: float


Cut = Callable[[float, float, int], nn.Module]
"""(ratio, ratio of the first layers, how many of those) → a cut copy of the network."""


def peers(
    network: nn.Module, space: PruneSpace, least: float, most: float, quick: bool = False
) -> Iterator[Peer]:
    """The heaviest cut within the band for each scope, importance and rounding that has one.

    least, most: multiply-accumulates of the whole network. quick: magnitude only.
    """
    for scope in SCOPES:
        for importance in IMPORTANCES[:1] if quick else IMPORTANCES:
            for rounding in ROUNDINGS:
                name = f"torch-pruning {scope} {importance} /{rounding or 1}"

                def cut(
                    ratio: float,
                    first_ratio: float,
                    n_first: int,
                    scope: str = scope,
                    importance: str = importance,
                    rounding: int | None = rounding,
                ) -> nn.Module:
                    first = (first_ratio, n_first)
                    return cut_network(network, space, ratio, scope, importance, rounding, first)

                found = _heaviest(name, space, cut, (least, most))
                if found is not None:
                    yield found


def _heaviest(name: str, space: PruneSpace, cut: Cut, band: tuple[float, float]) -> Peer | None:
    """Bisects the ratio. Where rounding makes it jump over the band, the first layers get the
    ratio on the far side of the jump and the others the one before it.
    """
    best: Peer | None = None
    heavy, light = 0.0, 1 - LEAST_FRACTION

    def judged(ratio: float, first_ratio: float, n_first: int) -> int:
        nonlocal best
        network = cut(ratio, first_ratio, n_first)
        widths = read_widths(network, space)
        macs = space.macs(widths)
        if band[0] <= macs <= band[1] and (best is None or macs > best.macs):
            best = Peer(name, network, widths, macs, ratio)
        return macs

    for _ in range(_TRIES):
        middle = (heavy + light) / 2
        macs = judged(middle, middle, 0)
        heavy, light = (middle, light) if macs > band[1] else (heavy, middle)
    few, many = 0, len(space.layers)
    while best is None and many - few > 1:
        n_first = (few + many) // 2
        macs = judged(heavy, light, n_first)
        few, many = (n_first, many) if macs > band[1] else (few, n_first)
    return best
