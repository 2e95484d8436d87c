"""A report as one self-contained HTML page: no script, no request, readable in print.

Input: a Report. Output: the page's text; the same report gives the same text.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness import report_numbers as numbers
from harness.report_plots import Plots, cluster_name
from harness.report_schema import BoardLatency, BoardReport, Network, Report, Timeline
from harness.report_svg import VARIABLES, Look, cluster_looks

ARROW = "\u00a0→\u00a0"
MANY = 24  # above this, tables are folded and plots show the representatives
_GLYPHS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}


@dataclass(frozen=True)
class Drawing:
    """A figure of the page: its picture, what it shows, and how to read it."""

    svg: Markup
    title: str
    caption: str


@dataclass(frozen=True)
class ClusterRow:
    """One cluster in the table. planted: "2 throttling", most frequent first."""

    name: str | None
    boards: tuple[BoardReport, ...]
    representatives: tuple[str, ...]
    planted: tuple[str, ...]
    anchor_ratio: float | None


@dataclass(frozen=True)
class NetworkSection:
    """One network with its figures, and its latencies on every board."""

    network: Network
    drawings: tuple[Drawing, ...]
    rows: tuple[tuple[BoardReport, BoardLatency], ...]


@dataclass(frozen=True)
class Page:
    """What the template shows beside the report itself."""

    verdict: str
    tiles: tuple[tuple[str, str, str], ...]
    limited: str
    many: bool
    clusters: tuple[ClusterRow, ...]
    planted: bool
    planted_verdict: str
    fleet: tuple[Drawing, ...]
    boards: tuple[BoardReport, ...]
    networks: tuple[NetworkSection, ...]
    timelines: tuple[Drawing, ...]


def render_page(report: Report) -> str:
    """The page. Everything that is not ours is escaped, whatever the boards are called."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    looks = cluster_looks(_cluster_names(report))
    for name in ("count", "deviation", "digits", "duration", "error", "interval", "ms"):
        environment.filters[name] = getattr(numbers, name)
    for name in ("moment", "percent", "plural", "points", "ratio", "size", "times"):
        environment.filters[name] = getattr(numbers, name)
    environment.filters["cluster"] = lambda name: _cluster_label(name, looks)
    template = environment.get_template("report.html.j2")
    return template.render(report=report, page=build_page(report, looks))


def build_page(report: Report, looks: dict[str | None, Look]) -> Page:
    """Everything the page says and shows beyond the report's own fields."""
    plots = Plots(looks, report.simulated)
    boards = tuple(sorted(report.boards, key=_board_order))
    shown, limited = _plotted(boards)
    return Page(
        verdict=verdict(report),
        tiles=_tiles(report),
        limited=limited,
        many=len(boards) > MANY,
        clusters=_cluster_rows(boards),
        planted=any(b.planted is not None for b in boards),
        planted_verdict=_planted_verdict(boards),
        fleet=_fleet_drawings(plots, boards),
        boards=boards,
        networks=tuple(_network_section(plots, n, boards, shown) for n in report.networks),
        timelines=_timeline_drawings(plots, report.timelines, {b.board_id for b in shown}),
    )


def verdict(report: Report) -> str:
    """What came of it in one sentence."""
    s = report.summary
    parts = []
    if s.dense_mean_ms is not None and s.pruned_mean_ms is not None:
        dense = numbers.digits(s.dense_mean_ms)
        parts.append(f"Fleet mean {dense}{ARROW}{numbers.ms(s.pruned_mean_ms)}")
    elif s.dense_mean_ms is not None:
        parts.append(f"Fleet mean {numbers.ms(s.dense_mean_ms)} before pruning")
    if s.speedup is not None:
        slower = numbers.times(1 / s.speedup) + " slower"
        parts.append(f"{numbers.times(s.speedup)} faster" if s.speedup >= 1 else slower)
    if s.accuracy_dense is not None and s.accuracy_pruned is not None:
        dense, pruned = numbers.percent(s.accuracy_dense), numbers.percent(s.accuracy_pruned)
        parts.append(f"accuracy {dense}{ARROW}{pruned}")
    text = ", ".join(parts) or "No latency of the fleet was measured"
    return text[0].upper() + text[1:]


def _tiles(report: Report) -> tuple[tuple[str, str, str], ...]:
    """(label, value, detail) of the key figures."""
    s = report.summary
    released = sum(a.state == "released" for a in report.artifacts)
    planted = "" if s.planted_clusters is None else f"{s.planted_clusters} were planted"
    off = numbers.deviation(s.predicted_mean_ms, s.pruned_mean_ms)
    loss = numbers.points(s.accuracy_dense, s.accuracy_pruned)
    failed = len({f.board_id for f in report.failures})
    return (
        (
            "Fleet mean, pruned",
            numbers.ms(s.pruned_mean_ms),
            f"dense {numbers.ms(s.dense_mean_ms)}",
        ),
        ("Speed-up", numbers.times(s.speedup), "mean over the fleet"),
        ("Accuracy, pruned", numbers.percent(s.accuracy_pruned), f"change {loss}"),
        ("Predicted mean", numbers.ms(s.predicted_mean_ms), f"off by {off}"),
        ("Surrogate error", numbers.percent(s.surrogate_mape), "held-out MAPE"),
        ("Clusters found", str(s.clusters), planted),
        ("Boards", str(s.boards), f"{failed} with a failure" if failed else "all without failure"),
        ("Artifacts released", f"{released} of {len(report.artifacts)}", "proved on boards"),
    )


def _plotted(boards: Sequence[BoardReport]) -> tuple[tuple[BoardReport, ...], str]:
    """The boards that have room in the plots, and a sentence where that is not all of them."""
    if len(boards) <= MANY:
        return tuple(boards), ""
    chosen = [b for b in boards if b.representative] or list(boards)
    shown = tuple(chosen[:MANY])
    which = "the clusters' representatives" if chosen[0].representative else "the first ones"
    return shown, (
        f"Plots of single boards show {which}: {len(shown)} of {len(boards)} boards. "
        "The folded tables list every board."
    )


def _cluster_rows(boards: Sequence[BoardReport]) -> tuple[ClusterRow, ...]:
    rows = []
    for name in dict.fromkeys(b.cluster for b in boards):
        members = tuple(b for b in boards if b.cluster == name)
        ratios = [b.anchor_ratio for b in members if b.anchor_ratio is not None]
        planted = Counter(b.planted for b in members if b.planted is not None)
        row = ClusterRow(
            name=name,
            boards=members,
            representatives=tuple(b.board_id for b in members if b.representative),
            planted=tuple(f"{n} {group}" for group, n in planted.most_common()),
            anchor_ratio=statistics.median(ratios) if ratios else None,
        )
        rows.append(row)
    return tuple(rows)


def _planted_verdict(boards: Sequence[BoardReport]) -> str:
    """Whether the clusters are the groups that were planted, as a sentence."""
    pairs = Counter((b.cluster, b.planted) for b in boards if b.planted is not None)
    if not pairs:
        return ""
    found = {cluster for cluster, _ in pairs}
    planted = {group for _, group in pairs}
    if len(pairs) == len(found) == len(planted):
        return "Found as planted: every cluster is exactly one planted group."
    if len(pairs) == len(found):
        return "Finer than planted: a planted group was split over several clusters."
    # A cluster stands for the planted group that most of its boards come from.
    led = sum(max(n for (c, _), n in pairs.items() if c == cluster) for cluster in found)
    apart = numbers.plural(pairs.total() - led, "board")
    return f"Not as planted: {apart} in a cluster led by another planted group."


def _fleet_drawings(plots: Plots, boards: Sequence[BoardReport]) -> tuple[Drawing, ...]:
    by_board = len(boards) <= MANY
    caption = (
        "Median latency of the anchor networks on each board, relative to the fleet's median "
        "board. Colour and shape are the cluster; its representative has an outline."
    )
    svg = plots.anchor_ratios(boards, by_board)
    title = "Speed of each board" if by_board else f"Speed of all {len(boards)} boards"
    return () if svg is None else (Drawing(Markup(svg), title, caption),)  # noqa: S704


def _network_section(
    plots: Plots, network: Network, boards: Sequence[BoardReport], shown: Sequence[BoardReport]
) -> NetworkSection:
    candidates = (
        (
            plots.dumbbells(shown, network),
            "Dense and pruned, board by board",
            "Measured latency per inference. Hollow: dense; filled: pruned; ends: confidence "
            "interval; upright bar: the surrogate's prediction for the pruned network.",
        ),
        (
            plots.convergence(network),
            "Search",
            "Lowest predicted mean latency over the fleet against candidates evaluated; uniform "
            "widths are the baseline of equal accuracy proxy.",
        ),
        (
            plots.predicted_measured(network),
            "Predicted against measured, held out",
            "Each mark is a measurement its surrogate was not fitted on; bars: its interval. "
            + _held_out(network),
        ),
        (
            plots.widths(network),
            "Width of each group of channels",
            "Outline: the dense network; filled: what the search kept.",
        ),
    )
    drawings = (Drawing(Markup(s), t, c) for s, t, c in candidates if s is not None)  # noqa: S704
    rows = [(b, entry) for b in boards for entry in b.latencies if entry.network == network.name]
    return NetworkSection(network, tuple(drawings), tuple(rows))


def _held_out(network: Network) -> str:
    parts = [
        f"{cluster_name(fit.cluster)} {numbers.percent(fit.heldout_mape)} (n = {fit.n_heldout})"
        for fit in network.surrogates
    ]
    return f"Mean absolute percentage error: {', '.join(parts)}." if parts else ""


def _timeline_drawings(
    plots: Plots, timelines: Sequence[Timeline], shown: set[str]
) -> tuple[Drawing, ...]:
    chosen = [t for t in timelines if t.board_id in shown]
    chosen.sort(key=lambda t: numbers.natural(t.board_id))
    drawn = plots.timelines(chosen)
    return tuple(Drawing(Markup(svg), board_id, "") for board_id, svg in drawn)  # noqa: S704


def _cluster_names(report: Report) -> list[str]:
    names = {b.cluster for b in report.boards}
    names |= {fit.cluster for network in report.networks for fit in network.surrogates}
    names |= {cost.cluster for network in report.networks for cost in network.costs}
    names |= {fit.cluster for network in report.networks for fit in network.elites}
    names |= {proof.cluster for artifact in report.artifacts for proof in artifact.proofs}
    return sorted((n for n in names if n is not None), key=numbers.natural)


def _board_order(board: BoardReport) -> tuple[bool, numbers.Natural, numbers.Natural]:
    known = board.cluster is not None
    return (not known, numbers.natural(board.cluster or ""), numbers.natural(board.board_id))


def _cluster_label(name: str | None, looks: dict[str | None, Look]) -> Markup:
    if name is None:
        return Markup('<span class="none">none</span>')
    look = looks[name]
    mark = Markup('<span class="mark" style="color:var({})" aria-hidden="true">{}</span> ')
    return mark.format(VARIABLES[look.colour], _GLYPHS[look.marker]) + name
