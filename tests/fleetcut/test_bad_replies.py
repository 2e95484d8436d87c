"""Whatever a board says: it is taken, or refused in one clear line.

A traceback is any other exception, a hang the suite's timeout, and no case may write outside the
folder that it was given. `make test` plays the same cases each time, `make test-all` many more.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bundle import build_bundle
from harness.errors import BoardError
from harness.inventory import Board
from harness.session import AgentSession
from tests.fleetcut.generated import HOSTILE, QUICK, SLOW, cases, in_one_line, mutants
from tests.fleetcut.good_replies import GOOD_REPLIES, SPEC

BOARD = Board("pi4-01", "m", "192.0.2.1", 22, "pi", None, None, "python3", None, False, ())
END = {"exit_status": 0, "error": None}


class Says:
    """A board whose agent says ``answer`` to one verb, and what is right to all else."""

    def __init__(self, verb: str, answer: list[bytes]):
        self._verb = {"busy": "start"}.get(verb, verb)
        self._answer = answer
        self._left = [b"fleetcut: ready"]

    def converse(self, argv):
        return self

    def send(self, data, *, silence_s):
        if data.startswith(b'{"verb"'):
            verb = json.loads(data)["verb"][0]
            self._left += self._answer if verb == self._verb else said(GOOD_REPLIES.get(verb, [{}]))
        elif data.startswith(b'{"upload"'):
            self._left += said([])

    def line(self, *, silence_s):
        if not self._left:
            raise BoardError("pi4-01", "the agent ended", "fleetcut check pi4-01")
        return self._left.pop(0)

    def close(self):
        self._left = []


def said(answer: list) -> list[bytes]:
    return [json.dumps(line).encode() for line in [*answer, END]]


def ask(agent: AgentSession, verb: str, model: Path):
    """What a verb's caller gets, read to its end."""
    agent.push_agent()
    questions = {
        "probe": agent.probe,
        "state": agent.state,
        "check": agent.check,
        "has": lambda: agent.push_blobs({"0" * 64: model}),
        "clean": lambda: agent.clean(1 << 30),
        "start": lambda: agent.start("s", [SPEC]),
        "busy": lambda: agent.start("s", [SPEC]),
        "attach": lambda: list(agent.entries("s", 0, follow=True, silence_s=1)),
        "install": lambda: agent.install("0" * 64, "n"),
        "deployed": agent.deployed,
    }
    return questions[verb]()


LINES = st.lists(
    st.one_of(
        st.binary(max_size=60).map(lambda b: b.replace(b"\n", b" ")),
        HOSTILE.filter(lambda h: not isinstance(h, bytes)).map(lambda h: json.dumps(h).encode()),
        st.sampled_from([b"", b"[" * 2000, b'{"exit_status": ' + b"9" * 5000 + b"}", b"{}", b"\0"]),
    ),
    max_size=5,
)


@st.composite
def replies(draw):
    verb = draw(st.sampled_from(sorted(GOOD_REPLIES)))
    good = GOOD_REPLIES[verb]
    mutated = draw(mutants([*good, END]))
    lines = [*mutated] if isinstance(mutated, list) else [mutated]
    hostile = [json.dumps(line, default=repr).encode() for line in lines]
    return verb, draw(st.one_of(st.just(hostile), LINES, LINES.map(lambda more: hostile + more)))


def check_reply(model: Path, verb: str, answer: list[bytes]) -> None:
    agent = AgentSession(BOARD, Says(verb, answer), BUNDLE, "0123456789abcdef:5")
    try:
        ask(agent, verb, model)
    except BoardError as error:
        in_one_line(error, "pi4-01")


BUNDLE = build_bundle()


@pytest.mark.parametrize("verb", sorted(GOOD_REPLIES))
def test_the_good_replies_are_taken(verb, tmp_path):
    (tmp_path / "m").write_bytes(b"m")
    agent = AgentSession(BOARD, Says(verb, said(GOOD_REPLIES[verb])), BUNDLE)
    if verb == "busy":
        with pytest.raises(BoardError, match="is running there"):
            ask(agent, verb, tmp_path / "m")
    else:
        ask(agent, verb, tmp_path / "m")


def play_replies(work: Path, count: int) -> None:
    model = work / "model"
    model.write_bytes(b"m")

    @cases(count)
    @given(replies())
    def case(reply) -> None:
        check_reply(model, *reply)

    case()


def test_replies_of_agents(confined):
    play_replies(confined, QUICK)


def test_names_of_missing_files_that_are_none(tmp_path):
    (tmp_path / "m").write_bytes(b"m")
    check_reply(tmp_path / "m", "has", said([{"present": [], "missing": [[]]}]))


@pytest.mark.slow
def test_many_more_replies(confined):
    play_replies(confined, SLOW)
