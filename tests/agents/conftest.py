"""What the agent's tests share: a board's file tree, a home with blobs, the agent as a program."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import device_agents
from device_agents.contract import MeasurementRecord, RunSpec, decode, encode
from device_agents.sysfs import Root

POLICY = "sys/devices/system/cpu/cpufreq/policy0"
PROGRAM_TIMEOUT_S = 120

CPUFREQ = {
    f"{POLICY}/scaling_governor": "ondemand\n",
    f"{POLICY}/scaling_available_governors": "ondemand performance powersave userspace\n",
    f"{POLICY}/scaling_min_freq": "600000\n",
    f"{POLICY}/scaling_max_freq": "1500000\n",
    f"{POLICY}/scaling_cur_freq": "1500000\n",
    f"{POLICY}/scaling_available_frequencies": "600000 1000000 1500000 \n",
    f"{POLICY}/cpuinfo_min_freq": "600000\n",
    f"{POLICY}/cpuinfo_max_freq": "1500000\n",
}


class Tree:
    """A board's root below tmp_path."""

    policy = POLICY
    cpufreq = CPUFREQ

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def put(self, files: dict[str, str]) -> Tree:
        for name, text in files.items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return self

    def unreadable(self, name: str) -> Tree:
        """open() succeeds and read() fails, as with a sensor that answers EAGAIN or EINVAL."""
        (self.path / name).mkdir(parents=True)
        return self

    def read(self, name: str) -> str:
        return (self.path / name).read_text().strip()

    @property
    def root(self) -> Root:
        return Root(self.path)


@dataclass
class Answer:
    status: int
    lines: list[dict[str, Any]]
    stderr: str


@dataclass
class Agent:
    """The agent as its file, with a home and a root of its own."""

    pyz: Path
    home: Path
    root: Path
    python: str = sys.executable
    started: list[str] = field(default_factory=list)

    def argv(self, *args: str) -> list[str]:
        return [
            self.python, str(self.pyz), "--home", str(self.home), "--root", str(self.root), *args
        ]  # fmt: skip

    def run(self, *args: str) -> Answer:
        done = subprocess.run(
            self.argv(*args), capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return Answer(done.returncode, lines, done.stderr)

    def push(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        blobs = self.home / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        (blobs / sha256).write_bytes(data)
        return sha256

    def folder(self, session: str) -> Path:
        return self.home / "sessions" / session

    def write_specs(self, session: str, specs: list[RunSpec]) -> None:
        self.folder(session).mkdir(parents=True, exist_ok=True)
        text = "".join(encode(spec) + "\n" for spec in specs)
        (self.folder(session) / "specs.jsonl").write_text(text)

    def start(self, session: str, specs: list[RunSpec]) -> Answer:
        self.write_specs(session, specs)
        self.started.append(session)
        return self.run("start", session)

    def follow(self, session: str, after: int = 0) -> list[dict[str, Any]]:
        answer = self.run("attach", session, "--after", str(after))
        assert answer.status == 0, answer.stderr
        return [line for line in answer.lines if line["event"] != "alive"]

    def attach(self, session: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.argv("attach", session), stdout=subprocess.PIPE, text=True)

    def log(self, session: str) -> str:
        return (self.folder(session) / "worker.log").read_text()


def records(lines: list[dict[str, Any]]) -> list[MeasurementRecord]:
    """The records among a journal's lines."""
    return [
        decode(MeasurementRecord, json.dumps(line["record"]))
        for line in lines
        if line["event"] == "record"
    ]


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = Path(device_agents.__file__).parent
    path = tmp_path_factory.mktemp("agent") / "agent.pyz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "__main__.py", "import sys\nfrom device_agents.main import main\nsys.exit(main())\n"
        )
        for source in sorted(package.rglob("*.py")):
            archive.write(source, f"device_agents/{source.relative_to(package)}")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "root")


@pytest.fixture
def agent(pyz: Path, tree: Tree, tmp_path: Path):
    made = Agent(pyz, tmp_path / "home", tree.path)
    yield made
    for session in made.started:
        if made.folder(session).is_dir():
            made.run("stop", session)


@pytest.fixture
def records_of():
    return records


STUB = r"""#!{python} -SE
import json, os, signal, struct, sys
CONTROL, ON_BENCH = {control!r}, {on_bench!r}
def say(**answer):
    print(json.dumps(answer), flush=True)
def meet():
    # Tells the test that the bench is on, then waits until the test has let go.
    with open(os.path.join(CONTROL, "arrived"), "w") as arrived:
        arrived.write("%d\n" % os.getpid())
        arrived.flush()
        with open(os.path.join(CONTROL, "go")) as go:
            go.read()
if "--describe" in sys.argv:
    say(input_shape=[1, 4], output_shape=[1, 4], runtime="stub", version="1", precision="fp32")
    sys.exit()
values = [0.0] * 4
say(ready=True, load_ns=1000)
for line in sys.stdin:
    verb, _, argument = line.strip().partition(" ")
    if verb == "input":
        with open(argument, "rb") as stream:
            values = struct.unpack("<4f", stream.read())
        say(ok=True)
    elif verb == "output":
        with open(argument, "wb") as stream:
            stream.write(struct.pack("<4f", *[2 * v for v in values]))
        say(ok=True)
    elif verb == "bench":
        exec(ON_BENCH)
        say(latency_ns=[100000 + i % 7 for i in range(int(argument))])
    else:
        break
"""


@pytest.fixture
def stub(tmp_path: Path):
    """stub(on_bench) → the bytes of an executable whose every bench runs that Python first."""
    control = tmp_path / "control"
    control.mkdir()
    for name in ("arrived", "go"):
        os.mkfifo(control / name)

    def make(on_bench: str = "pass", python: str = sys.executable) -> bytes:
        text = STUB.format(python=python, control=str(control), on_bench=on_bench)
        return text.encode()

    make.control = control
    return make


MEET_WHILE_GATED = "os.path.exists(CONTROL + '/gate') and meet()"


class Gate:
    """Holds a stub in its bench until it is opened; no sleeping on either side."""

    on_bench = MEET_WHILE_GATED

    def __init__(self, control: Path) -> None:
        self._control = control
        self._gate = control / "gate"
        self._gate.touch()

    def arrived(self):
        """Waits until a stub is in its bench: an open pipe that ends when the stub does."""
        fd = os.open(self._control / "arrived", os.O_RDONLY | os.O_NONBLOCK)
        if not select.select([fd], [], [], PROGRAM_TIMEOUT_S)[0]:
            os.close(fd)
            pytest.fail("no stub came to its bench")
        os.set_blocking(fd, True)
        return os.fdopen(fd)

    def open(self) -> None:
        self._gate.unlink()

    def let_go(self) -> None:
        """Open, and wake the stub that waits."""
        self.open()
        (self._control / "go").write_text("")


@pytest.fixture
def gate(stub) -> Gate:
    return Gate(stub.control)
