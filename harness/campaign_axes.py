"""From the axes of a campaign to the runs of a board, in the order in which it does them.

Input: a CampaignFile, its models' hashes, a board's id. Output: RunSpecs, from the file's seed.

What is slow to change is changed seldom: in each repeat a board visits every power source and
charge once, in each of these every temperature band once, all in an order drawn anew; within such
a stretch the cells come in an order drawn anew. Drift over minutes meets all cells of a stretch
alike, and the canary shows drift over hours.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace

from device_agents.contract import Condition, RunSpec, StoppingRule
from harness.campaign_file import CampaignFile

RUNS_MAX = 1_000_000
RUNS_A_BOARD_MAX = 100_000
CANARIES_MAX = 1000
FIRST_CANARY_REPEAT = 1_000_000_000
"""A canary is a cell like others, told apart by a repeat that a thousand tries do not reach."""


class AxesError(ValueError):
    """The axes contradict each other. fact names the key; instead says what to write."""

    def __init__(self, fact: str, instead: str) -> None:
        self.fact = fact
        self.instead = instead
        super().__init__(f"{fact}. {instead}")


def is_canary(spec: RunSpec) -> bool:
    return spec.repeat >= FIRST_CANARY_REPEAT


def stretch_of(condition: Condition) -> tuple[Hashable, Hashable]:
    """What is slow to change: power source and charge, then heat."""
    c = condition
    charge = (c.power_source, c.battery_pct_min, c.battery_pct_max)
    return charge, (c.temp_c_min, c.temp_c_max)


def cells_of(
    document: CampaignFile, stopping: StoppingRule, model_sha256: Mapping[str, str], n_boards: int
) -> list[RunSpec]:
    """Every cell once, in the file's order, on a board without a name. Raises AxesError.

    model_sha256: name → hash. Models of equal bytes are one: their runs would be the same.
    """
    conditions = document.every_condition()
    lengths = [len(x) for x in (document.models, document.runtimes, document.threads)]
    n_cells = len(conditions) * len(document.precision)
    for length in lengths:
        n_cells *= length
    _refuse_absurd(n_cells * document.repeats, n_boards)
    skipped: set[int] = set()
    cells: dict[RunSpec, None] = {}
    for model, runtime, threads, precision, condition in itertools.product(
        document.models, document.runtimes, document.threads, document.precision, conditions
    ):
        cell = RunSpec(
            campaign_id=document.campaign_id,
            board_id="",
            model_sha256=model_sha256[model.name],
            runtime=runtime,
            precision=precision,
            threads=threads,
            condition=condition,
            stopping=stopping,
            input_seed=document.seed,
            operators=document.operators,
            timeout_s=document.timeout_s,
        )
        fits = set(_fitting(document, model.name, cell))
        skipped |= fits
        if not fits:
            cells[cell] = None
    for index, _ in enumerate(document.skip):
        if index not in skipped:
            raise AxesError(f"skip[{index}]: fits no cell", "Write values of this campaign's axes")
    if not cells:
        raise AxesError("skip: leaves no cell", "Skip less")
    return list(cells)


def _refuse_absurd(runs: int, n_boards: int) -> None:
    for count, where, most in (
        (runs, "a board", RUNS_A_BOARD_MAX),
        (runs * n_boards, f"{n_boards} boards", RUNS_MAX),
    ):
        if count > most:
            raise AxesError(
                f"models, runtimes, threads, precision, conditions and repeats multiply to "
                f"{count} runs on {where}, more than {most}",
                "Shorten one of them, or write several campaigns",
            )


def _fitting(document: CampaignFile, model: str, cell: RunSpec) -> Iterator[int]:
    """The skip entries that leave this cell out."""
    found = {**vars(cell.condition), "model": model, "runtime": cell.runtime}
    found |= {"precision": cell.precision, "threads": cell.threads}
    for index, entry in enumerate(document.skip):
        if all(found[key] == value for key, value in entry.given().items()):
            yield index


def runs_of(
    cells: Sequence[RunSpec], board_id: str, seed: int, repeats: int, canaries: Canaries | None
) -> list[RunSpec]:
    """One board's runs in order: every cell in every repeat, and canaries between."""
    campaign_id = cells[0].campaign_id
    rng = random.Random(f"{seed}:{campaign_id}:{board_id}")  # noqa: S311 - an order, not a secret
    here = [replace(cell, board_id=board_id) for cell in cells]
    runs = [
        replace(cell, repeat=repeat) for repeat in range(repeats) for cell in _one_repeat(here, rng)
    ]
    return runs if canaries is None else list(canaries.between(runs))


def _one_repeat(cells: Sequence[RunSpec], rng: random.Random) -> list[RunSpec]:
    """Shuffled cells in shuffled stretches. One stretch alone takes nothing from rng."""
    ordered: list[RunSpec] = []
    for charge in _shuffled_groups(cells, rng, lambda condition: stretch_of(condition)[0]):
        for stretch in _shuffled_groups(charge, rng, stretch_of):
            rng.shuffle(stretch)
            ordered += stretch
    return ordered


def _shuffled_groups(
    cells: Sequence[RunSpec], rng: random.Random, key: Callable[[Condition], Hashable]
) -> list[list[RunSpec]]:
    groups: dict[Hashable, list[RunSpec]] = {}
    for cell in cells:
        groups.setdefault(key(cell.condition), []).append(cell)
    shuffled = list(groups.values())
    rng.shuffle(shuffled)
    return shuffled


class Canaries:
    """One model's runs first, last and after every so many runs of a board. Raises AxesError.

    In the stretch that the board is in anyway: there it is the model's first cell of the file's
    order, so under the first condition of that stretch. It is not profiled by operator.
    """

    def __init__(self, cells: Sequence[RunSpec], name: str, sha256: str | None, every: int) -> None:
        self._every = every
        self._cell_of: dict[Hashable, RunSpec] = {}
        for cell in cells:
            if cell.model_sha256 == sha256:
                plain = replace(cell, operators=False)
                self._cell_of.setdefault(stretch_of(cell.condition), plain)
        for cell in cells:
            if stretch_of(cell.condition) not in self._cell_of:
                raise AxesError(
                    f"canary.model: {name!r} has no cell under some of the conditions",
                    "Name one of this campaign's models, and skip it nowhere whole",
                )

    def check(self, runs_a_board: int) -> None:
        """Raises AxesError where there would be more canaries than numbers for them."""
        least = -(-runs_a_board // (CANARIES_MAX - 1))
        if self._every < least:
            raise AxesError(
                f"canary.every: {self._every} gives more than {CANARIES_MAX} canaries a board",
                f"Write 'every: {least}' or more",
            )

    def between(self, runs: Sequence[RunSpec]) -> Iterator[RunSpec]:
        """The runs with canaries. The last run and the last canary share a stretch."""
        numbers = itertools.count(FIRST_CANARY_REPEAT)
        yield self._canary(runs[0], next(numbers))
        for done, run in enumerate(runs, 1):
            yield run
            if done % self._every == 0 or done == len(runs):
                yield self._canary(run, next(numbers))

    def _canary(self, beside: RunSpec, repeat: int) -> RunSpec:
        cell = self._cell_of[stretch_of(beside.condition)]
        return replace(cell, board_id=beside.board_id, repeat=repeat)
