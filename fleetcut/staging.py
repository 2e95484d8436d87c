"""A deployment share by share: each stage deployed, proven, and the next only then.

Input: artifacts, boards, shares. Output: an exit status; a rollout's file, from which the same
command goes on; releases beside the artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from device_agents.contract import BoardProof
from fleetcut.console import Console
from fleetcut.verbs import BOARDS_FAILED, CHECK_FAILED, DONE, observe_run
from harness import deploy as deploying
from harness import rollout as rolling
from harness.bundle import build_bundle
from harness.deploy import LocalArtifact
from harness.executor import Executor, Retries
from harness.inventory import Board
from harness.leases import Leases
from harness.session import AgentSession
from harness.ssh import SshTransport
from harness.store import Store, StoreAddress
from harness.verify import PROOF_STOPPING, foreign_clusters, release_of, write_release
from harness.verify import prove as prove_artifacts
from harness.visit import Purpose, visit_again

A = TypeVar("A")

_WAIT_S = 60.0
"""For a board that somebody holds and uses."""


@dataclass(frozen=True)
class Fleet:
    """Which boards, and what is known of their clusters.

    cluster_of: board_id → label. representatives: label → board_id. Empty where nothing is known.
    """

    inventory: Path
    board_ids: Sequence[str] | None
    cluster_of: Mapping[str, str]
    representatives: Mapping[str, str]


@dataclass(frozen=True)
class Shares:
    """How a deployment is staged. stages: None deploys to all at once, without proofs.

    may_fail: boards of a stage that need not be reached. roll_back: a stage that fails.
    folder: where the rollout is kept, so that the same command goes on. store: of the proofs.
    """

    stages: tuple[float, ...] | None
    may_fail: int
    roll_back: bool
    folder: Path
    store: StoreAddress


def ask_all(
    console: Console,
    title: str,
    boards: Sequence[Board],
    ask: Callable[[AgentSession], A],
    store: Store | None = None,
) -> tuple[dict[str, A], dict[str, str]]:
    """board_id → answer, board_id → failure; what the network failed is tried again.

    store: of the leases, without which boards are not changed.
    """
    purpose = None if store is None else Purpose(Leases(store), title, _WAIT_S)
    with console.steps(title) as step:
        visits = visit_again(
            boards,
            SshTransport,
            build_bundle(),
            ask,
            lambda done, last: step(done, len(boards), last),
            Retries(),
            purpose,
        )
    answers = {v.board_id: v.answer for v in visits if v.answer is not None}
    failures = {v.board_id: str(v.failure) for v in visits if v.failure is not None}
    for failure in failures.values():
        console.error(failure)
    return answers, failures


Before = tuple[str, str, str]
"""As rolling.Stage.before."""


def staged(
    console: Console,
    fleet: Fleet,
    artifacts: tuple[LocalArtifact, ...],
    boards: tuple[Board, ...],
    signers: Path | None,
    shares: Shares,
) -> int:
    assert shares.stages is not None
    ids = [a.artifact_id for a in artifacts]
    planned = rolling.plan(ids, boards, shares.stages, fleet.cluster_of)
    path = shares.folder / f"{planned.rollout_id}.json"

    def put(chosen: Sequence[Board]) -> Mapping[str, str]:
        title = f"deploy {len(artifacts)} artifacts to {len(chosen)} boards"
        put_there = partial(deploying.deploy, artifacts=artifacts, signers=signers)
        return ask_all(console, title, chosen, put_there, store)[1]

    machine_of: dict[str, str] = {}

    def prove(chosen: Sequence[Board], name: str) -> Sequence[tuple[str, BoardProof]]:
        machine_of.update(machines_of(console, artifacts, chosen))
        return _prove(console, store, fleet, artifacts, chosen, name, machine_of)

    def back(chosen: Sequence[Board], before: Sequence[Before]) -> Mapping[str, str]:
        return _roll_back(console, store, artifacts, chosen, before)

    store = Store(shares.store)
    try:
        steps = rolling.Steps(
            before=lambda chosen: _before(console, chosen),
            deploy=put,
            prove=prove,
            roll_back=back if shares.roll_back else None,
            observe=lambda rollout: _show(console, rollout),
        )
        rollout = rolling.run(rolling.resumed(planned, path), boards, steps, path, shares.may_fail)
    finally:
        store.close()
    for artifact in artifacts:
        proofs = rollout.proofs_of(artifact.artifact_id)
        if proofs:
            elsewhere = foreign_clusters(artifact, boards, fleet.cluster_of, machine_of)
            write_release(artifact, release_of(artifact, proofs, elsewhere))
    return _ended(console, rollout, path, len(boards))


def machines_of(
    console: Console, artifacts: Sequence[LocalArtifact], boards: Sequence[Board]
) -> dict[str, str]:
    """board_id → machine of boards that answer; nobody is asked where everything runs anywhere."""
    if all(a.manifest.target.machine == deploying.ANY_MACHINE for a in artifacts):
        return {}
    answers, _ = ask_all(console, f"probe {len(boards)} boards", boards, AgentSession.probe)
    return {board_id: profile.machine for board_id, profile in answers.items()}


def _before(console: Console, boards: Sequence[Board]) -> list[Before]:
    title = f"ask {len(boards)} boards what they run"
    answers, _ = ask_all(console, title, boards, AgentSession.deployed)
    found = []
    for board_id, names in answers.items():
        found += [(board_id, d.name, d.current or "") for d in names] or [(board_id, "", "")]
    return found


def _roll_back(
    console: Console,
    store: Store,
    artifacts: Sequence[LocalArtifact],
    boards: Sequence[Board],
    before: Sequence[Before],
) -> dict[str, str]:
    """board_id → why it does not run what it ran before. A board that ran nothing is left."""
    ran = {(board_id, name): artifact_id for board_id, name, artifact_id in before}
    wrong: dict[str, str] = {}

    def one(agent: AgentSession) -> bool:
        board_id = agent.board.board_id
        for artifact in artifacts:
            wanted = ran.get((board_id, artifact.name))
            if wanted is None or wanted == artifact.artifact_id:
                continue
            now = deploying.roll_back(agent, artifact.name, artifact.artifact_id)
            if now != wanted:
                wrong[board_id] = f"{artifact.name} is {str(now)[:12]}, and was {wanted[:12]}"
        return True

    _, failures = ask_all(console, f"roll back {len(boards)} boards", boards, one, store)
    return {**wrong, **failures}


def _prove(
    console: Console,
    store: Store,
    fleet: Fleet,
    artifacts: tuple[LocalArtifact, ...],
    boards: Sequence[Board],
    name: str,
    machine_of: Mapping[str, str],
) -> list[tuple[str, BoardProof]]:
    with console.steps(f"verify {len(artifacts)} artifacts on {len(boards)} boards") as step:
        names = {a.manifest.file(a.manifest.model_file).sha256: a.name for a in artifacts}
        executor = Executor(
            store,
            build_bundle(),
            SshTransport,
            observe=lambda p: observe_run(console, step, names, p),
        )
        proofs = prove_artifacts(
            artifacts,
            tuple(boards),
            fleet.cluster_of,
            executor,
            store,
            name,
            PROOF_STOPPING,
            machine_of,
        )
    return [(artifact_id, proof) for artifact_id, found in proofs.items() for proof in found]


def _show(console: Console, rollout: rolling.Rollout) -> None:
    for number, stage in enumerate(rollout.stages, 1):
        if stage.state == rolling.PENDING and not stage.attempts:
            continue
        said = "begun" if stage.state == rolling.PENDING else stage.state
        if stage is _latest(rollout):
            console.line(
                f"stage {number} of {len(rollout.stages)}, {stage.share:.0%} of the fleet, "
                f"{len(stage.board_ids)} boards: {said}"
            )


def _latest(rollout: rolling.Rollout) -> rolling.Stage | None:
    return next((s for s in reversed(rollout.stages) if s.attempts), None)


def _ended(console: Console, rollout: rolling.Rollout, path: Path, n_boards: int) -> int:
    state = rollout.state
    proven = {p.board_id for _, p in rollout.proofs if p.passed}
    failures = {b: why for s in rollout.stages for b, why in s.failures}
    for board_id, why in failures.items():
        console.error(f"{board_id}: {why}")
    console.answer({"rollout": str(path), "state": state, **asdict(rollout)})
    refused = any(not p.passed for _, p in rollout.proofs)
    if state == rolling.DONE:
        console.line(f"{len(proven)} of {n_boards} boards run it, proven")
        console.next("fleetcut report")
        return BOARDS_FAILED if failures else DONE
    console.line(f"stopped: {state}; {len(proven)} of {n_boards} boards were proven")
    console.next("mend it, then the same command goes on; or fleetcut rollback NAME")
    return CHECK_FAILED if refused else BOARDS_FAILED
