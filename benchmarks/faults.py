"""At least 200 faults over real SSH: what is lost, there twice, wrong, hung or left behind.

    python -m benchmarks.faults [--quick] --json OUT [--seed N] [--boards N] [--only KIND]

Input: nothing, but root, to fill disks; simulated boards are started on loopback, each behind a
TCP proxy of ours. Each fault meets a campaign of three to five runs; then the same command is given
until all is stored.
Output: a row a kind. A fault can be played again: --only KIND and the same --seed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.fault_proxy import die_with_parent
from benchmarks.faults_board import FaultyBoard
from benchmarks.faults_kinds import KINDS
from benchmarks.faults_lane import Lane, Model, Result
from benchmarks.result import Bar, finish, parser
from harness.bundle import build_bundle
from harness.inventory import Board, load_inventory
from harness.virtual import rack
from harness.virtual.spec import uniform_rack

EACH, EACH_QUICK = 10, 1
BOARDS, BOARDS_QUICK = 6, 4

Case = tuple[int, str]

_Ends: TypeAlias = tuple[BinaryIO, BinaryIO]


def cases(each: int, only: str | None) -> list[Case]:
    """(number, kind), the kinds in turn; a number is the same whatever else is played."""
    everything = [(n * len(KINDS) + k, kind) for n in range(each) for k, kind in enumerate(KINDS)]
    return [case for case in everything if only in (None, case[1])]


def tiny_model(folder: Path) -> Model:
    """One matrix product of 16 × 16, its input and what numpy says of it."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 16)).astype(np.float32)
    x = rng.standard_normal((1, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
        [numpy_helper.from_array(weight, "w")],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = Model(folder / "tiny.onnx", folder / "in.f32", folder / "out.f32")
    onnx.save(built, model.path)
    model.input_path.write_bytes(x.tobytes())
    model.output_path.write_bytes((x @ weight).tobytes())
    return model


def play(folder: Path, todo: Sequence[Case], n_boards: int, seed: int) -> list[Result]:
    """Every case, boards beside each other, each case on the next board that is free."""
    status = rack.up(folder / "rack", uniform_rack(n_boards))
    try:
        boards = load_inventory(status.inventory).boards
        model = tiny_model(folder)
        waiting = list(reversed(todo))
        lanes = []
        for index in range(n_boards):
            other = boards[(index + 1) % n_boards].port
            lanes.append(_fork_lane(folder, boards[index], other, model, seed))
        results = _distribute([ends for _, ends in lanes], waiting)
        for pid, _ in lanes:
            os.waitpid(pid, 0)
        return results
    finally:
        rack.down(folder / "rack")


def _distribute(lanes: Sequence[_Ends], waiting: list[Case]) -> list[Result]:
    results: list[Result] = []
    answering = {answers: orders for orders, answers in lanes}
    while answering:
        for answers in select.select(list(answering), [], [])[0]:
            line = answers.readline()
            if not line:
                raise RuntimeError("a lane ended early; its traceback is above")
            found = json.loads(line)
            if found is not None:
                results.append(Result(**found))
                _report(results[-1], len(results))
            case = waiting.pop() if waiting else None
            orders = answering[answers] if case else answering.pop(answers)
            orders.write(json.dumps(case).encode() + b"\n")
            orders.flush()
    return results


def _report(result: Result, done: int) -> None:
    state = "good" if result.is_good else "NOT GOOD"
    state += "" if result.struck else " (came too late)"
    print(
        f"{done:3d} #{result.number} {result.kind}: {state}, {result.tries} tries, "
        f"{result.seconds:.1f} s",
        file=sys.stderr,
    )
    if not result.is_good:
        print("\n".join(f"    {note}" for note in result.notes), file=sys.stderr)


def _fork_lane(
    folder: Path, board: Board, other_port: int, model: Model, seed: int
) -> tuple[int, _Ends]:
    """A process that plays what it is told, and answers with results. Returns its id too."""
    order_fd, orders_fd = os.pipe()
    answers_fd, answer_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(orders_fd)
        os.close(answers_fd)
        die_with_parent()
        try:
            with os.fdopen(order_fd, "rb") as orders, os.fdopen(answer_fd, "wb") as answers:
                _lane(folder, board, other_port, model, seed, orders, answers)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(order_fd)
    os.close(answer_fd)
    return pid, (os.fdopen(orders_fd, "wb"), os.fdopen(answers_fd, "rb"))


def _lane(
    folder: Path,
    board: Board,
    other_port: int,
    model: Model,
    seed: int,
    orders: BinaryIO,
    answers: BinaryIO,
) -> None:
    faulty = FaultyBoard(folder / "rack", board)
    with contextlib.ExitStack() as stack:
        stack.callback(faulty.close)
        lane = Lane(folder / board.board_id, faulty, other_port, build_bundle(), model)
        stack.callback(lane.close)
        answers.write(b"null\n")
        answers.flush()
        for line in orders:
            case = json.loads(line)
            if case is None:  # lanes that were forked later hold the pipe too: it has no end
                return
            number, kind = case
            result = lane.play(number, kind, seed)
            answers.write(json.dumps(asdict(result)).encode() + b"\n")
            answers.flush()


def rows_of(results: Sequence[Result], seed: int) -> list[dict[str, Any]]:
    """One a kind, in the order of KINDS."""
    counted = ("lost", "duplicated", "wrong", "hung", "not_restored")
    rows = []
    for kind in KINDS:
        of_kind = [r for r in results if r.kind == kind]
        if of_kind:
            row: dict[str, Any] = {"fault": kind, "played": len(of_kind)}
            row["seed"] = seed
            row["struck"] = sum(r.struck for r in of_kind)
            row |= {name: sum(getattr(r, name) for r in of_kind) for name in counted}
            row["tries"] = statistics.mean(r.tries for r in of_kind)
            row["median_s"] = statistics.median(r.seconds for r in of_kind)
            row["longest_s"] = max(r.seconds for r in of_kind)
            rows.append(row)
    return rows


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--boards", type=int, help="side by side")
    options.add_argument("--only", choices=KINDS, help="one kind of fault")
    asked = options.parse_args()
    todo = cases(EACH_QUICK if asked.quick else EACH, asked.only)
    n_boards = asked.boards or (BOARDS_QUICK if asked.quick else BOARDS)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fleetcut-faults-") as folder:
        results = play(Path(folder), todo, n_boards, asked.seed)
    rows = rows_of(results, asked.seed)
    print(f"{len(results)} faults in {time.monotonic() - began_s:.0f} s, seed {asked.seed}")
    struck = sum(r.struck for r in results)
    wanted = len(todo) // 2 if asked.quick or asked.only else 200
    bars = [Bar("faults that met something", struck, ">=", wanted)]
    for name, what in (
        ("lost", "records lost"),
        ("duplicated", "records twice"),
        ("wrong", "records or answers wrong"),
        ("hung", "commands beyond their deadline"),
        ("not_restored", "things left behind on boards"),
    ):
        bars.append(Bar(what, sum(row[name] for row in rows), "==", 0))
    return finish("faults", rows, bars, asked.json)


if __name__ == "__main__":
    sys.exit(main())
