"""The leases of one command: taken board by board, renewed together, given back.

Input: Leases. Output: Hold, a board that is ours while a ``with`` block runs, unless it says lost.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from harness.errors import LeaseLostError, StoreError
from harness.inventory import Board
from harness.leases import HEARTBEATS, Lease, Leases


class Hold:
    """A board with its group. on_lost: called once, from another thread, when it is not ours."""

    def __init__(self, board: Board, leases: tuple[Lease, ...]) -> None:
        self.board = board
        self.leases = leases
        self.on_lost: Callable[[], None] = lambda: None
        self.renewed_s = time.monotonic()
        self._lost = threading.Event()

    @property
    def fence(self) -> str:
        return self.leases[-1].fence

    def lose(self) -> None:
        if not self._lost.is_set():
            self._lost.set()
            self.on_lost()

    def check(self) -> None:
        """Raises LeaseLostError when the board is not ours any more."""
        if self._lost.is_set():
            raise LeaseLostError(
                self.board.board_id, "our lease ended while we used it", "fleetcut boards"
            )


class Heartbeat:
    """A thread that renews whatever is held. Context manager; no thread outlives it."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._holds: set[Hold] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    @contextlib.contextmanager
    def hold(
        self,
        board: Board,
        purpose: str,
        *,
        wait_s: float,
        stopping: threading.Event,
        timed: bool = True,
    ) -> Iterator[Hold]:
        """Raises LeaseError. timed: its group is leased too, and other controllers keep off it."""
        taken: list[Lease] = []
        try:
            group = board.exclusive_group if timed else None
            names = [f"group:{group}"] if group else []
            for name in (*names, board.board_id):
                taken.append(self._leases.acquire(name, purpose, wait_s=wait_s, stopping=stopping))
            hold = Hold(board, tuple(taken))
            with self._lock:
                self._holds.add(hold)
            try:
                yield hold
            finally:
                with self._lock:
                    self._holds.discard(hold)
        finally:
            # An unreachable database ends the lease by itself, later.
            with contextlib.suppress(StoreError):
                self._leases.release(taken)

    def _run(self) -> None:
        while not self._ending.wait(self._leases.lease_s / HEARTBEATS):
            with self._lock:
                holds = list(self._holds)
            if not holds:
                continue
            began_s = time.monotonic()
            lost: set[str] = set()
            with contextlib.suppress(StoreError):
                lost = self._leases.renew([lease for hold in holds for lease in hold.leases])
                for hold in holds:
                    hold.renewed_s = began_s
            for hold in holds:
                silent = time.monotonic() - hold.renewed_s >= self._leases.lease_s
                if silent or any(lease.lease_id in lost for lease in hold.leases):
                    hold.lose()
