"""Matplotlib figures as inline SVG that follows the page's colour scheme.

Input: what to draw on. Output: a Figure and its axes; then one <svg> element of it.
The same input gives the same bytes, and text stays text, so it can be found and read.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

WIDTH_PT = 400.0
LABEL_CHARS = 20
RASTER_DPI = 150

# Okabe and Ito's colours, which the common colour blindnesses keep apart; each cluster also has
# its own marker. https://jfly.uni-koeln.de/color/
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
UNKNOWN = ("#8a929c", "X")
# Drawn in these, then handed to the page's CSS variables, so that plots turn dark with the page.
INK, MUTED, LINE, CARD = "#1b1f24", "#59626d", "#d8dde3", "#fefefe"
VARIABLES = {
    **{INK: "--ink", MUTED: "--muted", LINE: "--line", CARD: "--card"},
    **{colour: f"--c{i}" for i, colour in enumerate(COLOURS)},
}
DASHED, DOTTED = (0, (5, 3)), (0, (1, 1.6))

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 10.0,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # a board may be called $x$
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


class Look(NamedTuple):
    """How a cluster's boards look in every figure."""

    colour: str
    marker: str


def cluster_looks(names: Sequence[str]) -> dict[str | None, Look]:
    """A colour and a marker for each cluster, in the order given; None: a board without one."""
    looks: dict[str | None, Look] = {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(names)
    }
    return {**looks, None: Look(*UNKNOWN)}


@contextmanager
def drawing() -> Iterator[None]:
    """Our style inside, the caller's matplotlib settings untouched outside."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Text is drawn by the browser: what matplotlib's own font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def new_figure(
    height_pt: float, rows: int = 1, width_pt: float = WIDTH_PT
) -> tuple[Any, list[Any]]:
    """A figure and its axes, one below the other, x shared. The page scales it to its column."""
    figure = Figure(figsize=(width_pt / 72, height_pt / 72), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)
    return figure, [row[0] for row in axes]


def row_figure(labels: Sequence[str], row_pt: float = 22.0, extra_pt: float = 70.0) -> Any:
    """(figure, axes) with a labelled row for each of ``labels``, the first on top."""
    figure, (axes,) = new_figure(extra_pt + row_pt * len(labels))
    axes.set_yticks(range(len(labels)), [shorten(label) for label in labels])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return figure, axes


def shorten(label: str) -> str:
    """The label, or its beginning and end where it is too long for a plot."""
    if len(label) <= LABEL_CHARS:
        return label
    return f"{label[: LABEL_CHARS - 8]}…{label[-7:]}"


def key(
    label: str, marker: str, colour: str, *, fill: str | None = None, line: Any = "none"
) -> Any:
    """An entry for a legend."""
    return Line2D(
        [],
        [],
        label=label,
        marker=marker,
        color=colour,
        markerfacecolor=fill if fill is not None else colour,
        linestyle=line,
        markersize=7,
    )


def legend(figure: Any, keys: Sequence[Any]) -> None:
    """The legend above the plot, clear of the data, in as many columns as there is room for."""
    longest = max(len(entry.get_label()) for entry in keys)
    columns = max(1, min(4, 66 // (longest + 7)))  # 66 letters fit the width
    figure.legend(
        handles=list(keys),
        loc="outside upper left",
        ncols=min(columns, len(keys)),
        frameon=False,
        handletextpad=0.5,
        columnspacing=1.4,
        borderaxespad=0.0,
    )


def inline_svg(figure: Any, name: str, simulated: bool) -> str:
    """The figure as one <svg> element. name: unique on the page, so that no two ids collide."""
    if simulated:
        foot = 14 / 72 / figure.get_figheight()
        figure.get_layout_engine().set(rect=(0, foot, 1, 1 - foot))
        figure.text(0.995, 0.004, "simulated", ha="right", va="bottom", color=MUTED, size=9)
    _settle(figure)
    sink = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"fleetcut {name}"}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(sink, format="svg", dpi=RASTER_DPI, metadata=metadata)
    svg = sink.getvalue()
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Nothing refers to the groups' ids, and they would stand many times on the page. In text and
    # in attributes "<" is always escaped, so these patterns meet tags only.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1">', svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable}, {colour})")
    return svg.replace("'DejaVu Sans'", "var(--font)")


def _settle(figure: Any) -> None:
    """Lay the figure out once, for good, at positions that every process agrees on.

    The constraint solver's answers differ from process to process in their last bits (it keeps
    its symbols by address), and the ids of clip paths are hashes of those bits.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(edge, 6) for edge in axes.get_position().bounds])
