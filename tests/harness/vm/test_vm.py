"""The unchanged agent over SSH on an arm64 kernel, whose own governors decide heat and clock."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path

import pytest

from device_agents.contract import MeasurementRecord, Reason
from fleetcut.cli import main
from harness.bundle import build_bundle
from harness.inventory import load_inventory
from harness.session import AgentSession
from harness.ssh import SshTransport
from harness.virtual.errors import RackError
from harness.virtual.vm.image import Image, image_key
from harness.virtual.vm.machine import Vm, VmSpec
from harness.wheelhouse import Platform, UnreachableIndexError, default_cache, resolve

POLICY = "/sys/devices/system/cpu/cpufreq/policy0"
LIMITS = ("scaling_governor", "scaling_min_freq", "scaling_max_freq")
NO_HEAT = {"trip_mc": 150_000}
LONG_S = 1200
"""Enough on a machine that computes other things meanwhile."""


def run(vm: Vm, *argv: str) -> str:
    with contextlib.closing(SshTransport(load_inventory(vm.inventory).boards[0])) as transport:
        done = transport.run(argv, timeout_s=LONG_S / 2)
    assert done.exit_status == 0, done.stderr
    return done.stdout.decode()


def read(vm: Vm, *paths: str) -> list[str]:
    return run(vm, "cat", *paths).split()


def cool_down(vm: Vm) -> None:
    """Until the kernel throttles no more: so long the limits read as it has lowered them."""
    state = "/sys/class/thermal/cooling_device0/cur_state"
    # On the board and in one command: each log-in would heat it again.
    wait = f'until [ "$(cat {state})" = 0 ]; do sleep 1; done'
    run(vm, "bash", "-c", wait)


def undisturbed(records: list[MeasurementRecord], index: int = 0) -> MeasurementRecord:
    """One during which nothing else ran: the program that follows the session starts slowly."""
    assert all(record.error is None for record in records)
    calm = [r for r in records if Reason.FOREIGN_LOAD not in r.verdict.reasons]
    assert len(calm) > index, [record.verdict for record in records]
    return calm[-1 - index]


def p50_ns(record: MeasurementRecord) -> float:
    assert record.error is None, record.error
    return statistics.median(record.latency_ns)


@pytest.mark.parametrize(
    "wrong", [{"cpus": 0}, {"memory_mb": 64}, {"icount_shift": 11}, {"icount_shift": 1, "cpus": 2}]
)
def test_a_board_that_qemu_could_not_run_is_refused(wrong):
    with pytest.raises(ValueError, match="vm-arm64"):
        VmSpec(**wrong)


def test_the_images_name_follows_the_wheels_versions(monkeypatch):
    before = image_key()
    assert image_key() == before
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1")
    assert image_key() != before


def test_without_qemu_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RackError, match="missing: qemu-system-aarch64"):
        Vm(Image(tmp_path), tmp_path / "vm").up()


def test_an_image_that_does_not_boot_ends_in_an_error_and_no_process(vm_image, tmp_path):
    broken = tmp_path / "image"
    broken.mkdir()
    (broken / "vmlinuz").symlink_to(vm_image.kernel)
    (broken / "disk.img").symlink_to(vm_image.disk)
    (broken / "initrd.gz").write_bytes(b"")
    vm = Vm(Image(broken), tmp_path / "vm")
    with pytest.raises(RackError, match=r"console\.log"):
        vm.up()
    assert vm.pid is None


@pytest.mark.timeout(LONG_S)
def test_the_agent_knows_the_board(boot):
    vm = boot(VmSpec(board_id="arm"))
    board = load_inventory(vm.inventory).boards[0]
    with contextlib.closing(SshTransport(board)) as transport:
        session = AgentSession(board, transport, build_bundle())
        session.push_agent()
        profile, state = session.probe(), session.state()
    assert (profile.hostname, profile.machine, profile.simulated) == ("arm", "aarch64", True)
    assert profile.opp_freqs_khz == (600_000, 750_000, 1_000_000, 1_200_000, 1_500_000)
    assert {"onnxruntime", "ai-edge-litert"} <= dict(profile.runtime_versions).keys()
    assert state.governor == "schedutil"
    assert state.battery_pct is not None
    assert state.power_mw is not None
    assert state.power_mw >= 1000
    temp_c = state.temp_c()
    assert temp_c is not None
    assert 30 < temp_c < 100
    pid = vm.pid
    assert pid is not None
    vm.down()
    assert not Path(f"/proc/{pid}").exists()
    assert vm.pid is None
    vm.down()


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
def test_heat_past_the_trip_is_throttled_by_the_kernel_and_said_so(boot, measure, prepared):
    # Counted time: heat and throttling are the same however busy this machine is.
    vm = boot(VmSpec(setup=prepared, icount_shift=2))
    before = read(vm, *(f"{POLICY}/{name}" for name in LIMITS))
    # Twice each, so that in any order of the cells one hot run follows one that was kept cool.
    records = measure(
        vm,
        "hot",
        stopping={"warmup_max": 5, "samples_min": 20, "samples_max": 2000, "max_seconds": 4.0}
        | {"ci_fraction": 0.0001},
        conditions=[{"governor": "performance"}, {"freq_khz": 600_000, "temp_c_max": 55.0}],
        repeats=2,
        timeout_s=600.0,
    )
    assert [record.error for record in records] == [None] * 4
    cool = [record for record in records if record.spec.condition.temp_c_max]
    assert not any(Reason.THROTTLED in record.verdict.reasons for record in cool)
    hot = [
        record
        for record in records
        if record.spec.condition.governor and not record.states[0].throttled
    ]
    assert hot
    for record in hot:
        assert Reason.THROTTLED in record.verdict.reasons
        capped = [state for state in record.states if state.throttled]
        assert max(state.temp_c() for state in capped) >= 69
        assert min(state.freq_khz() for state in capped) < 1_500_000
        assert {state.governor for state in capped} == {"performance"}
    cool_down(vm)
    assert read(vm, *(f"{POLICY}/{name}" for name in LIMITS)) == before


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
def test_a_fixed_clock_is_set_slows_the_network_and_is_put_back(boot, measure, prepared):
    vm = boot(VmSpec(setup=prepared, icount_shift=1, physics=NO_HEAT))
    before = read(vm, *(f"{POLICY}/{name}" for name in LIMITS))
    stopping = {"warmup_max": 5, "samples_min": 20, "samples_max": 20}
    clocks = {
        khz: undisturbed(
            measure(vm, f"at-{khz}", stopping=stopping, conditions=[{"freq_khz": khz}], repeats=6)
        )
        for khz in (1_500_000, 600_000)
    }
    for khz, record in clocks.items():
        assert {state.freq_khz() for state in record.states} == {khz}
        assert Reason.THROTTLED not in record.verdict.reasons
    full, slow = clocks.values()
    assert p50_ns(slow) == pytest.approx(2.5 * p50_ns(full), rel=0.03)
    full_khz, slow_khz = (record.states[0].effective_freq_khz for record in (full, slow))
    # Its trials are hardly longer than the slices in which a low clock is dealt out.
    assert slow_khz == pytest.approx(full_khz / 2.5, rel=0.15)
    assert read(vm, *(f"{POLICY}/{name}" for name in LIMITS)) == before


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
def test_counted_time_repeats_itself_and_doubles_with_the_shift(boot, measure):
    stopping = {"warmup_max": 5, "samples_min": 20, "samples_max": 20}
    performance = f"echo performance > {POLICY}/scaling_governor"
    p50s = {}
    for shift in (0, 1):
        vm = boot(VmSpec(icount_shift=shift, physics=NO_HEAT, setup=performance))
        records = measure(vm, f"shift-{shift}", stopping=stopping, repeats=8)
        p50s[shift] = [p50_ns(undisturbed(records, index)) for index in (1, 0)]
        vm.down()
    for first, second in p50s.values():
        assert second == pytest.approx(first, rel=0.001)
    assert p50s[1][1] == pytest.approx(2 * p50s[0][1], rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(LONG_S)
def test_wheels_found_here_run_there(boot, measure):
    """Another onnxruntime than the image's, for a board without internet."""
    asked = ["--with", "onnxruntime==1.22.1", "--with", "numpy==2.2.6"]
    try:
        resolve(Platform("3.11", "aarch64", "2.36"), [*asked[1::2]], default_cache())
    except UnreachableIndexError as error:
        pytest.skip(f"no registry: {error}")
    vm = boot(VmSpec())
    assert main(["provision", "--inventory", str(vm.inventory), *asked]) == 0
    (record,) = measure(
        vm,
        "provisioned",
        stopping={"warmup_min": 1, "warmup_max": 2, "samples_min": 5, "samples_max": 5},
        timeout_s=600.0,
    )
    assert record.error is None
    assert record.runtime_version == "1.22.1"
