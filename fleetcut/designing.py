"""``fleetcut design``: the widths that one board would get, by a designer of mode amortised.

Input: a work folder compiled in that mode, the board's anchor runs, a bound. Output: a table and
JSON of the design; status 1 with the reason where a search is needed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from compiler.amortised.designer import Design, Designer, FallsShortError
from compiler.amortised.device import device_features
from compiler.dataset import read_runs
from compiler.errors import CompilerError
from fleetcut.console import Console
from fleetcut.fleet_questions import open_work
from fleetcut.verbs import DONE
from harness.errors import SelectionError

FALLS_SHORT = 1


@dataclass(frozen=True)
class Question:
    """What the command line asks. latency_ms or max_drop, of the proxy's accuracy, a fraction;
    without either max_drop is the recipe's.
    """

    work: Path
    dataset: Path
    board: str
    network: str | None = None
    latency_ms: float | None = None
    max_drop: float | None = None


def design(console: Console, question: Question) -> int:
    """The verb. Raises CompilerError, and SelectionError for options that do not fit."""
    if question.latency_ms is not None and question.max_drop is not None:
        raise SelectionError("--latency-ms and --max-drop are two bounds. Next: give one of them")
    work = open_work(question.work)
    names = [question.network] if question.network else list(work.recipe.networks)
    device = device_features(read_runs(question.dataset), question.board, work.recipe.runtime)
    designs: dict[str, Design] = {}
    failures: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in names:
        folder = work.designer(name)
        if not (folder / "designer.json").exists():
            raise CompilerError(
                f"{question.work}: has no designer of {name}. "
                "Next: fleetcut compile recipe.yaml --mode amortised"
            )
        designer = Designer.load(folder)
        drop = question.max_drop or work.recipe.search.proxy_accuracy_drop
        start = time.perf_counter()
        try:
            if question.latency_ms is not None:
                designs[name] = designer.most_accurate(device, question.latency_ms)
            else:
                designs[name] = designer.fastest(device, designer.accuracy.dense - drop)
        except FallsShortError as error:
            failures[name] = str(error)
        seconds[name] = time.perf_counter() - start
        if name in designs:
            _print(console, designer, name, designs[name], question.board)
    for failure in failures.values():
        console.error(failure)
    console.answer(
        {
            "board": question.board,
            "designs": {
                name: {**asdict(found), "seconds": seconds[name]} for name, found in designs.items()
            },
            "fall_short": failures,
        }
    )
    return FALLS_SHORT if failures else DONE


def _print(console: Console, designer: Designer, name: str, found: Design, board: str) -> None:
    rows = [
        (group.name, str(group.channels), str(width))
        for group, width in zip(designer.space.groups, found.widths, strict=True)
    ]
    console.table(f"{name} for {board}", ("group", "dense", "design"), rows)
    console.line(
        f"{found.predicted_ms:.4g} ms predicted, dense {found.dense_ms:.4g} ms; "
        f"proxy accuracy {found.accuracy:.1%}, dense {designer.accuracy.dense:.1%}"
    )
