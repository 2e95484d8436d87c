"""Tamperings of artifacts and cuts of deployments: refused or recovered, and a whole version left.

    python -m benchmarks.tampering --json OUT

Input: nothing; a simulated board is started on loopback. Output: a row for each of a hundred seeded
cases: what was done, what came of it, what the board ran then and after a clean deployment. The
workstation's code, the agent, SSH and ssh-keygen are the real ones.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.result import Bar, finish, parser
from benchmarks.tampering_cases import CASES, RECOVERED, REFUSED, Case
from benchmarks.tampering_world import World, open_world
from harness.errors import HarnessError
from harness.virtual import rack
from harness.virtual.spec import uniform_rack

FAILED = "FAILED"
RECOVERING_TRIES = 2
"""The first finds a damaged blob and removes it, the second sends it again."""

_FACT_CHARS = 110


def seeded(seed: int, *, quick: bool = False) -> Iterator[tuple[Case, random.Random]]:
    """Every case with its own generator; quick: one of each kind."""
    for case in CASES:
        for number in range(1 if quick else case.times):
            yield case, random.Random(f"{seed}/{case.kind}/{number}")  # noqa: S311 - no secret


def run_case(world: World, case: Case, rng: random.Random) -> dict[str, Any]:
    """Tamper or cut, look at the board, deploy cleanly, look again; then the next version is new.

    whole: the board had a whole version at both times.
    """
    said = None
    try:
        case.act(world, rng)
    except HarnessError as error:
        said = str(error)
    between = world.runs()
    known = {
        artifact.artifact_id: name
        for name, artifact in (("older", world.older), ("old", world.old), ("new", world.new))
    }
    for _ in range(RECOVERING_TRIES):
        try:
            world.ship(world.new.folder)
            break
        except HarnessError as error:
            last = str(error)
    else:
        said = f"{said}; then {last}"
    whole = between in known and world.runs() == world.new.artifact_id and world.keeps() is not None
    refused = said is not None and between == world.old.artifact_id
    outcome = case.expected if whole and (refused or case.expected == RECOVERED) else FAILED
    row = {
        "kind": case.kind,
        "outcome": outcome,
        "ran": known.get(between or "", "nothing whole"),
        "whole": whole,
        "said": _brief(said or "nothing", world),
    }
    if world.runs() == world.new.artifact_id:
        world.advance()
    return row


def _brief(said: str, world: World) -> str:
    """Without the folders of this very run, and hashes as people write them."""
    short = said.replace(f"{world.folder}/", "")
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1", short)[:_FACT_CHARS]


def bars(rows: list[dict[str, Any]], wanted: int) -> list[Bar]:
    good = sum(row["outcome"] in (REFUSED, RECOVERED) for row in rows)
    return [
        Bar("cases that were refused or recovered", float(good), "==", float(wanted)),
        Bar("cases that left the board without a whole version",
            float(sum(not row["whole"] for row in rows)), "==", 0.0),
    ]  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    """A row for each kind."""
    kinds = {row["kind"]: None for row in rows}
    return [
        {
            "kind": kind,
            "cases": sum(row["kind"] == kind for row in rows),
            **{
                outcome: sum((row["kind"], row["outcome"]) == (kind, outcome) for row in rows)
                for outcome in (REFUSED, RECOVERED, FAILED)
            },
        }
        for kind in kinds
    ]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--seed", type=int, default=0, help="of the cases")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-") as name:
        folder = Path(name)
        rack.up(folder / "rack", uniform_rack(1))
        try:
            world = open_world(folder / "world", folder / "rack")
            rows = []
            for case, rng in seeded(asked.seed, quick=asked.quick):
                rows.append(run_case(world, case, rng))
                print(f"{len(rows)}: {rows[-1]['kind']}: {rows[-1]['outcome']}", file=sys.stderr)
        finally:
            rack.down(folder / "rack")
    wanted = len(CASES) if asked.quick else sum(case.times for case in CASES)
    return finish("tampering", [*rows, *summary(rows)], bars(rows, wanted), asked.json)


if __name__ == "__main__":
    sys.exit(main())
