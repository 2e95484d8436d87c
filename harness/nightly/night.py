"""One night of a campaign: the same cells under ids of their own, and which may be compared.

Input: a Campaign, a name of the night. Output: Nights, cells, RunSpecs.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from device_agents.contract import RunSpec
from harness.campaign import Campaign
from harness.campaign_axes import FIRST_CANARY_REPEAT, is_canary
from harness.errors import DocumentError, SelectionError
from harness.inventory import NAME_PATTERN
from harness.pairing import NOTHING, axes_of_spec
from harness.store import BaselineCell

CANARY = " (canary)"
"""After the model's name: a canary is a cell of its own, which tells the board from the model."""

_NAME_MAX = 64
_AGAIN = ".again"


@dataclass(frozen=True)
class Night:
    """campaign_id: of the file. night_id: under which tonight's runs are stored. again_id: those
    that confirm.
    """

    campaign_id: str
    night_id: str
    again_id: str


def night_of(campaign_id: str, name: str | None, now: datetime.datetime) -> Night:
    """The night ``name``, by default the date of ``now`` in UTC: a second start goes on with it.

    Raises SelectionError for a name that no campaign can have.
    """
    night_id = f"{campaign_id}.{name or now.astimezone(datetime.UTC).date().isoformat()}"
    again_id = night_id + _AGAIN
    if len(again_id) > _NAME_MAX or not re.match(NAME_PATTERN, again_id):
        raise SelectionError(
            f"the night {again_id!r} is no name of at most {_NAME_MAX} letters, digits, '.', '_' "
            "and '-'. Next: shorten campaign_id or --night"
        )
    return Night(campaign_id, night_id, again_id)


def cell_of(spec: RunSpec, model_name: str) -> BaselineCell:
    """Where a run belongs on its board: everything asked for, but its repeat and its model's bytes.

    A model is its name: tonight's build of it is compared with the baseline's.
    """
    axes = axes_of_spec(spec, model_name + CANARY if is_canary(spec) else model_name)
    said = [f"{k}={v}" for k, v in axes.items() if k != "campaign" and v != NOTHING]
    return BaselineCell(spec.board_id, " ".join(said))


def in_words(cell: str) -> str:
    """A cell for a person, without the names that its values tell by themselves."""
    return re.sub(r"\b(model|runtime|precision)=", "", cell).replace(" threads=1", "")


def slot_of(spec: RunSpec) -> int:
    """The repeat, counted alike for canaries."""
    return spec.repeat - FIRST_CANARY_REPEAT if is_canary(spec) else spec.repeat


def specs_of(campaign: Campaign, campaign_id: str, boards: Container[str]) -> tuple[RunSpec, ...]:
    """The campaign's runs on these boards, under another id."""
    return tuple(
        replace(spec, campaign_id=campaign_id) for spec in campaign.specs if spec.board_id in boards
    )


def expected_runs(campaign: Campaign) -> dict[BaselineCell, int]:
    """Cell → how many runs of it a whole night has."""
    names = campaign.model_names()
    runs: dict[BaselineCell, int] = {}
    for spec in campaign.specs:
        cell = cell_of(spec, names[spec.model_sha256])
        runs[cell] = runs.get(cell, 0) + 1
    return runs


def pairs_needed(n_cells: int, alpha: float) -> int:
    """The fewest pairs by which one cell among so many can be called slower.

    The least p-value of a sign-flip test of n pairs is 2 / 2ⁿ, and Benjamini and Hochberg ask it
    to be alpha / n_cells or less where it is the only one.
    """
    return math.ceil(math.log2(2 * max(1, n_cells) / alpha))


def refuse_too_few(path: Path, expected: Mapping[BaselineCell, int], alpha: float) -> int:
    """The pairs needed. Raises DocumentError where a night could never show a regression."""
    needed = pairs_needed(len(expected), alpha)
    least = min((n for cell, n in expected.items() if CANARY not in cell.cell), default=0)
    if least < needed:
        raise DocumentError(
            path,
            None,
            f"repeats: {least} can never show a regression in one of {len(expected)} cells "
            f"(boards × models × conditions) at alpha {alpha:g}",
            f"Write 'repeats: {needed + 2}': {needed} are the least, and some will not count",
        )
    return needed


def specs_again(
    campaign: Campaign, night: Night, cells: Iterable[BaselineCell]
) -> tuple[RunSpec, ...]:
    """The runs that confirm: those of these cells alone, in the campaign's order."""
    wanted = set(cells)
    names = campaign.model_names()
    return tuple(
        replace(spec, campaign_id=night.again_id)
        for spec in campaign.specs
        if cell_of(spec, names[spec.model_sha256]) in wanted
    )
