"""What was measured, as a page and as JSON: report.html and report.json in one folder.

Input: a Report that the front door assembles. Output: the path of report.html.
Both files are replaced only once both have been made, so neither is ever half-written.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import DocumentError
from harness.report_page import render_page
from harness.report_schema import (
    ArtifactReport,
    BoardLatency,
    BoardReport,
    CostFit,
    Failure,
    HeldOutPoint,
    LatencyPoint,
    Network,
    Proof,
    Provenance,
    Report,
    SearchPoint,
    StatePoint,
    Summary,
    SurrogateFit,
    Timeline,
    WidthGroup,
    dump_report,
    parse_report,
)

__all__ = [
    "ArtifactReport",
    "BoardLatency",
    "BoardReport",
    "CostFit",
    "Failure",
    "HeldOutPoint",
    "LatencyPoint",
    "Network",
    "Proof",
    "Provenance",
    "Report",
    "SearchPoint",
    "StatePoint",
    "Summary",
    "SurrogateFit",
    "Timeline",
    "WidthGroup",
    "read_report",
    "write_report",
]


def read_report(path: Path) -> Report:
    """The report in a report.json. Raises DocumentError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DocumentError(
            path, None, f"cannot be read ({error.strerror})", "Give the path of a report.json"
        ) from None
    return parse_report(text, path)


def write_report(folder: Path, report: Report) -> Path:
    """Writes report.json and report.html into ``folder``, made if need be: the page's path."""
    texts = {"report.json": dump_report(report), "report.html": render_page(report)}
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in texts}
    try:
        for name, text in texts.items():
            with partial[name].open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        for name in texts:
            partial[name].replace(folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return folder / "report.html"
