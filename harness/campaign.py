"""campaign.yaml → RunSpecs: what is measured on which board, purely, from one seed.

Input: a YAML file and the boards of an inventory. Output: Campaign, and its RunSpecs per board.
Raises DocumentError for the file, HarnessError for boards that do not exist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from device_agents.contract import RunSpec, StoppingRule
from harness.campaign_axes import AxesError, Canaries, cells_of, runs_of
from harness.campaign_file import REPEATS_MAX, CampaignFile, ModelEntry, form_of
from harness.documents import read_either
from harness.errors import DocumentError
from harness.inventory import Board, Inventory


@dataclass(frozen=True)
class CampaignModel:
    """One model file. path is absolute; sha256 is of its bytes."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Campaign:
    """Every cell of a measurement, still without boards' answers.

    specs: all runs, by board and in the seeded order in which each board does them.
    """

    campaign_id: str
    models: tuple[CampaignModel, ...]
    boards: tuple[Board, ...]
    specs: tuple[RunSpec, ...]

    def model_names(self) -> dict[str, str]:
        """model_sha256 → name."""
        return {model.sha256: model.name for model in self.models}

    def blobs(self) -> dict[str, Path]:
        """sha256 → local file of everything that the runs need on a board."""
        return {model.sha256: model.path for model in self.models}


def load_campaign(path: Path, inventory: Inventory) -> Campaign:
    """The campaign at ``path`` on the boards it selects. Raises DocumentError, HarnessError."""
    document = read_either(path, form_of)
    try:
        stopping = StoppingRule(**document.stopping.model_dump())
    except ValueError as error:
        raise DocumentError(path, None, f"stopping: {error}", "Keep each min <= its max") from None
    models = tuple(_model(path, entry) for entry in document.models)
    boards = inventory.select(document.boards.ids, document.boards.labels)
    try:
        specs = _runs(document, stopping, models, boards)
    except AxesError as error:
        raise DocumentError(path, None, error.fact, error.instead) from None
    return Campaign(document.campaign_id, models, boards, specs)


def _runs(
    document: CampaignFile,
    stopping: StoppingRule,
    models: Sequence[CampaignModel],
    boards: Sequence[Board],
) -> tuple[RunSpec, ...]:
    hashes = {model.name: model.sha256 for model in models}
    cells = cells_of(document, stopping, hashes, len(boards))
    canaries = None
    if (entry := document.canary) is not None:
        canaries = Canaries(cells, entry.model, hashes.get(entry.model), entry.every)
        canaries.check(len(cells) * document.repeats)
    return tuple(
        spec
        for board in boards
        for spec in runs_of(cells, board.board_id, document.seed, document.repeats, canaries)
    )


def again(specs: Iterable[RunSpec], to_repeat: Container[str], attempt: int) -> list[RunSpec]:
    """The runs whose run_id is in ``to_repeat`` as runs of their own, to be measured anew.

    attempt: 1 for the first time again. A campaign has at most REPEATS_MAX repeats, and as many
    canaries, which count from FIRST_CANARY_REPEAT: the new numbers meet no old one.
    """
    return [
        replace(spec, repeat=spec.repeat + attempt * REPEATS_MAX)
        for spec in specs
        if spec.run_id in to_repeat
    ]


def _model(campaign_path: Path, entry: ModelEntry) -> CampaignModel:
    path = (campaign_path.parent / entry.path).absolute()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        fact = error.strerror if isinstance(error, OSError) else error
        raise DocumentError(
            campaign_path,
            None,
            f"model {entry.name!r}: {str(path)!r} cannot be read ({fact})",
            "Write a path relative to the campaign file",
        ) from None
    return CampaignModel(entry.name, path, digest)
