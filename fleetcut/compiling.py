"""The compiler from the command line: read the recipe, run the stages, say what is next.

Input: recipe.yaml, a dataset folder. Output: an exit status; proposals and artifacts on disk.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from pydantic import ValidationError

from compiler.clusters import DeviceClusters
from compiler.compile import Compiled, compile_fleet
from compiler.recipe import Recipe
from fleetcut.console import Console, Step
from fleetcut.verbs import DONE
from harness.documents import read_document
from harness.errors import DocumentError


class StageSteps(AbstractContextManager["StageSteps"]):
    """The compiler's one stream of progress as one bar a stage; the last is ended on exit."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stack = ExitStack()
        self._title: str | None = None
        self._step: Step | None = None

    def __call__(self, title: str, done: int, total: int, last: str) -> None:
        if title != self._title or self._step is None:
            self._stack.close()
            self._title = title
            self._step = self._stack.enter_context(self._console.steps(title))
        self._step(done, total, last)

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def compile_recipe(
    console: Console,
    recipe_path: Path,
    dataset: Path | None,
    work: Path,
    inventory: Path,
    mode: str | None = None,
) -> int:
    """The verb. With measurements missing it ends well, and names the campaign to measure.

    mode: instead of the recipe's.
    """
    recipe = read_document(recipe_path, Recipe)
    if mode is not None:
        recipe = _in_mode(recipe, mode, recipe_path)
    with StageSteps(console) as observe:
        outcome = compile_fleet(recipe, dataset, work, observe)
    if isinstance(outcome, Compiled):
        for note in outcome.notes:
            console.error(note)
        for folder in outcome.artifacts:
            console.line(f"artifact {folder}")
        show_recommended(console, outcome)
        console.answer(
            {
                "state": "compiled",
                "artifacts": [str(folder) for folder in outcome.artifacts],
                "recommended": list(outcome.recommended),
                "final_campaign": str(outcome.final.campaign_path),
                "notes": list(outcome.notes),
            }
        )
        console.next(f"fleetcut deploy {work}/artifacts/* --inventory {inventory}")
        return DONE
    console.line(f"Compiling goes on once the {outcome.stage} are measured.")
    console.answer(
        {
            "state": "needs measurements",
            "stage": outcome.stage,
            "campaign": str(outcome.campaign_path),
            "campaign_id": outcome.campaign_id,
        }
    )
    console.next(
        f"fleetcut measure {outcome.campaign_path} --inventory {inventory}, then fleetcut export "
        f"--out {dataset or 'dataset'}, then fleetcut compile {recipe_path} "
        f"--dataset {dataset or 'dataset'} --work {work}" + (f" --mode {mode}" if mode else "")
    )
    return DONE


def show_recommended(console: Console, compiled: Compiled) -> None:
    """The fastest form of each network on each cluster, and what the others took there."""
    if not compiled.recommended:
        return
    console.table(
        "Fastest forms, as measured on each cluster's representative",
        ("network", "cluster", "form", "target", "median", "accuracy", "others"),
        [
            (
                entry["network"],
                entry["cluster"],
                f"{entry['kind']} {entry['precision']}",
                entry["target"],
                f"{entry['median_ms']:.3f} ms",
                f"{entry['accuracy']:.2%}",
                ", ".join(
                    f"{form['kind']} {form['precision']} {form['median_ms']:.3f}"
                    for form in entry["forms"]
                    if form["artifact_id"] != entry["artifact_id"]
                ),
            )
            for entry in compiled.recommended
        ],
    )


def _in_mode(recipe: Recipe, mode: str, path: Path) -> Recipe:
    """The recipe as if it said so. Raises DocumentError where it lacks what that mode needs."""
    try:
        return Recipe.model_validate({**recipe.model_dump(), "mode": mode})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = ".".join(map(str, first["loc"]))
        fact = str(first["msg"]).removeprefix("Value error, ")
        raise DocumentError(
            path, None, f"{what}: {fact}", f"Add it to the recipe's {what}"
        ) from None


def clusters_of_artifact(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(board_id → cluster, cluster → its representative) of the artifact's work folder.

    Empty where the artifact lies elsewhere.
    """
    path = folder.absolute().parent.parent / "clusters.json"
    if not path.exists():
        return {}, {}
    clusters = DeviceClusters.from_json(path.read_text(encoding="utf-8"))
    labels = dict(zip(clusters.board_ids_, clusters.labels_.tolist(), strict=True))
    return labels, dict(clusters.representatives_)
