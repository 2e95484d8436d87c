"""``fleetcut transfer``: does what one board measured hold on another; what to measure there next.

Input: a dataset folder, two boards or states, and where there are any a work folder and accuracies.
Output: a table or JSON: rank correlation with its interval, the verdict, the optimal models that
survive on the target, and the models to measure next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from compiler.dataset import read_runs
from compiler.proposals import ProposedModel, propose
from compiler.transfer.asked import Answer, ask
from compiler.transfer.cells import Cell, Cells, every_pair, read_cells
from compiler.transfer.probes import MOST_PROBES
from compiler.transfer.rank import RankCorrelation, TransferError
from compiler.transfer.reuse import VALID_SRCC, Optimal
from compiler.transfer.shapes import Shapes, read_shapes
from compiler.work import WorkFolder
from fleetcut.console import Console
from fleetcut.fleet_questions import open_work
from fleetcut.verbs import DONE
from harness.errors import SelectionError

FloatArray = NDArray[np.float64]

WORK_AS_ACCURACY = "multiply-accumulates, for want of --accuracy"


@dataclass(frozen=True)
class Question:
    """What the command line asks. proxy and target: a board, or KEY=VALUE,…; both or neither.

    models: a pattern of names. probes: how many to name at most.
    """

    dataset: Path
    proxy: str | None = None
    target: str | None = None
    models: str = "*"
    campaigns: Sequence[str] | None = None
    work: Path | None = None
    accuracy: Path | None = None
    probes: int = MOST_PROBES


def transfer(console: Console, question: Question) -> int:
    """The verb. Raises CompilerError, and SelectionError for options that do not fit."""
    if (question.proxy is None) != (question.target is None):
        raise SelectionError("--from and --to belong together. Next: name both, or neither")
    runs = read_runs(question.dataset).select(campaign_ids=question.campaigns)
    cells = read_cells(runs, question.models)
    if question.proxy is None or question.target is None:
        return _all_pairs(console, cells)
    proxy, target = cells.find(question.proxy), _target(cells, question.target)
    models = cells.shared(proxy)
    work = None if question.work is None else open_work(question.work)
    shapes = None if work is None else read_shapes(work, models)
    accuracy = _accuracies(question.accuracy, models, shapes)
    x = None if shapes is None else shapes.x
    answer = ask(cells, proxy, target, x, accuracy, question.probes)
    campaign = None
    if work is not None and shapes is not None and len(answer.ask_next):
        campaign = _propose(work, shapes, answer, cells, target, question.target)
    _print(console, cells, answer, question, campaign)
    console.answer(_document(cells, answer, question, campaign))
    return DONE


def _all_pairs(console: Console, cells: Cells) -> int:
    pairs = every_pair(cells)
    if not pairs:
        raise TransferError(
            f"{cells.source}: no two boards or states measured the same models. "
            "Next: fleetcut measure one campaign on both"
        )
    rows = [
        (one, other, f"{c.value:.3f}", f"{c.lower:.3f} … {c.upper:.3f}", str(c.n), _says(c))
        for (one, other), c in sorted(pairs.items(), key=lambda item: -item[1].value)
    ]
    columns = ("board", "board", "SRCC", "95 % interval", "models", "same order")
    console.table(f"Rank correlation of latencies{_simulated(cells)}", columns, rows)
    console.answer(
        {
            "simulated": cells.simulated,
            "pairs": [{"from": a, "to": b, **asdict(c)} for (a, b), c in pairs.items()],
        }
    )
    console.next("fleetcut transfer DATASET --from BOARD --to BOARD")
    return DONE


def _says(correlation: RankCorrelation) -> str:
    """Whether one's order may stand for the other's."""
    if correlation.lower >= VALID_SRCC:
        return "yes"
    return "no" if correlation.upper < VALID_SRCC else "unsettled"


def _target(cells: Cells, side: str) -> Cell | None:
    """None for a board that has no run at all: it is new, and a few probes will describe it."""
    if "=" not in side and side not in {cell[0] for cell in cells.ms_by_cell}:
        return None
    return cells.find(side)


def _accuracies(
    path: Path | None, models: Sequence[str], shapes: Shapes | None
) -> FloatArray | None:
    """(n_models,): given ones, else the models' work in their stead; None without either."""
    if path is None:
        return None if shapes is None else shapes.macs
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        fact = error.strerror if isinstance(error, OSError) else "neither YAML nor JSON"
        raise TransferError(f"{path}: {fact}. Next: write one line a model, NAME: 0.93") from None
    if not isinstance(found, Mapping):
        raise TransferError(f"{path}: no mapping. Next: write one line a model, NAME: 0.93")
    for model in models:
        value = found.get(model)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise TransferError(
                f"{path}: the accuracy of {model} is {value!r}. Next: add '{model}: 0.93', "
                "or name fewer models with --models"
            )
    return np.array([found[model] for model in models], dtype=np.float64)


def _propose(
    work: WorkFolder, shapes: Shapes, answer: Answer, cells: Cells, target: Cell | None, side: str
) -> Path | None:
    """A campaign of what is to be measured; None for a state that a recipe does not ask for."""
    recipe = work.recipe
    board = side
    if target is not None:
        board = target[0]
        as_recipe = target[1:4] == (recipe.runtime, "fp32", str(recipe.threads))
        if not as_recipe or sum(cell[0] == board for cell in cells.ms_by_cell) > 1:
            return None
    models = []
    for row in answer.ask_next.tolist():
        facts = {key: value for key, value in shapes.facts[row].items() if key != "name"}
        models.append(ProposedModel(answer.models[row], shapes.files[row].read_bytes(), facts))
    stage = f"transfer-{re.sub(r'[^A-Za-z0-9._-]', '-', board)}"
    repeats = recipe.measuring.sample_repeats
    return propose(work, recipe, stage, models, boards=[board], repeats=repeats).campaign_path


def _print(
    console: Console, cells: Cells, answer: Answer, question: Question, campaign: Path | None
) -> None:
    console.line(
        f"From {question.proxy} to {question.target}{_simulated(cells)}: {answer.measured} of "
        f"{len(answer.models)} models measured on the target; {len(answer.others)} other boards "
        "or states measured them too."
    )
    console.line(f"{answer.verdict}: {answer.reason}")
    if answer.transfer is not None:
        console.line(f"Predicted by {answer.transfer.decision_}.")
    if answer.optimal is not None:
        _print_optimal(console, answer, answer.optimal, question)
    elif answer.judged is not None:
        console.line(
            "Which models are optimal takes --accuracy FILE, or --work of fleetcut compile."
        )
    if len(answer.ask_next):
        console.line(
            f"Measure next on {question.target}, for they {answer.why_next}: "
            f"{', '.join(answer.names_next)}"
        )
    again = f"fleetcut export --out {question.dataset}, then this again"
    if campaign is not None:
        console.next(f"fleetcut measure {campaign}, then {again}")
    elif len(answer.ask_next):
        console.next(f"measure these on {question.target}, then {again}")
    elif answer.verdict == "measure":
        console.next("nothing is left to measure: compile for the target by itself")


def _print_optimal(console: Console, answer: Answer, best: Optimal, question: Question) -> None:
    coverage = 0.0 if answer.transfer is None else answer.transfer.coverage_
    columns = zip(
        best.rows.tolist(), best.ms, best.lower_ms, best.upper_ms, best.measured, strict=True
    )
    rows = [
        (answer.models[row], f"{ms:.3f}", "measured" if known else f"{low:.3f} … {high:.3f}")
        for row, ms, low, high, known in columns
    ]
    console.table(
        f"Optimal on the target (accuracy: {question.accuracy or WORK_AS_ACCURACY})",
        ("model", "ms", f"{coverage:.0%} interval"),
        rows,
    )
    origin = "the proxy's" if best.from_proxy else "the predictions'"
    dropped = ", ".join(answer.models[row] for row in best.dropped.tolist())
    console.line(f"Dropped from {origin} optimal set, not optimal here: {dropped or 'none'}.")


def _simulated(cells: Cells) -> str:
    return " (simulated boards)" if cells.simulated else ""


def _document(
    cells: Cells, answer: Answer, question: Question, campaign: Path | None
) -> dict[str, Any]:
    judged, fitted, best = answer.judged, answer.transfer, answer.optimal
    document: dict[str, Any] = {
        "from": question.proxy,
        "to": question.target,
        "simulated": cells.simulated,
        "models": len(answer.models),
        "measured": answer.measured,
        "others": answer.others,
        "verdict": answer.verdict,
        "reason": answer.reason,
        "measure_next": answer.names_next,
        "campaign": None if campaign is None else str(campaign),
        "optimal": None,
    }
    if judged is not None and fitted is not None:
        document |= {
            "srcc": asdict(judged.proxy),
            "left_out_srcc": asdict(judged.left_out),
            "weights": fitted.weights_,
            "left_out_error_by_method": {
                name: float(left_out.error.mean()) for name, left_out in fitted.errors_.items()
            },
            "coverage": fitted.coverage_,
            "predicted_ms_by_model": _predictions(answer),
        }
    if best is not None:
        document["optimal"] = {
            "accuracy": str(question.accuracy or WORK_AS_ACCURACY),
            "from_proxy": best.from_proxy,
            "kept": [answer.models[row] for row in best.rows.tolist()],
            "dropped": [answer.models[row] for row in best.dropped.tolist()],
            "not_measured": [answer.models[row] for row in best.unsettled.tolist()],
        }
    return document


def _predictions(answer: Answer) -> dict[str, Any]:
    """Of the models that the target did not measure."""
    fitted = answer.transfer
    if fitted is None:
        return {}
    rows = np.setdiff1d(np.arange(len(answer.models)), fitted.rows_)
    if not len(rows):
        return {}
    return {
        answer.models[row]: {"ms": ms, "lower_ms": lower, "upper_ms": upper}
        for row, ms, lower, upper in zip(rows.tolist(), *fitted.predict(rows), strict=True)
    }
