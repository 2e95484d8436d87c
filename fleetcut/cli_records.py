"""The command lines of what was measured: results, export, and the nightly job.

Input: argparse's subparsers. Output: these verbs among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fleetcut.arguments import Subparsers, add_inventory, add_store, add_verb
from fleetcut.console import Console


def add_records(subparsers: Subparsers) -> None:
    """results, export."""

    def results(console: Console, a: argparse.Namespace) -> int:
        from fleetcut import records

        query = records.query_of(a.campaign, a.board, a.model, a.since, valid=a.valid)
        return records.results(console, a.store, query, a.limit)

    def export(console: Console, a: argparse.Namespace) -> int:
        from fleetcut import records

        query = records.query_of(a.campaign, a.board, a.model, a.since)
        return records.export(console, a.store, a.out, query, include_invalid=a.include_invalid)

    parser = add_verb(
        subparsers,
        "results",
        "list measured runs, the newest last",
        "fleetcut results --campaign nightly --board pi4-01 --invalid --since 36h",
        results,
    )
    _query(parser)
    counts = parser.add_mutually_exclusive_group()
    counts.add_argument("--valid", action="store_true", default=None, help="only runs that count")
    counts.add_argument(
        "--invalid", action="store_false", dest="valid", help="only runs that do not count"
    )
    parser.add_argument("--limit", type=int, default=50, help="the newest so many (default: 50)")
    parser = add_verb(
        subparsers,
        "export",
        "write measured runs as a dataset folder (Parquet and its provenance)",
        "fleetcut export --out dataset --campaign nightly",
        export,
    )
    _query(parser)
    parser.add_argument("--out", type=Path, default=Path("dataset"), metavar="FOLDER")
    parser.add_argument(
        "--include-invalid", action="store_true", help="also runs not to be trusted"
    )


def _query(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    parser.add_argument("--campaign", action="append", metavar="ID")
    parser.add_argument("--board", action="append", metavar="BOARD")
    parser.add_argument("--model", action="append", metavar="NAME|SHA256")
    parser.add_argument(
        "--since", metavar="WHEN", help="stored since: 36h, 7d, 2031-05-04 or 2031-05-04T22:00"
    )


def add_nightly(subparsers: Subparsers) -> None:
    """For cron or a systemd timer."""

    def nightly(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.nightly import Asked, nightly

        asked = Asked(
            a.inventory, a.campaign, a.store, a.out, a.metrics, a.night, a.baseline, a.rebase,
            a.alpha, a.min_change, a.tries,
        )  # fmt: skip
        return nightly(console, asked)

    parser = add_verb(
        subparsers,
        "nightly",
        "measure a campaign, compare it with its baseline, write a page; for cron or a timer",
        "fleetcut nightly campaign.yaml --metrics /var/lib/node_exporter/fleetcut.prom\n"
        "Exit status, the worst that happened: 0 calm, 10 a regression, 11 a dead board,\n"
        "12 missing results, 13 invalid measurements (docs/nightly.md).",
        nightly,
    )
    add_inventory(parser)
    add_store(parser)
    parser.add_argument("campaign", type=Path, metavar="CAMPAIGN", help="campaign.yaml")
    parser.add_argument(
        "--out", type=Path, default=Path("nightly"), metavar="FOLDER",
        help="pages, a folder a night (default: nightly)",
    )  # fmt: skip
    parser.add_argument("--metrics", type=Path, metavar="FILE.prom", help="for Prometheus")
    parser.add_argument(
        "--night", metavar="NAME",
        help="default: the date in UTC; started again, an unfinished night goes on",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", metavar="ID", help="compare with this earlier campaign or night instead"
    )
    parser.add_argument(
        "--rebase", action="store_true", help="tonight becomes the baseline of all cells"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.01, metavar="SHARE",
        help="of the regressions called, at most this share is false (default: 0.01)",
    )  # fmt: skip
    parser.add_argument(
        "--min-change", type=float, default=0.03, metavar="FRACTION",
        help="smaller changes are no regression (default: 0.03)",
    )  # fmt: skip
    parser.add_argument(
        "--tries", type=int, default=3, metavar="N",
        help="measure a run that does not count anew (default: 3 in all)",
    )  # fmt: skip
