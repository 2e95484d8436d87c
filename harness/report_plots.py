"""The page's figures: what is drawn, and from which numbers.

Input: the report's dataclasses. Output: one <svg> element a figure, or None where nothing was
measured that it could show.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from harness.report_schema import BoardLatency, BoardReport, Network, SurrogateFit, Timeline
from harness.report_svg import (
    CARD,
    COLOURS,
    DASHED,
    DOTTED,
    INK,
    LINE,
    MUTED,
    UNKNOWN,
    WIDTH_PT,
    Look,
    drawing,
    inline_svg,
    key,
    legend,
    new_figure,
    row_figure,
    shorten,
)

SMALL_WIDTH_PT = 350.0
RASTER_POINTS = 800  # above this a cloud is one embedded picture instead of so many elements


class Plots:
    """Draws one report's figures. looks: from cluster_looks; simulated: each figure says so."""

    def __init__(self, looks: Mapping[str | None, Look], simulated: bool) -> None:
        self.looks = looks
        self.simulated = simulated

    def anchor_ratios(self, boards: Sequence[BoardReport], by_board: bool) -> str | None:
        """Each board's latency relative to the fleet: a row a board, or else a row a cluster."""
        known = [b for b in boards if b.anchor_ratio is not None]
        if not known:
            return None
        rows = [b.board_id if by_board else cluster_name(b.cluster) for b in known]
        labels = list(dict.fromkeys(rows))
        with drawing():
            figure, axes = row_figure(labels, 22 if by_board else 44)
            axes.axvline(1.0, color=MUTED, linewidth=1, linestyle=DASHED, zorder=1)
            for index, (board, row) in enumerate(zip(known, rows, strict=True)):
                look = self._look(board.cluster)
                # Boards that share a row are spread by a fixed pattern, so none hides another.
                y = labels.index(row) + (0.0 if by_board else (index * 0.618 % 1 - 0.5) * 0.6)
                edge = INK if board.representative else look.colour
                axes.plot(
                    board.anchor_ratio,
                    y,
                    look.marker,
                    color=look.colour,
                    markeredgecolor=edge,
                    markersize=8 if by_board else 6,
                )
            axes.set_xlabel("latency relative to the fleet's median board")
            legend(figure, self._cluster_keys([b.cluster for b in known]))
            return inline_svg(figure, "anchors", self.simulated)

    def dumbbells(self, boards: Sequence[BoardReport], network: Network) -> str | None:
        """Dense and pruned latency of one network on each board, with intervals."""
        rows = [
            (board, latency)
            for board in boards
            for latency in board.latencies
            if latency.network == network.name and (latency.dense_ms or latency.pruned_ms)
        ]
        if not rows:
            return None
        with drawing():
            figure, axes = row_figure([board.board_id for board, _ in rows], 24, 92)
            for mean_ms in (network.dense_mean_ms, network.pruned_mean_ms):
                if mean_ms is not None:
                    axes.axvline(mean_ms, color=MUTED, linewidth=1.2, linestyle=DOTTED, zorder=1)
            for y, (board, latency) in enumerate(rows):
                _dumbbell(axes, y, latency, self._look(board.cluster))
            axes.set_xlim(left=0)
            axes.set_xlabel("latency per inference, ms")
            keys = [
                key("dense", "o", MUTED, fill=CARD),
                key("pruned", "o", MUTED),
                key("predicted", "|", INK),
                key("fleet mean", "", MUTED, line=DOTTED),
            ]
            legend(figure, keys + self._cluster_keys([b.cluster for b, _ in rows]))
            return inline_svg(figure, f"dumbbells {network.name}", self.simulated)

    def predicted_measured(self, network: Network) -> str | None:
        """Held-out predictions with their intervals against what was measured."""
        points = [p for fit in network.surrogates for p in fit.points]
        if not points:
            return None
        values = [v for p in points for v in (p.measured_ms, p.predicted_ms)]
        low, high = min(values) / 1.08, max(values) * 1.08
        with drawing():
            figure, (axes,) = new_figure(WIDTH_PT * 0.86)
            axes.axline((low, low), (high, high), color=MUTED, linewidth=1, linestyle=DASHED)
            for fit in network.surrogates:
                _cloud(axes, fit, self._look(fit.cluster), len(points) > RASTER_POINTS)
            if high > 10 * low:
                _logarithmic(axes)
            axes.set(xlim=(low, high), ylim=(low, high))
            axes.set(xlabel="measured, ms", ylabel="predicted, ms")
            axes.grid(visible=True)
            keys = self._cluster_keys([fit.cluster for fit in network.surrogates])
            legend(figure, [*keys, key("exact", "", MUTED, line=DASHED)])
            return inline_svg(figure, f"predicted {network.name}", self.simulated)

    def widths(self, network: Network) -> str | None:
        """The width profile: what there was as an outline, what was kept filled."""
        if not network.groups:
            return None
        with drawing():
            figure, axes = row_figure([g.name for g in network.groups], 18)
            for y, group in enumerate(network.groups):
                axes.barh(y, group.pruned_width, 0.7, facecolor=COLOURS[0], edgecolor="none")
                axes.barh(y, group.dense_width, 0.7, facecolor="none", edgecolor=MUTED)
                at = (max(group.dense_width, group.pruned_width), y)
                text = f"{group.pruned_width} of {group.dense_width}"
                axes.annotate(
                    text, at, xytext=(5, 0), textcoords="offset points", va="center", size=9
                )
            axes.set_xlim(0, 1.2 * max(g.dense_width for g in network.groups))
            axes.set_xlabel("channels")
            keys = [key("dense", "s", MUTED, fill="none"), key("kept", "s", COLOURS[0])]
            legend(figure, keys)
            return inline_svg(figure, f"widths {network.name}", self.simulated)

    def convergence(self, network: Network) -> str | None:
        """The best predicted latency while the search ran."""
        history = sorted(network.search_history, key=lambda p: p.evaluations)
        if not history:
            return None
        with drawing():
            figure, (axes,) = new_figure(WIDTH_PT * 0.62)
            evaluations = [p.evaluations for p in history]
            best_ms = [p.best_ms for p in history]
            mark = "o" if len(history) == 1 else ""
            axes.step(evaluations, best_ms, mark, where="post", color=COLOURS[0], linewidth=2)
            keys = [key("best so far", "", COLOURS[0], line="-")]
            levels = (
                ("uniform widths", network.uniform_predicted_ms, COLOURS[4], DASHED),
                ("pruned, as measured", network.pruned_mean_ms, COLOURS[2], DOTTED),
            )
            for label, level_ms, colour, line in levels:
                if level_ms is not None:
                    axes.axhline(level_ms, color=colour, linewidth=1.5, linestyle=line)
                    keys.append(key(label, "", colour, line=line))
            axes.grid(axis="y")
            axes.set(xlabel="candidates evaluated", ylabel="fleet mean, ms")
            legend(figure, keys)
            return inline_svg(figure, f"search {network.name}", self.simulated)

    def timelines(self, timelines: Sequence[Timeline]) -> list[tuple[str, str]]:
        """(board_id, svg) for each board with a reading, on the same axes to be compared."""
        boards = [(t.board_id, [p for p in _panels(t) if p.series]) for t in timelines]
        spans: dict[str, tuple[float, float]] = {}
        end_s = 1e-3
        for panel in (panel for _, panels in boards for panel in panels):
            points = [point for series in panel.series for point in series.points]
            end_s = max(end_s, *(t_s for t_s, _ in points))
            values = [value for _, value in points]
            low, high = spans.get(panel.title, (values[0], values[0]))
            spans[panel.title] = (min(low, *values), max(high, *values))
        return [
            (board_id, self._timeline(board_id, panels, spans, end_s))
            for board_id, panels in boards
            if panels
        ]

    def _timeline(
        self,
        board_id: str,
        panels: Sequence[Panel],
        spans: Mapping[str, tuple[float, float]],
        end_s: float,
    ) -> str:
        scale, unit = (60.0, "min") if end_s > 180 else (1.0, "s")
        with drawing():
            figure, rows = new_figure(44 + 78.0 * len(panels), len(panels), SMALL_WIDTH_PT)
            for axes, panel in zip(rows, panels, strict=True):
                for series in panel.series:
                    _draw(axes, series, scale)
                low, high = spans[panel.title]
                margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
                axes.set_ylim(0 if panel.from_zero else low - margin, high + margin)
                axes.set_title(panel.title, loc="left", size=10.5, color=INK, pad=4)
                axes.yaxis.set_major_locator(MaxNLocator(3))
                axes.grid(axis="y")
                if len(panel.series) > 1:
                    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.96), ncols=2, frameon=False)
            rows[-1].set_xlim(0, end_s / scale)
            rows[-1].tick_params(axis="x", pad=6)
            rows[-1].set_xlabel(f"time since the campaign began, {unit}")
            return inline_svg(figure, f"timeline {board_id}", self.simulated)

    def _look(self, cluster: str | None) -> Look:
        return self.looks.get(cluster, self.looks[None])

    def _cluster_keys(self, clusters: Sequence[str | None]) -> list[Any]:
        present = [name for name in self.looks if name in clusters]
        return [
            key(cluster_name(name), self.looks[name][1], self.looks[name][0]) for name in present
        ]


class Series(NamedTuple):
    """One line or cloud in a timeline's panel. look: a matplotlib format."""

    label: str
    points: list[tuple[float, float]]
    colour: str
    look: str


class Panel(NamedTuple):
    """One small plot of a timeline."""

    title: str
    series: list[Series]
    from_zero: bool = False


def cluster_name(cluster: str | None) -> str:
    """As a person calls it."""
    return "no cluster" if cluster is None else f"cluster {shorten(cluster)}"


def relative_latency(timeline: Timeline) -> list[tuple[float, float]]:
    """(t_s, latency over that model's own median on this board), so that all fit one axis."""
    by_model: dict[str, list[float]] = {}
    for point in timeline.latencies:
        by_model.setdefault(point.model, []).append(point.ms)
    medians = {model: statistics.median(values) for model, values in by_model.items()}
    return [(p.t_s, p.ms / medians[p.model]) for p in timeline.latencies]


def _panels(timeline: Timeline) -> list[Panel]:
    def observed(label: str, field: str, colour: str, look: str = "-") -> list[Series]:
        pairs = [(s.t_s, getattr(s, field)) for s in timeline.states]
        known = sorted((t_s, value) for t_s, value in pairs if value is not None)
        return [Series(label, known, colour, look)] if known else []

    relative = relative_latency(timeline)
    clock = [
        *observed("set", "freq_mhz", UNKNOWN[0], "--"),
        *observed("effective", "effective_freq_mhz", COLOURS[2]),
    ]
    return [
        Panel(
            "latency ÷ the model's median", [Series("", relative, COLOURS[0], ".")][: len(relative)]
        ),
        Panel("temperature, °C", observed("", "temp_c", COLOURS[4])),
        Panel("clock, MHz", clock, from_zero=True),
        Panel("battery, %", observed("", "battery_pct", COLOURS[3])),
    ]


def _draw(axes: Any, series: Series, scale: float) -> None:
    x = [t_s / scale for t_s, _ in series.points]
    y = [value for _, value in series.points]
    label = series.label or None
    if series.look == "." or len(x) == 1:
        many = len(x) > RASTER_POINTS
        axes.plot(x, y, ".", color=series.colour, alpha=0.7, rasterized=many, label=label)
    else:
        axes.plot(x, y, series.look, color=series.colour, linewidth=1.5, label=label)


def _logarithmic(axes: Any) -> None:
    """Both axes, labelled with plain numbers: matplotlib's own labels are TeX, which stays text."""
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _cloud(axes: Any, fit: SurrogateFit, look: Look, rasterized: bool) -> None:
    for point in fit.points:
        if point.lower_ms is not None and point.upper_ms is not None:
            x, y = [point.measured_ms] * 2, [point.lower_ms, point.upper_ms]
            axes.plot(x, y, color=look.colour, alpha=0.4, rasterized=rasterized)
    axes.plot(
        [p.measured_ms for p in fit.points],
        [p.predicted_ms for p in fit.points],
        look.marker,
        color=look.colour,
        markersize=5,
        alpha=0.85,
        rasterized=rasterized,
    )


def _dumbbell(axes: Any, y: int, latency: BoardLatency, look: Look) -> None:
    dense, pruned = latency.dense_ms, latency.pruned_ms
    if dense is not None and pruned is not None:
        axes.plot([dense, pruned], [y, y], color=LINE, linewidth=3, zorder=1)
    for ci_ms in (latency.dense_ci_ms, latency.pruned_ci_ms):
        if ci_ms is not None:
            axes.plot(ci_ms, [y, y], color=look.colour, linewidth=2, marker="|", markersize=10)
    for value_ms, fill in ((dense, CARD), (pruned, look.colour)):
        if value_ms is not None:
            style = {"markerfacecolor": fill, "markeredgecolor": look.colour}
            axes.plot(value_ms, y, look.marker, markersize=7, zorder=3, **style)
    if latency.predicted_ms is not None:
        axes.plot(latency.predicted_ms, y, "|", color=INK, markersize=16, zorder=4)
