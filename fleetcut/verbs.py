"""What each verb does with boards and records: one function a verb.

Input: parsed arguments as plain values. Output: an exit status; a Console says the rest.
Exit status: 0 done, 1 a check failed, 2 usage, 3 some boards failed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from device_agents.contract import DeviceProfile, MeasurementRecord, to_plain
from fleetcut.console import Console, Step
from harness.bundle import build_bundle
from harness.campaign import again, load_campaign
from harness.executor import BoardOutcome, Executor, Progress, Work
from harness.inventory import load_inventory
from harness.session import AgentSession, Check
from harness.ssh import SshTransport, fetch_host_key
from harness.statistics import median_ns
from harness.store import Store, StoreAddress
from harness.trust import write_trust
from harness.visit import visit

DONE, CHECK_FAILED, USAGE, BOARDS_FAILED = 0, 1, 2, 3


def check(console: Console, inventory_path: Path, board_ids: Sequence[str] | None) -> int:
    """Say per board what works and what to do about what does not."""
    boards = load_inventory(inventory_path).select(board_ids)
    with console.steps(f"check {len(boards)} boards"):
        visits = visit(boards, SshTransport, build_bundle(), AgentSession.check)
    rows: list[Sequence[str]] = []
    for result in visits:
        if result.failure is not None:
            rows.append((result.board_id, "SSH", "FAILED", result.failure.fact, _next(result)))
        for c in result.answer or ():
            rows.append((result.board_id, c.name, "ok" if c.ok else "FAILED", c.fact, c.next_step))
    console.table("Boards", ("board", "what", "", "fact", "next step"), rows)
    console.answer(
        [
            {
                "board_id": v.board_id,
                "reachable": v.failure is None,
                "failure": str(v.failure) if v.failure else None,
                "checks": [asdict(c) for c in v.answer or ()],
            }
            for v in visits
        ]
    )
    failed_checks = [c for v in visits for c in v.answer or () if not c.ok]
    if any(v.failure for v in visits):
        console.next("mend the boards that could not be reached, then fleetcut check")
        return BOARDS_FAILED
    if failed_checks:
        console.next("mend what failed, then fleetcut check")
        return CHECK_FAILED
    console.next("fleetcut measure campaign.yaml")
    return DONE


def _next(result: object) -> str:
    failure = getattr(result, "failure", None)
    return failure.next_step if failure is not None else ""


def trust(console: Console, inventory_path: Path, board_id: str, *, yes: bool) -> int:
    """Show a board's host key, and write it into the inventory when a person agrees."""
    board = load_inventory(inventory_path).board(board_id)
    found = fetch_host_key(board)
    console.line(f"{board_id} at {board.host}:{board.port} shows the host key {found}")
    if board.host_key_sha256 == found:
        console.line("It is the one in the inventory.")
        return DONE
    console.line(f"The inventory has {board.host_key_sha256 or 'none'}.")
    console.line("Compare it on the board: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub")
    if not yes and not _agreed():
        console.line("Nothing was changed.")
        return CHECK_FAILED
    write_trust(inventory_path, board_id, found)
    console.next(f"fleetcut check {board_id}")
    return DONE


def _agreed() -> bool:
    try:
        return input("Trust it? Type yes: ").strip() == "yes"
    except EOFError:
        return False


def probe(
    console: Console,
    inventory_path: Path,
    board_ids: Sequence[str] | None,
    target_path: Path | None = None,
) -> int:
    """Print what each board is. target_path: also write one board down as a target to build for."""
    boards = load_inventory(inventory_path).select(board_ids)
    with console.steps(f"probe {len(boards)} boards"):
        visits = visit(boards, SshTransport, build_bundle(), AgentSession.probe)
    for v in visits:
        if v.failure is not None:
            console.error(str(v.failure))
    rows = [_profile_row(v.board_id, v.answer) for v in visits if v.answer is not None]
    columns = ("board", "model", "machine", "cores", "kernel", "Python", "runtimes", "simulated")
    console.table("Profiles", columns, rows)
    console.answer({v.board_id: to_plain(v.answer) for v in visits})
    if any(v.failure for v in visits):
        console.next("fleetcut check")
        return BOARDS_FAILED
    if target_path is None:
        console.next("fleetcut measure campaign.yaml")
        return DONE
    return _write_target(console, target_path, {v.board_id: v.answer for v in visits})


def _write_target(
    console: Console, path: Path, profiles: Mapping[str, DeviceProfile | None]
) -> int:
    if len(profiles) != 1:
        console.error(
            f"{path} holds one target and {len(profiles)} boards were probed. "
            f"Next: fleetcut probe {next(iter(profiles), 'BOARD')} --target {path}"
        )
        return USAGE
    (profile,) = profiles.values()
    assert profile is not None, "a visit without failure has an answer"
    # Here, for it brings numpy and the builders: no other verb of a rack needs them.
    from compiler.targets.board_file import board_of_profile

    text = board_of_profile(path.stem, profile).to_yaml()
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        console.error(f"{path}: {error.strerror}. Next: name a file that is not there yet")
        return USAGE
    console.line(f"target {path}")
    console.next(f"write 'targets: [{{target: {os.path.relpath(path)}}}]' in recipe.yaml")
    return DONE


def _profile_row(board_id: str, p: DeviceProfile) -> Sequence[str]:
    runtimes = ", ".join(f"{name} {version}" for name, version in p.runtime_versions) or "none"
    simulated = "simulated" if p.simulated else "no"
    return (
        board_id, p.model or "-", p.machine, str(p.cores), p.kernel, p.python, runtimes, simulated
    )  # fmt: skip


def measure(
    console: Console,
    inventory_path: Path,
    campaign_path: Path,
    store_path: StoreAddress,
    tries: int,
    wait_s: float = 0.0,
) -> int:
    """Measure a campaign; what is stored already is not measured again.

    wait_s: for a board that another holds and uses.
    """
    inventory = load_inventory(inventory_path)
    campaign = load_campaign(campaign_path, inventory)
    work = Work(
        campaign.campaign_id,
        campaign.boards,
        campaign.specs,
        campaign.blobs(),
        campaign.model_names(),
    )
    store = Store(store_path)
    try:
        title = f"measure {campaign.campaign_id}"
        outcomes = run_work(console, store, work, title, tries=tries, wait_s=wait_s)
        invalid = [s for s in store.summaries([campaign.campaign_id]) if not s.valid]
    finally:
        store.close()
    report_outcomes(console, outcomes)
    if invalid:
        console.line(f"{len(invalid)} runs are not valid; fleetcut results shows why")
    console.answer(
        {
            "campaign_id": campaign.campaign_id,
            "boards": [
                {
                    "board_id": o.board_id,
                    "stored": o.stored,
                    "known_before": o.known_before,
                    "failure": str(o.failure) if o.failure else None,
                    "category": o.failure.category if o.failure else None,
                }
                for o in outcomes
            ],
            "invalid": len(invalid),
        }
    )
    failed = any(o.failure for o in outcomes)
    console.next("the same command again" if failed else f"fleetcut export --store {store_path}")
    return BOARDS_FAILED if failed else DONE


def run_work(
    console: Console, store: Store, work: Work, title: str, *, tries: int = 1, wait_s: float = 0.0
) -> tuple[BoardOutcome, ...]:
    """Drive an Executor over SSH with progress; runs that do not count are tried again.

    tries: in all; 1 measures each run once. An error is as good a reason as an invalid verdict:
    what caused it may have passed. wait_s: for a board that another holds and uses.
    """
    outcomes = {o.board_id: o for o in _run_once(console, store, work, title, wait_s)}
    for attempt in range(1, tries):
        ids = [spec.run_id for spec in work.specs]
        bad = {i for i, record in store.records(ids).items() if not _counts(record)}
        # A board that failed is left alone, and keeps no other from trying again.
        boards = tuple(b for b in work.boards if outcomes[b.board_id].failure is None)
        alive = {board.board_id for board in boards}
        specs = [spec for spec in again(work.specs, bad, attempt) if spec.board_id in alive]
        if not specs:
            break
        work = replace(work, boards=boards, specs=tuple(specs))
        title = f"{len(specs)} runs again, try {attempt + 1}"
        for o in _run_once(console, store, work, title, wait_s):
            before = outcomes[o.board_id]
            outcomes[o.board_id] = replace(
                before, stored=before.stored + o.stored, failure=o.failure
            )
    return tuple(outcomes.values())


def _counts(record: MeasurementRecord) -> bool:
    return record.verdict is not None and record.verdict.valid


def _run_once(
    console: Console, store: Store, work: Work, title: str, wait_s: float
) -> tuple[BoardOutcome, ...]:
    names = dict(work.model_names)
    with console.steps(title) as step:
        executor = Executor(
            store,
            build_bundle(),
            SshTransport,
            observe=lambda p: observe_run(console, step, names, p),
            wait_s=wait_s,
        )
        return executor.measure(work)


def observe_run(console: Console, step: Step, names: dict[str, str], progress: Progress) -> None:
    if progress.note is not None:
        console.error(f"{progress.board_id}: {progress.note}")
    record = progress.record
    if record is None:
        return
    name = names.get(record.spec.model_sha256, record.spec.model_sha256[:12])
    what = f"{median_ns(record.latency_ns) / 1e6:.2f} ms" if record.latency_ns else "no latency"
    if record.error is not None:
        what = f"{record.error.kind}: {record.error.fact}"
    step(progress.done, progress.total, f"{progress.board_id} {name} {what}")


def report_outcomes(console: Console, outcomes: Sequence[BoardOutcome]) -> None:
    """A line for each board that did not finish, and one for all that did."""
    for outcome in outcomes:
        if outcome.failure is not None:
            console.error(str(outcome.failure))
    stored = sum(o.stored for o in outcomes)
    known = sum(o.known_before for o in outcomes)
    console.line(f"{stored} runs measured, {known} were there already, on {len(outcomes)} boards")


__all__ = ["BOARDS_FAILED", "CHECK_FAILED", "DONE", "USAGE", "Check"]
