"""The agent's command line: one verb, JSON lines on stdout, everything else on stderr.

Input: argv. Output: exit status 0 done, 1 a check failed, 2 usage, 3 the board is busy, 4 the
lease has ended.
The real stdout is put aside first, so that no library's print can break a JSON line.
Modules that only some verbs need are imported there: a board starts this at every connection, and
Python takes longer to read the modules than to do what most verbs ask for.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NoReturn, Optional, Tuple

from device_agents import cache, sessions
from device_agents.archive import own_archive, own_sha256
from device_agents.clock import effective_freq_khz
from device_agents.contract import encode
from device_agents.conversation import Outcome, serve
from device_agents.errors import AgentError
from device_agents.fence import parse_fence, passed
from device_agents.home import Home, checked_sha256
from device_agents.platforms import select
from device_agents.probe import probe
from device_agents.provisioned import activate
from device_agents.sysfs import Root

if TYPE_CHECKING:
    from device_agents.trust import Proof

BUSY = 3


class Output:
    """JSON lines on one descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def text(self, line: str) -> None:
        self.raw(line.encode("utf-8") + b"\n")

    def json(self, document: Dict[str, Any]) -> None:
        self.text(json.dumps(document))

    def raw(self, line: bytes) -> None:
        while line:
            line = line[os.write(self.fd, line) :]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise AgentError(message, f"python3 {self.prog} --help")


def main(argv: Optional[List[str]] = None) -> int:
    """Run one verb. Never raises for what a caller or a board can cause."""
    sys.stdout.flush()
    out_fd = os.dup(1)
    os.dup2(2, 1)
    try:
        status, error = _outcome(sys.argv[1:] if argv is None else argv, Output(out_fd))
        if error is not None:
            print(error, file=sys.stderr)
        return status
    except BrokenPipeError:
        return 1
    finally:
        sys.stdout.flush()
        os.dup2(out_fd, 1)
        os.close(out_fd)


def _outcome(argv: List[str], out: Output) -> Outcome:
    """Exit status and the error's line. Raises BrokenPipeError when nobody reads the answers."""
    try:
        return _run(argv, out), None
    except AgentError as error:
        return error.exit_status, f"{os.uname().nodename}: {error}"
    except BrokenPipeError:
        raise
    except OSError as error:
        return 1, f"{os.uname().nodename}: {error}. Next: agent check"


def _run(argv: List[str], out: Output) -> int:
    args = _parser().parse_args(argv)
    home = Home(Path(args.home).expanduser().absolute())
    root = Root(Path(args.root).absolute())
    verb: Callable[[argparse.Namespace, Home, Root, Output], int] = args.run
    activate(home)
    fence = None if args.fence is None else parse_fence(args.fence)
    with passed(home, fence):
        return verb(args, home, root, out)


@functools.lru_cache(maxsize=None)
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="agent.pyz", description="Measures neural networks on this board.")
    _folders(parser, "~/.fleetcut", os.environ.get("FLEETCUT_BOARD_ROOT") or "/")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    verbs.required = True
    everywhere = _Parser(add_help=False)
    _folders(everywhere, argparse.SUPPRESS, argparse.SUPPRESS)
    everywhere.add_argument("--fence", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add = functools.partial(verbs.add_parser, parents=[everywhere])
    add("probe", help="what this board is").set_defaults(run=_probe)
    add("state", help="what state it is in").set_defaults(run=_state)
    add("check", help="what works on it").set_defaults(run=_check)
    add(
        "helper", help="print what lets this user set clocks, to be installed by root"
    ).set_defaults(run=_helper)
    add("serve", help="answer requests on stdin").set_defaults(run=_serve)
    has = add("has", help="which blobs are here")
    has.add_argument("sha256", nargs="*")
    has.set_defaults(run=_has)
    adopt = add("adopt", help="take uploads in whose hashes fit")
    adopt.add_argument("uploads", nargs="+", type=_upload, metavar="FILE=SHA256")
    adopt.set_defaults(run=_adopt)
    add("platform", help="what wheels have to fit").set_defaults(run=_platform)
    wheelhouse = add("provision", help="unpack pushed wheels")
    wheelhouse.add_argument("plan", metavar="SHA256")
    wheelhouse.set_defaults(run=_provision)
    clean = add("clean", help="remove blobs that nobody needs")
    clean.add_argument("--quota-bytes", type=_count, required=True, metavar="N")
    clean.add_argument("--coming-bytes", type=_count, default=0, metavar="N")
    clean.add_argument("--grace-s", type=_count, default=int(cache.GRACE_S), metavar="N")
    clean.set_defaults(run=_clean)
    put = add("install", help="switch a name to an artifact")
    put.add_argument("artifact_id")
    put.add_argument("name")
    _proof(put)
    put.set_defaults(run=_install)
    engine = add("engine", help="build a TensorRT engine of a pushed ONNX model")
    engine.add_argument("model", metavar="SHA256")
    engine.add_argument("--input-name", required=True)
    engine.add_argument("--golden", nargs=2, required=True, metavar="SHA256")
    engine.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    engine.add_argument("--atol", type=float, required=True)
    engine.set_defaults(run=_engine)
    back = add("rollback", help="put a name back to the version before")
    back.add_argument("artifact_id", help="the one to go back from")
    back.add_argument("name")
    back.set_defaults(run=_rollback)
    add("deployed", help="what every name leads to").set_defaults(run=_deployed)
    trusted = add("signers", help="whose signatures count here")
    trusted.add_argument("sha256")
    _proof(trusted)
    trusted.set_defaults(run=_signers)
    for name, text, run in (
        ("start", "detach a worker for a session", _start),
        ("attach", "follow a session to its end", _attach),
        ("collect", "what a session has so far", _collect),
        ("ack", "the results are stored elsewhere", _ack),
        ("stop", "end a session's worker", _stop),
    ):
        verb = add(name, help=text)
        verb.add_argument("session")
        if name in ("attach", "collect"):
            verb.add_argument("--after", type=_count, default=0, metavar="SEQ")
        if name == "ack":
            verb.add_argument("seq", type=_count)
        if name == "start":
            verb.add_argument("--specs", metavar="FILE", help="incoming/FILE holds the runs")
        verb.set_defaults(run=run)
    parser.add_argument("--fence", metavar="LAB:TOKEN", help="the lease under which this is asked")
    return parser


def _folders(parser: argparse.ArgumentParser, home: str, root: str) -> None:
    """Accepted before and after the verb; the defaults stand with the first."""
    parser.add_argument("--home", default=home, help="the agent's folder")
    parser.add_argument(
        "--root", default=root, help="the folder below which sys/, proc/ and etc/ are read"
    )


def _proof(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--signed",
        nargs=3,
        metavar="SHA256",
        help="blobs: the manifest's signature, the statement, the statement's signature",
    )


def _upload(text: str) -> Tuple[str, str]:
    file_name, equals, sha256 = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not FILE=SHA256")
    return file_name, sha256


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number")
    return int(text)


def _probe(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    out.text(encode(probe(root)))
    return 0


def _state(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    out.text(encode(select(root).observe(effective_freq_khz())))
    return 0


def _check(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    from device_agents import checks

    found = checks.run_checks(home, root)
    out.json({"checks": [asdict(check) for check in found]})
    return 0 if all(check.ok for check in found) else 1


def _helper(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    from device_agents.privilege import helper_source

    out.raw(helper_source())
    return 0


def _serve(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    folders = ["--home", str(home.path), "--root", args.root]
    serve(sys.stdin.buffer, home, lambda argv: _outcome([*folders, *argv], out), out.json)
    return 0


def _has(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    present, missing = home.present(args.sha256)
    cache.touch(home, present)
    out.json({"present": present, "missing": missing})
    return 0


def _adopt(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    home.create()
    for file_name, sha256 in args.uploads:
        home.adopt(file_name, sha256)
    out.json({"adopted": [sha256 for _, sha256 in args.uploads]})
    return 0


def _platform(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    from device_agents import wheels

    out.json(wheels.describe(home))
    return 0


def _provision(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    from device_agents import wheels

    home.create()
    out.json({"packages": wheels.provision(home, checked_sha256(args.plan))})
    return 0


def _clean(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    done = cache.make_room(
        home, args.quota_bytes, args.coming_bytes, grace_s=args.grace_s, own_agent=own_archive()
    )
    out.json(done)
    return 0


def _install(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    from device_agents.install import install

    home.create()
    done = install(home, root, args.artifact_id, args.name, _signed(args))
    out.json({"installed": args.artifact_id, **asdict(done)})
    return 0


def _signed(args: argparse.Namespace) -> Optional[Proof]:
    from device_agents.trust import Proof

    return Proof(*map(checked_sha256, args.signed)) if args.signed else None


def _engine(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    from device_agents import engines

    home.create()
    golden = checked_sha256(args.golden[0]), checked_sha256(args.golden[1])
    done = engines.build(
        home,
        engines.find_trtexec(root),
        engines.gpu_of(root),
        checked_sha256(args.model),
        args.input_name,
        golden,
        args.precision,
        args.atol,
    )
    out.json(done)
    return 0


def _rollback(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    from device_agents import deployments

    home.create()
    with deployments.alone(home):
        out.json(asdict(deployments.rollback(home, args.name, checked_sha256(args.artifact_id))))
    return 0


def _deployed(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    from device_agents import deployments

    home.create()
    found = [deployments.deployed(home, name) for name in deployments.names(home)]
    out.json({"deployed": [asdict(one) for one in found]})
    return 0


def _signers(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    from device_agents import deployments
    from device_agents.trust import pin

    home.create()
    with deployments.alone(home):
        decides = pin(home, root, checked_sha256(args.sha256), _signed(args))
    out.json({"signers": args.sha256, "decides": decides})
    return 0


def _start(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    home.create()
    if args.specs is not None:
        sessions.take_specs(home, args.session, args.specs)
    answer = sessions.start(home, root, args.session, own_sha256(), args.fence)
    out.json(answer)
    return BUSY if answer["state"] == "busy" else 0


def _attach(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    state = sessions.follow(home, args.session, args.after, out.raw, out.fd)
    if state is not None:
        out.json({"event": "end", "state": state})
    return 0


def _collect(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    state = sessions.collect(home, args.session, args.after, out.raw)
    out.json({"event": "end", "state": state})
    return 0


def _ack(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    out.json({"session": args.session, "removed": sessions.ack(home, args.session, args.seq)})
    return 0


def _stop(args: argparse.Namespace, home: Home, root: Root, out: Output) -> int:
    out.json({"session": args.session, "state": sessions.stop(home, args.session)})
    return 0
