"""What campaign.yaml may say: its keys, their ranges, and its two ways to name conditions.

Input: plain data of the file. Output: CampaignFile, one of its two forms, checked key by key.
Raises ValueError inside pydantic, which harness.documents turns into a DocumentError with a line.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from device_agents.contract import Condition, StoppingRule
from harness.inventory import NAME_PATTERN

REPEATS_MAX = 1000
CONDITIONS_MAX = 10_000

T = TypeVar("T")


def _without_twins(values: list[T]) -> list[T]:
    seen: set[str] = set()
    for value in values:
        plain = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
        if repr(value) in seen:
            raise ValueError(f"{plain} stands twice")
        seen.add(repr(value))
    return values


def _rising(band: list[float | None]) -> list[float | None]:
    low, high = band
    if low is None and high is None:
        raise ValueError("a band without ends (null alone leaves the board as it is)")
    _check_band("the band", low, high)
    return band


def _check_band(name: str, low: float | None, high: float | None) -> None:
    if low is not None and high is not None and low > high:
        raise ValueError(f"{name} from {low:g} to {high:g} is empty")


Axis = Annotated[list[T], Field(min_length=1), AfterValidator(_without_twins)]
"""Choices to be multiplied with those of the other axes: at least one, none twice."""

Heat = Annotated[list[float | None], Field(min_length=2, max_length=2), AfterValidator(_rising)]
Percent = Annotated[float, Field(ge=0, le=100)]
Charge = Annotated[list[Percent | None], Field(min_length=2, max_length=2), AfterValidator(_rising)]
Source = Literal["mains", "battery"]
Runtime = Literal["ort", "tflite", "executable", "switchable"]
Precision = Literal["fp32", "int8"]
Name = Annotated[str, Field(min_length=1)]
Frequency = Annotated[int, Field(gt=0)]
Threads = Annotated[int, Field(ge=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelEntry(_Entry):
    """A model file. path: relative to the campaign file."""

    name: str = Field(pattern=NAME_PATTERN, examples=["resnet50"])
    path: str = Field(min_length=1, examples=["models/resnet50.onnx"])


class BoardsEntry(_Entry):
    """Which boards: all of these ids that have all of these labels."""

    ids: list[str] | None = Field(default=None, examples=["[pi4-01, pi4-02]"])
    labels: dict[str, str] = Field(default_factory=dict, examples=["{cooling: fan}"])


class ConditionEntry(_Entry):
    """One condition, as the contract has it."""

    governor: str | None = Field(default=None, examples=["performance"])
    freq_khz: int | None = Field(default=None, gt=0, examples=[1500000])
    temp_c_min: float | None = Field(default=None, examples=[55.0])
    temp_c_max: float | None = Field(default=None, examples=[65.0])
    battery_pct_min: float | None = Field(default=None, ge=0, le=100, examples=[20.0])
    battery_pct_max: float | None = Field(default=None, ge=0, le=100, examples=[80.0])
    power_source: Source | None = Field(default=None, examples=["mains"])
    power_mode: str | None = Field(default=None, examples=["15W"])

    @model_validator(mode="after")
    def _bands_are_not_empty(self) -> ConditionEntry:
        _check_band("temp_c_min, temp_c_max", self.temp_c_min, self.temp_c_max)
        _check_band("battery_pct_min, battery_pct_max", self.battery_pct_min, self.battery_pct_max)
        return self


class ConditionAxes(_Entry):
    """Conditions as axes that are multiplied; null is the board as it is.

    governor and freq_khz are one axis, the clock: a cell has one governor or one fixed clock.
    """

    temp_c: Axis[Heat | None] = Field(default=[None], examples=["[[45, 55], [65, 75]]"])
    governor: Axis[Name | None] = Field(default=[None], examples=["[performance]"])
    freq_khz: Axis[Frequency | None] = Field(default=[None], examples=["[600000, 1500000]"])
    power_mode: Axis[Name | None] = Field(default=[None], examples=["[15W]"])
    power_source: Axis[Source | None] = Field(default=[None], examples=["[mains, battery]"])
    battery_pct: Axis[Charge | None] = Field(default=[None], examples=["[[20, 40], null]"])

    @model_validator(mode="after")
    def _is_not_absurd(self) -> ConditionAxes:
        count = len(self._clocks())
        for axis in (self.temp_c, self.power_mode, self.power_source, self.battery_pct):
            count *= len(axis)
        if count > CONDITIONS_MAX:
            raise ValueError(f"the axes multiply to {count} conditions, more than {CONDITIONS_MAX}")
        return self

    def _clocks(self) -> list[tuple[str | None, int | None]]:
        governors = self.governor if "governor" in self.model_fields_set else []
        freqs_khz = self.freq_khz if "freq_khz" in self.model_fields_set else []
        clocks = [*((g, None) for g in governors), *((None, khz) for khz in freqs_khz)]
        return list(dict.fromkeys(clocks)) or [(None, None)]

    def conditions(self) -> list[Condition]:
        """The product, the clock fastest."""
        axes = (self.power_source, self.battery_pct, self.temp_c, self.power_mode, self._clocks())
        return [
            Condition(
                governor=governor,
                freq_khz=freq_khz,
                temp_c_min=heat[0] if heat else None,
                temp_c_max=heat[1] if heat else None,
                battery_pct_min=charge[0] if charge else None,
                battery_pct_max=charge[1] if charge else None,
                power_source=source,
                power_mode=mode,
            )
            for source, charge, heat, mode, (governor, freq_khz) in itertools.product(*axes)
        ]


class StoppingEntry(_Entry):
    """The fields of StoppingRule."""

    warmup_min: int = Field(default=StoppingRule.warmup_min, ge=1, examples=[5])
    warmup_max: int = Field(default=StoppingRule.warmup_max, ge=1, examples=[50])
    samples_min: int = Field(default=StoppingRule.samples_min, ge=1, examples=[30])
    samples_max: int = Field(default=StoppingRule.samples_max, ge=1, examples=[200])
    ci_fraction: float = Field(default=StoppingRule.ci_fraction, gt=0, lt=1, examples=[0.02])
    max_seconds: float = Field(default=StoppingRule.max_seconds, gt=0, examples=[10.0])
    min_seconds: float = Field(default=StoppingRule.min_seconds, ge=0, examples=[1.0])


class SkipEntry(_Entry):
    """Cells to leave out: those in which every key that is given has this value."""

    model: str | None = Field(default=None, examples=["resnet50"])
    runtime: Runtime | None = Field(default=None, examples=["tflite"])
    precision: Precision | None = Field(default=None, examples=["int8"])
    threads: int | None = Field(default=None, examples=[4])
    governor: str | None = Field(default=None, examples=["performance"])
    freq_khz: int | None = Field(default=None, examples=[1500000])
    power_mode: str | None = Field(default=None, examples=["15W"])
    power_source: Source | None = Field(default=None, examples=["battery"])

    @model_validator(mode="after")
    def _says_something(self) -> SkipEntry:
        if not self.model_fields_set:
            raise ValueError("an entry without keys would skip every cell")
        return self

    def given(self) -> dict[str, object]:
        """Only the keys that the file has; null among them is the board as it is."""
        return {key: getattr(self, key) for key in self.model_fields_set}


class CanaryEntry(_Entry):
    """The model that is measured over and over, to tell a board's drift from a change."""

    model: str = Field(examples=["resnet50"])
    every: int = Field(ge=1, examples=[20])


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class CampaignFile(_Entry, ABC):
    """The keys of both forms."""

    version: Literal[1] = Field(examples=[1])
    campaign_id: str = Field(pattern=NAME_PATTERN, examples=["nightly-2031-05-04"])
    seed: int = Field(default=0, examples=[0])
    boards: BoardsEntry = Field(default_factory=BoardsEntry, examples=["{labels: {}}"])
    models: list[ModelEntry] = Field(min_length=1, examples=["a list of name and path"])
    runtimes: Axis[Runtime] = Field(examples=["[ort]"])
    precision: Annotated[Axis[Precision], BeforeValidator(_as_list)] = Field(
        default=["fp32"], examples=["[fp32, int8]"]
    )
    threads: Axis[Threads] = Field(default=[1], examples=["[1, 4]"])
    repeats: int = Field(default=1, ge=1, le=REPEATS_MAX, examples=[3])
    skip: list[SkipEntry] = Field(default=[], examples=["[{runtime: tflite, precision: int8}]"])
    canary: CanaryEntry | None = Field(default=None, examples=["{model: resnet50, every: 20}"])
    operators: bool = Field(default=False, examples=["true"])
    stopping: StoppingEntry = Field(default_factory=StoppingEntry, examples=["{samples_max: 100}"])
    timeout_s: float = Field(default=60.0, gt=0, le=86400, examples=[60.0])

    @field_validator("models")
    @classmethod
    def _names_are_unique(cls, models: list[ModelEntry]) -> list[ModelEntry]:
        _without_twins([model.name for model in models])
        return models

    @abstractmethod
    def every_condition(self) -> list[Condition]:
        """In the file's order."""


class ListedFile(CampaignFile):
    """Conditions one by one."""

    conditions: Axis[ConditionEntry] = Field(
        default=[ConditionEntry()], examples=["[{governor: performance}]"]
    )

    def every_condition(self) -> list[Condition]:
        return [Condition(**entry.model_dump()) for entry in self.conditions]


class AxesFile(CampaignFile):
    """Conditions as axes."""

    conditions: ConditionAxes = Field(examples=["{temp_c: [[45, 55], [65, 75]]}"])

    def every_condition(self) -> list[Condition]:
        return self.conditions.conditions()


def form_of(data: Any) -> type[CampaignFile]:
    """Which of the two forms the data of a file are meant to be."""
    conditions = data.get("conditions") if isinstance(data, dict) else None
    return AxesFile if isinstance(conditions, dict) else ListedFile
