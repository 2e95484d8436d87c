"""One question to every board at once: connect, put the agent there, ask, leave.

Input: boards and a question (a function of an AgentSession). Output: a Visit for each, in order.
A board that fails never delays or hides the others.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from harness.bundle import Bundle
from harness.errors import BoardError, TransientBoardError
from harness.executor import MAX_WORKERS, Connect, Retries
from harness.holding import Heartbeat
from harness.inventory import Board
from harness.leases import Leases
from harness.session import AgentSession

A = TypeVar("A")


@dataclass(frozen=True)
class Purpose:
    """Why boards are changed, and the leases without which they are not. text: for others to see.

    wait_s: for a board that somebody holds and uses.
    """

    leases: Leases
    text: str
    wait_s: float = 0.0


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
    purpose: Purpose | None = None,
) -> tuple[Visit[A], ...]:
    """Ask every board; ``done`` is told of each answer as it comes, from that board's thread.

    purpose: what changes boards has one, and leases each while it is asked.
    """

    def one(board: Board) -> Visit[A]:
        try:
            with _leased(heartbeat, board, purpose) as fence:
                transport = connect(board)
                try:
                    agent = AgentSession(board, transport, bundle, fence)
                    agent.push_agent()
                    result = Visit(board.board_id, ask(agent), None)
                finally:
                    transport.close()
        except BoardError as error:
            result = Visit(board.board_id, None, error)
        done(result)
        return result

    with contextlib.ExitStack() as stack:
        heartbeat = stack.enter_context(Heartbeat(purpose.leases)) if purpose else None
        pool = ThreadPoolExecutor(min(MAX_WORKERS, max(1, len(boards))), "visit")
        return tuple(stack.enter_context(pool).map(one, boards))


@contextlib.contextmanager
def _leased(
    heartbeat: Heartbeat | None, board: Board, purpose: Purpose | None
) -> Iterator[str | None]:
    """The fence under which the board is asked. Raises LeaseError."""
    if heartbeat is None or purpose is None:
        yield None
        return
    never = threading.Event()
    with heartbeat.hold(
        board, purpose.text, wait_s=purpose.wait_s, stopping=never, timed=False
    ) as hold:
        yield hold.fence


def visit_again(
    boards: Sequence[Board],
    connect: Connect,
    bundle: Bundle,
    ask: Callable[[AgentSession], A],
    progress: Callable[[int, str], None],
    retries: Retries,
    purpose: Purpose | None = None,
) -> tuple[Visit[A], ...]:
    """``visit``, and again those boards that the network failed. ask: harmless when asked twice.

    progress: told how many boards are settled, and of the one that was heard of last.
    """
    rng = random.Random(len(boards))  # noqa: S311 - jitter, not a secret
    settled: dict[str, Visit[A]] = {}
    lock = threading.Lock()
    pending = list(boards)
    for attempt in range(retries.attempts):

        def heard(found: Visit[A], last: bool = attempt + 1 == retries.attempts) -> None:
            if last or not isinstance(found.failure, TransientBoardError):
                with lock:
                    settled[found.board_id] = found
                    progress(len(settled), found.board_id)

        visit(pending, connect, bundle, ask, heard, purpose)
        pending = [board for board in pending if board.board_id not in settled]
        if not pending:
            break
        threading.Event().wait(retries.delay_s(attempt, rng))
    return tuple(settled[board.board_id] for board in boards)
