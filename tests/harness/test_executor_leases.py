"""Measuring under leases: who holds a board, who comes back too late, what was left running."""

import threading
from dataclasses import replace

import pytest

from harness.bundle import build_bundle
from harness.errors import LeaseError, LeaseLostError
from harness.executor import Executor, Progress, Retries, session_id_of
from harness.leases import Leases
from harness.session import AgentSession
from harness.ssh import SshTransport
from harness.store import Store
from harness.visit import Purpose, visit
from tests.harness.work_samples import work


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "lab.db")
    yield opened
    opened.close()


def test_a_board_that_somebody_holds_is_left_alone_and_the_others_are_measured(
    request, inventory, model, store
):
    held, free = inventory.boards
    asked = work(request, [replace(b, exclusive_group=None) for b in (held, free)], model)
    leased = Leases(store).acquire(held.board_id, "another campaign")
    outcomes = Executor(store, build_bundle(), SshTransport).measure(asked)
    assert isinstance(outcomes[0].failure, LeaseError)
    assert outcomes[0].failure.category == "infrastructure"
    assert (outcomes[1].stored, outcomes[1].failure) == (2, None)
    Leases(store).release([leased])
    assert Executor(store, build_bundle(), SshTransport).measure(asked)[0].failure is None
    assert [use.holder for use in Leases(store).uses([held.board_id, free.board_id])] == [None] * 2


def test_a_group_is_leased_like_a_board(request, inventory, model, store):
    boards = [replace(b, exclusive_group="carrier") for b in inventory.boards]
    Leases(store).acquire("group:carrier", "another campaign on another board of it")
    outcomes = Executor(store, build_bundle(), SshTransport).measure(work(request, boards, model))
    assert all(isinstance(o.failure, LeaseError) for o in outcomes)


def test_what_a_dead_controller_left_running_gives_way_and_loses_nothing(
    request, board, model, store
):
    old = work(request, [board], model, 20)
    new = replace(
        old, campaign_id="new", specs=tuple(replace(s, campaign_id="new") for s in old.specs[:2])
    )
    lease = Leases(store).acquire(board.board_id, "old")
    transport = SshTransport(board)
    agent = AgentSession(board, transport, build_bundle(), lease.fence)
    agent.push_agent()
    agent.push_blobs(old.blobs)
    agent.start(session_id_of(old.campaign_id, board.board_id), old.specs)
    transport.close()
    Leases(store).release([lease])  # as its end by expiry
    (outcome,) = Executor(store, build_bundle(), SshTransport).measure(new)
    assert (outcome.stored, outcome.failure) == (2, None)
    (outcome,) = Executor(store, build_bundle(), SshTransport).measure(old)
    assert (outcome.stored, outcome.failure) == (20, None)


def test_another_labs_session_is_waited_for_and_not_ended(request, board, model, store, tmp_path):
    old = work(request, [board], model, 200)
    other_lab = Store(tmp_path / "other.db")
    lease = Leases(other_lab).acquire(board.board_id, "theirs")
    other_lab.close()
    transport = SshTransport(board)
    agent = AgentSession(board, transport, build_bundle(), lease.fence)
    agent.push_agent()
    agent.push_blobs(old.blobs)
    session = session_id_of(old.campaign_id, board.board_id)
    agent.start(session, old.specs)
    ours = replace(
        old, campaign_id="ours", specs=tuple(replace(s, campaign_id="ours") for s in old.specs[:1])
    )
    (outcome,) = Executor(store, build_bundle(), SshTransport).measure(ours)
    assert outcome.failure is not None
    assert f"session {session} is running there" in str(outcome.failure)
    agent.stop(session)
    transport.close()


def test_a_controller_whose_lease_was_given_away_changes_nothing_more(board, model, store):
    transports = [SshTransport(board) for _ in range(2)]
    leases = Leases(store)
    old = leases.acquire(board.board_id, "old")
    leases.open(board.board_id, revoke=True)
    new = leases.acquire(board.board_id, "new")
    agents = [
        AgentSession(board, transport, build_bundle(), lease.fence)
        for transport, lease in zip(transports, (old, new), strict=True)
    ]
    for agent in agents:
        agent.push_agent()
    agents[1].ack("never-there", 1)
    with pytest.raises(LeaseLostError, match=f"lease {old.token} of this board has ended"):
        agents[0].stop("never-there")
    for transport in transports:
        transport.close()


def test_a_lease_that_is_lost_in_mid_campaign_is_asked_for_again(request, board, model, store):
    asked = work(request, [board], model, 12)
    leases = Leases(store, lease_s=0.4)
    lost = threading.Event()

    def revoke(progress: Progress) -> None:
        if progress.record and not lost.is_set():
            lost.set()
            leases.open(board.board_id, revoke=True)

    executor = Executor(
        store, build_bundle(), SshTransport, observe=revoke, leases=leases,
        retries=Retries(first_delay_s=0.01, largest_delay_s=0.02),
    )  # fmt: skip
    (outcome,) = executor.measure(asked)
    assert (outcome.stored, outcome.failure) == (12, None)


def test_a_model_that_was_damaged_on_the_board_is_pushed_again(request, board, model, store):
    asked = work(request, [board], model, 2)
    executor = Executor(store, build_bundle(), SshTransport)
    assert executor.measure(replace(asked, specs=asked.specs[:1]))[0].failure is None
    (digest,) = asked.blobs
    home = board.key_file.parent / "boards" / board.board_id / "home"
    (home / ".fleetcut" / "blobs" / digest).write_bytes(b"damaged")
    (outcome,) = executor.measure(asked)
    assert outcome.failure is None
    assert [s.record.error for s in store.runs()] == [None, None]


def test_a_visit_with_a_purpose_needs_a_lease_and_gives_it_back(board, store):
    purpose = Purpose(Leases(store), "a deployment")
    held = Leases(store).acquire(board.board_id, "nightly")
    (found,) = visit([board], SshTransport, build_bundle(), AgentSession.probe, purpose=purpose)
    assert isinstance(found.failure, LeaseError)
    Leases(store).release([held])
    (found,) = visit([board], SshTransport, build_bundle(), AgentSession.probe, purpose=purpose)
    assert found.failure is None
    assert Leases(store).uses([board.board_id])[0].holder is None
