"""The faults that are played: what is done to a campaign, drawn from a seed.

Input: a Scene and a random generator. Output: the Scene, with troubles, actions and controllers.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from benchmarks.fault_proxy import Kind, Trouble
from benchmarks.faults_board import Disk, FaultyBoard
from benchmarks.faults_controller import LEASE_S

DAY_S = 86400.0

Which = Literal["a", "b"]


@dataclass(frozen=True)
class Start:
    """One command. at_s: after the first one. campaign, lab: which of two."""

    at_s: float = 0.0
    campaign: Which = "a"
    lab: Which = "a"
    clock_step_s: float = 0.0
    clock_step_at_s: float = 0.0


Action: TypeAlias = Callable[[], bool | None]
"""Returns True when it met what it was meant for: a process that lived, a file that was there."""


@dataclass
class Scene:
    """A campaign to come. span_s: how long it takes in calm. workstation: where its stores are.

    troubles: of connections, in order. actions: when, and what is done to the board or to a
    command. begun commands were started, pids are of those that live. refused_for_s: no server
    listens so long. before, after: around the first try. strikes: how often a fault met something.
    excused: kinds of RunError that are the right answer. expected: what a failure has to say.
    """

    board: FaultyBoard
    span_s: float
    other_port: int
    workstation: Disk
    troubles: list[Trouble] = field(default_factory=list)
    actions: list[tuple[float, Action]] = field(default_factory=list)
    starts: list[Start] = field(default_factory=lambda: [Start()])
    before: list[Action] = field(default_factory=list)
    after: list[Action] = field(default_factory=list)
    excused: frozenset[str] = frozenset()
    expected: str | None = None
    refused_for_s: float = 0.0
    stale_lease: bool = False
    begun: int = 0
    strikes: int = 0
    pids: dict[int, int] = field(default_factory=dict)

    def send(self, index: int, number: int) -> bool:
        pid = self.pids.get(index)
        if pid is not None:
            os.kill(pid, number)
        return pid is not None

    def do(self, action: Action) -> None:
        self.strikes += bool(action())


Kinds = Mapping[str, Callable[[Scene, random.Random], None]]


def _moment(scene: Scene, rng: random.Random) -> float:
    """Any, from before the connection to the end."""
    return rng.uniform(0.0, scene.span_s)


def _bytes(scene: Scene, rng: random.Random, *, upward: bool) -> int:
    """A random point of a connection, as many among its first bytes as among its last."""
    if rng.random() < 0.5:
        scene.before.append(scene.board.forget_files)
        return int(10 ** rng.uniform(1.5, 5.6 if upward else 4.4))
    return int(10 ** rng.uniform(1.5, 4.2))


def _harness_killed(scene: Scene, rng: random.Random) -> None:
    scene.actions.append((_moment(scene, rng), lambda: scene.send(0, signal.SIGKILL)))


def _agent_killed(scene: Scene, rng: random.Random) -> None:
    scene.actions.append((_moment(scene, rng), scene.board.kill_all))


def _worker_killed(scene: Scene, rng: random.Random) -> None:
    at_s = rng.uniform(scene.span_s * 0.3, scene.span_s)
    scene.actions.append((at_s, scene.board.kill_worker))


def _one_killed(scene: Scene, rng: random.Random) -> None:
    """The child that holds the runtime may be the one: then the run did crash."""
    scene.actions.append((_moment(scene, rng), lambda: scene.board.kill_one(rng)))
    scene.excused = frozenset({"crashed"})


def _cut(kind: Kind, *, upward: bool) -> Callable[[Scene, random.Random], None]:
    def play(scene: Scene, rng: random.Random) -> None:
        scene.troubles.append(Trouble(kind, _bytes(scene, rng, upward=upward), upward))

    return play


def _cut_again_and_again(scene: Scene, rng: random.Random) -> None:
    for _ in range(3):
        upward = rng.random() < 0.5
        kind: Kind = "reset" if rng.random() < 0.5 else "close"
        scene.troubles.append(Trouble(kind, _bytes(scene, rng, upward=upward), upward))


def _refused(scene: Scene, rng: random.Random) -> None:
    """No server listens; it comes back, or the command gives up and is given again."""
    scene.refused_for_s = rng.uniform(0.01, 3.0)


def _reset_at_once(scene: Scene, rng: random.Random) -> None:
    scene.troubles += [Trouble("refuse")] * rng.randint(1, 5)


def _reboot(scene: Scene, rng: random.Random) -> None:
    scene.actions.append((_moment(scene, rng), scene.board.reboot))


def _reboot_and_kill(scene: Scene, rng: random.Random) -> None:
    _reboot(scene, rng)
    _harness_killed(scene, rng)


def _full_disk(scene: Scene, rng: random.Random) -> None:
    scene.actions.append((_moment(scene, rng), scene.board.fill_disk))
    if rng.random() < 0.5:
        scene.before.append(scene.board.forget_files)
    scene.after.append(scene.board.free_disk)


def _workstation_full(scene: Scene, rng: random.Random) -> None:
    def fill() -> bool:
        scene.workstation.fill()
        return bool(scene.pids)

    scene.actions.append((_moment(scene, rng), fill))
    scene.after.append(scene.workstation.free)


def _agent_damaged(scene: Scene, rng: random.Random) -> None:
    scene.before.append(lambda: scene.board.damage("agents/*", rng))


def _model_damaged(scene: Scene, rng: random.Random) -> None:
    if rng.random() < 0.5:
        scene.before.append(lambda: scene.board.damage("blobs/*", rng))
    else:
        scene.actions.append((_moment(scene, rng), lambda: scene.board.damage("blobs/*", rng)))


def _upload_damaged(scene: Scene, rng: random.Random) -> None:
    """While it comes in: whatever lies in incoming/ is hit, ten times a second."""
    scene.before.append(scene.board.forget_files)
    for tenth in range(int(scene.span_s * 10)):
        if rng.random() < 0.2:
            scene.actions.append((tenth / 10, lambda: scene.board.damage("incoming/*", rng)))


def _host_key(scene: Scene, rng: random.Random) -> None:
    """Another machine answers at the board's address."""
    scene.troubles += [Trouble(port=scene.other_port)] * rng.randint(1, 3)
    scene.expected = "host key changed"


def _stale_lease(scene: Scene, rng: random.Random) -> None:
    scene.stale_lease = True


def _suspended(scene: Scene, rng: random.Random) -> None:
    """A laptop sleeps past its lease's end, somebody else measures, and it wakes up."""
    at_s = rng.uniform(scene.span_s * 0.1, scene.span_s)
    scene.starts.append(Start(at_s + 0.1, rng.choice(("a", "b"))))
    awake_s = at_s + LEASE_S + rng.uniform(0.5, 1.0 + scene.span_s)
    scene.actions.append((at_s, lambda: scene.send(0, signal.SIGSTOP)))
    scene.actions.append((awake_s, lambda: scene.send(0, signal.SIGCONT)))


def _clock_step(scene: Scene, rng: random.Random) -> None:
    step_s = rng.choice((-1, 1)) * rng.choice((60.0, 3600.0, DAY_S, 400 * DAY_S))
    scene.starts = [Start(clock_step_s=step_s, clock_step_at_s=_moment(scene, rng))]


def _two(campaign: Which, lab: Which) -> Callable[..., None]:
    def play(scene: Scene, rng: random.Random) -> None:
        scene.starts.append(Start(rng.uniform(0.0, scene.span_s), campaign, lab))

    return play


KINDS: Kinds = {
    "harness killed": _harness_killed,
    "agent killed, all of it": _agent_killed,
    "agent killed, its worker": _worker_killed,
    "agent killed, one process": _one_killed,
    "connection reset, upward": _cut("reset", upward=True),
    "connection reset, downward": _cut("reset", upward=False),
    "connection closed, upward": _cut("close", upward=True),
    "connection closed, downward": _cut("close", upward=False),
    "black hole, upward": _cut("black hole", upward=True),
    "black hole, downward": _cut("black hole", upward=False),
    "byte damaged, upward": _cut("damage", upward=True),
    "byte damaged, downward": _cut("damage", upward=False),
    "three connections cut": _cut_again_and_again,
    "connections refused": _refused,
    "connections reset at once": _reset_at_once,
    "reboot": _reboot,
    "reboot and harness killed": _reboot_and_kill,
    "board's disk full": _full_disk,
    "workstation's disk full": _workstation_full,
    "agent's file damaged": _agent_damaged,
    "model's file damaged": _model_damaged,
    "upload damaged": _upload_damaged,
    "host key changed": _host_key,
    "stale lease": _stale_lease,
    "controller suspended": _suspended,
    "clock step": _clock_step,
    "two controllers, one campaign": _two("a", "a"),
    "two controllers, two campaigns": _two("b", "a"),
    "two labs on one board": _two("b", "b"),
}
