"""Leases: one holder a board, whoever asks; an end without anybody's help; what keeps a board."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

from harness import holder
from harness.errors import LeaseError
from harness.leases import DRAINED, HEALTH_CHECK, LEASE_S, OPEN, QUARANTINED, Leases
from harness.store import Store


class FakeClock:
    """Seconds since a boot, and a wall clock that may be set."""

    def __init__(self) -> None:
        self.steady, self.unix = 1000.0, 1.7e9

    def steady_s(self, connection) -> float:
        return self.steady

    def unix_s(self, connection) -> float:
        return self.unix


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(address):
    opened = Store(address)
    yield opened
    opened.close()


def elsewhere(store, clock):
    """Held by a process of another machine, of which nothing can be known."""
    return Leases(store, clock=clock, holder=replace(holder.me(), host="elsewhere", user="ann"))


def test_a_board_has_one_holder_and_tokens_ascend(store):
    leases = Leases(store)
    first = leases.acquire("pi-1", "nightly")
    with pytest.raises(LeaseError, match=r"pi-1: is leased to .*@.* for nightly\. Next: wait"):
        leases.acquire("pi-1", "another")
    other = leases.acquire("pi-2", "nightly")
    leases.release([first])
    second = leases.acquire("pi-1", "another")
    assert second.token > first.token
    assert second.lab_id == other.lab_id == first.lab_id
    assert second.fence == f"{second.lab_id}:{second.token}"


def test_of_many_who_ask_at_once_exactly_one_gets_it(store):
    leases = Leases(store)

    def ask(_: int) -> bool:
        try:
            leases.acquire("pi-1", "race")
        except LeaseError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(16))) == 1


def test_a_silent_holders_lease_ends_by_itself(store, clock):
    theirs = elsewhere(store, clock)
    lease = theirs.acquire("pi-1", "x")
    leases = Leases(store, clock=clock)
    clock.steady += LEASE_S - 1
    assert theirs.renew([lease]) == set()
    clock.steady += LEASE_S - 1
    assert leases.uses(["pi-1"])[0].expires_in_s == 1.0
    clock.steady += 2
    assert leases.uses(["pi-1"])[0].holder is None
    ours = leases.acquire("pi-1", "y")
    assert ours.token > lease.token
    assert theirs.renew([lease]) == {lease.lease_id}
    theirs.release([lease])  # comes too late, and takes nothing from us
    assert leases.uses(["pi-1"])[0].purpose == "y"


def test_waiting_for_a_silent_holder_is_no_matter_of_patience(store, clock):
    elsewhere(store, clock).acquire("pi-1", "x")
    stopping = Ticking(clock, LEASE_S / 3)
    lease = Leases(store, clock=clock).acquire("pi-1", "y", stopping=stopping)
    assert lease.token == 2
    assert stopping.waits == 3


class Ticking(threading.Event):
    """Waiting takes no time, and the clock goes on."""

    def __init__(self, clock, step_s, meanwhile=lambda: None):
        super().__init__()
        self.clock, self.step_s, self.meanwhile, self.waits = clock, step_s, meanwhile, 0

    def wait(self, timeout=None):
        self.waits += 1
        self.clock.steady += self.step_s
        self.meanwhile()
        return False


def test_a_holder_that_still_beats_is_reported_at_its_first_beat(store, clock):
    theirs = elsewhere(store, clock)
    lease = theirs.acquire("pi-1", "x")
    stopping = Ticking(clock, 5.0, lambda: theirs.renew([lease]))
    with pytest.raises(LeaseError, match="leased to ann@elsewhere for x"):
        Leases(store, clock=clock).acquire("pi-1", "y", stopping=stopping)
    assert stopping.waits == 1


def test_the_lease_of_a_process_that_was_killed_here_is_free_at_once(store, address):
    script = (
        "import os, signal, sys\n"
        "from harness.leases import Leases; from harness.store import Store, address_of\n"
        "Leases(Store(address_of(sys.stdin.read()))).acquire('pi-1', 'x')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    text = str(address)
    if isinstance(address, sa.URL):
        text = address.render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", script], input=text, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert Leases(store).acquire("pi-1", "y").token == 2


def test_neither_a_step_of_the_wall_clock_nor_a_reboot_keeps_or_ends_a_lease(store, clock):
    leases = Leases(store, clock=clock)
    leases.acquire("pi-1", "x")
    clock.unix += 1e6
    with pytest.raises(LeaseError):
        leases.acquire("pi-1", "y")
    clock.unix -= 2e6
    with pytest.raises(LeaseError):
        leases.acquire("pi-1", "y")
    clock.steady = 10.0  # booted anew: what was given before ends later than anything could
    assert leases.acquire("pi-1", "y").token == 2


def test_a_reservation_is_for_one_person_and_ends(store, clock):
    leases = Leases(store, clock=clock)
    leases.reserve("pi-1", "ann", 3600)
    with pytest.raises(LeaseError, match=r"is reserved for ann for 3600 s more"):
        leases.acquire("pi-1", "x", wait_s=1e9)
    with pytest.raises(LeaseError, match="is reserved for ann"):
        leases.reserve("pi-1", "bob", 60)
    leases.reserve("pi-1", holder.me().user, 0) if holder.me().user == "ann" else None
    clock.unix += 3601
    leases.acquire("pi-1", "x")
    leases.reserve("pi-2", holder.me().user, 3600)
    leases.acquire("pi-2", "x")


def test_drained_and_quarantined_boards_are_not_leased_until_opened(store):
    leases = Leases(store)
    held = leases.acquire("pi-1", "x")
    leases.drain("pi-1", "moves on Monday", "ann")
    assert leases.renew([held]) == set()  # who is on it goes on
    leases.release([held])
    with pytest.raises(
        LeaseError, match=r"is drained by ann: moves on Monday\. Next: fleetcut rel"
    ):
        leases.acquire("pi-1", "y")
    leases.quarantine("pi-2", "fan is broken")
    with pytest.raises(LeaseError, match="is quarantined by .*: fan is broken"):
        leases.acquire("pi-2", "y")
    assert [use.state for use in leases.uses(["pi-1", "pi-2", "pi-3"])] == [
        DRAINED, QUARANTINED, OPEN
    ]  # fmt: skip
    for board_id in ("pi-1", "pi-2"):
        leases.open(board_id)
        leases.acquire(board_id, "y")


def test_a_revoked_lease_is_lost_and_the_next_token_is_higher(store):
    leases = Leases(store)
    held = leases.acquire("pi-1", "x")
    leases.open("pi-1", revoke=True)
    assert leases.renew([held]) == {held.lease_id}
    assert leases.acquire("pi-1", "y").token > held.token


def test_a_health_check_quarantines_and_lifts_only_its_own_quarantine(store, clock):
    leases = Leases(store, clock=clock)
    leases.judge("pi-1", healthy=False, fact="disk: 3 MiB free")
    use = leases.uses(["pi-1"])[0]
    assert (use.state, use.state_reason, use.state_by) == (
        QUARANTINED, "disk: 3 MiB free", HEALTH_CHECK
    )  # fmt: skip
    assert (use.healthy, use.seen_unix_s) == (False, None)
    leases.judge("pi-1", healthy=True, fact="all well")
    use = leases.uses(["pi-1"])[0]
    assert (use.state, use.healthy, use.seen_unix_s) == (OPEN, True, clock.unix)
    leases.quarantine("pi-1", "fan is broken", "ann")
    leases.judge("pi-1", healthy=True, fact="all well")
    assert leases.uses(["pi-1"])[0].state_reason == "fan is broken"


def test_two_labs_are_told_apart(store, tmp_path):
    other = Store(tmp_path / "other.db")
    assert Leases(store).acquire("pi-1", "x").lab_id != Leases(other).acquire("pi-1", "x").lab_id
    other.close()


def test_a_process_with_a_number_that_was_used_before_is_another():
    us = holder.me()
    assert holder.lives_here(us.to_text())
    assert not holder.is_gone(us.to_text())
    assert holder.is_gone(replace(us, start_ticks=us.start_ticks - 1).to_text())
    assert holder.is_gone(replace(us, boot_id="another").to_text())
    theirs = replace(us, host="elsewhere", boot_id="another")
    assert not holder.is_gone(theirs.to_text())
    assert not holder.lives_here(theirs.to_text())
    for text in (None, "", "{}", json.dumps([1])):
        assert not holder.is_gone(text)
    assert os.getpid() == us.pid
