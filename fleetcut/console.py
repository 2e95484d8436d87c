"""What a person sees: progress on a terminal, plain lines elsewhere, JSON for programs.

Input: lines, tables and steps of long work. Output: stdout for the answer; progress goes to
stderr, so that ``--json`` leaves nothing but JSON on stdout.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Step = Callable[[int, int, str], None]
"""Called with how much is done, of how much, and what came last."""

PLAIN_INTERVAL_S = 5.0
"""Between two plain progress lines: a log should show life, not drown in it."""


LOG_WIDTH = 200
"""A log has no width; without one rich would fold tables at 80 columns."""


def _rich(*, stderr: bool) -> RichConsole:
    console = RichConsole(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


class Console:
    """One command's output. json_mode: people's lines go to stderr, the answer is JSON."""

    def __init__(self, *, json_mode: bool = False) -> None:
        self.json_mode = json_mode
        self._err = _rich(stderr=True)
        self._out = self._err if json_mode else _rich(stderr=False)

    def line(self, text: str = "") -> None:
        """A line for a person."""
        self._out.print(text, markup=False)

    def error(self, text: str) -> None:
        """An error: one line on stderr."""
        self._err.print(f"fleetcut: {text}", markup=False, style="red")

    def next(self, command: str) -> None:
        """What to type next."""
        self._out.print(f"Next: {command}", markup=False, style="bold")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table for a person; numbers are given as text by the caller."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*("-" if cell is None else str(cell) for cell in row))
        self._out.print(table, markup=False)

    def answer(self, document: Any) -> None:
        """The machine-readable answer, printed only with --json."""
        if self.json_mode:
            json.dump(document, sys.stdout, indent=1, sort_keys=True)
            sys.stdout.write("\n")

    @contextmanager
    def steps(self, title: str) -> Iterator[Step]:
        """Progress of one long piece of work, ended with its duration."""
        started_s = time.monotonic()
        if self._err.is_terminal:
            with self._bar(title) as step:
                yield step
        else:
            self._err.print(f"{title} …", markup=False)
            yield self._plain(title)
        self._err.print(f"{title}: {time.monotonic() - started_s:.1f} s", markup=False)

    @contextmanager
    def _bar(self, title: str) -> Iterator[Step]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[last]}", markup=False),
        )
        with Progress(*columns, console=self._err, transient=True) as progress:
            task = progress.add_task(title, total=None, last="")

            def step(done: int, total: int, last: str) -> None:
                progress.update(task, completed=done, total=total, last=last)

            yield step

    def _plain(self, title: str) -> Step:
        last_s = time.monotonic()

        def step(done: int, total: int, last: str) -> None:
            nonlocal last_s
            now_s = time.monotonic()
            if now_s - last_s >= PLAIN_INTERVAL_S:
                last_s = now_s
                self._err.print(f"{title}: {done}/{total} {last}".rstrip(), markup=False)

        return step
