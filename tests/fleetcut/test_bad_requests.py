"""Whatever reaches a board: its journal is read on, a request is answered or refused in one line.

A traceback is any other exception, a hang the suite's timeout, and no case may write outside the
folder that it was given. `make test` plays the same cases each time, `make test-all` many more.
"""

import io
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from device_agents import conversation, home, journal, main, worker
from device_agents.contract import encode
from device_agents.errors import AgentError
from tests.fleetcut.generated import QUICK, SLOW, cases, in_one_line, journal_lines, mutants
from tests.fleetcut.good_replies import GOOD_REPLIES, SPEC


def check_journal(work: Path, data: bytes) -> None:
    """What a journal holds after a power cut is read up to where it makes sense, and gone on with.

    Every line that is kept stays as it was, and a second look finds the same.
    """
    path = work / "journal.jsonl"
    path.write_bytes(data)
    opened = journal.Journal(path)
    kept = path.read_bytes()
    assert data.startswith(kept)
    opened.append("finished")
    opened.close()
    entries = journal.read(path)
    assert [entry["seq"] for entry, _ in entries] == list(range(1, len(entries) + 1))
    assert entries[-1][0]["event"] == "finished"


JOURNAL = [{k: v for k, v in line.items() if k != "profile"} for line in GOOD_REPLIES["attach"][:4]]


def play_journals(work: Path, count: int) -> None:
    good = journal_lines(JOURNAL)
    cut = st.tuples(st.integers(0, len(good)), st.binary(max_size=30)).map(
        lambda t: good[: t[0]] + t[1]
    )

    @cases(count)
    @given(st.one_of(mutants(JOURNAL).map(journal_lines), cut, st.binary(max_size=200)))
    @example(b"[" * 100_000 + b"\n")
    @example(b'{"seq": 1, "event": "record"}\n')
    def case(data: bytes) -> None:
        check_journal(work, data)

    case()


def test_journals_that_were_cut(confined):
    play_journals(confined, QUICK)


@pytest.mark.slow
def test_many_more_journals(confined):
    play_journals(confined, SLOW)


def check_specs(work: Path, data: bytes) -> None:
    path = work / "specs.jsonl"
    path.write_bytes(data)
    try:
        worker.read_specs(path)
    except AgentError as error:
        in_one_line(error, path.name)


VERBS = (
    "has", "adopt", "install", "rollback", "signers", "start", "attach", "collect", "ack", "stop",
    "clean", "deployed", "frobnicate",
)  # fmt: skip
ARGUMENTS = st.one_of(
    st.sampled_from(
        [
            "--home", "/", "--root", "--specs", "--after", "--fence", "--signed", "--help", "-1",
            "..", "../../../etc", "/etc/passwd", "0" * 64, f"x={'0' * 64}", f"../x={'0' * 64}",
            "a/b", "a\0b", "", " ", "--quota-bytes", "9" * 30, "-", "--", "\ud800", "s", "a" * 300,
        ]
    ),
    st.text(max_size=20),
)  # fmt: skip
REQUESTS = st.one_of(
    st.tuples(st.sampled_from(VERBS), st.lists(ARGUMENTS, max_size=5)).map(
        lambda t: {"verb": [t[0], *(a for a in t[1] if a not in ("--home", "--root"))]}
    ),
    st.tuples(ARGUMENTS, st.integers(0, 20)).map(lambda t: {"upload": t[0], "size_bytes": t[1]}),
    mutants({"upload": "name", "size_bytes": 3}),
    mutants({"verb": ["has", "0" * 64]}),
)


def check_request(work: Path, request: object) -> None:
    """One request to the agent's process, which answers, or ends with one line."""
    answers: list[dict] = []
    data = json.dumps(request, default=repr).encode() + b"\n" + b"x" * 20
    folder = home.Home(work / "home")
    folders = ["--home", str(folder.path), "--root", str(work)]

    def verb(argv):
        return main._outcome([*folders, *argv], NoOutput())

    try:
        conversation.serve(io.BytesIO(data), folder, verb, answers.append)
    except AgentError as error:
        in_one_line(error, "request", "upload")
    except SystemExit:
        pass  # --help
    for answer in answers:
        assert isinstance(answer["exit_status"], int)
        if answer["error"] is not None:
            in_one_line(answer["error"], "")


class NoOutput(main.Output):
    """Answers go nowhere: only that there is one counts here."""

    def __init__(self):
        super().__init__(-1)

    def raw(self, line: bytes) -> None:
        pass


def play_requests(work: Path, count: int) -> None:
    @cases(count)
    @given(REQUESTS)
    def asked(request) -> None:
        check_request(work, request)

    @cases(count)
    @given(
        st.one_of(mutants([json.loads(encode(SPEC))]).map(journal_lines), st.binary(max_size=200))
    )
    def started(data: bytes) -> None:
        check_specs(work, data)

    asked()
    started()


def test_requests_to_agents(confined):
    play_requests(confined, QUICK)


@pytest.mark.slow
def test_many_more_requests(confined):
    play_requests(confined, SLOW)
