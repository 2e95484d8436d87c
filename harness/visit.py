"""One question to every board at once: connect, put the agent there, ask, leave.

Input: boards and a question (a function of an AgentSession). Output: a Visit for each, in order.
A board that fails never delays or hides the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from harness.bundle import Bundle
from harness.errors import BoardError
from harness.executor import MAX_WORKERS, Connect
from harness.inventory import Board
from harness.session import AgentSession

A = TypeVar("A")


@dataclass(frozen=True)
class Visit(Generic[A]):
    """What one board answered, or why it did not: exactly one of the two."""

    board_id: str
    answer: A | None
    failure: BoardError | None


def visit(
    boards: Sequence[Board],
    connect: Connect,
    bundle: Bundle,
    ask: Callable[[AgentSession], A],
    done: Callable[[Visit[A]], None] = lambda visit: None,
) -> tuple[Visit[A], ...]:
    """Ask every board; ``done`` is told of each answer as it comes, from that board's thread."""

    def one(board: Board) -> Visit[A]:
        try:
            transport = connect(board)
            try:
                agent = AgentSession(board, transport, bundle)
                agent.push_agent()
                result = Visit(board.board_id, ask(agent), None)
            finally:
                transport.close()
        except BoardError as error:
            result = Visit(board.board_id, None, error)
        done(result)
        return result

    with ThreadPoolExecutor(min(MAX_WORKERS, max(1, len(boards))), "visit") as pool:
        return tuple(pool.map(one, boards))
