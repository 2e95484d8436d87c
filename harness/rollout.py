"""An artifact over a whole fleet, a share at a time: canaries first, and no further than a failure.

Input: boards, shares, how to deploy to some boards and how to prove them. Output: a Rollout, also
as a file after every step, from which the same command goes on.
Raises RolloutError for shares that make no sense and for a file that cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise, zip_longest
from pathlib import Path

from device_agents.contract import BoardProof, CodecError, canonical_json
from device_agents.contract.codec import from_plain, parse_object
from harness.errors import HarnessError
from harness.files import write_whole
from harness.inventory import Board

PENDING, DONE, FAILED, ROLLED_BACK = "pending", "done", "failed", "rolled back"


class RolloutError(HarnessError):
    """A rollout that cannot be planned or gone on with."""


@dataclass(frozen=True)
class Stage:
    """The boards that one share adds. share: of the fleet, up to and with this stage, 0..1.

    attempts: how often it was begun. failures: (board_id, why), of the last attempt.
    before: (board_id, name, artifact_id) that its boards ran before the first one; ("", "") for a
    board that ran nothing.
    """

    share: float
    board_ids: tuple[str, ...]
    state: str = PENDING
    attempts: int = 0
    failures: tuple[tuple[str, str], ...] = ()
    before: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Rollout:
    """rollout_id: the same artifacts, boards and shares are the same rollout.

    proofs: (artifact_id, proof) of every board that was asked so far.
    """

    rollout_id: str
    artifact_ids: tuple[str, ...]
    stages: tuple[Stage, ...]
    proofs: tuple[tuple[str, BoardProof], ...] = ()

    @property
    def state(self) -> str:
        """Done when every stage is, else that of the first which is not."""
        return next((s.state for s in self.stages if s.state != DONE), DONE)

    def proofs_of(self, artifact_id: str) -> tuple[BoardProof, ...]:
        return tuple(proof for i, proof in self.proofs if i == artifact_id)


@dataclass(frozen=True)
class Steps:
    """What a rollout does to boards, each step for all boards of a stage at once.

    before: what boards run now, as Stage.before. deploy, roll_back: return board_id → failure;
    roll_back is given what the boards ran before, None: a stage that fails is left as it is.
    prove: (artifact_id, proof) of each; the text names this attempt. observe: told of each change.
    """

    before: Callable[[Sequence[Board]], Sequence[tuple[str, str, str]]]
    deploy: Callable[[Sequence[Board]], Mapping[str, str]]
    prove: Callable[[Sequence[Board], str], Sequence[tuple[str, BoardProof]]]
    roll_back: Callable[[Sequence[Board], Sequence[tuple[str, str, str]]], Mapping[str, str]] | None
    observe: Callable[[Rollout], None]


def parse_shares(text: str) -> tuple[float, ...]:
    """Fractions from 5%,25%,1.0. Raises RolloutError unless they ascend within (0, 100 %]."""
    shares = []
    for part in text.split(","):
        number = part.strip()
        try:
            share = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
        except ValueError:
            raise RolloutError(f"{part!r} is no share. Next: write 5% or 0.05") from None
        if not 0 < share <= 1:
            raise RolloutError(f"{part!r} is no share. Next: write more than 0% and at most 100%")
        shares.append(share)
    if any(a >= b for a, b in pairwise(shares)):
        raise RolloutError(f"shares {text} do not ascend. Next: write 5%,25%,100%")
    return tuple(shares)


def plan(
    artifact_ids: Sequence[str],
    boards: Sequence[Board],
    shares: Sequence[float],
    group_of: Mapping[str, str],
) -> Rollout:
    """Who comes when. group_of: board_id → cluster; a board without one counts by its model.

    Groups take turns, so that few boards are of many kinds, in an order that depends on nothing
    but the ids; the first stage has a board of every group even where its share is smaller.
    """
    groups: dict[str, list[Board]] = defaultdict(list)
    key = canonical_json(sorted(artifact_ids))
    for board in sorted(boards, key=lambda b: _digest(key, b.board_id)):
        groups[group_of.get(board.board_id) or f"model {board.model}"].append(board)
    queues = [groups[name] for name in sorted(groups)]
    turns = chain.from_iterable(zip_longest(*queues))
    order = [board.board_id for board in turns if board is not None]
    stages: list[Stage] = []
    taken = 0
    for share in shares:
        upto = max(math.ceil(share * len(order) - 1e-9), taken, len(queues) if not stages else 0)
        if upto > taken:
            stages.append(Stage(share, tuple(order[taken:upto])))
        taken = upto
    identity = [sorted(artifact_ids), sorted(order), list(shares)]
    return Rollout(_digest(canonical_json(identity))[:16], tuple(artifact_ids), tuple(stages))


def _digest(data: bytes, text: str = "") -> str:
    return hashlib.sha256(data + text.encode("utf-8")).hexdigest()


def resumed(planned: Rollout, path: Path) -> Rollout:
    """What the file knows of the same rollout, else the plan. Raises RolloutError."""
    try:
        found = from_plain(Rollout, parse_object(path.read_bytes()), path.name)
    except FileNotFoundError:
        return planned
    except (OSError, CodecError) as error:
        raise RolloutError(f"{path}: {error}. Next: remove it to begin anew") from None
    return found if found.rollout_id == planned.rollout_id else planned


def run(
    rollout: Rollout, boards: Sequence[Board], steps: Steps, path: Path, may_fail: int = 0
) -> Rollout:
    """Stage after stage, until one fails. may_fail: boards of a stage that need not be reached.

    A proof that fails stops it whatever may_fail says. Killed at any point the same call goes on:
    stages that are done are left alone, and what boards have already is not sent again.
    """
    by_id = {board.board_id: board for board in boards}
    for number, stage in enumerate(rollout.stages):
        if stage.state == DONE:
            continue
        # A killed attempt keeps its number, and so goes on with what it measured.
        attempts = stage.attempts + (stage.state != PENDING or not stage.attempts)
        rollout = _with(rollout, number, replace(stage, state=PENDING, attempts=attempts), path)
        steps.observe(rollout)
        chosen = [by_id[board_id] for board_id in stage.board_ids]
        rollout = _stage(rollout, number, chosen, steps, path, may_fail)
        steps.observe(rollout)
        if rollout.stages[number].state != DONE:
            break
    return rollout


def _stage(
    rollout: Rollout, number: int, boards: Sequence[Board], steps: Steps, path: Path, may_fail: int
) -> Rollout:
    if steps.roll_back is not None:
        rollout = _with(rollout, number, _knowing(rollout.stages[number], boards, steps), path)
    stage = rollout.stages[number]
    failures = dict(steps.deploy(boards))
    stopped = len(failures) > may_fail
    if not stopped:
        reached = [board for board in boards if board.board_id not in failures]
        name = f"rollout-{rollout.rollout_id}-{number}-{stage.attempts}"
        proofs = tuple(steps.prove(reached, name)) if reached else ()
        mine = set(stage.board_ids)
        kept = tuple((i, p) for i, p in rollout.proofs if p.board_id not in mine)
        rollout = replace(rollout, proofs=(*kept, *proofs))
        refused = {p.board_id: p.reason or "refused" for _, p in proofs if not p.passed}
        stopped = bool(refused) or not reached
        failures |= refused
    state = FAILED if stopped else DONE
    if stopped and steps.roll_back is not None:
        for board_id, why in steps.roll_back(boards, stage.before).items():
            failures[board_id] = f"{failures.get(board_id, 'not rolled back')}; {why}"
        state = ROLLED_BACK
    done = replace(stage, state=state, failures=tuple(sorted(failures.items())))
    return _with(rollout, number, done, path)


def _knowing(stage: Stage, boards: Sequence[Board], steps: Steps) -> Stage:
    """On the disk before anything is switched: a call that goes on cannot ask for it any more."""
    known = {board_id for board_id, _, _ in stage.before}
    unknown = [board for board in boards if board.board_id not in known]
    return replace(stage, before=(*stage.before, *(steps.before(unknown) if unknown else ())))


def _with(rollout: Rollout, number: int, stage: Stage, path: Path) -> Rollout:
    stages = (*rollout.stages[:number], stage, *rollout.stages[number + 1 :])
    rollout = replace(rollout, stages=stages)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(asdict(rollout), indent=1, sort_keys=True).encode("utf-8"))
    return rollout
