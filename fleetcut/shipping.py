"""Artifacts on their way to boards: sign, deploy at once or by shares, verify, roll back.

Input: parsed arguments as plain values. Output: an exit status; a Console says the rest.
Exit status: 0 done, 1 a check or a proof failed, 2 usage, 3 some boards failed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from device_agents.contract import Release, StoppingRule, to_plain
from fleetcut.console import Console
from fleetcut.staging import Fleet, Shares, ask_all, machines_of, staged
from fleetcut.verbs import BOARDS_FAILED, CHECK_FAILED, DONE, USAGE, observe_run
from harness import deploy as deploying
from harness import signing
from harness.bundle import build_bundle
from harness.deploy import LocalArtifact
from harness.executor import Executor
from harness.inventory import Board, Inventory, load_inventory
from harness.ssh import SshTransport
from harness.store import Store, StoreAddress
from harness.verify import one_of_each_cluster
from harness.verify import verify as verify_artifacts


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
        return staged(console, fleet, artifacts, boards, signers, shares)
    with closing(Store(shares.store)) as store:
        failures = deploy_all(console, artifacts, boards, signers, store)
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
        unsigned = [a.name for a in artifacts if a.signed is None]
        what = f"{', '.join(unsigned)}: unsigned" if unsigned else "signatures are not checked"
        console.error(
            f"WARNING: {what}: {inventory.path} names no allowed_signers, so that anybody's "
            "artifacts are deployed. Next: docs/deploying.md"
        )


def deploy_all(
    console: Console,
    artifacts: Sequence[LocalArtifact],
    boards: Sequence[Board],
    signers: Path | None,
    store: Store,
) -> dict[str, str]:
    """Deploy every artifact on every board, leased in the store. Returns board_id → failure."""
    done, failures = ask_all(
        console,
        f"deploy {len(artifacts)} artifacts to {len(boards)} boards",
        boards,
        lambda agent: deploying.deploy(agent, artifacts, signers),
        store,
    )
    for note in sorted({d.note for all_of in done.values() for d in all_of if d.note and signers}):
        at = [b for b, all_of in done.items() if any(d.note == note for d in all_of)]
        console.error(f"WARNING: {', '.join(at)}: {note}")
    return failures


def rollback(console: Console, fleet: Fleet, store_path: StoreAddress, name: str) -> int:
    """Put a name back to the version that boards kept before it."""
    boards = load_inventory(fleet.inventory).select(fleet.board_ids)
    with closing(Store(store_path)) as store:
        answers, failures = ask_all(
            console,
            f"roll {name} back on {len(boards)} boards",
            boards,
            lambda agent: deploying.roll_back(agent, name) or "",
            store,
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
    machine_of = machines_of(console, artifacts, boards)
    with console.steps(f"verify {len(artifacts)} artifacts on {len(boards)} boards") as step:
        executor = Executor(
            store,
            build_bundle(),
            SshTransport,
            observe=lambda p: observe_run(console, step, names, p),
        )
        releases = verify_artifacts(
            artifacts, boards, cluster_of, executor, store, campaign_id, stopping, machine_of
        )
    for artifact in artifacts:
        _say_release(console, artifact, releases.get(artifact.artifact_id))
    return tuple(releases.values())


def _say_release(console: Console, artifact: LocalArtifact, release: Release | None) -> None:
    name = f"{artifact.name} {artifact.artifact_id[:12]}"
    if release is None:
        machine = artifact.manifest.target.machine
        console.line(f"{name}: not verified; none of these boards is {machine}, its machine")
        return
    missing = ", ".join(release.unproven_clusters)
    also = f"; no board of cluster {missing} was asked" if missing else ""
    console.line(f"{name}: {release.state}{also}")
    for proof in release.proofs:
        if proof.reason is not None:
            console.error(f"{proof.board_id}: {artifact.name}: {proof.reason}")
