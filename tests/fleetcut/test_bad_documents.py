"""Whatever a file, a board or a request holds: it is taken, or refused in one clear line.

Generated from good ones by mutation, and from nothing. A traceback is any other exception, a hang
the suite's timeout, and no case may write outside the folder that it was given. `make test` plays
the same cases each time; `make test-all` many more.
"""

import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compiler.errors import CompilerError
from compiler.recipe import Recipe
from device_agents import conversation, home, journal, main, worker
from device_agents.contract import (
    BoardState,
    DeviceProfile,
    MeasurementRecord,
    RunSpec,
    StoppingRule,
    Verdict,
    encode,
)
from device_agents.errors import AgentError
from harness.bundle import build_bundle
from harness.campaign import load_campaign
from harness.documents import read_document
from harness.errors import BoardError, HarnessError
from harness.inventory import Board, load_inventory
from harness.session import AgentSession

QUICK, SLOW = 400, 3000


def cases(count: int):
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


HOSTILE = st.one_of(
    st.sampled_from(
        [
            None, True, -1, 0, 2**63, 10**400, -(10**30), float("nan"), float("inf"), 1e308, "",
            "\0", "a\0b", "../../../etc/passwd", "/etc/passwd", "~nobody-here/x", "~", "..", ".",
            "$(touch escaped)", "`touch escaped`", "; touch escaped", "-oProxyCommand=x",
            "a" * 5000, "\u202e\ufeff\U0001f600", "ñ", "NaN", "1e999", "2001-01-01", "yes", [], {},
            [[]], [None], {"": ""}, {"a": {"b": {"c": []}}}, b"\xff\xfe",
        ]
    ),
    st.integers(), st.floats(), st.text(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=12,
    ),
)  # fmt: skip


def places(document, at=()):
    """Every place in nested data, the whole included."""
    yield at
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*at, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from places(value, (*at, index))


def changed(document, at, change):
    """A copy in which ``change`` was done to the container and key of a place."""
    copied = json.loads(json.dumps(document))
    if not at:
        return change([copied], 0)[0]
    inner = copied
    for key in at[:-1]:
        inner = inner[key]
    change(inner, at[-1])
    return copied


@st.composite
def mutants(draw, good):
    """``good`` with one to three things replaced, removed, renamed or added."""
    document = good
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(list(places(document))))
        hostile = draw(HOSTILE)
        kind = draw(st.sampled_from(["replace", "remove", "rename", "add"]))

        def change(container, key, hostile=hostile, kind=kind):
            if kind == "remove" and isinstance(container, dict | list) and len(container) > 1:
                del container[key]
            elif kind == "rename" and isinstance(container, dict):
                container[str(hostile)[:60]] = container.pop(key)
            elif kind == "add" and isinstance(container[key], dict):
                container[key][str(hostile)[:60]] = hostile
            else:
                container[key] = hostile
            return container

        try:
            document = changed(document, at, change)
        except (TypeError, ValueError):  # bytes and the like, which only YAML can hold
            return hostile
    return document


def as_yaml(document) -> bytes:
    return yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")


def texts(good: str):
    """Files: mutants of a good one, the good one with bytes changed, and anything at all."""
    data = good.encode()
    cut = st.tuples(
        st.integers(0, len(data)), st.integers(0, 12), st.binary(max_size=12)
    ).map(lambda t: data[: t[0]] + t[2] + data[t[0] + t[1] :])  # fmt: skip
    return st.one_of(mutants(yaml.safe_load(good)).map(as_yaml), cut, st.binary(max_size=200))


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n".encode()
    for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
DEEP = b"version: " + b"[" * 3000 + b"]" * 3000
KNOT = b"version: &a [*a]\n"
NUL = b"version: 1\0\n"
BOM16 = "version: 1\n".encode("utf-16")
TAG = b"version: !!python/object/apply:os.system ['touch escaped']\n"


def in_one_line(error: Exception | str, *names: str) -> None:
    """The message is one line of a bearable length, names what is meant, and says what to do."""
    text = str(error)
    assert "\n" not in text.strip(), text
    assert len(text) < 3000, text[:200]
    assert "Next:" in text, text
    assert any(name in text for name in names), text
    assert "Traceback" not in text


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The folder of a case; beside it and in the current folder nothing may appear."""
    folder = tmp_path / "work"
    elsewhere = tmp_path / "elsewhere"
    for made in (folder, elsewhere):
        made.mkdir()
    monkeypatch.chdir(elsewhere)
    yield folder
    assert list(elsewhere.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "work"]


INVENTORY = """\
version: 1
boards:
  - {board_id: pi4-01, model: Raspberry Pi 4, host: 192.0.2.1, port: 22, user: pi,
     key_file: ~/.ssh/id, python: python3, cache_mib: 500, labels: {cooling: fan}}
  - {board_id: pi4-02, model: Raspberry Pi 4, host: 192.0.2.2, user: pi, exclusive_group: a}
"""
CAMPAIGN = """\
version: 1
campaign_id: nightly
seed: 3
boards: {ids: [pi4-01], labels: {cooling: fan}}
models: [{name: tiny, path: tiny.onnx}]
runtimes: [ort]
precision: [fp32, int8]
threads: [1, 2]
repeats: 2
conditions: {temp_c: [[45, 55], null], governor: [performance], freq_khz: [600000]}
skip: [{precision: int8, threads: 2}]
canary: {model: tiny, every: 5}
stopping: {samples_min: 5, samples_max: 100, max_seconds: 2.5}
timeout_s: 30
"""
RECIPE = """\
version: 1
name: lab
networks: [digits_resnet]
dataset: digits
seed: 0
weights: {digits_resnet: weights.safetensors}
training: {epochs: 3}
search: {max_accuracy_drop: 0.01}
targets:
  - {kind: onnx, name: pi4-64, machine: aarch64}
"""


def check_inventory(work: Path, data: bytes) -> None:
    path = work / "inventory.yaml"
    path.write_bytes(data)
    try:
        inventory = load_inventory(path)
        inventory.select()
    except HarnessError as error:
        in_one_line(error, path.name)


def check_campaign(work: Path, data: bytes) -> None:
    (work / "inventory.yaml").write_text(INVENTORY)
    (work / "tiny.onnx").write_bytes(b"model")
    path = work / "campaign.yaml"
    path.write_bytes(data)
    try:
        load_campaign(path, load_inventory(work / "inventory.yaml"))
    except HarnessError as error:
        in_one_line(error, path.name, "inventory.yaml")


def check_recipe(work: Path, data: bytes) -> None:
    path = work / "recipe.yaml"
    path.write_bytes(data)
    try:
        read_document(path, Recipe)
    except (HarnessError, CompilerError) as error:
        in_one_line(error, path.name)


CHECKS = {
    "inventory": (check_inventory, INVENTORY),
    "campaign": (check_campaign, CAMPAIGN),
    "recipe": (check_recipe, RECIPE),
}


def play(kind: str, work: Path, count: int) -> None:
    check, good = CHECKS[kind]
    check(work, good.encode())

    @cases(count)
    @given(texts(good))
    @example(BOMB)
    @example(DEEP)
    @example(KNOT)
    @example(NUL)
    @example(BOM16)
    @example(TAG)
    @example(b"")
    @example(b"\xff")
    def case(data: bytes) -> None:
        check(work, data)

    case()


@pytest.mark.parametrize("kind", CHECKS)
def test_files_that_people_write(kind, work):
    play(kind, work, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
def test_many_more_files(kind, work):
    play(kind, work, SLOW)


# --- what a board says -------------------------------------------------------------------------

BOARD = Board("pi4-01", "m", "192.0.2.1", 22, "pi", None, None, "python3", None, False, ())
SPEC = RunSpec(
    campaign_id="c", board_id="pi4-01", model_sha256="0" * 64, runtime="ort", precision="fp32",
    threads=1, repeat=0, stopping=StoppingRule(), timeout_s=60.0,
)  # fmt: skip


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


def documents() -> dict[str, list]:
    """Good answers of each verb, as plain data."""
    profile = json.loads(encode(_profile()))
    record = json.loads(encode(_record()))
    return {
        "probe": [profile],
        "state": [json.loads(encode(_state()))],
        "check": [{"checks": [{"name": "python", "ok": True, "fact": "f", "next_step": "n"}]}],
        "has": [{"present": [], "missing": ["0" * 64]}],
        "clean": [{"removed": 0, "freed_bytes": 0, "blobs_bytes": 0, "free_bytes": 1 << 40,
                   "sessions": ["s"]}],
        "start": [{"session": "s", "state": "started", "pid": 3}],
        "busy": [{"session": "s", "state": "busy", "fence": "0123456789abcdef:3"}],
        "attach": [
            {"seq": 1, "event": "session", "agent_sha256": "0" * 64, "boot_id": "b",
             "profile": profile},
            {"seq": 2, "event": "run_started", "run_id": "r"},
            {"seq": 3, "event": "record", "run_id": "r", "record": record},
            {"seq": 4, "event": "finished"},
            {"event": "end", "state": "finished"},
        ],
        "install": [{"installed": "0" * 64, "previous": None, "signer": None, "note": ""}],
        "deployed": [{"deployed": [{"name": "n", "current": None, "previous": None}]}],
    }  # fmt: skip


def _profile() -> DeviceProfile:
    return DeviceProfile(
        hostname="h", machine="aarch64", model="m", soc="s", isa_features=("asimd",), cores=4,
        opp_freqs_khz=(600000,), memory_bytes=1 << 32, kernel="6", os="o", glibc="2.36",
        python="3.11.2", runtime_versions=(("onnxruntime", "1"),), boot_id="b", simulated=False,
    )  # fmt: skip


def _state() -> BoardState:
    return BoardState(monotonic_ns=5, temp_c_by_zone=(("cpu", 45.5),), governor="performance")


def _record() -> MeasurementRecord:
    return MeasurementRecord(
        spec=SPEC, profile_sha256="0" * 64, agent_sha256="0" * 64, boot_id="b", simulated=False,
        started_unix_ns=1, states=(_state(),), latency_ns=(5, 6, 7), load_ns=1,
        verdict=Verdict(valid=True),
    )  # fmt: skip


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


END = {"exit_status": 0, "error": None}
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


GOOD_REPLIES = documents()


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


def test_replies_of_agents(work):
    play_replies(work, QUICK)


@pytest.mark.slow
def test_many_more_replies(work):
    play_replies(work, SLOW)


# --- what reaches a board ----------------------------------------------------------------------


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


def journal_lines(document) -> bytes:
    lines = document if isinstance(document, list) else [document]
    return b"".join(json.dumps(line, default=repr).encode() + b"\n" for line in lines)


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


def test_journals_that_were_cut(work):
    play_journals(work, QUICK)


@pytest.mark.slow
def test_many_more_journals(work):
    play_journals(work, SLOW)


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


def test_requests_to_agents(work):
    play_requests(work, QUICK)


@pytest.mark.slow
def test_many_more_requests(work):
    play_requests(work, SLOW)
