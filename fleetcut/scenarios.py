"""What-if scenarios as people write them: which boards, and what happens to them.

Input: "share=0.3,clock=1.0GHz" from the command line, or a YAML file of several. Output: Scenarios.
Raises DocumentError, which says what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.documents import read_document
from harness.errors import DocumentError

_KHZ_PER_UNIT = {"ghz": 1e6, "mhz": 1e3, "khz": 1.0}
_CLOCK = re.compile(r"^([0-9]+(?:\.[0-9]+)?) ?(GHz|MHz|kHz)$", re.IGNORECASE)
_BAND = re.compile(r"^([0-9]+(?:\.[0-9]+)?)-([0-9]+(?:\.[0-9]+)?)$")
_TEXT_KEYS = ("name", "boards", "cluster", "clock", "battery", "heat")
_EXAMPLE = "Write for example 'share=0.3,clock=1.0GHz'"


class Scenario(BaseModel):
    """Which boards, and what happens to them. Boards: those that every selector fits.

    boards: ids. cluster: a label. labels: of the inventory. share: of these boards, drawn by a
    seed. clock: one for all of them. clock_fraction: of each one's own. heat: down to the clock
    recorded in throttled runs. battery: down to the clock recorded at a charge of so many percent.
    slowdown: a factor on latency. The last and both clocks are given, not measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(default="", max_length=80, examples=["hot summer"])
    share: float | None = Field(default=None, gt=0, le=1, examples=[0.3])
    boards: tuple[str, ...] | None = Field(
        default=None, min_length=1, strict=False, examples=["[pi4-01, pi4-02]"]
    )
    cluster: str | None = Field(default=None, examples=["c1"])
    labels: dict[str, str] = Field(default_factory=dict, examples=["{cooling: passive}"])
    clock: str | None = Field(default=None, examples=["1.0GHz"])
    clock_fraction: float | None = Field(default=None, gt=0, le=4, examples=[0.6])
    heat: Literal["recorded"] | None = Field(default=None, examples=["recorded"])
    battery: str | None = Field(default=None, examples=["0-15"])
    slowdown: float | None = Field(default=None, gt=0, le=100, examples=[1.2])

    @field_validator("clock")
    @classmethod
    def _has_a_unit(cls, clock: str | None) -> str | None:
        if clock is not None and (not _CLOCK.match(clock) or not _khz(clock) > 0):
            raise ValueError(f"{clock!r} is no clock with its unit")
        return clock

    @field_validator("battery")
    @classmethod
    def _is_a_band(cls, battery: str | None) -> str | None:
        found = _BAND.match(battery) if battery is not None else None
        if battery is not None and (found is None or not _ascends(found)):
            raise ValueError(f"{battery!r} is no band of percents")
        return battery

    @model_validator(mode="after")
    def _changes_something_once(self) -> Scenario:
        clocks = [k for k in ("clock", "clock_fraction", "heat", "battery") if getattr(self, k)]
        if not clocks and self.slowdown is None:
            raise ValueError(
                "nothing happens: give clock, clock_fraction, heat, battery or slowdown"
            )
        if len(clocks) > 1:
            raise ValueError(f"{' and '.join(clocks)} each set the clock: keep one of them")
        return self

    @property
    def clock_khz(self) -> float | None:
        return None if self.clock is None else _khz(self.clock)

    @property
    def battery_band_pct(self) -> tuple[float, float] | None:
        found = _BAND.match(self.battery or "")
        return (float(found[1]), float(found[2])) if found else None

    def title(self) -> str:
        """Its name, else what it says."""
        return self.name or ",".join(_said(self))


class _ScenarioFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = Field(examples=[1])
    scenarios: tuple[Scenario, ...] = Field(
        min_length=1, strict=False, examples=["[{share: 0.3, clock: 1.0GHz}]"]
    )


def read_scenarios(texts: Sequence[str]) -> tuple[Scenario, ...]:
    """Each text a scenario, or the path of a YAML file of them (*.yaml, *.yml)."""
    found: list[Scenario] = []
    for text in texts:
        if text.endswith((".yaml", ".yml")):
            found += read_document(Path(text), _ScenarioFile).scenarios
        else:
            found.append(parse_scenario(text))
    return tuple(found)


def parse_scenario(text: str) -> Scenario:
    """``KEY=VALUE,…``; board= and label.KEY= may stand several times."""
    data: dict[str, object] = {}
    boards: list[str] = []
    labels: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise _wrong(text, f"{part.strip()!r} is not KEY=VALUE", _EXAMPLE)
        if key in data or key.removeprefix("label.") in labels:
            raise _wrong(text, f"{key} stands twice", "Keep one of the two")
        if key == "board":
            boards.append(value)
        elif key.startswith("label."):
            labels[key.removeprefix("label.")] = value
        else:
            data[key] = value if key in _TEXT_KEYS else _scalar(value)
    data |= {"boards": tuple(boards)} if boards else {}
    data |= {"labels": labels} if labels else {}
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _said_wrong(text, str(first["loc"][0]) if first["loc"] else "", first) from None


def _said_wrong(text: str, key: str, error: object) -> DocumentError:
    kind, message = error["type"], str(error["msg"])  # type: ignore[index]
    if kind == "extra_forbidden":
        known = sorted({*Scenario.model_fields, "board", "label.KEY"} - {"boards", "labels"})
        return _wrong(text, f"{key} is not a key known here", f"Known keys are: {', '.join(known)}")
    message = message.removeprefix("Value error, ")
    fact = f"{key}: {message[:1].lower()}{message[1:]}" if key else message
    field = Scenario.model_fields.get(key)
    instead = f"Write for example '{key}={field.examples[0]}'" if field and field.examples else ""
    return _wrong(text, fact, instead or _EXAMPLE)


def _wrong(text: str, fact: str, instead: str) -> DocumentError:
    return DocumentError(Path(f"--scenario '{text[:80]}'"), None, fact, instead)


def _scalar(value: str) -> object:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _khz(clock: str) -> float:
    found = _CLOCK.match(clock)
    return float(found[1]) * _KHZ_PER_UNIT[found[2].lower()] if found else 0.0


def _ascends(band: re.Match[str]) -> bool:
    return 0 <= float(band[1]) < float(band[2]) <= 100


def _said(scenario: Scenario) -> list[str]:
    said = [f"board={board}" for board in scenario.boards or ()]
    said += [f"label.{key}={value}" for key, value in scenario.labels.items()]
    plain = ("cluster", "share", "clock", "clock_fraction", "heat", "battery", "slowdown")
    for key in plain:
        value = getattr(scenario, key)
        if value is not None:
            said.append(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}")
    return said
