"""The same work by fleetcut, parallel-ssh and ansible-core: push agent and model, run, collect.

Input: a Job. Output: a Taken each: seconds, CPU and memory of the controlling processes, records.
Each is a process of its own with its recommended settings for many hosts; peers get every file in
one transfer a board, run the agent by its documented verbs and check nothing that fleetcut checks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.rack_boards import Rack
from device_agents.contract import MeasurementRecord, RunSpec, decode, encode
from harness.bundle import build_bundle
from harness.store import Store

SESSION = "job"
FORKS = 64
PEAK_PERIOD_S = 0.2


@dataclass(frozen=True)
class Job:
    """What every contender is given. specs: board_id → runs."""

    rack: Rack
    campaign: Path
    model: Path
    specs: Mapping[str, Sequence[RunSpec]]
    folder: Path


@dataclass(frozen=True)
class Taken:
    """What a contender took. cpu_s, rss_mib: of its own processes, boards excepted.

    records: runs that came back with a latency.
    """

    wall_s: float
    cpu_s: float
    rss_mib: float
    records: int


def fleetcut(job: Job) -> Taken:
    """``fleetcut measure``, as it is."""
    store = job.folder / "fleetcut.db"
    argv = [
        str(Path(sys.executable).with_name("fleetcut")), "measure", str(job.campaign),
        "--inventory", str(job.rack.inventory), "--store", str(store), "--json",
    ]  # fmt: skip
    wall_s, cpu_s, rss_mib = _run(argv, job.folder, {})
    opened = Store(store)
    try:
        records = sum(bool(stored.record.latency_ns) for stored in opened.runs())
    finally:
        opened.close()
    return Taken(wall_s, cpu_s, rss_mib, records)


def parallel_ssh(job: Job) -> Taken:
    """Its native client (libssh2): one recursive copy, one command, its output."""
    files = _files(job)
    hosts = [
        {
            "host": board.host, "port": board.port, "user": board.user,
            "key": str(board.key_file), "files": str(files[board.board_id]),
            "out": str(job.folder / f"{board.board_id}.jsonl"),
        }
        for board in job.rack.boards
    ]  # fmt: skip
    plan = job.folder / "pssh.json"
    plan.write_text(json.dumps({"hosts": hosts, "command": _command()}), encoding="utf-8")
    argv = [sys.executable, "-m", "benchmarks.rack_pssh", str(plan)]
    wall_s, cpu_s, rss_mib = _run(argv, Path.cwd(), {})
    return Taken(wall_s, cpu_s, rss_mib, _collected(job))


def ansible(job: Job) -> Taken:
    """A playbook: one unarchive, one command, one fetch; pipelining, forks, kept connections."""
    files = _files(job)
    hosts = {}
    for board in job.rack.boards:
        archive = job.folder / f"{board.board_id}.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(files[board.board_id], ".")
        hosts[board.board_id] = {
            "ansible_host": board.host, "ansible_port": board.port, "ansible_user": board.user,
            "ansible_ssh_private_key_file": str(board.key_file), "archive": str(archive),
            "ansible_python_interpreter": "python3",
        }  # fmt: skip
    inventory = job.folder / "hosts.yaml"
    inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts}}), encoding="utf-8")
    play = {
        "hosts": "all",
        "gather_facts": False,
        "strategy": "free",
        "tasks": [
            {"ansible.builtin.unarchive": {"src": "{{ archive }}", "dest": "~/"}},
            {"ansible.builtin.shell": _command() + f" > {SESSION}.jsonl"},
            {
                "ansible.builtin.fetch": {
                    "src": f"{SESSION}.jsonl",
                    "dest": f"{job.folder}/{{{{ inventory_hostname }}}}.jsonl",
                    "flat": True,
                }
            },
        ],
    }
    playbook = job.folder / "play.yaml"
    playbook.write_text(yaml.safe_dump([play]), encoding="utf-8")
    argv = [
        str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(inventory),
        str(playbook),
    ]  # fmt: skip
    wall_s, cpu_s, rss_mib = _run(argv, job.folder, _ansible_settings(job.folder))
    return Taken(wall_s, cpu_s, rss_mib, _collected(job))


CONTENDERS: Mapping[str, Callable[[Job], Taken]] = {
    "fleetcut": fleetcut,
    "parallel-ssh": parallel_ssh,
    "ansible-core": ansible,
}


def missing() -> dict[str, str]:
    """Peers that are not installed, and what to type."""
    from importlib.util import find_spec

    modules = {"parallel-ssh": "pssh", "ansible-core": "ansible"}
    return {
        name: f"{name} is not installed. Next: pip install -c constraints.txt -e '.[bench]'"
        for name, module in modules.items()
        if find_spec(module) is None
    }


def _ansible_settings(folder: Path) -> dict[str, str]:
    return {
        "ANSIBLE_FORKS": str(FORKS),
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_HOST_KEY_CHECKING": "False",
        "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "ansible"),
        "ANSIBLE_NOCOLOR": "True",
    }


def _files(job: Job) -> dict[str, Path]:
    """For each board the files it needs, as they are to lie in its home."""
    bundle = build_bundle()
    folders = {}
    for board_id, specs in job.specs.items():
        home = job.folder / "files" / board_id
        for name, data in {
            bundle.remote_path: bundle.data,
            f".fleetcut/blobs/{specs[0].model_sha256}": job.model.read_bytes(),
            f".fleetcut/sessions/{SESSION}/specs.jsonl": "".join(
                encode(spec) + "\n" for spec in specs
            ).encode(),
        }.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(data)
        folders[board_id] = home
    return folders


def _command() -> str:
    agent = f"python3 {build_bundle().remote_path}"
    return f"{agent} start {SESSION} > /dev/null && {agent} attach {SESSION} --after 0"


def _collected(job: Job) -> int:
    """Runs with a latency in the journals that a peer brought back."""
    found = 0
    for board_id in job.specs:
        path = job.folder / f"{board_id}.jsonl"
        if not path.exists():
            continue
        for line in path.read_bytes().splitlines():
            entry = json.loads(line)
            if entry.get("event") == "record":
                found += bool(decode(MeasurementRecord, json.dumps(entry["record"])).latency_ns)
    return found


def _run(argv: list[str], folder: Path, settings: dict[str, str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds with children, and MiB resident at most of a process."""
    with (folder / f"{Path(argv[0]).name}.log").open("ab") as out:
        began_s = time.perf_counter()
        process = subprocess.Popen(
            argv, cwd=folder, env={**os.environ, **settings}, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out,
        )  # fmt: skip
        peak_mib = _Peak(process.pid)
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
        wall_s = time.perf_counter() - began_s
    return wall_s, used.ru_utime + used.ru_stime, peak_mib.end()


class _Peak:
    """Resident memory of a process while it lives: what wait4() says counts its parent's too."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/status")
        self._peak_kib = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> float:
        """MiB."""
        self._over.set()
        self._thread.join()
        return self._peak_kib / 1024

    def _watch(self) -> None:
        while not self._over.wait(PEAK_PERIOD_S):
            self._peak_kib = max(self._peak_kib, peak_kib(self._path))


def peak_kib(status: Path) -> int:
    """VmHWM of a /proc/PID/status; 0 when the process has ended."""
    try:
        lines = status.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
