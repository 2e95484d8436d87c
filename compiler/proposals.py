"""What the compiler wants measured next: a campaign file beside the models it names.

Input: ONNX models and the boards to measure them on. Output: a Proposal, a folder that
``fleetcut measure`` takes as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compiler.recipe import Recipe
from compiler.targets.candidates import SUFFIX
from compiler.work import WorkFolder, read_json, write_json, write_text

_AXES = ("runtime", "precision", "threads")
"""Of a campaign: each model has its own value on each, the others' are skipped."""

_SUFFIX = {**SUFFIX, "switchable": ".switchable"}


@dataclass(frozen=True)
class ProposedModel:
    """A model to measure, in the form of the recipe's runtime, or of ``runtime``.

    facts: what the compiler must remember of it, plain JSON data. threads: None, the recipe's.
    suffix: of its file, None that of its runtime.
    """

    name: str
    data: bytes
    facts: Mapping[str, Any]
    runtime: str | None = None
    precision: str = "fp32"
    threads: int | None = None
    suffix: str | None = None


@dataclass(frozen=True)
class Proposal:
    """A campaign on disk. facts_by_model: model_sha256 → what the compiler wrote down of it."""

    stage: str
    campaign_id: str
    campaign_path: Path
    facts_by_model: Mapping[str, Mapping[str, Any]]


def propose(
    work: WorkFolder,
    recipe: Recipe,
    stage: str,
    models: Sequence[ProposedModel],
    *,
    boards: Sequence[str] | None,
    repeats: int,
    freq_khz: Sequence[int] = (),
) -> Proposal:
    """Write the proposal. boards: ids, None for every board of the inventory.

    freq_khz: clocks to hold, each model at each of them; none for the board's own.
    """
    folder = work.proposal(stage)
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {}
    own = {model.name: _own_cell(model, recipe) for model in models}
    axes = {key: list(dict.fromkeys(cell[key] for cell in own.values())) for key in _AXES}
    file_of = {
        m.name: m.name + (_SUFFIX[own[m.name]["runtime"]] if m.suffix is None else m.suffix)
        for m in models
    }
    for model in models:
        digest = hashlib.sha256(model.data).hexdigest()
        (folder / file_of[model.name]).write_bytes(model.data)
        facts[digest] = {"name": model.name, **model.facts}
    campaign_id = f"{recipe.name}-{recipe.sha256()[:8]}-{stage}"
    measuring = recipe.measuring
    campaign: dict[str, Any] = {
        "version": 1,
        "campaign_id": campaign_id,
        "seed": recipe.seed,
        "boards": {} if boards is None else {"ids": list(boards)},
        "models": [{"name": name, "path": file} for name, file in file_of.items()],
        "runtimes": axes["runtime"],
        "precision": axes["precision"],
        "threads": axes["threads"],
        "repeats": repeats,
        "stopping": {
            "warmup_min": 3,
            "samples_min": min(20, measuring.samples_max),
            "samples_max": measuring.samples_max,
            "ci_fraction": measuring.ci_fraction,
            "max_seconds": measuring.max_seconds,
        },
        "timeout_s": measuring.timeout_s,
    }
    if freq_khz:
        campaign["conditions"] = {"freq_khz": list(freq_khz)}
    skip = [
        {"model": name, key: value}
        for name, cell in own.items()
        for key in _AXES
        for value in axes[key]
        if value != cell[key]
    ]
    if skip:
        campaign["skip"] = skip
    # The campaign file goes last: where it stands, everything it names stands too.
    write_json(folder / "models.json", {"campaign_id": campaign_id, "models": facts})
    write_text(folder / "campaign.yaml", yaml.safe_dump(campaign, sort_keys=False))
    return load_proposal(work, stage)


def _own_cell(model: ProposedModel, recipe: Recipe) -> dict[str, Any]:
    return {
        "runtime": model.runtime or recipe.runtime,
        "precision": model.precision,
        "threads": model.threads or recipe.threads,
    }


def has_proposal(work: WorkFolder, stage: str) -> bool:
    """Whether the proposal was written whole."""
    return (work.proposal(stage) / "campaign.yaml").exists()


def load_proposal(work: WorkFolder, stage: str) -> Proposal:
    """What ``propose`` wrote. Raises CompilerError naming the file."""
    folder = work.proposal(stage)
    document = read_json(folder / "models.json")
    return Proposal(
        stage, str(document["campaign_id"]), folder / "campaign.yaml", dict(document["models"])
    )
