"""What the verbs' command lines have in common: help with an example, --json, the rack, the store.

Input: argparse's subparsers. Output: parsers with the arguments that several verbs share.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from fleetcut.console import Console
from harness.errors import SelectionError
from harness.store import DEFAULT_ADDRESS, StoreAddress, address_of

STORE_VARIABLE = "FLEETCUT_STORE"

Handler = Callable[[Console, argparse.Namespace], int]

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_verb(
    subparsers: Subparsers, name: str, summary: str, example: str, handler: Handler
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"Example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON on stdout")
    parser.set_defaults(handler=handler)
    return parser


def add_inventory(parser: argparse.ArgumentParser, default: str | None = "inventory.yaml") -> None:
    parser.add_argument(
        "--inventory", type=Path, default=Path(default) if default else None, metavar="FILE",
        help=f"the rack (default: {default or 'none'})",
    )  # fmt: skip


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=_store, default=os.environ.get(STORE_VARIABLE, DEFAULT_ADDRESS),
        metavar="FILE|URL",
        help="database of records: a file, or postgresql+psycopg://USER@HOST/DATABASE "
        f"(default: ${STORE_VARIABLE}, else {DEFAULT_ADDRESS})",
    )  # fmt: skip


def _store(text: str) -> StoreAddress:
    try:
        return address_of(text)
    except SelectionError as error:
        # argparse shows this message and not the text, which may hold a password.
        raise argparse.ArgumentTypeError(str(error)) from None


def add_boards(parser: argparse.ArgumentParser, how: str = "BOARD") -> None:
    parser.add_argument("boards", nargs="*", metavar=how, help="board ids (default: all)")
