"""The rack: one worker a board, retried, resumable, and never two on one piece of silicon.

Input: a Campaign's RunSpecs. Output: records in the Store and one BoardOutcome a board.
A killed harness loses nothing: what a board measured stays in its journal until it is stored here.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from device_agents.contract import MeasurementRecord, RunSpec
from harness.bundle import Bundle
from harness.errors import (
    BoardError,
    LeaseLostError,
    ProtocolError,
    StableBoardError,
    TransientBoardError,
)
from harness.holding import Heartbeat, Hold
from harness.inventory import Board
from harness.leases import Leases
from harness.session import AgentSession
from harness.store import Store
from harness.transport import Transport

Connect = Callable[[Board], Transport]

MAX_WORKERS = 64
"""Threads at most; 64 was the best of the sizes tried on 1,000 connections."""

_PUSHES = 2
"""How often a run is asked for again whose files were damaged on the board."""

SILENCE_MARGIN_S = 60.0
"""Allowed beyond a run's own timeout before a silent board counts as gone."""


@dataclass(frozen=True)
class Work:
    """What is to be measured. blobs: sha256 → local file. model_names: sha256 → name."""

    campaign_id: str
    boards: tuple[Board, ...]
    specs: tuple[RunSpec, ...]
    blobs: Mapping[str, Path]
    model_names: Mapping[str, str]


@dataclass(frozen=True)
class Progress:
    """Something happened. done of total runs are stored, over all boards."""

    board_id: str
    done: int
    total: int
    record: MeasurementRecord | None = None
    note: str | None = None


@dataclass(frozen=True)
class BoardOutcome:
    """How one board's part ended. failure: why it did not finish, None when it did."""

    board_id: str
    stored: int
    known_before: int
    failure: BoardError | None = None


@dataclass(frozen=True)
class Retries:
    """How often a transient error is tried again without any progress, and how long between."""

    attempts: int = 4
    first_delay_s: float = 0.5
    largest_delay_s: float = 20.0

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """Exponential with full jitter, so that boards do not come back in step."""
        ceiling = min(self.largest_delay_s, self.first_delay_s * 2.0**attempt)
        return rng.uniform(ceiling / 2, ceiling)


class Executor:
    """Runs Work on boards. One call of ``measure`` at a time."""

    def __init__(
        self,
        store: Store,
        bundle: Bundle,
        connect: Connect,
        *,
        observe: Callable[[Progress], None] = lambda progress: None,
        retries: Retries = Retries(),
        leases: Leases | None = None,
        wait_s: float = 0.0,
    ) -> None:
        """leases: None for those of the store. wait_s: for a board that another holds and uses."""
        self._store = store
        self._leases = leases or Leases(store)
        self._wait_s = wait_s
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._bundle = bundle
        self._connect = connect
        self._observe = observe
        self._retries = retries
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._active: dict[str, tuple[AgentSession, str]] = {}
        self._groups: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._done = 0
        self._total = 0

    def measure(self, work: Work) -> tuple[BoardOutcome, ...]:
        """Measure everything that is not stored yet; outcomes in the order of work.boards.

        On KeyboardInterrupt every board's session is stopped, then the interrupt goes on.
        """
        known = self._store.known(spec.run_id for spec in work.specs)
        by_board: dict[str, list[RunSpec]] = defaultdict(list)
        for spec in work.specs:
            by_board[spec.board_id].append(spec)
        self._stopping.clear()
        self._done, self._total = len(known), len(work.specs)
        pool = ThreadPoolExecutor(min(MAX_WORKERS, max(1, len(work.boards))), "board")
        with Heartbeat(self._leases) as heartbeat:
            try:
                futures = [
                    pool.submit(
                        self._board, work, heartbeat, board, by_board[board.board_id], known
                    )
                    for board in work.boards
                ]
                return self._gather(futures)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _gather(self, futures: list[Future[BoardOutcome]]) -> tuple[BoardOutcome, ...]:
        try:
            return tuple(future.result() for future in futures)
        except BaseException:
            # Ctrl-C, or a bug in one worker: nothing may go on running on any board.
            self._stopping.set()
            self._stop_boards()
            raise

    def _stop_boards(self) -> None:
        with self._lock:
            active = list(self._active.values())
        for agent, session_id in active:
            try:
                agent.stop(session_id)
            except BoardError as error:
                self._note(agent.board.board_id, f"could not be stopped: {error}")

    def _board(
        self,
        work: Work,
        heartbeat: Heartbeat,
        board: Board,
        specs: Sequence[RunSpec],
        known: set[str],
    ) -> BoardOutcome:
        known_here = sum(spec.run_id in known for spec in specs)
        counter = _Counter()
        failure: BoardError | None = None
        if known_here < len(specs):
            with self._exclusive(board):
                try:
                    self._with_retries(work, heartbeat, board, specs, counter)
                except BoardError as error:
                    failure = error
                    self._note(board.board_id, str(error))
        return BoardOutcome(board.board_id, counter.stored, known_here, failure)

    @contextlib.contextmanager
    def _exclusive(self, board: Board) -> Iterator[None]:
        if board.exclusive_group is None:
            yield
            return
        with self._lock:
            group = self._groups[board.exclusive_group]
        with group:
            yield

    def _with_retries(
        self,
        work: Work,
        heartbeat: Heartbeat,
        board: Board,
        specs: Sequence[RunSpec],
        counter: _Counter,
    ) -> None:
        attempt = 0
        while not self._stopping.is_set():
            before = counter.stored
            try:
                with heartbeat.hold(
                    board, work.campaign_id, wait_s=self._wait_s, stopping=self._stopping
                ) as hold:
                    self._while_held(work, hold, specs, counter)
                return
            except LeaseLostError as error:
                attempt = 0 if counter.stored > before else attempt + 1
                self._wait_or_raise(error, attempt)

    def _while_held(
        self, work: Work, hold: Hold, specs: Sequence[RunSpec], counter: _Counter
    ) -> None:
        """Over as many connections as it takes; the board stays leased between them."""
        attempt = 0
        while not self._stopping.is_set():
            before = counter.stored
            try:
                self._connected(work, hold, specs, counter)
                return
            except LeaseLostError:
                raise
            except TransientBoardError as error:
                hold.check()
                attempt = 0 if counter.stored > before else attempt + 1
                self._wait_or_raise(error, attempt)

    def _wait_or_raise(self, error: TransientBoardError, attempt: int) -> None:
        if attempt >= self._retries.attempts or self._stopping.is_set():
            raise error
        self._note(error.board_id, f"{error.fact}; trying again")
        self._stopping.wait(self._retries.delay_s(attempt, self._rng))

    def _connected(
        self, work: Work, hold: Hold, specs: Sequence[RunSpec], counter: _Counter
    ) -> None:
        board = hold.board
        try:
            transport = self._connect(board)
            hold.on_lost = transport.close
            try:
                hold.check()
                agent = AgentSession(board, transport, self._bundle, hold.fence)
                self._drive(work, agent, specs, counter)
            finally:
                transport.close()
        except BoardError as error:
            self._leases.saw(board.board_id, healthy=False, fact=error.fact)
            raise
        self._leases.saw(board.board_id, healthy=True, fact=f"measured {work.campaign_id}")

    def _drive(
        self, work: Work, agent: AgentSession, specs: Sequence[RunSpec], counter: _Counter
    ) -> None:
        """Over one connection: until every run of this board is stored."""
        session_id = session_id_of(work.campaign_id, agent.board.board_id)
        agent.push_agent()
        if counter.unacknowledged_seq is not None:
            self._acknowledge(agent, session_id, counter)
        while pending := self._pending(specs):
            if self._stopping.is_set():
                return
            agent.push_blobs(_needed(work.blobs, pending))
            with self._lock:
                self._active[agent.board.board_id] = (agent, session_id)
            try:
                state = agent.start(session_id, pending)
                before = counter.heard
                counter.unacknowledged_seq = self._follow(work, agent, session_id, pending, counter)
                self._acknowledge(agent, session_id, counter)
            finally:
                with self._lock:
                    self._active.pop(agent.board.board_id, None)
            if state == "started" and counter.heard == before and not self._stopping.is_set():
                raise ProtocolError(
                    agent.board.board_id,
                    f"the agent finished without a record of {len(pending)} runs",
                    f"fleetcut check {agent.board.board_id}",
                )

    def _acknowledge(self, agent: AgentSession, session_id: str, counter: _Counter) -> None:
        assert counter.unacknowledged_seq is not None
        agent.ack(session_id, counter.unacknowledged_seq)
        counter.unacknowledged_seq = None

    def _follow(
        self,
        work: Work,
        agent: AgentSession,
        session_id: str,
        pending: Sequence[RunSpec],
        counter: _Counter,
    ) -> int:
        """Store what the journal says until the session is finished. Returns its last seq."""
        silence_s = max(spec.timeout_s for spec in pending) + SILENCE_MARGIN_S
        for entry in agent.entries(session_id, 0, follow=True, silence_s=silence_s):
            if entry.profile is not None:
                self._store.add_profile(entry.profile)
            if entry.record is not None:
                self._keep(work, agent.board, entry.record, counter)
            if entry.end == "finished":
                return entry.seq
        if self._stopping.is_set():
            raise StableBoardError(
                agent.board.board_id,
                "was stopped before its runs were done",
                "the same command again: it goes on where it was",
            )
        raise TransientBoardError(
            agent.board.board_id,
            "the agent ended before its runs did",
            f"fleetcut check {agent.board.board_id}",
        )

    def _keep(self, work: Work, board: Board, record: MeasurementRecord, counter: _Counter) -> None:
        if record.spec.board_id != board.board_id:
            raise StableBoardError(
                board.board_id,
                f"its journal holds a run of board {record.spec.board_id[:64]!r}",
                "see that no two inventory entries lead to one board",
            )
        counter.heard += 1
        if counter.to_be_pushed_again(record):
            return
        record = replace(record, simulated=record.simulated or board.simulated)
        name = work.model_names.get(record.spec.model_sha256, record.spec.model_sha256[:12])
        if self._store.add(record, name):
            counter.stored += 1
            with self._lock:
                self._done += 1
                done, total = self._done, self._total
            self._observe(Progress(board.board_id, done, total, record))

    def _pending(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        known = self._store.known(spec.run_id for spec in specs)
        return [spec for spec in specs if spec.run_id not in known]

    def _note(self, board_id: str, note: str) -> None:
        with self._lock:
            done, total = self._done, self._total
        self._observe(Progress(board_id, done, total, note=note))


class _Counter:
    """What one board's worker has heard and stored, over all its connections.

    unacknowledged_seq: of a finished journal that is stored here and still kept there.
    """

    def __init__(self) -> None:
        self.heard = 0
        self.stored = 0
        self.unacknowledged_seq: int | None = None
        self._damaged: dict[str, int] = defaultdict(int)

    def to_be_pushed_again(self, record: MeasurementRecord) -> bool:
        """Whether it only says that a file there is not what was pushed: that is no result yet."""
        if record.error is None or record.error.kind != "missing_blob":
            return False
        self._damaged[record.run_id] += 1
        return self._damaged[record.run_id] <= _PUSHES


def session_id_of(campaign_id: str, board_id: str) -> str:
    """The same campaign on the same board is the same session, whichever harness asks."""
    return hashlib.sha256(f"{campaign_id}\0{board_id}".encode()).hexdigest()[:32]


def _needed(blobs: Mapping[str, Path], specs: Sequence[RunSpec]) -> dict[str, Path]:
    wanted: set[str] = set()
    for spec in specs:
        if spec.artifact_id is None:
            wanted.add(spec.model_sha256)
        if spec.golden is not None:
            wanted |= {spec.golden.input_sha256, spec.golden.output_sha256}
    return {digest: path for digest, path in blobs.items() if digest in wanted}
