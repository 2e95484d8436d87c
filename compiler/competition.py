"""Which form of a network to run on which cluster: the fastest that its representative measured.

Input: built Forms and the clusters. Output: Proposals of forms to measure, then the Choice.
Every form here has kept the bounds of parity and accuracy: those that did not were not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.clusters import DeviceClusters
from compiler.dataset import Run, Runs, lower_median, read_runs
from compiler.forms import Form
from compiler.loading import slug
from compiler.proposals import Proposal, ProposedModel, has_proposal, load_proposal, propose
from compiler.recipe import Recipe
from compiler.work import WorkFolder, read_json

STAGE = "forms"

SUFFIX = {"onnx": ".onnx", "ort": ".ort", "tflite": ".tflite"}
"""By kind: of a model file in a campaign. Programs have none."""

ANY_MACHINE = "any"


@dataclass(frozen=True)
class Choice:
    """recommended: one entry a network and cluster, plain JSON data. shipped: the forms that are.

    notes: why the others are not.
    """

    recommended: tuple[dict[str, Any], ...]
    shipped: tuple[Form, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Result:
    """One form on one board; repeats_ms: the median of each of its runs."""

    form: Form
    repeats_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return lower_median(self.repeats_ms)


def propose_forms(
    work: WorkFolder,
    recipe: Recipe,
    forms: Sequence[Form],
    clusters: DeviceClusters,
    known: Runs,
) -> list[Proposal]:
    """A campaign for each machine among the representatives where two forms of a network meet.

    known: runs that tell the boards' machines; a board whose machine is not told gets all forms.
    """
    proposals = []
    groups = _boards_by_machine(clusters, known)
    for machine, boards in groups.items():
        stage = STAGE if len(groups) == 1 else f"{STAGE}-{machine}"
        if has_proposal(work, stage):
            proposals.append(load_proposal(work, stage))
            continue
        models = list(_models(forms, machine))
        if models:
            repeats = recipe.measuring.sample_repeats
            proposals.append(propose(work, recipe, stage, models, boards=boards, repeats=repeats))
    return proposals


def _boards_by_machine(clusters: DeviceClusters, known: Runs) -> dict[str, list[str]]:
    machine_of = {run.board_id: run.machine for run in known.runs}
    groups: dict[str, list[str]] = {}
    for board in clusters.representatives_.values():
        groups.setdefault(machine_of.get(board) or ANY_MACHINE, []).append(board)
    return groups


def _models(forms: Sequence[Form], machine: str) -> Iterator[ProposedModel]:
    """Equal files are measured once, for whichever targets they stand."""
    fitting = [
        form
        for form in forms
        if ANY_MACHINE in (machine, form.target.machine) or form.target.machine == machine
    ]
    seen: set[_Cell] = set()
    for form in fitting:
        rivals = {_cell(other) for other in fitting if other.network == form.network}
        if len(rivals) < 2 or _cell(form) in seen:
            continue
        seen.add(_cell(form))
        kind, precision = form.manifest.kind, form.target.precision
        data = (form.folder / form.manifest.model_file).read_bytes()
        yield ProposedModel(
            f"{slug(form.network)}-{form.target.name}-{kind}-{precision}",
            data,
            {"network": form.network, "kind": kind, "precision": precision},
            form.target.runtime,
            precision,
            form.target.threads,
            SUFFIX.get(kind, ""),
        )


_Cell = tuple[str, str, int]
"""(hash of the model file, precision, threads): what boards tell apart."""


def _cell(form: Form) -> _Cell:
    sha256 = form.manifest.file(form.manifest.model_file).sha256
    return sha256, form.target.precision, form.target.threads


def unanswered(dataset: Path | None, proposals: Sequence[Proposal]) -> Proposal | None:
    """The first that boards were not asked yet.

    A campaign of which no run counts was asked all the same: then nothing there is fast.
    """
    asked: set[str] = set()
    if dataset is not None and (dataset / "dataset.json").exists():
        asked |= {run.campaign_id for run in read_runs(dataset).runs}
        asked |= set(read_json(dataset / "dataset.json").get("asked_campaign_ids") or ())
    return next((p for p in proposals if p.campaign_id not in asked), None)


def form_runs(dataset: Path | None, proposals: Sequence[Proposal]) -> tuple[Run, ...]:
    """What boards measured of all that was proposed."""
    if dataset is None or not proposals:
        return ()
    wanted = {proposal.campaign_id for proposal in proposals}
    return tuple(run for run in read_runs(dataset).runs if run.campaign_id in wanted)


def choose(forms: Sequence[Form], clusters: DeviceClusters, runs: Sequence[Run]) -> Choice:
    """runs: of the forms on the representatives; none where no two forms of a network met."""
    recommended: list[dict[str, Any]] = []
    winners: set[_Cell] = set()
    slower: dict[str, str] = {}
    for network in dict.fromkeys(form.network for form in forms):
        own = [form for form in forms if form.network == network]
        for cluster, board in clusters.representatives_.items():
            results = _results(own, board, runs)
            if not results:
                continue
            best = _fastest(results)
            winners.add(_cell(best.form))
            recommended.append(_entry(network, cluster, board, best, results))
            for result in results:
                if result.form.target.precision != "fp32":
                    slower[result.form.artifact_id] = (
                        f"{result.median_ms:.3f} ms on {board}, {best.form.title} takes "
                        f"{best.median_ms:.3f} ms"
                    )
    shipped = [f for f in forms if f.target.precision == "fp32" or _cell(f) in winners]
    notes = [
        f"{form.network}: {form.title} is not shipped: "
        + slower.get(form.artifact_id, "no board of this fleet measured it")
        for form in forms
        if form not in shipped
    ]
    return Choice(tuple(recommended), tuple(shipped), tuple(notes))


def _results(own: Sequence[Form], board: str, runs: Sequence[Run]) -> list[_Result]:
    """Every form of one network that ran there; the first of equal files stands for all."""
    repeats_ms: dict[_Cell, list[float]] = {}
    for run in runs:
        if run.board_id == board:
            cell = (run.model_sha256, run.precision, run.threads)
            repeats_ms.setdefault(cell, []).append(run.p50_ms)
    results: dict[_Cell, _Result] = {}
    for form in own:
        cell = _cell(form)
        if cell in repeats_ms and cell not in results:
            results[cell] = _Result(form, tuple(repeats_ms[cell]))
    return list(results.values())


def _fastest(results: Sequence[_Result]) -> _Result:
    """By the median; int8 only where its slowest run beats the fastest of the best fp32.

    Without an fp32 form to beat it may win: there was none to ship instead.
    """
    floats = [r for r in results if r.form.target.precision == "fp32"]
    best = min(floats, key=lambda r: r.median_ms) if floats else None
    faster = [
        r
        for r in results
        if r.form.target.precision != "fp32"
        and (best is None or max(r.repeats_ms) < min(best.repeats_ms))
    ]
    return min([*faster, *([best] if best else [])], key=lambda r: r.median_ms)


def _entry(
    network: str, cluster: str, board: str, best: _Result, results: Sequence[_Result]
) -> dict[str, Any]:
    return {
        "network": network,
        "cluster": cluster,
        "board": board,
        **_named(best.form),
        "median_ms": best.median_ms,
        "accuracy": best.form.manifest.accuracy,
        "forms": [
            {**_named(r.form), "median_ms": r.median_ms, "accuracy": r.form.manifest.accuracy}
            for r in sorted(results, key=lambda r: r.median_ms)
        ],
    }


def _named(form: Form) -> Mapping[str, Any]:
    return {
        "artifact_id": form.artifact_id,
        "kind": form.manifest.kind,
        "precision": form.target.precision,
        "target": form.target.name,
    }
