"""The command: parse, call one function, print.

Input: argv. Output: an exit status: 0 done, 1 a check failed, 2 usage, 3 some boards failed.
Imports of torch and the exporters wait until a verb needs them, so that --help is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from compiler.errors import CompilerError
from fleetcut import __version__, verbs
from fleetcut.arguments import Handler, Subparsers
from fleetcut.arguments import add_boards as _boards
from fleetcut.arguments import add_inventory as _inventory
from fleetcut.arguments import add_store as _store
from fleetcut.arguments import add_verb as _verb
from fleetcut.cli_care import add_care
from fleetcut.cli_records import add_nightly, add_records
from fleetcut.cli_sharing import add_sharing
from fleetcut.cli_ship import add_ship
from fleetcut.console import Console
from harness.errors import BoardError, DocumentError, HarnessError, SelectionError

INTERRUPTED = 130

# Read by OpenMP when torch loads it, later than this line. Its threads spin while they wait, and
# one other busy process then makes training ten times slower; asleep they cost nothing.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Errors end in one line on stderr; Ctrl-C leaves nothing running."""
    arguments = _parser().parse_args(argv)
    console = Console(json_mode=getattr(arguments, "json", False))
    handler: Handler = arguments.handler
    try:
        return handler(console, arguments)
    except (DocumentError, SelectionError) as error:
        console.error(str(error))
        return verbs.USAGE
    except BoardError as error:
        console.error(str(error))
        return verbs.BOARDS_FAILED
    except (HarnessError, CompilerError) as error:
        console.error(str(error))
        return verbs.CHECK_FAILED
    except KeyboardInterrupt:
        console.error("interrupted; nothing is left running. The same command goes on from here")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (| head): not an error of ours.
        sys.stderr.close()
        return verbs.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetcut",
        description="Measure neural networks on a rack of edge boards; prune and compile them "
        "for the whole fleet; prove them on the boards.",
        epilog="From nothing to a report: fleetcut demo",
    )
    parser.add_argument("--version", action="version", version=f"fleetcut {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="VERB")
    _add_demo(subparsers)
    _add_rack(subparsers)
    _add_boards(subparsers)
    add_care(subparsers)
    add_sharing(subparsers)
    _add_measure(subparsers)
    add_records(subparsers)
    add_nightly(subparsers)
    _add_compare(subparsers)
    _add_compile(subparsers)
    _add_toolchains(subparsers)
    _add_whatif(subparsers)
    _add_transfer(subparsers)
    _add_design(subparsers)
    add_ship(subparsers)
    return parser


def _add_demo(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.demo import demo

        return demo(console, a.out, seed=a.seed)

    parser = _verb(
        subparsers,
        "demo",
        "run the whole way on an embedded, simulated rack: measure, prune, deploy, verify, report",
        "fleetcut demo --out demo-out",
        handler,
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the results")
    parser.add_argument("--seed", type=int, default=0)


def _add_rack(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut import rack

        boards = rack.Boards(a.seed, a.behaviours, a.each, a.sshd)
        return rack.ACTIONS[a.action](console, a.folder, boards)

    parser = _verb(
        subparsers,
        "rack",
        "start, show or end a rack of simulated boards",
        "fleetcut rack up && fleetcut check --inventory rack/inventory.yaml",
        handler,
    )
    parser.add_argument("action", choices=("up", "status", "down"))
    parser.add_argument("--folder", type=Path, default=Path("rack"), help="where the rack lives")
    parser.add_argument("--seed", type=int, default=0, help="which board gets which behaviour")
    parser.add_argument(
        "--behaviours", metavar="NAME,…",
        help="of nominal, slow-bin, worn-battery, memory-bound, runtime-bound "
        "(default: two boards of each of the first three)",
    )  # fmt: skip
    parser.add_argument("--each", type=int, default=2, help="boards of each of --behaviours")
    parser.add_argument(
        "--sshd", action="store_true",
        help="each board an OpenSSH server whose processes see its files below / (needs root)",
    )  # fmt: skip


def _add_boards(subparsers: Subparsers) -> None:
    parser = _verb(
        subparsers,
        "check",
        "say per board what works and what to do about what does not",
        "fleetcut check pi4-01",
        lambda console, a: verbs.check(console, a.inventory, a.boards or None),
    )
    _inventory(parser)
    _boards(parser)
    parser = _verb(
        subparsers,
        "trust",
        "show a board's host key and write it into the inventory once you agree",
        "fleetcut trust pi4-01",
        lambda console, a: verbs.trust(console, a.inventory, a.board, yes=a.yes),
    )
    _inventory(parser)
    parser.add_argument("board", metavar="BOARD")
    parser.add_argument("--yes", action="store_true", help="agree without being asked")
    parser = _verb(
        subparsers,
        "probe",
        "print what each board is: chip, clocks, memory, runtimes",
        "fleetcut probe --json > profiles.json",
        lambda console, a: verbs.probe(console, a.inventory, a.boards or None, a.target),
    )
    _inventory(parser)
    _boards(parser)
    parser.add_argument(
        "--target", type=Path, metavar="FILE", help="write the board down as a target of recipes"
    )


def _add_measure(subparsers: Subparsers) -> None:
    def plan(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.planning import plan as show

        return show(console, a.inventory, a.campaign, a.store)

    parser = _verb(
        subparsers,
        "plan",
        "print a campaign's cells and how long they will take; no board is asked, nothing written",
        "fleetcut plan campaign.yaml --inventory inventory.yaml",
        plan,
    )
    _inventory(parser)
    _store(parser)
    parser.add_argument("campaign", type=Path, metavar="CAMPAIGN", help="campaign.yaml")
    parser = _verb(
        subparsers,
        "measure",
        "measure a campaign on its boards; runs that are stored already are skipped",
        "fleetcut measure campaign.yaml",
        lambda console, a: verbs.measure(
            console, a.inventory, a.campaign, a.store, a.tries, wait_s=a.wait
        ),
    )
    _inventory(parser)
    _store(parser)
    parser.add_argument("campaign", type=Path, metavar="CAMPAIGN", help="campaign.yaml")
    parser.add_argument(
        "--tries", type=int, default=1, metavar="N", help="measure a run that does not count anew"
    )
    parser.add_argument(
        "--resume", action="store_true",
        help="go on where an earlier command ended; it does so without being told, too",
    )  # fmt: skip
    parser.add_argument(
        "--wait", type=float, default=60.0, metavar="SECONDS",
        help="for a board that somebody holds and uses (default: 60)",
    )  # fmt: skip


def _add_compare(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.comparing import compare

        return compare(console, a.store, (a.a, a.b), a.campaign, a.board, a.alpha)

    parser = _verb(
        subparsers,
        "compare",
        "say board by board whether B is slower than A: two campaigns, models or states; exit "
        "status 1 when something is",
        "fleetcut compare nightly-05-03 nightly-05-04\n"
        "         fleetcut compare dense pruned --campaign nightly-05-04\n"
        "         fleetcut compare governor=performance governor=ondemand\n"
        "A and B: a campaign, a model, or KEY=VALUE,… of campaign, model, runtime, precision, "
        "threads\n"
        "and the fields of a condition (none: asked for nothing). docs/method.md says how.",
        handler,
    )
    _store(parser)
    parser.add_argument("a", metavar="A", help="what was, or the one to compare with")
    parser.add_argument("b", metavar="B", help="what is now, or the other one")
    parser.add_argument("--campaign", action="append", metavar="ID", help="only these campaigns")
    parser.add_argument("--board", action="append", metavar="BOARD", help="only these boards")
    parser.add_argument(
        "--alpha", type=float, default=0.01, metavar="SHARE",
        help="of the changes called, at most this share is false (default: 0.01)",
    )  # fmt: skip


def _add_compile(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.compiling import compile_recipe

        return compile_recipe(console, a.recipe, a.dataset, a.work, a.inventory, a.mode)

    parser = _verb(
        subparsers,
        "compile",
        "cluster, fit surrogates, prune for the fleet and emit binaries; offline. Where "
        "measurements are missing it writes the campaign to measure next and says so",
        "fleetcut compile recipe.yaml --dataset dataset --work build",
        handler,
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="recipe.yaml")
    parser.add_argument("--dataset", type=Path, default=None, metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=Path("build"), metavar="FOLDER")
    parser.add_argument(
        "--mode", choices=("mean", "switchable", "amortised"),
        help="instead of the recipe's: one network for the fleet's mean latency, or one that "
        "holds its latency at every clock, or designs without a search (docs/guide.md)",
    )  # fmt: skip
    _inventory(parser)


def _add_toolchains(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.toolchaining import toolchains

        return toolchains(console, a.machines or None, get=a.install)

    parser = _verb(
        subparsers,
        "toolchains",
        "show what native executables are linked with, per machine, and install what is missing",
        "fleetcut toolchains --install aarch64",
        handler,
    )
    parser.add_argument("machines", nargs="*", metavar="MACHINE", help="x86_64, aarch64 (all)")
    parser.add_argument(
        "--install", action="store_true",
        help="the C++ runtime by pip into ~/.cache/fleetcut, the compiler by apt-get (as root)",
    )  # fmt: skip


def _add_whatif(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.whatif import Question, whatif

        question = Question(
            a.work, a.scenario, a.network, a.plan, a.dataset, a.inventory,
            a.slo_ms, a.draws, a.seed, a.picture,
        )  # fmt: skip
        return whatif(console, question)

    parser = _verb(
        subparsers,
        "whatif",
        "say what the fleet would take, and how much of it within an SLO, if some boards aged, "
        "heated up or ran at another clock",
        "fleetcut whatif build --scenario 'share=0.3,clock=1.0GHz' --slo-ms 20\n"
        "         fleetcut whatif build --scenario 'cluster=c1,heat=recorded' --dataset dataset\n"
        "Which boards: board=ID, cluster=LABEL, label.KEY=VALUE, share=0..1 of these.\n"
        "What happens: clock=1.0GHz | clock_fraction=0.6 | heat=recorded | battery=0-15, "
        "slowdown=1.2.",
        handler,
    )
    parser.add_argument("work", type=Path, metavar="WORK", help="work folder of fleetcut compile")
    parser.add_argument(
        "--scenario", action="append", default=[], metavar="TEXT",
        help="KEY=VALUE,… as below, or a YAML file of scenarios; may stand several times",
    )  # fmt: skip
    parser.add_argument("--network", action="append", metavar="NAME", help="only this network")
    parser.add_argument(
        "--plan", action="append", type=Path, default=[], metavar="FILE",
        help="another shape to compare: a pruning plan",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", type=Path, metavar="FOLDER",
        help="measured clocks (default: WORK/dataset, where it exists)",
    )  # fmt: skip
    _inventory(parser, default=None)
    parser.add_argument("--slo-ms", type=float, metavar="MS", help="what one inference may take")
    parser.add_argument("--draws", type=int, default=2000, metavar="N", help="default: 2000")
    parser.add_argument("--seed", type=int, default=0, help="of the draws and of a share's boards")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also write an HTML page")


def _add_design(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.designing import Question, design

        return design(
            console,
            Question(a.work, a.dataset, a.board, a.network, a.latency_ms, a.max_drop),
        )

    parser = _verb(
        subparsers,
        "design",
        "say in milliseconds which widths a board would get, also one that was never searched for; "
        "it needs the board's anchors and a work folder compiled with --mode amortised",
        "fleetcut design build --dataset dataset --board pi4-17 --latency-ms 12",
        handler,
    )
    parser.add_argument("work", type=Path, metavar="WORK", help="work folder of fleetcut compile")
    parser.add_argument("--dataset", type=Path, required=True, help="with the board's anchor runs")
    parser.add_argument("--board", required=True, metavar="ID")
    parser.add_argument("--network", metavar="NAME", help="one of the recipe's; default: all")
    parser.add_argument("--latency-ms", type=float, metavar="MS", help="the most accurate within")
    parser.add_argument(
        "--max-drop", type=float, metavar="FRACTION",
        help="the fastest that loses no more of the proxy's accuracy; default: the recipe's",
    )  # fmt: skip


def _add_transfer(subparsers: Subparsers) -> None:
    def handler(console: Console, a: argparse.Namespace) -> int:
        from fleetcut.transferring import Question, transfer

        question = Question(
            a.dataset, a.proxy, a.target, a.models, a.campaign, a.work, a.accuracy, a.probes
        )
        return transfer(console, question)

    parser = _verb(
        subparsers,
        "transfer",
        "say whether what one board measured holds on another: rank correlation, which of its "
        "optimal models stay optimal, and which models to measure there next",
        "fleetcut transfer dataset\n"
        "         fleetcut transfer dataset --from pi4-01 --to pi5-01 --work build\n"
        "         fleetcut transfer dataset --from board=pi4-01,runtime=ort --to "
        "board=pi4-01,runtime=tflite\n"
        "SIDE: a board, or KEY=VALUE,… of board, runtime, precision, threads, governor, freq_khz.\n"
        "docs/transfer.md says when to use it.",
        handler,
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder of fleetcut export")
    parser.add_argument("--from", dest="proxy", metavar="SIDE", help="the board that was measured")
    parser.add_argument(
        "--to", dest="target", metavar="SIDE", help="the board that was hardly measured, or is new"
    )
    parser.add_argument(
        "--models", default="*", metavar="PATTERN", help="only models named so, such as 'resnet-*'"
    )
    parser.add_argument("--campaign", action="append", metavar="ID", help="only these campaigns")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER",
        help="of fleetcut compile: the models' shapes sharpen the predictions, and what is to be "
        "measured is written there as a campaign",
    )  # fmt: skip
    parser.add_argument(
        "--accuracy", type=Path, metavar="FILE",
        help="YAML or JSON, NAME: accuracy (default: with --work, multiply-accumulates)",
    )  # fmt: skip
    parser.add_argument(
        "--probes", type=int, default=10, metavar="N", help="models to name at most (default: 10)"
    )
