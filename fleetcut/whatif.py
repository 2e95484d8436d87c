"""``fleetcut whatif``: the compiled fleet, some of it aged, hot or at another clock.

Input: a work folder, scenarios, and where there are any a dataset and an inventory. Output: a table
and JSON of latencies and SLO shares with their intervals, and a page that draws them.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.whatif import COVERAGE, Answer, Figure, WhatIfError, what_if
from compiler.work import write_text
from fleetcut.console import Console
from fleetcut.fleet_questions import (
    FleetModel,
    Shape,
    effect_of,
    load_fleet,
    load_shapes,
    open_work,
)
from fleetcut.scenarios import read_scenarios
from fleetcut.verbs import DONE
from harness.inventory import load_inventory
from harness.report_svg import (
    COLOURS,
    DASHED,
    MUTED,
    drawing,
    inline_svg,
    key,
    legend,
    new_figure,
)

MOST_STEPS = 500
"""Points of one curve in the picture; a fleet may have a hundred thousand boards."""


@dataclass(frozen=True)
class Question:
    """What the command line asks. slo_ms: of one inference on one board."""

    work: Path
    scenarios: Sequence[str]
    networks: Sequence[str] | None = None
    plans: Sequence[Path] = ()
    dataset: Path | None = None
    inventory: Path | None = None
    slo_ms: float | None = None
    draws: int = 2_000
    seed: int = 0
    picture: Path | None = None


@dataclass(frozen=True)
class Result:
    """One shape in one scenario. assumptions: what of the scenario was given, not measured."""

    shape: Shape
    scenario: str
    answer: Answer
    assumptions: tuple[str, ...]


def whatif(console: Console, question: Question) -> int:
    """The verb. Raises CompilerError, and DocumentError for a scenario that says nothing."""
    _check(question)
    scenarios = read_scenarios(question.scenarios)
    work = open_work(question.work)
    boards = () if question.inventory is None else load_inventory(question.inventory).boards
    fleet = load_fleet(work, _dataset(question), boards)
    shapes = load_shapes(work, fleet.labels, question.networks, question.plans)
    effects = [(s, *effect_of(fleet, s, question.seed)) for s in scenarios]
    results = []
    with console.steps("what if") as step:
        for scenario, effect, assumptions in effects:
            for shape in shapes:
                answer = what_if(
                    fleet.boards, shape.prediction, effect,
                    slo_ms=question.slo_ms, draws=question.draws, seed=question.seed,
                )  # fmt: skip
                results.append(Result(shape, scenario.title(), answer, assumptions))
                step(len(results), len(scenarios) * len(shapes), scenario.title())
    _print(console, fleet, results, question)
    console.answer(_document(fleet, results, question))
    if question.picture is not None:
        write_text(question.picture, _page(fleet, results, question))
        console.next(f"open {question.picture}")
    return DONE


def _check(question: Question) -> None:
    if not question.scenarios:
        raise WhatIfError("no scenario. Next: add --scenario 'share=0.3,clock=1.0GHz'")
    if question.draws < 100:
        raise WhatIfError(f"--draws {question.draws} gives no interval. Next: use 2000")
    if question.slo_ms is not None and not 0 < question.slo_ms < float("inf"):
        raise WhatIfError(f"--slo-ms {question.slo_ms:g} is no latency. Next: use ms > 0")


def _dataset(question: Question) -> Path | None:
    """The one named, else the one that lies in the work folder."""
    inside = question.work / "dataset"
    if question.dataset is None and (inside / "dataset.json").exists():
        return inside
    return question.dataset


def _print(
    console: Console, fleet: FleetModel, results: Sequence[Result], question: Question
) -> None:
    rows = []
    for result in results:
        answer, shape = result.answer, result.shape
        rows.append(
            (
                shape.network, shape.name, result.scenario,
                f"{answer.n_changed} of {len(fleet.boards.board_ids)}",
                _moved(answer.before.mean_ms, answer.after.mean_ms),
                _moved(answer.before.p95_ms, answer.after.p95_ms),
                _shares(answer),
                _times(answer.mean_ratio),
            )
        )  # fmt: skip
    slo = "within SLO" if question.slo_ms is None else f"within {question.slo_ms:g} ms"
    console.table(
        f"What if{' (simulated boards)' if fleet.simulated else ''}: before → after, "
        f"{COVERAGE:.0%} intervals in brackets",
        ("network", "shape", "scenario", "boards", "mean, ms", "p95, ms", slo, "mean"),
        rows,
    )
    for note in _notes(fleet, results):
        console.line(f"Assumed: {note}")
    if question.slo_ms is None:
        console.line("Without --slo-ms there is no share of boards within it.")


def _notes(fleet: FleetModel, results: Sequence[Result]) -> list[str]:
    of_results = [f"{r.scenario}: {note}" for r in results for note in r.assumptions]
    return list(dict.fromkeys([*of_results, *fleet.assumptions]))


def _moved(before: Figure, after: Figure) -> str:
    return f"{_ms(before)} → {_ms(after)}"


def _ms(figure: Figure) -> str:
    return f"{figure.value:.3g} [{figure.lower:.3g}, {figure.upper:.3g}]"


def _shares(answer: Answer) -> str | None:
    before, after = answer.before.slo_share, answer.after.slo_share
    if before is None or after is None:
        return None
    return f"{before.value:.0%} → {after.value:.0%} [{after.lower:.0%}, {after.upper:.0%}]"


def _times(ratio: Figure) -> str:
    return f"×{ratio.value:.2f} [{ratio.lower:.2f}, {ratio.upper:.2f}]"


def _document(fleet: FleetModel, results: Sequence[Result], question: Question) -> dict[str, Any]:
    return {
        "simulated": fleet.simulated,
        "boards": len(fleet.boards.board_ids),
        "coverage": COVERAGE,
        "draws": question.draws,
        "seed": question.seed,
        "slo_ms": question.slo_ms,
        "assumptions": list(fleet.assumptions),
        "clock_response_by_cluster": {
            label: {
                "measured": response.measured,
                "fixed_share": response.fixed_share,
                "shared_sd": response.shared_sd,
                "board_sd": response.board_sd,
                "boards": len(response.fixed_share_by_board),
                "models": response.n_models,
            }
            for label, response in fleet.responses.items()
        },
        "results": [
            {
                "network": r.shape.network,
                "shape": r.shape.name,
                "scenario": r.scenario,
                "boards_changed": r.answer.n_changed,
                "before": asdict(r.answer.before),
                "after": asdict(r.answer.after),
                "mean_ratio": asdict(r.answer.mean_ratio),
                "p95_ratio": asdict(r.answer.p95_ratio),
                "assumptions": list(r.assumptions),
            }
            for r in results
        ],
    }


def _page(fleet: FleetModel, results: Sequence[Result], question: Question) -> str:
    """One self-contained page: for each network and scenario the boards' latencies."""
    drawn: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        drawn.setdefault((result.shape.network, result.scenario), []).append(result)
    figures = [
        f"<figure><figcaption>{html.escape(network)}: {html.escape(scenario)}</figcaption>"
        f"{_curves(group, f'{network} {scenario}', fleet.simulated, question.slo_ms)}</figure>"
        for (network, scenario), group in drawn.items()
    ]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(fleet, results))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>What if</title>'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:720px;margin:2em auto;"
        "padding:0 1em;background:#fefefe;color:#1b1f24}figure{margin:2em 0}"
        "figcaption{font-weight:600}</style></head><body><h1>What if</h1>"
        "<p>Share of boards at or below a latency, before (solid) and after (dashed).</p>"
        f"{''.join(figures)}<h2>Assumed, not measured</h2><ul>{notes}</ul></body></html>\n"
    )


def _curves(group: Sequence[Result], name: str, simulated: bool, slo_ms: float | None) -> str:
    """The empirical distribution over boards of each shape, before and after."""
    with drawing():
        figure, (axes,) = new_figure(260)
        keys = []
        for result, colour in zip(group, COLOURS * len(group), strict=False):
            _curve(axes, result.answer.board_ms_before, colour, "-")
            _curve(axes, result.answer.board_ms_after, colour, DASHED)
            keys.append(key(result.shape.name, "", colour, line="-"))
        keys.append(key("after", "", MUTED, line=DASHED))
        if slo_ms is not None:
            axes.axvline(slo_ms, color=COLOURS[4], linewidth=1.2)
            keys.append(key(f"SLO {slo_ms:g} ms", "", COLOURS[4], line="-"))
        axes.set(ylim=(0, 1.02), xlabel="latency per inference, ms", ylabel="share of boards")
        axes.grid(visible=True)
        legend(figure, keys)
        return inline_svg(figure, name, simulated)


def _curve(axes: Any, board_ms: Any, colour: str, line: Any) -> None:
    ms = np.sort(board_ms)
    share = np.arange(1, len(ms) + 1) / len(ms)
    if len(ms) > MOST_STEPS:
        at = np.linspace(0, len(ms) - 1, MOST_STEPS).astype(int)
        ms, share = ms[at], share[at]
    axes.step([ms[0], *ms], [0, *share], where="post", color=colour, linestyle=line)
