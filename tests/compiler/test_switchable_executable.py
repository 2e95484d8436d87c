"""A switchable network as one native program: it answers as PyTorch and follows the clock."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compiler.networks import build, input_shape
from compiler.switchable.executable import build_switchable_executable
from compiler.switchable.network import SwitchableNetwork
from compiler.targets import TargetError, build_executable, toolchains
from compiler.targets.built import ATOL_FP32, BuiltModel, raw_bytes
from compiler.targets.toolchains import XNNPACK, MissingToolError, find
from device_agents.contract import Target
from device_agents.contract.switching import ClockLaw, Policy
from device_agents.runtimes import RUNTIMES, Switching
from device_agents.sysfs import Root
from tests.compiler.switchable_samples import (
    CPUFREQ,
    POLICY,
    RATIOS,
    SHAPE,
    TOP_KHZ,
    Clock,
    switchable_network,
    with_banks,
)

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
"""Of JAX, which exporters of other tests load into this process; there is none on a board."""

HERE = Target("here", platform.machine(), "linux", "executable")
Ask = Callable[[str], dict[str, object]]


@pytest.fixture(scope="module", autouse=True)
def _toolchain() -> None:
    try:
        find(platform.machine(), XNNPACK)
    except MissingToolError as missing:
        pytest.fail(str(missing)) if os.environ.get("CI") == "true" else pytest.skip(str(missing))


@pytest.fixture(scope="module")
def network() -> SwitchableNetwork:
    return switchable_network()


@pytest.fixture(scope="module")
def example() -> torch.Tensor:
    return torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def built(network, example, tmp_path_factory) -> BuiltModel:
    folder = tmp_path_factory.mktemp("built")
    return build_switchable_executable(network, POLICY, example, folder, HERE)


@pytest.fixture(scope="module")
def program(built) -> Path:
    return built.files[0].path


@pytest.fixture
def clock(tmp_path) -> Clock:
    return Clock(tmp_path / "a root")


@contextlib.contextmanager
def serving(*command: object) -> Iterator[tuple[Ask, int]]:
    """(asks one line of the program, its process)."""
    with subprocess.Popen(
        [*command, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as running:

        def ask(line: str) -> dict[str, object]:
            running.stdin.write(line + "\n")
            answer: dict[str, object] = json.loads(running.stdout.readline())
            return answer

        assert json.loads(running.stdout.readline())["ready"] is True
        yield ask, running.pid
        running.stdin.write("quit\n")


def until_looked(ask: Ask, root: Path) -> None:
    """Follows anew, so that the next inference looks, however soon it is."""
    assert ask(f"follow {root}") == {"ok": True}
    ask("bench 1")


def position_of(ask: Ask, network: SwitchableNetwork, example: torch.Tensor, sink: Path) -> int:
    """Which sub-network's answer it gives."""
    assert ask(f"output {sink}") == {"ok": True}
    found = np.fromfile(sink, "<f4")
    with torch.inference_mode():
        subs = [network.sub_network(p)(example).numpy().ravel() for p in range(len(network.widths))]
    near = [p for p, answer in enumerate(subs) if np.abs(found - answer).max() <= ATOL_FP32]
    (position,) = near
    return position


def test_the_clock_decides_which_sub_network_answers(program, network, example, clock, tmp_path):
    with serving(program) as (ask, _):
        assert position_of(ask, network, example, tmp_path / "y") == 0
        present = 0
        for percent in (100, 50, 25, 60, 36, 35, 80, 100, 26, 20, 49, 74, 75, 76, 100):
            clock(TOP_KHZ * percent // 100)
            until_looked(ask, clock.root)
            present = POLICY.choose(TOP_KHZ * percent // 100, present)
            assert position_of(ask, network, example, tmp_path / "y") == present


def test_switches_are_kept_and_said(program, clock):
    with serving(program) as (ask, _):
        assert ask(f"follow {clock.root}") == {"ok": True}
        assert ask("bench 3")["latency_ns"]
        assert ask("switches") == {"switches": []}
        clock(TOP_KHZ // 4)
        told: object = []
        for _ in range(100_000):  # it looks every 5 ms
            ask("bench 10")
            if told := ask("switches")["switches"]:
                break
        ((switch),) = told
        assert (switch["khz"], switch["before"], switch["after"]) == (TOP_KHZ // 4, 0, 2)
        assert switch["monotonic_ns"] > 0
        assert switch["took_ns"] > 0


def test_by_itself_it_tells_of_switches_on_stderr(program, example, clock):
    clock(TOP_KHZ // 2)
    done = subprocess.run(
        [program, "--follow", clock.root], input=raw_bytes(example.numpy()), capture_output=True
    )
    assert (done.returncode, len(done.stdout)) == (0, 4 * 7)
    switch = json.loads(done.stderr)
    assert (switch["khz"], switch["before"], switch["after"]) == (TOP_KHZ // 2, 0, 1)


def test_a_clock_that_cannot_be_read_leaves_what_runs(program, network, example, tmp_path):
    with serving(program) as (ask, _):
        until_looked(ask, tmp_path / "nothing")
        assert position_of(ask, network, example, tmp_path / "y") == 0
        assert ask("switches") == {"switches": []}


def test_it_tells_what_it_holds_and_tries_every_width(program, built):
    described = json.loads(subprocess.check_output([program, "--describe"]))
    assert described["target_ms"] == POLICY.target_ms
    assert described["ratios"] == sorted(described["ratios"])
    assert len(described["ratios"]) == len(RATIOS)
    assert described["ratios"][0] == 0
    said = json.loads(subprocess.check_output([program, "--selftest"]))
    assert said["passed"]
    assert said["max_abs_err"] == pytest.approx(built.max_abs_err, abs=1e-6)


def test_another_answer_of_any_width_fails_the_self_test(program, network, example, tmp_path):
    content = program.read_bytes()
    with torch.inference_mode():
        narrowest = raw_bytes(network.sub_network(len(RATIOS) - 1)(example).numpy())
    assert content.count(narrowest) == 1
    changed = tmp_path / "model"
    changed.write_bytes(content.replace(narrowest, raw_bytes(np.zeros(7, np.float32))))
    changed.chmod(0o755)
    done = subprocess.run([changed, "--selftest"], capture_output=True)
    assert (done.returncode, json.loads(done.stdout)["passed"]) == (1, False)


def test_the_agent_follows_the_clock_with_it(program, network, example, clock, tmp_path):
    runner = RUNTIMES["executable"](program, 1, tmp_path)
    assert isinstance(runner, Switching)
    runner.set_inputs([raw_bytes(example.numpy())])
    clock(TOP_KHZ // 2)
    runner.follow(Root(clock.root), [CPUFREQ])
    assert len(runner.time_batch(2)) == 2
    found = np.frombuffer(runner.read_outputs()[0], "<f4")
    runner.close()
    with torch.inference_mode():
        expected = network.sub_network(1)(example).numpy()
    assert np.abs(found - expected).max() <= ATOL_FP32
    told = [(switch.khz, switch.before, switch.after) for switch in runner.switches]
    assert told == [(TOP_KHZ // 2, 0, 1)]


def test_the_same_network_gives_the_same_bytes(built, network, example, tmp_path):
    again = build_switchable_executable(network, POLICY, example, tmp_path, HERE)
    assert again.files[0].path.read_bytes() == built.files[0].path.read_bytes()


def test_int8_and_older_boards_are_refused(network, example, tmp_path):
    for change in ({"precision": "int8"}, {"libc": "glibc 2.26"}):
        with pytest.raises(TargetError):
            build_switchable_executable(network, POLICY, example, tmp_path, replace(HERE, **change))


def test_a_network_with_shortcuts_answers_at_every_width(tmp_path):
    """Building tries each, and the widest again: strided points remember their input too."""
    shape = input_shape("digits_resnet")
    network = with_banks(build("digits_resnet", 0), shape, RATIOS)
    built = build_switchable_executable(network, POLICY, torch.rand(1, *shape), tmp_path, HERE)
    assert built.max_abs_err <= ATOL_FP32


class Wide(nn.Module):
    """11 MB of weights, so that memory is theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 384, 3, 4, 1), nn.BatchNorm2d(384), nn.ReLU(),
            nn.Conv2d(384, 384, 3, 2, 1), nn.BatchNorm2d(384), nn.ReLU(),
            nn.Conv2d(384, 400, 3, 1, 1), nn.BatchNorm2d(400), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(400, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return answer


def peak_kb(ask: Ask, pid: int) -> int:
    ask("bench 2")
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def test_memory_is_that_of_one_network(tmp_path, monkeypatch):
    """Of the widest alone, in the same form, after every width has run."""
    monkeypatch.setitem(toolchains.RUNTIMES, platform.machine(), (XNNPACK,))
    torch.manual_seed(0)
    ratios = (0.0, 0.2, 0.4, 0.6, 0.8)
    plain, x = Wide().eval(), torch.rand(1, *SHAPE)
    network = with_banks(plain, SHAPE, ratios)
    laws = tuple(ClockLaw(0.0, 2.0 * TOP_KHZ / 2**p, 0.0) for p in range(len(ratios)))
    alone = build_executable(plain, x, tmp_path / "alone", HERE)
    built = build_switchable_executable(network, Policy(2.0, laws), x, tmp_path / "all", HERE)
    with serving(alone.files[0].path) as (ask, pid):
        peak_of_one_kb = peak_kb(ask, pid)
    clock = Clock(tmp_path / "root")
    with serving(built.files[0].path) as (ask, pid):
        for position in (*range(len(ratios)), 0):
            clock(TOP_KHZ // 2**position)
            until_looked(ask, clock.root)
        assert peak_kb(ask, pid) <= 1.1 * peak_of_one_kb


@pytest.mark.parametrize(("machine", "cpu"), [("aarch64", "cortex-a72"), ("armv7l", "cortex-a7")])
def test_a_boards_program_switches_as_the_workstations(
    network, example, tmp_path, clock, machine, cpu
):
    qemu = shutil.which("qemu-arm" if machine == "armv7l" else f"qemu-{machine}")
    try:
        triplet = Path(find(machine, XNNPACK).cxx).name.removesuffix("-g++")
    except MissingToolError as missing:
        pytest.skip(str(missing))
    if qemu is None or machine == platform.machine():
        pytest.skip("needs qemu-user (Debian: apt-get install qemu-user)")
    root = board_root(tmp_path / "board", Path("/usr") / triplet / "lib", machine)
    target = Target("pi", machine, "linux", "executable", cpu=cpu, libc="glibc 2.31")
    built = build_switchable_executable(network, POLICY, example, tmp_path, target)
    command = (qemu, "-cpu", cpu, "-L", root, built.files[0].path)
    assert json.loads(subprocess.check_output([*command, "--selftest"]))["passed"]
    with serving(*command) as (ask, _):
        for khz, position in ((TOP_KHZ // 4, 2), (TOP_KHZ, 0), (TOP_KHZ // 2, 1)):
            clock(khz)
            until_looked(ask, clock.root)
            assert position_of(ask, network, example, tmp_path / "y") == position


def board_root(root: Path, libraries: Path, machine: str) -> Path:
    """A C library, and the CPU of a Raspberry Pi as its kernel says it."""
    (root / "lib").mkdir(parents=True)
    loader = "ld-linux-armhf.so.3" if machine == "armv7l" else "ld-linux-aarch64.so.1"
    for name in (loader, "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0"):
        (root / "lib" / name).symlink_to(libraries / name)
    features, architecture, part = (
        ("half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32", 7, "0xc07")
        if machine == "armv7l"
        else ("fp asimd evtstrm crc32 cpuid", 8, "0xd08")
    )
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(
        f"processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: {architecture}\nCPU variant\t: 0x0\nCPU part\t: {part}\n"
        "CPU revision\t: 3\n\n"
    )
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0\n")
    return root
