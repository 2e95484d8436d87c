"""One board's side of a campaign: push what it lacks, start, follow, acknowledge.

Input: a Transport, the agent's Bundle and RunSpecs. Output: journal entries as they are written.
Raises BoardError; what a board answers is checked before it is believed.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from device_agents.contract import (
    BoardState,
    CodecError,
    DeviceProfile,
    MeasurementRecord,
    RunSpec,
    decode_object,
    encode,
)
from harness.bundle import Bundle
from harness.conversation import Conversation
from harness.errors import (
    BoardError,
    LeaseLostError,
    LocalError,
    ProtocolError,
    StableBoardError,
    TransientBoardError,
)
from harness.inventory import Board
from harness.transport import Completed, Transport

T = TypeVar("T")

CALL_TIMEOUT_S = 60.0
_DISK_MARGIN_BYTES = 32 << 20
ALIVE_SILENCE_S = 30.0
"""Longest pause of a followed session: its agent speaks every five seconds."""

_END, _ALIVE = b'{"event": "end"', b'{"event": "alive"}'
_FENCED = 4
_CHANGING = frozenset({"start", "stop", "ack", "install", "rollback", "signers", "clean"})
"""Verbs that a controller whose lease has ended must not have done any more."""


@dataclass(frozen=True)
class JournalEntry:
    """One line of a session's journal. Exactly one of the optional fields is set, or none.

    run_started: a run_id. record: its outcome. end: how following ended ("finished",
    "interrupted" or "running"); an end has no seq of its own and repeats the last one.
    """

    seq: int
    profile: DeviceProfile | None = None
    run_started: str | None = None
    record: MeasurementRecord | None = None
    end: str | None = None


@dataclass(frozen=True)
class Check:
    """One thing that works on a board or does not, and what to do about it."""

    name: str
    ok: bool
    fact: str
    next_step: str


@dataclass(frozen=True)
class Room:
    """What cleaning a board's cache did, and what is there now.

    removed: blobs. blobs_bytes: of those left. free_bytes: of the disk. sessions: ids of those
    whose results nobody has taken yet.
    """

    removed: int
    freed_bytes: int
    blobs_bytes: int
    free_bytes: int
    sessions: tuple[str, ...]


@dataclass(frozen=True)
class Deployed:
    """A name on a board and the artifacts it leads to: the one that runs, and the one before."""

    name: str
    current: str | None
    previous: str | None


class AgentSession:
    """The agent on one board, spoken to through one transport. Paths are relative to its home."""

    def __init__(
        self, board: Board, transport: Transport, bundle: Bundle, fence: str | None = None
    ) -> None:
        """fence: of the lease under which the board is used; None where nothing is changed."""
        self.board = board
        self._fence = fence
        self._transport = transport
        self._bundle = bundle
        self._conversation: Conversation | None = None

    def push_agent(self) -> None:
        """Put agent.pyz on the board unless those very bytes are there already, and start it."""
        self._conversation = Conversation(self.board, self._transport, self._bundle)

    def probe(self) -> DeviceProfile:
        """What the board is."""
        return self._fit(DeviceProfile, self._json(self._call("probe")[-1]))

    def state(self) -> BoardState:
        """What state the board is in now."""
        return self._fit(BoardState, self._json(self._call("state")[-1]))

    def check(self) -> tuple[Check, ...]:
        """What works on the board and what does not."""
        answer = self._json(self._call("check", allowed=(0, 1))[-1])
        try:
            return tuple(
                Check(str(c["name"]), bool(c["ok"]), str(c["fact"]), str(c["next_step"]))
                for c in answer["checks"]
            )
        except (KeyError, TypeError):
            raise self._error("the agent's check is not in the agreed form") from None

    def push_blobs(self, blobs: Mapping[str, Path]) -> int:
        """Push what the board lacks, each once by hash. Returns the number of uploads.

        Raises StableBoardError when a local file no longer has the hash it is known by.
        """
        if not blobs:
            return 0
        missing = self._json(self._call("has", *sorted(blobs))[-1]).get("missing")
        if not isinstance(missing, list) or any(
            not isinstance(digest, str) or digest not in blobs for digest in missing
        ):
            raise self._error("the agent's list of missing files is not in the agreed form")
        if missing:
            self._make_room([blobs[d] for d in blobs], [blobs[d] for d in missing])
        for digest in missing:
            # Each is adopted at once: a cut then costs one of them, not all.
            name = self._upload(self._local(blobs[digest]))
            self._call("adopt", f"{name}={digest}")
        return len(missing)

    def clean(self, quota_bytes: int, *, coming_bytes: int = 0, used: bool = False) -> Room:
        """Remove what nobody needs until the quota is kept. used: also what was used just now."""
        grace = ("--grace-s", "0") if used else ()
        sizes = ("--quota-bytes", str(quota_bytes), "--coming-bytes", str(coming_bytes))
        answer = self._json(self._call("clean", *sizes, *grace)[-1])
        try:
            sessions = tuple(str(name) for name in answer["sessions"])
            return Room(
                int(answer["removed"]), int(answer["freed_bytes"]), int(answer["blobs_bytes"]),
                int(answer["free_bytes"]), sessions,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError):
            raise self._error("the agent's answer to clean is not in the agreed form") from None

    def _make_room(self, wanted: Sequence[Path], missing: Sequence[Path]) -> None:
        """Raises StableBoardError where the files would not fit, before one of them is sent."""
        board = self.board
        quota_bytes, coming_bytes = board.cache_mib << 20, self._size_bytes(missing)
        wanted_bytes = self._size_bytes(wanted)
        if wanted_bytes > quota_bytes:
            raise StableBoardError(
                board.board_id,
                f"this work takes {wanted_bytes >> 20} MiB there, its cache is {board.cache_mib}",
                "fewer models in one campaign, or a larger cache_mib in the inventory",
            )
        room = self.clean(quota_bytes, coming_bytes=coming_bytes)
        if room.free_bytes < coming_bytes + _DISK_MARGIN_BYTES:
            raise StableBoardError(
                board.board_id,
                f"{room.free_bytes >> 20} MiB of disk are free, {coming_bytes >> 20} are to come",
                f"fleetcut clean --to-mib 0 {board.board_id}, or free space there",
            )

    def _size_bytes(self, paths: Sequence[Path]) -> int:
        try:
            return sum(path.stat().st_size for path in paths)
        except OSError as error:
            raise self._unreadable(error) from None

    def _local(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: OSError) -> BoardError:
        return LocalError(
            self.board.board_id,
            f"{error.filename} cannot be read ({error.strerror})",
            "put the file back and run the same command again",
        )

    def start(self, session_id: str, specs: Sequence[RunSpec]) -> str:
        """Hand over the runs and detach. Returns "started", "running" or "finished".

        Raises StableBoardError when another session holds the board.
        """
        text = "".join(encode(spec) + "\n" for spec in specs)
        incoming = self._upload(text.encode("utf-8"))
        answer = self._start(session_id, "--specs", incoming)
        if answer.get("state") == "busy" and self._is_left_over(answer):
            # Its controller was killed or its lease ended: the journal there stays for whoever
            # asks for it again, and the board is ours.
            self.stop(str(answer.get("session")))
            answer = self._start(session_id)
        state = str(answer.get("state"))
        if state == "busy":
            raise StableBoardError(
                self.board.board_id,
                f"session {str(answer.get('session'))[:64]} is running there",
                "wait for it, or end it from where it was started",
            )
        if state not in ("started", "running", "finished"):
            raise self._error(f"start answered state {state[:40]!r}")
        return state

    def _start(self, session_id: str, *specs: str) -> dict[str, Any]:
        return self._json(self._call("start", session_id, *specs, allowed=(0, 3))[-1])

    def _is_left_over(self, busy: Mapping[str, Any]) -> bool:
        """Whether what runs there was started under an earlier lease of our own lab."""
        if self._fence is None or not isinstance(busy.get("session"), str):
            return False
        lab, _, token = self._fence.partition(":")
        its_lab, _, its_token = str(busy.get("fence")).partition(":")
        if its_lab != lab or re.fullmatch("[0-9]{1,18}", its_token) is None:
            return False
        return int(its_token) < int(token)

    def entries(
        self, session_id: str, after_seq: int, *, follow: bool, silence_s: float
    ) -> Iterator[JournalEntry]:
        """Journal entries after ``after_seq``, and last the end. following waits for more.

        silence_s: longest time between two of them. Raises TransientBoardError after it, and long
        before where the network or the agent is gone.
        """
        verb, line_silence_s, seq = "collect", silence_s, after_seq
        if follow:
            verb, line_silence_s = "attach", min(silence_s, ALIVE_SILENCE_S)
        heard_s = time.monotonic()
        with contextlib.closing(self._lines(line_silence_s, verb, session_id, after_seq)) as lines:
            for line in lines:
                if not line.startswith(_ALIVE):
                    entry = self._entry(line, seq)
                    seq, heard_s = entry.seq, time.monotonic()
                    yield entry
                elif time.monotonic() - heard_s > silence_s:
                    raise TransientBoardError(
                        self.board.board_id,
                        f"its worker lives, but has said nothing for {silence_s:g} s",
                        f"fleetcut check {self.board.board_id}",
                    )

    def ack(self, session_id: str, seq: int) -> None:
        """All up to ``seq`` is stored here: the board may forget it."""
        self._call("ack", session_id, str(seq))

    def stop(self, session_id: str) -> None:
        """End the session's worker and whatever it runs; returns when they are gone."""
        self._call("stop", session_id)

    def install(
        self, artifact_id: str, name: str, signed: Sequence[str] = ()
    ) -> tuple[str | None, str | None, str]:
        """Switch ``name`` to an artifact whose files were pushed.

        signed: blobs of the manifest's signature, the statement and its signature, or nothing.
        Returns what the name led to before, the signer that the board found, and why it found none.
        """
        flag = ("--signed", *signed) if signed else ()
        answer = self._json(self._call("install", artifact_id, name, *flag)[-1])
        previous, signer = answer.get("previous"), answer.get("signer")
        return (
            None if previous is None else str(previous),
            None if signer is None else str(signer)[:200],
            str(answer.get("note") or "")[:200],
        )

    def rollback(self, artifact_id: str, name: str) -> Deployed:
        """Put ``name`` back from an artifact to the version before it; asked twice, once."""
        return self._deployed(self._json(self._call("rollback", artifact_id, name)[-1]))

    def deployed(self) -> tuple[Deployed, ...]:
        """What every name leads to on the board."""
        found = self._json(self._call("deployed")[-1]).get("deployed")
        if not isinstance(found, list):
            raise self._error("the agent's list of deployments is not in the agreed form")
        return tuple(map(self._deployed, found))

    def pin_signers(self, sha256: str, signed: Sequence[str] = ()) -> str:
        """Hand over allowed_signers, a pushed blob. Returns who decides there: root or pinned."""
        flag = ("--signed", *signed) if signed else ()
        return str(self._json(self._call("signers", sha256, *flag)[-1]).get("decides"))[:40]

    def _deployed(self, found: Any) -> Deployed:
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            raise self._error("the agent's deployment is not in the agreed form")
        ids = (found.get("current"), found.get("previous"))
        return Deployed(found["name"], *(None if i is None else str(i) for i in ids))

    def _argv(self, verb: str, *args: str) -> list[str]:
        return [self.board.python, self._bundle.remote_path, verb, *args]

    def ask(self, verb: str, *args: str, timeout_s: float = CALL_TIMEOUT_S) -> dict[str, Any]:
        """A verb of the agent's that has no method here. Returns its answer. Raises BoardError."""
        return self._json(self._call(verb, *args, timeout_s=timeout_s)[-1])

    def _call(
        self,
        verb: str,
        *args: str,
        allowed: tuple[int, ...] = (0,),
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> list[bytes]:
        if self._fence is not None and verb in _CHANGING:
            args = (*args, "--fence", self._fence)
        with self._turn() as conversation:
            if conversation is not None:
                done = conversation.call(verb, *args, timeout_s=timeout_s)
            else:
                done = self._transport.run(self._argv(verb, *args), timeout_s=timeout_s)
        lines = done.stdout.splitlines()
        if done.exit_status == _FENCED:
            raise LeaseLostError(
                self.board.board_id, done.last_error().partition(". Next:")[0], "fleetcut boards"
            )
        if done.exit_status not in allowed or not lines:
            raise self._failed(verb, done)
        return lines

    def _lines(
        self, silence_s: float, verb: str, session_id: str, after_seq: int
    ) -> Generator[bytes]:
        args = (session_id, "--after", str(after_seq))
        with self._turn() as conversation:
            if conversation is None:
                yield from self._transport.lines(self._argv(verb, *args), silence_s=silence_s)
                return
            end = None
            try:
                for line in conversation.lines(verb, *args, silence_s=silence_s):
                    if line.startswith(_END):
                        end = line  # given once the conversation is free again
                    else:
                        yield line
            except GeneratorExit:
                conversation.close()
                raise
        if end is not None:
            yield end

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Conversation | None]:
        """The conversation for one question; None where there is none or it is busy.

        Then a process of its own answers: a following that lasts for hours is ended that way.
        """
        conversation = self._conversation
        if conversation is None or not conversation.try_take():
            yield None
            return
        try:
            yield conversation
        finally:
            conversation.release()

    def _upload(self, data: bytes) -> str:
        with self._turn() as conversation:
            if conversation is None:
                raise self._error("files are sent while its agent answers something else")
            return conversation.upload(data)

    def _entry(self, line: bytes, last_seq: int) -> JournalEntry:
        document = self._json(line)
        event = document.get("event")
        if event == "end":
            return JournalEntry(last_seq, end=str(document.get("state")))
        seq = document.get("seq")
        if not isinstance(seq, int) or seq <= last_seq:
            raise self._error(f"the journal's sequence went from {last_seq} to {str(seq)[:20]}")
        if event == "record":
            return JournalEntry(seq, record=self._fit(MeasurementRecord, document.get("record")))
        if event == "session":
            return JournalEntry(seq, profile=self._fit(DeviceProfile, document.get("profile")))
        if event == "run_started":
            return JournalEntry(seq, run_started=str(document.get("run_id")))
        return JournalEntry(seq)

    def _json(self, line: bytes) -> dict[str, Any]:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self._error(f"the agent answered {line[:60]!r}, which is not a JSON object")
        return document

    def _fit(self, cls: type[T], document: object) -> T:
        try:
            return decode_object(cls, document)
        except CodecError as error:
            raise self._error(f"the agent's {cls.__name__} does not fit: {error}") from None

    def _failed(self, verb: str, done: Completed) -> BoardError:
        """What arrived and is not what was sent may be sent again."""
        kind = (
            TransientBoardError if verb == "adopt" and done.exit_status == 1 else StableBoardError
        )
        board_id = self.board.board_id
        fact = f"agent {verb} failed: {done.last_error()}"
        return kind(board_id, fact, f"fleetcut check {board_id}")

    def _error(self, fact: str) -> BoardError:
        return ProtocolError(self.board.board_id, fact, f"fleetcut check {self.board.board_id}")
