"""The command lines of what keeps boards fit: provision, clean.

Input: argparse's subparsers. Output: these verbs' parsers, each with its handler.
"""

from __future__ import annotations

import argparse

from fleetcut.arguments import Subparsers, add_boards, add_inventory, add_verb
from fleetcut.console import Console
from harness.provision import RUNTIMES

_MIB_MAX = 1 << 24


def add_care(subparsers: Subparsers) -> None:
    """Every verb of this module."""
    _add_provision(subparsers)
    _add_clean(subparsers)


def _add_provision(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.caring import Wanted, provision, resolve_only

        wanted = Wanted(tuple(a.runtime or RUNTIMES), tuple(a.requirements or ()), a.refresh)
        if a.platform is not None:
            return resolve_only(console, a.platform, a.has or (), wanted)
        return provision(console, a.inventory, a.boards or None, wanted)

    parser = add_verb(
        subparsers,
        "provision",
        "give boards without internet a runtime: wheels are found here and unpacked there",
        "fleetcut provision pi4-01\n"
        "         fleetcut provision pi4-01 --with tflite-runtime==2.14.0 --with 'numpy<2'\n"
        "         fleetcut provision --for 3.8-aarch64-2.31",
        handler,
    )
    add_inventory(parser)
    add_boards(parser)
    parser.add_argument(
        "--runtime", action="append", choices=tuple(RUNTIMES),
        help="only this one (default: each of which there are wheels for the board)",
    )  # fmt: skip
    parser.add_argument(
        "--with", action="append", dest="requirements", metavar="REQUIREMENT",
        help="these packages and what they need, as pip takes them, instead",
    )  # fmt: skip
    parser.add_argument(
        "--for", dest="platform", metavar="PYTHON-MACHINE-GLIBC",
        help="find and keep the wheels of such boards, and ask none",
    )  # fmt: skip
    parser.add_argument(
        "--has", action="append", metavar="NAME==VERSION",
        help="with --for: what such boards have by themselves, where it has no wheel",
    )  # fmt: skip
    parser.add_argument("--refresh", action="store_true", help="look for newer wheels")


def _add_clean(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.caring import clean

        return clean(console, a.inventory, a.boards or None, a.to_mib)

    parser = add_verb(
        subparsers,
        "clean",
        "remove models that boards hold beyond their quota, and what cut uploads left",
        "fleetcut clean pi4-01 --to-mib 0",
        handler,
    )
    add_inventory(parser)
    add_boards(parser)
    parser.add_argument(
        "--to-mib", type=_mib, metavar="N",
        help="leave at most so much, also of what was used within the hour "
        "(default: cache_mib of the inventory); what a session needs always stays",
    )  # fmt: skip


def _mib(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) <= _MIB_MAX):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of MiB")
    return int(text)
