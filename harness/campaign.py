"""campaign.yaml → RunSpecs: what is measured on which board, purely, from one seed.

Input: a YAML file and the boards of an inventory. Output: Campaign, and its RunSpecs per board.
Raises DocumentError for the file, HarnessError for boards that do not exist.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from device_agents.contract import Condition, RunSpec, StoppingRule
from harness.documents import read_document
from harness.errors import DocumentError
from harness.inventory import NAME_PATTERN, Board, Inventory

REPEATS_MAX = 1000


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


class _ModelEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=NAME_PATTERN, examples=["resnet50"])
    path: str = Field(min_length=1, examples=["models/resnet50.onnx"])


class _BoardsEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ids: list[str] | None = Field(default=None, examples=["[pi4-01, pi4-02]"])
    labels: dict[str, str] = Field(default_factory=dict, examples=["{cooling: fan}"])


class _ConditionEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    governor: str | None = Field(default=None, examples=["performance"])
    freq_khz: int | None = Field(default=None, gt=0, examples=[1500000])
    temp_c_min: float | None = Field(default=None, examples=[55.0])
    temp_c_max: float | None = Field(default=None, examples=[65.0])
    battery_pct_min: float | None = Field(default=None, ge=0, le=100, examples=[20.0])
    battery_pct_max: float | None = Field(default=None, ge=0, le=100, examples=[80.0])
    power_source: Literal["mains", "battery"] | None = Field(default=None, examples=["mains"])
    power_mode: str | None = Field(default=None, examples=["15W"])


class _StoppingEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    warmup_min: int = Field(default=StoppingRule.warmup_min, ge=1, examples=[5])
    warmup_max: int = Field(default=StoppingRule.warmup_max, ge=1, examples=[50])
    samples_min: int = Field(default=StoppingRule.samples_min, ge=1, examples=[30])
    samples_max: int = Field(default=StoppingRule.samples_max, ge=1, examples=[200])
    ci_fraction: float = Field(default=StoppingRule.ci_fraction, gt=0, lt=1, examples=[0.02])
    max_seconds: float = Field(default=StoppingRule.max_seconds, gt=0, examples=[10.0])


class _CampaignFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = Field(examples=[1])
    campaign_id: str = Field(pattern=NAME_PATTERN, examples=["nightly-2031-05-04"])
    seed: int = Field(default=0, examples=[0])
    boards: _BoardsEntry = Field(default_factory=_BoardsEntry, examples=["{labels: {}}"])
    models: list[_ModelEntry] = Field(min_length=1, examples=["a list of name and path"])
    runtimes: list[Literal["ort", "tflite", "executable"]] = Field(min_length=1, examples=["[ort]"])
    precision: Literal["fp32", "int8"] = Field(default="fp32", examples=["fp32"])
    threads: list[int] = Field(default=[1], min_length=1, examples=["[1]"])
    repeats: int = Field(default=1, ge=1, le=REPEATS_MAX, examples=[3])
    conditions: list[_ConditionEntry] = Field(
        default=[_ConditionEntry()], min_length=1, examples=["[{governor: performance}]"]
    )
    stopping: _StoppingEntry = Field(
        default_factory=_StoppingEntry, examples=["{samples_max: 100}"]
    )
    timeout_s: float = Field(default=60.0, gt=0, le=86400, examples=[60.0])


def load_campaign(path: Path, inventory: Inventory) -> Campaign:
    """The campaign at ``path`` on the boards it selects. Raises DocumentError, HarnessError."""
    document = read_document(path, _CampaignFile)
    try:
        stopping = StoppingRule(**document.stopping.model_dump())
    except ValueError as error:
        raise DocumentError(path, None, f"stopping: {error}", "Keep each min <= its max") from None
    if any(threads < 1 for threads in document.threads):
        raise DocumentError(path, None, "threads: below 1", "Write for example 'threads: [1, 4]'")
    models = tuple(_model(path, entry) for entry in document.models)
    boards = inventory.select(document.boards.ids, document.boards.labels)
    specs = tuple(
        spec for board in boards for spec in _cells(document, models, stopping, board.board_id)
    )
    return Campaign(document.campaign_id, models, boards, specs)


def again(specs: Iterable[RunSpec], to_repeat: Container[str], attempt: int) -> list[RunSpec]:
    """The runs whose run_id is in ``to_repeat`` as runs of their own, to be measured anew.

    attempt: 1 for the first time again. A campaign has at most REPEATS_MAX repeats, so that the
    new numbers meet no old one.
    """
    return [
        replace(spec, repeat=spec.repeat + attempt * REPEATS_MAX)
        for spec in specs
        if spec.run_id in to_repeat
    ]


def _model(campaign_path: Path, entry: _ModelEntry) -> CampaignModel:
    path = (campaign_path.parent / entry.path).absolute()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DocumentError(
            campaign_path,
            None,
            f"model {entry.name!r}: {path} cannot be read ({error.strerror})",
            "Write a path relative to the campaign file",
        ) from None
    return CampaignModel(entry.name, path, digest)


def _cells(
    document: _CampaignFile,
    models: tuple[CampaignModel, ...],
    stopping: StoppingRule,
    board_id: str,
) -> list[RunSpec]:
    """One board's runs, reordered for every repeat, so that drift meets all cells alike."""
    rng = random.Random(f"{document.seed}:{document.campaign_id}:{board_id}")  # noqa: S311
    specs: list[RunSpec] = []
    for repeat in range(document.repeats):
        cells = [
            RunSpec(
                campaign_id=document.campaign_id,
                board_id=board_id,
                model_sha256=model.sha256,
                runtime=runtime,
                precision=document.precision,
                threads=threads,
                condition=Condition(**condition.model_dump()),
                stopping=stopping,
                input_seed=document.seed,
                repeat=repeat,
                timeout_s=document.timeout_s,
            )
            for model, runtime, threads, condition in itertools.product(
                models, document.runtimes, document.threads, document.conditions
            )
        ]
        rng.shuffle(cells)
        specs.extend(cells)
    return specs
