"""Clock, heat and charge through the whole way, and what is left when somebody is killed in it.

campaign.yaml → executor → SSH → the unchanged agent at / → record, on boards that are sshd
processes in namespaces of their own; simulated. The least latencies are compared, and boards are
slowed and heated by their CPU time, so that other work on this machine decides nothing.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from device_agents.contract import Condition, Reason
from fleetcut.cli import main
from harness.inventory import load_inventory
from harness.ssh import SshTransport
from harness.store import Store
from harness.virtual import rack
from harness.virtual.board import board_paths
from harness.virtual.cgroup import BoardCgroup, rack_cgroup
from harness.virtual.errors import RackError
from harness.virtual.namespace import require_namespaces
from harness.virtual.spec import BatterySpec, RackSpec, VirtualBoardSpec
from harness.virtual.tree import POLICY

DEADLINE_S = 120.0
"""A bound on waiting for something that must come: never what a test measures."""

FREQS_KHZ = (600_000, 750_000, 1_000_000, 1_200_000, 1_500_000)
CORES = min(2, os.cpu_count() or 1)
TRIP_C = 74.0

# A core heats it by 6 °C for each second that it works, and it loses that slowly: it heats alike
# on a machine that gives it little of its time. Idle it settles at 51 °C.
HEATING = {
    "cores": CORES,
    "freqs_khz": FREQS_KHZ,
    "ambient_c": 45.0,
    "thermal_resistance_c_per_w": 30.0,
    "heat_capacity_j_per_c": 3.25,
    "idle_power_w": 0.2,
    "core_power_w": 20.0,
    "soft_trip_c": TRIP_C,
    "hysteresis_c": 2.0,
}
BOARDS = RackSpec(
    boards=(
        VirtualBoardSpec("portable", cores=CORES, battery=BatterySpec(charge_pct=80.0)),
        VirtualBoardSpec("hot", **HEATING),
        VirtualBoardSpec("without-harness", **HEATING),
        VirtualBoardSpec("without-agent", **HEATING),
    ),
    seed=0,
)
QUICK = {"warmup_min": 2, "warmup_max": 8, "samples_min": 200, "samples_max": 200}
LONG = {**QUICK, "samples_min": 6_000, "samples_max": 100_000, "max_seconds": 5.0}
LONG["ci_fraction"] = 1e-6
"""At least 5 s and 6,000 inferences: a second or more of work, however little time it is given."""


def _missing():
    try:
        require_namespaces()
    except RackError as error:
        # A package that is missing fails in CI; a machine that cannot is skipped there too.
        return f"missing: {error}" if "not installed" in str(error) else f"no sshd boards: {error}"
    return ""


MISSING = _missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@dataclass(frozen=True)
class Lab:
    """A rack that is up, with a model, a store and a folder for campaigns."""

    folder: Path

    @property
    def rack(self) -> Path:
        return self.folder / "rack"

    def campaign(self, name, board_id, conditions, stopping, **more):
        document = {
            "version": 1,
            "campaign_id": name,
            "boards": {"ids": [board_id]},
            "models": [{"name": "conv", "path": str(self.folder / "conv.onnx")}],
            "runtimes": ["ort"],
            "conditions": conditions,
            "stopping": stopping,
            **more,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def argv(self, campaign):
        store = ["--store", str(self.folder / "lab.db")]
        return ["measure", str(campaign), "--inventory", str(self.rack / "inventory.yaml"), *store]

    def measure(self, name, board_id, *conditions, stopping=QUICK, **more):
        """The records of a campaign, by condition in the order given, each by repeat."""
        campaign = self.campaign(name, board_id, list(conditions), stopping, **more)
        assert main(self.argv(campaign)) == 0
        records = self.records(name)
        asked = [Condition(**condition) for condition in conditions]
        return [[r for r in records if r.spec.condition == condition] for condition in asked]

    def records(self, name):
        store = Store(self.folder / "lab.db")
        try:
            return [run.record for run in store.runs([name])]
        finally:
            store.close()

    def policy(self, board_id):
        """What the board's cpufreq is set to."""
        folder = board_paths(self.rack.resolve(), board_id).root / POLICY
        names = ("scaling_governor", "scaling_min_freq", "scaling_max_freq")
        return tuple((folder / name).read_text().strip() for name in names)

    def status(self, board_id):
        return next(b for b in rack.status(self.rack).boards if b.board_id == board_id)

    def agent_pids(self, board_id):
        """Everything on the board but its sshd: by this machine's numbers."""
        group = BoardCgroup(rack_cgroup(self.rack.resolve()) / board_id)
        names = {pid: _name(pid) for pid in group.pids()}
        return [pid for pid, name in names.items() if name and not name.startswith(("sshd", "uns"))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    onnx.save(_network(), folder / "conv.onnx")
    rack.up(folder / "rack", BOARDS, sshd=True)
    yield Lab(folder)
    rack.down(folder / "rack")


def test_a_fixed_low_clock_slows_a_network_by_the_ratio_of_the_clocks(lab):
    before = lab.policy("portable")
    low_clock = {"freq_khz": FREQS_KHZ[0]}
    plain, low = lab.measure("clock", "portable", {}, low_clock, repeats=6)
    assert _reported_khz(plain) == {FREQS_KHZ[-1]}
    assert _reported_khz(low) == {FREQS_KHZ[0]}
    assert _ms(low) / _ms(plain) == _about(FREQS_KHZ[-1] / FREQS_KHZ[0])
    assert lab.policy("portable") == before


def test_a_battery_that_is_nearly_flat_caps_the_clock_and_is_seen(lab):
    charged, flat = {"battery_pct_min": 50.0}, {"battery_pct_max": 15.0}
    plain, low = [], []
    for turn in range(2):  # in turn, for this machine's own speed comes and goes
        plain += lab.measure(f"charged-{turn}", "portable", charged, repeats=2)[0]
        rack.set_environment(lab.rack, "portable", charge_pct=8.0)
        low += lab.measure(f"flat-{turn}", "portable", flat, repeats=2)[0]
        rack.set_environment(lab.rack, "portable", charge_pct=80.0)
    assert {s.battery_pct for r in plain for s in r.states} == {80.0}
    assert {s.battery_pct for r in low for s in r.states} == {8.0}
    assert all(s.throttled for r in low for s in r.states)
    assert not any(s.throttled for r in plain for s in r.states)
    assert (_reported_khz(low), _reported_khz(plain)) == ({750_000}, {FREQS_KHZ[-1]})
    assert _ms(low) / _ms(plain) == _about(2.0)


def test_heat_throttles_a_board_and_is_told_and_a_cool_band_is_reached_and_held(lab):
    (plain,) = lab.measure("plain", "hot", {}, repeats=2)
    ((hot,),) = lab.measure("hot", "hot", {"temp_c_min": 66.0}, stopping=LONG, timeout_s=240.0)
    # A test has no minutes for cooling: the last few degrees are left to the agent, in which the
    # kernel gives the clock back step by step, one a second.
    rack.set_environment(lab.rack, "hot", ambient_c=-150.0)
    _until(lambda: lab.status("hot").temp_c < TRIP_C)
    rack.set_environment(lab.rack, "hot", ambient_c=20.0)
    band = {"temp_c_min": 60.0, "temp_c_max": 72.0}
    (cool,) = lab.measure("cool", "hot", band, repeats=3, timeout_s=240.0)
    assert all(s.temp_c() < TRIP_C and not s.throttled for r in plain for s in r.states)
    assert hot.states[0].temp_c() > 60.0
    assert Reason.THROTTLED in hot.verdict.reasons
    assert any(s.throttled for s in hot.states)
    last_tenth = hot.latency_ns[-len(hot.latency_ns) // 10 :]
    assert min(last_tenth) / 1e6 > 1.2 * _ms(plain)
    assert all(60.0 <= s.temp_c() <= 72.0 and not s.throttled for r in cool for s in r.states)
    told = {reason for r in cool for reason in r.verdict.reasons}
    assert not told & {Reason.THROTTLED, Reason.LEFT_BAND}
    assert _ms(cool) / _ms(plain) == _about(1.0)


@pytest.mark.parametrize("killed", ["harness", "agent"])
def test_clock_and_heat_are_put_back_after_a_kill(lab, killed):
    """In the middle of heating at a fixed clock."""
    board_id, freq_khz = f"without-{killed}", 1_000_000
    before = lab.policy(board_id)
    condition = {"governor": "powersave", "freq_khz": freq_khz, "temp_c_min": 66.0}
    campaign = lab.campaign(board_id, board_id, [condition], QUICK, timeout_s=240.0)
    source = "import sys; from fleetcut.cli import main; sys.exit(main(sys.argv[1:]))"
    harness = subprocess.Popen(
        [sys.executable, "-c", source, *lab.argv(campaign)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    fixed = ("powersave", str(freq_khz), str(freq_khz))
    try:
        _until(lambda: lab.policy(board_id) == fixed)
        start_c = lab.status(board_id).temp_c
        _until(lambda: lab.status(board_id).temp_c > start_c + 0.5)
    finally:
        os.kill(harness.pid, signal.SIGKILL)
        harness.wait()
    assert lab.policy(board_id) == fixed
    if killed == "agent":
        _kill_worker(lab, board_id)
    _until(lambda: lab.policy(board_id) == before)
    _until(lambda: not lab.agent_pids(board_id))  # of the burners too: nothing heats it any more
    if killed == "harness":  # the agent went on by itself: its record only has to be fetched
        assert main(lab.argv(campaign)) == 0
        (record,) = lab.records(board_id)
        assert record.error is None
        assert _reported_khz([record]) == {freq_khz}


def _kill_worker(lab, board_id):
    """By its own name for itself, on the board, as somebody logged in there would."""
    home = board_paths(lab.rack.resolve(), board_id).home
    pid = json.loads((home / ".fleetcut/board.lock").read_text())["pid"]
    transport = SshTransport(load_inventory(lab.rack / "inventory.yaml").board(board_id))
    try:
        assert transport.run(["kill", "-9", str(pid)], timeout_s=DEADLINE_S).exit_status == 0
    finally:
        transport.close()


def _until(question):
    """Asks again until the answer is yes; fails after a deadline that only a fault can reach."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < deadline_s, "it never came"
        select.select([], [], [], 0.05)


def _ms(records):
    """The least latency of several runs: other work on this machine can only raise one."""
    for record in records:
        assert record.error is None, record.error
    return min(min(record.latency_ns) for record in records) / 1e6


def _about(ratio):
    """What another tenant of this machine's core may make of a ratio: states differ by more."""
    return pytest.approx(ratio, rel=0.35)


def _reported_khz(records):
    return {state.freq_khz() for record in records for state in record.states}


def _name(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _network():
    """Three 3 × 3 convolutions of 16 channels on 64 × 64: 28 million multiply-accumulates."""
    rng = np.random.default_rng(0)
    names = ["x", "a", "b", "y"]
    weights = [rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12 for _ in range(3)]
    nodes = [
        helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], pads=[1, 1, 1, 1])
        for i in range(3)
    ]
    shape = [1, 16, 64, 64]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    built.ir_version = 8
    return built
