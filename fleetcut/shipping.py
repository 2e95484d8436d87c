"""Artifacts on their way to boards: sign, deploy at once or by shares, verify, roll back.

Input: parsed arguments as plain values. Output: an exit status; a Console says the rest.
Exit status: 0 done, 1 a check or a proof failed, 2 usage, 3 some boards failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from device_agents.contract import BoardProof, Release, StoppingRule, to_plain
from fleetcut.console import Console
from fleetcut.verbs import BOARDS_FAILED, CHECK_FAILED, DONE, USAGE, observe_run
from harness import deploy as deploying
from harness import rollout as rolling
from harness import signing
from harness.bundle import build_bundle
from harness.deploy import LocalArtifact
from harness.executor import Executor, Retries
from harness.inventory import Board, Inventory, load_inventory
from harness.session import AgentSession
from harness.ssh import SshTransport
from harness.store import Store, StoreAddress
from harness.verify import one_of_each_cluster, release_of, write_release
from harness.verify import prove as prove_artifacts
from harness.verify import verify as verify_artifacts
from harness.visit import visit_again

A = TypeVar("A")


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
    store: Path


def sign(
    console: Console,
    folders: Sequence[Path],
    signers: Path | None,
    key: Path,
    name: str | None,
    serial: int | None,
) -> int:
    """Sign artifacts, or a changed file of signers."""
    if bool(folders) == (signers is not None) or (name is not None and len(folders) != 1):
        console.error("give artifacts, or --signers FILE alone; --name goes with one artifact")
        return USAGE
    key = key.expanduser()
    if signers is not None:
        statements = [signing.sign_signers(signers, key, serial)]
    else:
        artifacts = [deploying.load_artifact(folder) for folder in folders]
        statements = [
            signing.sign_artifact(
                a.folder, a.artifact_id, name or deploying.default_name(a.manifest), key, serial
            )
            for a in artifacts
        ]
    for said in statements:
        console.line(f"{said.name} is {said.sha256[:12]} as of serial {said.serial}: signed")
    console.answer([to_plain(said) for said in statements])
    named = " ".join(map(str, folders)) or "ARTIFACT"
    console.next(f"fleetcut deploy {named}")
    return DONE


def deploy(
    console: Console,
    fleet: Fleet,
    folders: Sequence[Path],
    signers: Path | None,
    shares: Shares,
) -> int:
    """Put artifacts on boards, all at once or share by share; a refused one stays here."""
    artifacts = tuple(deploying.load_artifact(folder) for folder in folders)
    for artifact in artifacts:
        deploying.refuse_refused(artifact)
    deploying.require_names_apart(artifacts)
    inventory = load_inventory(fleet.inventory)
    signers = signers or inventory.allowed_signers
    _say_who(console, artifacts, deploying.vouched(artifacts, signers), inventory)
    boards = inventory.select(fleet.board_ids)
    if shares.stages is not None:
        return _staged(console, fleet, artifacts, boards, signers, shares)
    failures = deploy_all(console, artifacts, boards, signers)
    console.answer(
        {
            "artifacts": [a.artifact_id for a in artifacts],
            "boards": [b.board_id for b in boards],
            "failures": failures,
        }
    )
    named = " ".join(str(folder) for folder in folders[:1])
    console.next(f"fleetcut verify {named} --inventory {fleet.inventory}")
    return BOARDS_FAILED if failures else DONE


def _say_who(
    console: Console,
    artifacts: Sequence[LocalArtifact],
    signed_by: Sequence[str | None],
    inventory: Inventory,
) -> None:
    for artifact, signer in zip(artifacts, signed_by, strict=True):
        if signer is not None:
            console.line(f"{artifact.name} {artifact.artifact_id[:12]}: signed by {signer}")
    if artifacts and signed_by[0] is None:
        what = "is signed by" if all(a.signed for a in artifacts) else "may be from"
        console.error(
            f"WARNING: what is deployed {what} nobody in particular: {inventory.path} names no "
            "allowed_signers. Next: docs/deploying.md"
        )


def deploy_all(
    console: Console,
    artifacts: Sequence[LocalArtifact],
    boards: Sequence[Board],
    signers: Path | None = None,
) -> dict[str, str]:
    """Deploy every artifact on every board. Returns board_id → failure."""
    done, failures = _ask_all(
        console,
        f"deploy {len(artifacts)} artifacts to {len(boards)} boards",
        boards,
        lambda agent: deploying.deploy(agent, artifacts, signers),
    )
    for note in sorted({d.note for all_of in done.values() for d in all_of if d.note and signers}):
        at = [b for b, all_of in done.items() if any(d.note == note for d in all_of)]
        console.error(f"WARNING: {', '.join(at)}: {note}")
    return failures


def _ask_all(
    console: Console, title: str, boards: Sequence[Board], ask: Callable[[AgentSession], A]
) -> tuple[dict[str, A], dict[str, str]]:
    """board_id → answer, board_id → failure; what the network failed is tried again."""
    with console.steps(title) as step:
        visits = visit_again(
            boards,
            SshTransport,
            build_bundle(),
            ask,
            lambda done, last: step(done, len(boards), last),
            Retries(),
        )
    answers = {v.board_id: v.answer for v in visits if v.answer is not None}
    failures = {v.board_id: str(v.failure) for v in visits if v.failure is not None}
    for failure in failures.values():
        console.error(failure)
    return answers, failures


def _staged(
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
    switched: dict[str, tuple[deploying.Deployment, ...]] = {}

    def put(chosen: Sequence[Board]) -> Mapping[str, str]:
        title = f"deploy {len(artifacts)} artifacts to {len(chosen)} boards"
        done, failures = _ask_all(
            console, title, chosen, lambda agent: deploying.deploy(agent, artifacts, signers)
        )
        switched.update(done)
        return failures

    def back(chosen: Sequence[Board]) -> Mapping[str, str]:
        names = {
            board.board_id: [d for d in switched.get(board.board_id, ()) if d.previous is not None]
            for board in chosen
        }

        def one(agent: AgentSession) -> bool:
            for d in names[agent.board.board_id]:
                if d.previous != d.artifact_id:
                    deploying.roll_back(agent, d.name, d.artifact_id)
            return True

        return _ask_all(console, f"roll back {len(chosen)} boards", chosen, one)[1]

    store = Store(shares.store)
    try:
        steps = rolling.Steps(
            deploy=put,
            prove=lambda chosen, name: _prove(console, store, fleet, artifacts, chosen, name),
            roll_back=back if shares.roll_back else None,
            observe=lambda rollout: _show(console, rollout),
        )
        rollout = rolling.run(rolling.resumed(planned, path), boards, steps, path, shares.may_fail)
    finally:
        store.close()
    for artifact in artifacts:
        proofs = rollout.proofs_of(artifact.artifact_id)
        if proofs:
            write_release(artifact, release_of(artifact, proofs))
    return _ended(console, rollout, path, len(boards))


def _prove(
    console: Console,
    store: Store,
    fleet: Fleet,
    artifacts: tuple[LocalArtifact, ...],
    boards: Sequence[Board],
    name: str,
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
            artifacts, tuple(boards), fleet.cluster_of, executor, store, name, StoppingRule()
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


def rollback(console: Console, fleet: Fleet, name: str) -> int:
    """Put a name back to the version that boards kept before it."""
    boards = load_inventory(fleet.inventory).select(fleet.board_ids)
    answers, failures = _ask_all(
        console,
        f"roll {name} back on {len(boards)} boards",
        boards,
        lambda agent: deploying.roll_back(agent, name) or "",
    )
    for board_id, now in answers.items():
        said = f"runs {now[:12]} again" if now else f"has nothing called {name}"
        console.line(f"{board_id}: {said}")
    console.answer(
        {
            "name": name,
            "boards": {b: now or None for b, now in answers.items()},
            "failures": failures,
        }
    )
    console.next("fleetcut verify ARTIFACT, the one that runs now")
    return BOARDS_FAILED if failures or not all(answers.values()) else DONE


def verify(
    console: Console,
    fleet: Fleet,
    store_path: StoreAddress,
    folders: Sequence[Path],
    seconds: float,
) -> int:
    """Prove deployed artifacts: golden output, latency, throttling; release or refuse each.

    On the named boards; without names on one of every cluster. seconds: each is timed at least
    that long, for heat to show.
    """
    artifacts = tuple(deploying.load_artifact(folder) for folder in folders)
    boards = load_inventory(fleet.inventory).select(fleet.board_ids)
    if not fleet.board_ids:
        boards = one_of_each_cluster(boards, fleet.cluster_of, fleet.representatives)
    stopping = _stopping(seconds)
    # A proof is of now: the same artifact verified again is measured again.
    campaign_id = f"verify-{time.time_ns():x}"
    store = Store(store_path)
    try:
        releases = verify_all(
            console, store, artifacts, boards, fleet.cluster_of, campaign_id, stopping
        )
    finally:
        store.close()
    console.answer([{"artifact_id": r.artifact_id, **to_plain(r)} for r in releases])
    refused = any(r.state == "refused" for r in releases)
    console.next("fleetcut report" if not refused else "see the reasons above; fleetcut check")
    return CHECK_FAILED if refused else DONE


def _stopping(seconds: float) -> StoppingRule:
    rule = StoppingRule()
    if seconds <= 0:
        return rule
    return StoppingRule(
        samples_max=100_000, min_seconds=seconds, max_seconds=max(rule.max_seconds, seconds)
    )


def verify_all(
    console: Console,
    store: Store,
    artifacts: tuple[LocalArtifact, ...],
    boards: tuple[Board, ...],
    cluster_of: Mapping[str, str],
    campaign_id: str,
    stopping: StoppingRule = StoppingRule(),
) -> tuple[Release, ...]:
    """Run every proof and print each artifact's state with its reasons."""
    names = {a.manifest.file(a.manifest.model_file).sha256: a.name for a in artifacts}
    with console.steps(f"verify {len(artifacts)} artifacts on {len(boards)} boards") as step:
        executor = Executor(
            store,
            build_bundle(),
            SshTransport,
            observe=lambda p: observe_run(console, step, names, p),
        )
        releases = verify_artifacts(
            artifacts, boards, cluster_of, executor, store, campaign_id, stopping
        )
    for artifact, release in zip(artifacts, releases, strict=True):
        missing = ", ".join(release.unproven_clusters)
        also = f"; no board of cluster {missing} was asked" if missing else ""
        console.line(f"{artifact.name} {artifact.artifact_id[:12]}: {release.state}{also}")
        for proof in release.proofs:
            if proof.reason is not None:
                console.error(f"{proof.board_id}: {artifact.name}: {proof.reason}")
    return releases
