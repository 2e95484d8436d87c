"""The convention of every benchmark: a table, a JSON document, bars, an exit status.

Input: rows and bars. Output: stdout, the file that ``--json`` names, 1 when a bar does not hold.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Bar:
    """A promise. It is measured, and never moved to make it hold."""

    what: str
    value: float
    op: str
    limit: float

    @property
    def holds(self) -> bool:
        return _OPERATORS[self.op](self.value, self.limit)


def parser(description: str | None) -> argparse.ArgumentParser:
    """--quick and --json, as every benchmark takes them; a benchmark may add its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats, wider noise")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here")
    return parser


def arguments(description: str | None) -> argparse.Namespace:
    """What a benchmark without options of its own was asked."""
    return parser(description).parse_args()


def finish(
    name: str, rows: Sequence[Mapping[str, Any]], bars: Sequence[Bar], out: Path | None
) -> int:
    """Print a table for every kind of row and the bars, write the document, return the status."""
    for _, alike in groupby(rows, key=tuple):
        _print_table(list(alike))
    for bar in bars:
        state = "holds" if bar.holds else "DOES NOT HOLD"
        print(f"{bar.what}: {bar.value:.4g} {bar.op} {bar.limit:g}: {state}")
    write(name, rows, bars, out)
    return 0 if all(bar.holds for bar in bars) else 1


def write(
    name: str, rows: Sequence[Mapping[str, Any]], bars: Sequence[Bar], out: Path | None
) -> None:
    """The document alone: a long benchmark writes what it has after every part."""
    if out is None:
        return
    document = {
        "name": name,
        "machine": machine(),
        "rows": list(rows),
        "bars": [{**asdict(bar), "holds": bar.holds} for bar in bars],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(rows[0])
    cells = [[_cell(row[c]) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    for line in (columns, *cells):
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
    print()


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
