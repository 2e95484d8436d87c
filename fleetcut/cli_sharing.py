"""The command lines of sharing a rack: boards, reserve, release, drain, quarantine.

Input: argparse's subparsers. Output: these verbs among them.
"""

from __future__ import annotations

import argparse

from fleetcut.arguments import (
    Handler,
    Subparsers,
    add_boards,
    add_inventory,
    add_store,
    add_verb,
)
from fleetcut.console import Console


def add_sharing(subparsers: Subparsers) -> None:
    def boards(console: Console, a: argparse.Namespace) -> int:
        from fleetcut import sharing

        return sharing.boards(console, a.inventory, a.store, a.boards or None)

    parser = add_verb(
        subparsers,
        "boards",
        "list who holds which board, how it is and when it was last seen",
        "fleetcut boards --json",
        boards,
    )
    add_inventory(parser)
    add_store(parser)
    add_boards(parser)
    _add_reserve(subparsers)
    _add_release(subparsers)
    _add_reasons(subparsers)


def _add_reserve(subparsers: Subparsers) -> None:
    def reserve(console: Console, a: argparse.Namespace) -> int:
        from fleetcut import sharing

        return sharing.reserve(console, a.inventory, a.store, a.boards, a.user, a.span)

    parser = _named(
        subparsers,
        "reserve",
        "let only one person lease boards for a while",
        "fleetcut reserve pi4-01 --for 2h",
        reserve,
    )
    parser.add_argument("--for", dest="span", default="1h", metavar="SPAN", help="30m, 2h, 1d")
    parser.add_argument("--as", dest="user", metavar="USER", help="whom (default: who types this)")


def _add_release(subparsers: Subparsers) -> None:
    def release(console: Console, a: argparse.Namespace) -> int:
        from fleetcut import sharing

        return sharing.release(console, a.inventory, a.store, a.boards, revoke=a.revoke)

    parser = _named(
        subparsers,
        "release",
        "end a reservation, a drain or a quarantine",
        "fleetcut release pi4-01",
        release,
    )
    parser.add_argument(
        "--revoke", action="store_true",
        help="also end the lease that somebody holds: the board then refuses what they ask",
    )  # fmt: skip


def _add_reasons(subparsers: Subparsers) -> None:
    def drain(console: Console, a: argparse.Namespace) -> int:
        from fleetcut import sharing

        return sharing.drain(console, a.inventory, a.store, a.boards, a.reason)

    def quarantine(console: Console, a: argparse.Namespace) -> int:
        from fleetcut import sharing

        return sharing.quarantine(console, a.inventory, a.store, a.boards, a.reason)

    parser = _named(
        subparsers,
        "drain",
        "give boards to nobody new: who is on one goes on to the end",
        "fleetcut drain pi4-01 --reason 'moves on Monday'",
        drain,
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="shown to who asks for it")
    parser = _named(
        subparsers,
        "quarantine",
        "give boards to nobody, because something is wrong with them",
        "fleetcut quarantine pi4-01 --reason 'fan is broken'",
        quarantine,
    )
    parser.add_argument("--reason", required=True, metavar="TEXT", help="shown to who asks for it")


def _named(
    subparsers: Subparsers,
    name: str,
    summary: str,
    example: str,
    handler: Handler,
) -> argparse.ArgumentParser:
    """A verb that takes at least one board: none of these is meant for all by mistake."""
    parser = add_verb(subparsers, name, summary, example, handler)
    add_inventory(parser)
    add_store(parser)
    parser.add_argument("boards", nargs="+", metavar="BOARD", help="board ids")
    return parser
