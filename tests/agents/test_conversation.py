"""The agent as one process that answers many requests, and an upload in the midst of them."""

import hashlib
import json
import subprocess

import pytest


class Talk:
    """The agent's ``serve`` as a program."""

    def __init__(self, agent):
        self.process = subprocess.Popen(
            agent.argv("serve"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def send(self, data: bytes) -> None:
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def answer(self) -> list[dict]:
        lines = []
        while not lines or "exit_status" not in lines[-1]:
            lines.append(json.loads(self.process.stdout.readline()))
        return lines

    def ask(self, *argv: str) -> list[dict]:
        self.send(json.dumps({"verb": argv}).encode() + b"\n")
        return self.answer()

    def upload(self, name: str, data: bytes) -> dict:
        self.send(json.dumps({"upload": name, "size_bytes": len(data)}).encode() + b"\n" + data)
        return self.answer()[-1]


@pytest.fixture
def talk(agent):
    made = Talk(agent)
    yield made
    made.process.kill()
    made.process.communicate()


def test_many_verbs_one_process(agent, talk):
    assert talk.ask("has", "0" * 64) == [
        {"present": [], "missing": ["0" * 64]}, {"exit_status": 0, "error": None}
    ]  # fmt: skip
    assert [len(talk.ask("probe")) for _ in range(2)] == [2, 2]
    assert talk.process.poll() is None


def test_a_verb_that_fails_says_so_and_the_next_one_is_answered(talk):
    (end,) = talk.ask("attach", "no-such-session")
    assert end["exit_status"] == 2
    assert "there is no session" in end["error"]
    assert "Next:" in end["error"]
    (end,) = talk.ask("frobnicate")
    assert end["exit_status"] == 2
    assert talk.ask("has")[-1]["exit_status"] == 0


def test_an_upload_of_any_bytes_is_adopted(agent, talk):
    data = b'\n{"verb": ["probe"]}\n\0\xff' * 50_000
    sha256 = hashlib.sha256(data).hexdigest()
    assert talk.upload("up", data)["exit_status"] == 0
    assert talk.ask("adopt", f"up={sha256}")[-1]["exit_status"] == 0
    assert (agent.home / "blobs" / sha256).read_bytes() == data


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", ".", "", "a/b", "a\0b"])
def test_an_upload_to_anywhere_else_is_refused_and_its_bytes_passed_over(agent, talk, name):
    end = talk.upload(name, b"x" * 3_000_000)
    assert end["exit_status"] == 1
    assert "is not a name" in end["error"]
    assert talk.ask("has")[-1]["exit_status"] == 0
    assert list((agent.home / "incoming").iterdir()) == []


def test_an_upload_that_was_cut_leaves_nothing(agent, talk):
    talk.send(json.dumps({"upload": "up", "size_bytes": 1000}).encode() + b"\nonly this")
    out, err = talk.process.communicate(timeout=60)
    assert out == b""
    assert b"was cut" in err
    assert list((agent.home / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    "line", [b"hello\n", b"{}\n", b'{"verb": 3}\n', b'{"verb": [1]}\n', b"[" * 100_000 + b"\n",
             b'{"upload": "x"}\n', b'{"upload": "x", "size_bytes": -1}\n',
             b'{"upload": "x", "size_bytes": 1e400}\n', b"\xff\n"],
)  # fmt: skip
def test_what_is_no_request_ends_the_process_with_one_line(talk, line):
    _, err = talk.process.communicate(line, timeout=60)
    assert talk.process.returncode == 2
    assert b"is no request. Next:" in err
    assert b"Traceback" not in err


def test_a_worker_started_by_it_holds_its_locks_alone(agent, talk, stub):
    from device_agents.contract import RunSpec, StoppingRule, encode

    rule = StoppingRule(warmup_min=1, warmup_max=2, samples_min=3, samples_max=5, max_seconds=1)
    run = RunSpec(
        campaign_id="c", board_id="b", model_sha256=agent.push(stub()), runtime="executable",
        precision="fp32", threads=1, repeat=0, stopping=rule, timeout_s=60.0,
    )  # fmt: skip
    agent.started.append("s")
    assert talk.upload("specs", (encode(run) + "\n").encode())["exit_status"] == 0
    assert talk.ask("start", "s", "--specs", "specs")[0]["state"] == "started"
    lines = talk.ask("attach", "s")
    assert [line.get("event") for line in lines[-3:]] == ["finished", "end", None]
    # The process that detached the worker lives on, and holds nothing of it.
    assert talk.ask("start", "s")[0]["state"] == "finished"
    assert talk.ask("ack", "s", str(lines[-3]["seq"]))[0]["removed"] is True
