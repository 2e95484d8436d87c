"""A campaign on real SSH boards: nothing lost, nothing twice, nothing left running."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import device_agents
from harness.bundle import build_bundle
from harness.campaign import again, load_campaign
from harness.campaign_axes import is_canary
from harness.errors import StableBoardError, TransientBoardError
from harness.executor import Executor, Progress, Retries, Work, session_id_of
from harness.session import AgentSession
from harness.ssh import SshTransport
from harness.store import Store
from tests.harness.work_samples import work


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "lab.db")
    yield opened
    opened.close()


def test_every_run_comes_back_once_and_a_second_call_measures_nothing(
    request, inventory, model, store
):
    seen: list[Progress] = []
    executor = Executor(store, build_bundle(), SshTransport, observe=seen.append)
    asked = work(request, inventory.boards, model)
    outcomes = executor.measure(asked)
    assert [(o.stored, o.failure) for o in outcomes] == [(2, None), (2, None)]
    assert {r.record.run_id for r in store.runs()} == {s.run_id for s in asked.specs}
    assert all(r.record.simulated for r in store.runs())
    assert all(r.record.error is None for r in store.runs())
    assert [p.done for p in seen if p.record] == [1, 2, 3, 4]
    again = executor.measure(asked)
    assert [(o.stored, o.known_before) for o in again] == [(0, 2), (0, 2)]
    assert len(store.profiles()) == 2


def test_boards_of_one_group_are_never_timed_at_once(request, inventory, model, store):
    boards = [replace(b, exclusive_group="one") for b in inventory.boards]
    order: list[str] = []
    executor = Executor(
        store, build_bundle(), SshTransport, observe=lambda p: order.append(p.board_id)
    )
    executor.measure(work(request, boards, model))
    assert order in (
        [a for b in p for a in (b, b)] for p in (["vb-01", "vb-02"], ["vb-02", "vb-01"])
    )


def test_a_model_that_no_runtime_can_load_is_a_record_with_its_reason(
    request, board, tmp_path, store
):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no model")
    Executor(store, build_bundle(), SshTransport).measure(work(request, [board], broken, 1))
    (stored,) = store.runs()
    assert stored.record.error is not None
    assert stored.record.error.kind == "model"


def test_one_board_that_is_gone_neither_hides_nor_stops_the_other(
    request, inventory, stranger, model, store
):
    outcomes = Executor(store, build_bundle(), SshTransport).measure(
        work(request, [stranger, inventory.boards[1]], model)
    )
    assert isinstance(outcomes[0].failure, StableBoardError)
    assert outcomes[1].failure is None
    assert outcomes[1].stored == 2


class Flaky:
    """Connects really, but the connection breaks once after a number of journal lines."""

    def __init__(self, board, break_after: int) -> None:
        self.inner = SshTransport(board)
        self.break_after = break_after

    def converse(self, argv):
        stream = self.inner.converse(argv)
        take, journal = stream.line, []

        def line(*, silence_s):
            found = take(silence_s=silence_s)
            if b'"event"' in found:
                journal.append(found)
            if len(journal) > self.break_after:
                self.inner.close()
                raise TransientBoardError("b", "the connection was cut", "wait")
            return found

        stream.line = line
        return stream

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("break_after", [0, 1, 3])
def test_a_cut_connection_is_taken_up_again(request, board, model, store, break_after):
    connections: list[object] = []

    def connect(board):
        transport = Flaky(board, break_after) if not connections else SshTransport(board)
        connections.append(transport)
        return transport

    executor = Executor(
        store, build_bundle(), connect, retries=Retries(first_delay_s=0.01, largest_delay_s=0.02)
    )
    asked = work(request, [board], model, 3)
    (outcome,) = executor.measure(asked)
    assert outcome.failure is None
    assert len(connections) == 2
    assert sorted(r.record.run_id for r in store.runs()) == sorted(s.run_id for s in asked.specs)


def test_a_board_keeps_the_campaigns_order_with_its_canaries_also_when_cut_and_again(
    inventory, model, store, tmp_path
):
    path = tmp_path / "campaign.yaml"
    path.write_text(
        "version: 1\ncampaign_id: in-order\nseed: 5\nboards: {ids: [vb-01]}\n"
        f"models: [{{name: tiny, path: {model}}}]\nruntimes: [ort]\nthreads: [1, 2]\nrepeats: 2\n"
        "conditions: {governor: [null, performance]}\ncanary: {model: tiny, every: 3}\n"
        "stopping: {warmup_min: 1, warmup_max: 5, samples_min: 5, samples_max: 10}\n"
    )
    campaign = load_campaign(path, inventory)
    asked = Work(
        campaign.campaign_id,
        campaign.boards,
        campaign.specs,
        campaign.blobs(),
        campaign.model_names(),
    )
    connections: list[object] = []

    def connect(board):
        transport = Flaky(board, 4) if not connections else SshTransport(board)
        connections.append(transport)
        return transport

    retries = Retries(first_delay_s=0.01, largest_delay_s=0.02)
    executor = Executor(store, build_bundle(), connect, retries=retries)
    executor.measure(asked)
    assert [r.record.run_id for r in store.runs()] == [s.run_id for s in asked.specs]
    anew = again(asked.specs, {s.run_id for s in asked.specs if is_canary(s)}, 1)
    executor.measure(replace(asked, specs=tuple(anew)))
    assert [r.record.run_id for r in store.runs()][len(asked.specs) :] == [s.run_id for s in anew]
    assert len(anew) == 4


def test_transient_errors_are_given_up_in_the_end(request, board, model, store):
    attempts: list[int] = []

    def connect(board):
        attempts.append(1)
        raise TransientBoardError(board.board_id, "no route", "wait")

    executor = Executor(
        store,
        build_bundle(),
        connect,
        retries=Retries(attempts=3, first_delay_s=0.01, largest_delay_s=0.02),
    )
    (outcome,) = executor.measure(work(request, [board], model))
    assert isinstance(outcome.failure, TransientBoardError)
    assert len(attempts) == 3


def sessions_on(board) -> set[str]:
    """The sessions that the board keeps, as its own files say."""
    home = board.key_file.parent / "boards" / board.board_id / "home"
    return {path.name for path in (home / ".fleetcut" / "sessions").iterdir()}


@pytest.fixture
def interruptible():
    """Started in the background, as a CI job may be, a process ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_nothing_running_on_the_board(request, board, model, store):
    asked = work(request, [board], model, 50)
    started = threading.Event()

    def interrupt(progress: Progress) -> None:
        if not started.is_set():
            started.set()
            os.kill(os.getpid(), signal.SIGINT)

    executor = Executor(store, build_bundle(), SshTransport, observe=interrupt)
    with pytest.raises(KeyboardInterrupt):
        executor.measure(asked)
    transport = SshTransport(board)
    try:
        agent = AgentSession(board, transport, build_bundle())
        session = session_id_of(asked.campaign_id, board.board_id)
        ends = [e.end for e in agent.entries(session, 0, follow=False, silence_s=30) if e.end]
        assert ends == ["interrupted"]
    finally:
        transport.close()
    (outcome,) = Executor(store, build_bundle(), SshTransport).measure(asked)
    assert outcome.failure is None
    assert len(store.summaries(limit=100)) == 50
    assert session not in sessions_on(board)


KILLED = """
import json, os, signal, sys
from pathlib import Path
from harness.bundle import build_bundle
from harness.campaign import again, load_campaign
from harness.campaign_axes import is_canary
from harness.executor import Executor, Work
from harness.inventory import load_inventory
from harness.ssh import SshTransport
from harness.store import Store
from tests.harness.work_samples import work
from device_agents.contract import RunSpec, decode
inventory, database, model, specs = sys.argv[1:]
specs = tuple(decode(RunSpec, line) for line in Path(specs).read_text().splitlines())
board = load_inventory(Path(inventory)).board(specs[0].board_id)
def die(progress):
    if progress.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Executor(Store(Path(database)), build_bundle(), SshTransport, observe=die).measure(
    Work(specs[0].campaign_id, (board,), specs, {specs[0].model_sha256: Path(model)}, {})
)
"""


def test_a_harness_killed_in_mid_campaign_loses_nothing_and_repeats_nothing(
    request, inventory, board, model, tmp_path
):
    from device_agents.contract import encode

    asked = work(request, [board], model, 12)
    (tmp_path / "specs.jsonl").write_text("".join(encode(s) + "\n" for s in asked.specs))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, inventory.path, tmp_path / "lab.db", model,
         tmp_path / "specs.jsonl"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = Store(tmp_path / "lab.db")
    try:
        before = {r.record.run_id: r.record for r in store.runs()}
        assert 2 <= len(before) < 12
        (outcome,) = Executor(store, build_bundle(), SshTransport).measure(asked)
        assert outcome.failure is None
        after = {r.record.run_id: r.record for r in store.runs()}
    finally:
        store.close()
    assert set(after) == {s.run_id for s in asked.specs}
    assert {k: after[k] for k in before} == before
    # What the board measured while nobody listened was collected, not measured again: all runs
    # but those before the kill carry one boot, one agent, and ascending times.
    times = [after[s.run_id].started_unix_ns for s in asked.specs]
    assert times == sorted(times)


def test_two_inventory_entries_that_lead_to_one_board_are_noticed(
    request, board, inventory, model, store
):
    twin = replace(board, board_id="twin")
    asked = work(request, [twin], model, 1)
    wrong = tuple(replace(s, board_id="vb-01") for s in asked.specs)
    transport = SshTransport(board)
    agent = AgentSession(board, transport, build_bundle())
    agent.push_agent()
    agent.push_blobs(asked.blobs)
    agent.start(session_id_of(asked.campaign_id, "twin"), wrong)
    transport.close()
    (outcome,) = Executor(store, build_bundle(), SshTransport).measure(asked)
    assert outcome.failure is not None
    assert "no two inventory entries" in str(outcome.failure)


class Counting:
    """A transport that counts the bytes which a conversation sends."""

    def __init__(self, transport):
        self._transport = transport
        self.sent_bytes = 0

    def converse(self, argv):
        stream = self._transport.converse(argv)
        send = stream.send

        def counted(data, *, silence_s):
            self.sent_bytes += len(data)
            send(data, silence_s=silence_s)

        stream.send = counted
        return stream

    def __getattr__(self, name):
        return getattr(self._transport, name)


def test_the_agent_and_a_model_are_pushed_once(board, model, tmp_path):
    bundle = build_bundle(rebuilt_agent(tmp_path))
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    sent_bytes = []
    for _ in range(2):
        transport = SshTransport(board)
        counting = Counting(transport)
        agent = AgentSession(board, counting, bundle)
        agent.push_agent()
        agent.push_blobs({digest: model})
        assert agent.push_blobs({digest: model}) == 0
        sent_bytes.append(counting.sent_bytes)
        transport.close()
    assert sent_bytes[0] > len(bundle.data)
    assert sent_bytes[1] < 1000


def rebuilt_agent(tmp_path):
    """The agent's sources with one more, so that no board has seen its bytes."""
    package = tmp_path / "device_agents"
    shutil.copytree(Path(device_agents.__file__).parent, package)
    (package / "never_seen.py").write_text(f"TOKEN = {os.urandom(8).hex()!r}\n")
    return package


def test_an_agent_answer_that_is_no_json_is_an_error_that_names_the_board(board):
    class Babbling:
        def run(self, argv, *, timeout_s):
            from harness.transport import Completed

            return Completed(tuple(argv), 0, b"Welcome to your board!\n", b"")

        def close(self):
            pass

    agent = AgentSession(board, Babbling(), build_bundle())
    with pytest.raises(StableBoardError, match=r"vb-01: the agent.*not a JSON object"):
        agent.probe()
    with pytest.raises(StableBoardError, match="not a JSON object"):
        agent.check()


def test_the_journal_format_is_checked(board):
    class Journal:
        def __init__(self, lines):
            self._lines = [json.dumps(line).encode() for line in lines]

        def lines(self, argv, *, silence_s):
            return iter(self._lines)

    def entries(*lines):
        agent = AgentSession(board, Journal(lines), build_bundle())
        return list(agent.entries("s", 0, follow=True, silence_s=1))

    assert entries({"seq": 1, "event": "finished"}, {"event": "end", "state": "finished"})[-1].end
    for bad in ({"seq": 0, "event": "finished"}, {"event": "x"}, {"seq": 1, "event": "record"}):
        with pytest.raises(StableBoardError):
            entries(bad)
