"""The verb ``toolchains``: what programs for other machines are linked with, and getting it.

Input: machines. Output: a line each, and an exit status: 1 while something is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiler.targets.toolchains import (
    COMMAND,
    RUNTIMES,
    TRIPLETS,
    MissingToolError,
    find,
    install,
)
from fleetcut.console import Console
from fleetcut.verbs import CHECK_FAILED, DONE


def toolchains(console: Console, machines: Sequence[str] | None, *, get: bool) -> int:
    """With ``get`` installs what is missing first. machines: None for all that there are."""
    rows: list[Sequence[str]] = []
    answer = []
    for machine in machines or sorted(TRIPLETS):
        fact, next_step = _state(console, machine, get=get)
        ready = not next_step
        rows.append((machine, "ok" if ready else "MISSING", fact, next_step))
        answer.append({"machine": machine, "ready": ready, "fact": fact, "next_step": next_step})
    console.table("Toolchains", ("machine", "", "fact", "next step"), rows)
    console.answer(answer)
    missing = [entry for entry in answer if not entry["ready"]]
    if missing and not get:
        console.next(COMMAND)
    return CHECK_FAILED if missing else DONE


def _state(console: Console, machine: str, *, get: bool) -> tuple[str, str]:
    """(what is there, "") or (what is missing, what to do)."""
    try:
        if get:
            with console.steps(f"toolchain for {machine}"):
                install(machine)
        found = [find(machine, runtime) for runtime in RUNTIMES.get(machine, (None,))]
        folders = ", ".join(str(toolchain.runtime) for toolchain in found)
        return f"{found[0].cxx} {found[0].version()}, {folders}", ""
    except MissingToolError as missing:
        return missing.fact, missing.next_step
