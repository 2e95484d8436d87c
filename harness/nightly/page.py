"""A night as one self-contained page and as JSON: report.html and report.json in a folder.

Input: a NightReport. Output: the path of report.html. Raises StoreError.
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import jinja2

from harness.errors import StoreError
from harness.nightly.outcomes import NightReport
from harness.pairing import Row

_TITLES = {
    "calm": "Nothing got slower",
    "regression": "Something got slower",
    "dead_board": "A board is dead",
    "missing": "Results are missing",
    "invalid": "Measurements are invalid",
}


def write_page(folder: Path, report: NightReport) -> Path:
    """Both files, each replaced as a whole."""
    texts = {
        "report.json": json.dumps(report.document(), indent=1, sort_keys=True) + "\n",
        "report.html": render(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            partial = folder / f".{name}.{os.getpid()}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(folder / name)
    except OSError as error:
        raise StoreError(
            f"{folder}: the report cannot be written ({error.strerror}). Next: name another --out"
        ) from None
    return folder / "report.html"


def render(report: NightReport) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.nightly", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "interval": interval, "time": _time}
    return environment.get_template("nightly.html.j2").render(
        report=report,
        titles=_TITLES,
        bad=report.of("regression", "missing", "invalid", "unconfirmed"),
        rest=report.of("same", "faster", "unclear", "new", "dead"),
    )


def percent(fraction: float | None) -> str:
    """0.031 → "+3.1 %"."""
    return "–" if fraction is None else f"{fraction * 100:+.1f} %"


def interval(row: Row | None) -> str:
    """The interval of a row's change; a dash where so few pairs exclude nothing."""
    if row is None or row.comparison.change_high == float("inf"):
        return "–"
    return f"{percent(row.comparison.change_low)} … {percent(row.comparison.change_high)}"


def _time(unix_s: float) -> str:
    when = datetime.datetime.fromtimestamp(unix_s, datetime.UTC)
    return when.strftime("%Y-%m-%d %H:%M UTC")
