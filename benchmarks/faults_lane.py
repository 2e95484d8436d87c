"""Faults on one board, one after the other, each with a campaign that has to come out whole.

Input: a FaultyBoard and cases. Output: a Result for each. Runs in a process without threads: it
forks proxies and commands.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from benchmarks.fault_proxy import fork_proxy
from benchmarks.faults_board import Disk, FaultyBoard, end, ended
from benchmarks.faults_controller import DEADLINE_S, LEASE_S, Job, fork_controller
from benchmarks.faults_kinds import KINDS, Action, Scene, Start, Which
from device_agents.contract import Condition, GoldenCheck, MeasurementRecord, RunSpec, StoppingRule
from harness.bundle import Bundle
from harness.errors import LeaseError
from harness.executor import Work
from harness.holder import me
from harness.leases import Leases
from harness.store import Store

TRIES = 4
"""The same command again, as a person or a timer would give it."""

_POLL_S = 0.01
_CALM_EVERY = 8
_QUICK = StoppingRule(warmup_min=1, warmup_max=5, samples_min=5, samples_max=10, max_seconds=0.5)
_ATOL = 1e-3

Asked: TypeAlias = tuple[Which, Which]
"""Campaign and lab."""

Due: TypeAlias = tuple[float, Action]
"""Seconds after the beginning, and what is done then."""


@dataclass(frozen=True)
class Model:
    """A network of one matrix product with a golden input and output."""

    path: Path
    input_path: Path
    output_path: Path

    def blobs(self) -> dict[str, Path]:
        paths = (self.path, self.input_path, self.output_path)
        return {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in paths}


@dataclass
class Result:
    """What came of one fault. struck: whether it met anything. tries: later commands, in calm."""

    number: int
    kind: str
    board_id: str
    struck: bool = False
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    hung: int = 0
    not_restored: int = 0
    tries: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.duplicated or self.wrong or self.hung or self.not_restored)


class Lane:
    """One board and what is played on it."""

    def __init__(
        self, folder: Path, board: FaultyBoard, other_port: int, bundle: Bundle, model: Model
    ) -> None:
        self._folder = folder
        self._board = board
        self._other_port = other_port
        self._bundle = bundle
        self._model = model
        folder.mkdir(parents=True, exist_ok=True)
        self._disk = Disk(folder / "stores")
        self._proxy: int | None = None
        self._struck = folder / "struck"
        self._stores = {lab: folder / "stores" / f"{lab}.db" for lab in ("a", "b")}
        for path in self._stores.values():
            Store(path).close()
        self._plays = 0
        self._calms = 0
        self.span_s = 0.0
        self.span_s = self._calm()

    def close(self) -> None:
        self._disk.close()

    def play(self, number: int, kind: str, seed: int) -> Result:
        """One fault, then the same commands until nothing is missing."""
        self._plays += 1
        if self._plays % _CALM_EVERY == 0:  # other work of this machine makes it longer or shorter
            self.span_s = self._calm()
        rng = random.Random(f"{seed}:{number}")  # noqa: S311 - repeatable, not secret
        result = Result(number, kind, self._board.board.board_id)
        scene = self._scene()
        KINDS[kind](scene, rng)
        works = {c: self._work(f"fault-{number}-{c}", rng) for c in ("a", "b")}
        began_s = time.monotonic()
        for prepare in scene.before:
            scene.do(prepare)
        if scene.stale_lease:
            scene.do(self._leave_lease)
        self._first_try(scene, works, result)
        for mend in scene.after:
            scene.do(mend)
        result.struck = bool(scene.strikes)
        asked = {(start.campaign, start.lab) for start in scene.starts}
        self._again(asked, works, result)
        result.seconds = time.monotonic() - began_s
        for campaign, lab in sorted(asked):
            self._judge(self._stores[lab], works[campaign], scene.excused, result)
        left = self._board.not_restored() + self._still_leased()
        result.not_restored = len(left)
        result.notes += left
        self._board.kill_all()
        return result

    def _scene(self) -> Scene:
        return Scene(self._board, self.span_s, self._other_port, self._disk)

    def _calm(self) -> float:
        """How long a campaign takes, of two: the first may have to push the agent."""
        for _ in range(2):
            self._calms += 1
            began_s = time.monotonic()
            result = Result(-1, "calm", self._board.board.board_id)
            work = self._work(f"calm-{self._calms}", random.Random(self._calms))  # noqa: S311
            self._again({("a", "a")}, {"a": work}, result)
            self._judge(self._stores["a"], work, frozenset(), result)
            if not result.is_good:
                raise RuntimeError(f"{self._board.board.board_id} does not measure: {result}")
        return time.monotonic() - began_s

    def _work(self, campaign_id: str, rng: random.Random) -> Work:
        blobs = self._model.blobs()
        model, golden_input, golden_output = blobs
        governor = rng.choice((None, "powersave"))
        # The other boards are as virtual, but no latency is compared here.
        board = replace(self._board.board, port=self._board.port, exclusive_group=None)
        specs = tuple(
            RunSpec(
                campaign_id=campaign_id, board_id=board.board_id, model_sha256=model,
                runtime="ort", condition=Condition(governor=governor), stopping=_QUICK,
                golden=GoldenCheck(golden_input, golden_output, _ATOL), repeat=repeat,
            )
            for repeat in range(rng.randint(3, 5))
        )  # fmt: skip
        return Work(campaign_id, (board,), specs, blobs, {model: "tiny"})

    def _first_try(self, scene: Scene, works: Mapping[str, Work], result: Result) -> None:
        """Every command of the scene, with whatever befalls it."""
        jobs = [self._job(start, works, index) for index, start in enumerate(scene.starts)]
        due = list(scene.actions)
        for index, (start, job) in enumerate(zip(scene.starts, jobs, strict=True)):
            due.append((start.at_s, partial(_begin, scene, index, job)))
        if scene.refused_for_s:
            self._board.listener.close()
            due.append((scene.refused_for_s, partial(self._reachable, scene)))
        else:
            self._reachable(scene)
        failures = self._run(scene, jobs, due, result)
        if scene.expected and not any(scene.expected in text for text in failures):
            result.wrong += 1
            result.notes.append(f"nobody said {scene.expected!r}: {failures}")

    def _again(self, asked: set[Asked], works: Mapping[str, Work], result: Result) -> None:
        """The same commands in calm, until each has said that nothing is left to do."""
        for campaign, lab in sorted(asked):
            for _ in range(TRIES):
                result.tries += 1
                scene = self._scene()
                job = self._job(Start(campaign=campaign, lab=lab), works, 0)
                self._reachable(scene)
                failures = self._run(scene, [job], [(0.0, partial(_begin, scene, 0, job))], result)
                if not failures:
                    break
                result.notes += failures

    def _run(
        self, scene: Scene, jobs: Sequence[Job], due: Sequence[Due], result: Result
    ) -> list[str]:
        """Do what is due until every command has ended. Returns the failures that they reported."""
        waiting = sorted(due, key=lambda entry: entry[0])
        began_s = time.monotonic()
        now_s = 0.0
        while scene.begun < len(jobs) or scene.pids:
            now_s = time.monotonic() - began_s
            while waiting and waiting[0][0] <= now_s:
                scene.do(waiting.pop(0)[1])
            for index, pid in list(scene.pids.items()):
                if now_s > DEADLINE_S:
                    end(pid)
                    result.hung += 1
                    del scene.pids[index]
                elif ended(pid) is not None:
                    del scene.pids[index]
            time.sleep(_POLL_S)
        scene.strikes += any(now_s > start.clock_step_at_s > 0 for start in scene.starts)
        scene.strikes += self._struck.stat().st_size
        if self._proxy is not None:
            end(self._proxy)
            self._proxy = None
        if self._board.listener.fileno() < 0:
            self._board.listen()
        failures = [text for job in jobs for text in _said(job)]
        bugs = [text for text in failures if "Traceback" in text]
        result.wrong += len(bugs)
        result.notes += bugs
        return failures

    def _reachable(self, scene: Scene) -> bool:
        """Whether it was not so before."""
        was_refused = self._board.listener.fileno() < 0
        if was_refused:
            self._board.listen()
        self._struck.write_bytes(b"")
        self._proxy = fork_proxy(
            self._board.listener, self._board.board.port, scene.troubles, self._struck
        )
        return was_refused

    def _job(self, start: Start, works: Mapping[str, Work], index: int) -> Job:
        said = self._folder / f"said-{index}"
        said.unlink(missing_ok=True)
        return Job(
            works[start.campaign], self._stores[start.lab], self._bundle, said,
            start.clock_step_s, start.clock_step_at_s,
        )  # fmt: skip

    def _judge(self, store_path: Path, work: Work, excused: frozenset[str], result: Result) -> None:
        """Count what is missing, what is there twice and what is not what was asked."""
        store = Store(store_path)
        try:
            records = [stored.record for stored in store.runs([work.campaign_id])]
        finally:
            store.close()
        wanted = {spec.run_id: spec for spec in work.specs}
        found = [record.run_id for record in records]
        result.lost += len(set(wanted) - set(found))
        result.duplicated += len(found) - len(set(found))
        for record in records:
            fault = _fault(record, wanted.get(record.run_id), excused)
            if fault:
                result.wrong += 1
                result.notes.append(fault)

    def _leave_lease(self) -> bool:
        """As a command on another machine does that was killed a moment ago."""
        store = Store(self._stores["a"])
        elsewhere = Leases(store, lease_s=LEASE_S, holder=replace(me(), host="elsewhere"))
        elsewhere.acquire(self._board.board.board_id, "what was killed")
        store.close()
        return True

    def _still_leased(self) -> list[str]:
        """By a command that ended well or was killed; the latter's counts for nothing here."""
        board_id = self._board.board.board_id
        found = []
        for lab, path in self._stores.items():
            store = Store(path)
            try:
                Leases(store).release([Leases(store).acquire(board_id, "a look")])
            except LeaseError as error:
                found.append(f"lab {lab}: {error}")
            finally:
                store.close()
        return found


def _begin(scene: Scene, index: int, job: Job) -> bool:
    """Whether another command is under way."""
    scene.pids[index] = fork_controller(job)
    scene.begun += 1
    return len(scene.pids) > 1


def _said(job: Job) -> list[str]:
    """Failures; none of a command that was killed."""
    try:
        return [str(text) for text in json.loads(job.said.read_text())]
    except (OSError, ValueError):
        return []


def _fault(record: MeasurementRecord, spec: RunSpec | None, excused: frozenset[str]) -> str:
    """What is wrong with a record; "" when nothing is."""
    if record.spec != spec:
        return f"{record.run_id}: was not asked for"
    if record.error is not None:
        text = f"{record.run_id}: {record.error.kind}: {record.error.fact}"
        return "" if record.error.kind in excused else text
    if record.max_abs_err is None or not record.max_abs_err <= _ATOL:
        return f"{record.run_id}: its output is {record.max_abs_err} off"
    if not record.simulated:
        return f"{record.run_id}: is not called simulated"
    asked = spec.condition.governor
    if asked is not None and {state.governor for state in record.states} != {asked}:
        return f"{record.run_id}: ran under {[state.governor for state in record.states]}"
    return ""
