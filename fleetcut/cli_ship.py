"""The command lines of what happens to artifacts: sign, deploy, verify, rollback, report.

Input: argparse's subparsers. Output: these verbs' parsers, each with its handler.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fleetcut import shipping
from fleetcut.arguments import Subparsers, add_inventory, add_store, add_verb
from fleetcut.console import Console
from fleetcut.staging import Fleet, Shares
from harness.rollout import parse_shares


def add_ship(subparsers: Subparsers) -> None:
    """Every verb of this module."""
    _add_sign(subparsers)
    _add_deploy(subparsers)
    _add_verify(subparsers)
    _add_rollback(subparsers)
    _add_engine(subparsers)
    _add_report(subparsers)


def _add_sign(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "sign",
        "sign artifacts with an SSH key, for boards that take only what is signed",
        "fleetcut sign build/artifacts/* --key ~/.ssh/id_ed25519\n"
        "         fleetcut sign --signers allowed_signers --key ~/.ssh/id_ed25519",
        lambda console, a: shipping.sign(console, a.artifacts, a.signers, a.key, a.name, a.serial),
    )
    parser.add_argument("artifacts", nargs="*", type=Path, metavar="ARTIFACT", help="its folder")
    parser.add_argument(
        "--key", type=Path, default=Path("~/.ssh/id_ed25519"), metavar="FILE",
        help="private key, or its .pub while an SSH agent holds it (default: ~/.ssh/id_ed25519)",
    )  # fmt: skip
    parser.add_argument("--name", metavar="NAME", help="what one artifact is deployed as")
    parser.add_argument(
        "--serial", type=int, metavar="N",
        help="boards take no smaller one under the same name (default: seconds since 1970)",
    )  # fmt: skip
    parser.add_argument(
        "--signers", type=Path, metavar="FILE",
        help="vouch for a changed allowed_signers with a key that the boards know already",
    )  # fmt: skip


def _add_deploy(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        stages = _stages(a.canary, a.stages)
        shares = Shares(stages, a.may_fail, a.roll_back, a.rollouts, a.store)
        return shipping.deploy(console, _fleet(a), a.artifacts, a.allowed_signers, shares)

    parser = add_verb(
        subparsers,
        "deploy",
        "put artifacts on boards: pushed by hash, checked there, switched at once; share by share "
        "with --canary, each proven before the next",
        "fleetcut deploy build/artifacts/3f2a… --board pi4-01\n"
        "         fleetcut deploy build/artifacts/3f2a… --canary 5% --stages 25%,100%",
        handler,
    )
    add_inventory(parser)
    add_store(parser)
    _artifacts(parser)
    parser.add_argument(
        "--allowed-signers", type=Path, metavar="FILE",
        help="whose signatures count (default: allowed_signers in the inventory)",
    )  # fmt: skip
    parser.add_argument("--canary", metavar="SHARE", help="of the fleet, first: 5%%")
    parser.add_argument(
        "--stages", metavar="SHARES", help="then, up to and with: 25%%,100%% (default: 100%%)"
    )
    parser.add_argument(
        "--may-fail", type=int, default=0, metavar="N",
        help="boards of a stage that need not be reached; a failed proof stops it all the same",
    )  # fmt: skip
    parser.add_argument(
        "--roll-back", action="store_true", help="put a stage that fails back to what it ran"
    )
    parser.add_argument(
        "--rollouts", type=Path, default=Path(".fleetcut/rollouts"), metavar="FOLDER",
        help="where staged deployments are kept, to go on (default: .fleetcut/rollouts)",
    )  # fmt: skip


def _stages(canary: str | None, stages: str | None) -> tuple[float, ...] | None:
    if canary is None and stages is None:
        return None
    return parse_shares(",".join(s for s in (canary, stages or "100%") if s))


def _add_verify(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "verify",
        "prove deployed artifacts on a board of every cluster: golden output, latency against the "
        "prediction, throttling; release or refuse them",
        "fleetcut verify build/artifacts/*\n"
        "         fleetcut verify build/artifacts/* --board pi4-01 --seconds 60",
        lambda console, a: shipping.verify(console, _fleet(a), a.store, a.artifacts, a.seconds),
    )
    add_inventory(parser)
    add_store(parser)
    _artifacts(parser)
    parser.add_argument(
        "--seconds", type=float, default=0.0, metavar="S",
        help="time each at least that long, for heat to show",
    )  # fmt: skip


def _add_rollback(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "rollback",
        "put a name back to the version that boards kept before the one they run",
        "fleetcut rollback digits_resnet-onnx --board pi4-01",
        lambda console, a: shipping.rollback(
            console, Fleet(a.inventory, a.board, {}, {}), a.store, a.name
        ),
    )
    add_inventory(parser)
    add_store(parser)
    parser.add_argument("name", metavar="NAME", help="as it is deployed")
    parser.add_argument("--board", action="append", metavar="BOARD", help="only these boards")


def _add_engine(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.engines import engine

        return engine(console, a.inventory, a.artifact, a.board, "fp16" if a.fp16 else "fp32")

    parser = add_verb(
        subparsers,
        "engine",
        "have Jetsons build a TensorRT engine of an ONNX artifact with their own trtexec, and "
        "compare its answer with the golden one",
        "fleetcut engine build/artifacts/3f2a… --board orin-01 --fp16",
        handler,
    )
    add_inventory(parser)
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="its folder")
    parser.add_argument("--board", action="append", metavar="BOARD", help="only these boards")
    parser.add_argument("--fp16", action="store_true", help="half precision")


def _add_report(subparsers: Subparsers) -> None:
    def report(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.reporting import report as write

        return write(console, a.work, a.store, a.inventory, a.out)

    parser = add_verb(
        subparsers,
        "report",
        "write one self-contained HTML page and report.json of a compiled fleet",
        "fleetcut report --work build --out report",
        report,
    )
    add_inventory(parser)
    add_store(parser)
    parser.add_argument("--work", type=Path, default=Path("build"), metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER")


def _artifacts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="its folder")
    parser.add_argument("--board", action="append", metavar="BOARD", help="only these boards")


def _fleet(a: argparse.Namespace) -> Fleet:
    from fleetcut.compiling import clusters_of_artifact

    return Fleet(a.inventory, a.board, *clusters_of_artifact(a.artifacts[0]))
