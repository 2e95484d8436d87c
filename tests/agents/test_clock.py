import platform
import struct

import pytest

from device_agents import clock


class Core:
    """A core at a known clock: a chain of additions takes its cycles, and nothing else does."""

    def __init__(self, freq_khz: float, stolen_ns: tuple[int, ...] = ()) -> None:
        self.freq_khz = freq_khz
        self.now_ns = 0.0
        self.stolen_ns = list(stolen_ns)

    def chain(self, rounds: int) -> int:
        self.now_ns += rounds * 256 * 1e6 / self.freq_khz
        if self.stolen_ns:
            self.now_ns += self.stolen_ns.pop()
        return 0

    def clock_ns(self) -> int:
        return int(self.now_ns)

    def measured_khz(self) -> int:
        khz = clock.effective_freq_khz(self.chain, self.clock_ns)
        assert khz is not None
        return khz


@pytest.mark.parametrize("freq_khz", [200_000, 1_500_000, 4_200_000])
def test_the_clock_is_measured_without_calibration(freq_khz):
    assert Core(freq_khz).measured_khz() == pytest.approx(freq_khz, rel=1e-3)


def test_it_moves_in_proportion():
    assert Core(1_500_000 / 2.5).measured_khz() * 2.5 == pytest.approx(1_500_000, rel=1e-3)


def test_stolen_time_does_not_lower_it_while_one_trial_is_free():
    stolen = (0, *[300_000] * 24)
    assert Core(1_000_000, stolen).measured_khz() == pytest.approx(1_000_000, rel=1e-3)


def test_it_is_short():
    core = Core(1_000_000)
    core.measured_khz()
    assert core.now_ns < 10.5e6


def test_a_clock_that_stands_still_gives_nothing():
    assert clock.effective_freq_khz(lambda rounds: 0, lambda: 5) is None


def test_no_chain_is_none(monkeypatch):
    monkeypatch.setattr(clock, "native_chain", lambda: None)
    assert clock.effective_freq_khz() is None


def words(machine: str, bits: int) -> list[int]:
    code = clock.machine_code(machine, bits)
    assert code is not None
    return list(struct.unpack(f"<{len(code) // 4}I", code))


def test_aarch64_code():
    # As GNU as encodes: add x1, x1, x2; subs x0, x0, #1; b.ne .-1028; ret
    found = words("aarch64", 64)
    assert found[:256] == [0x8B020021] * 256
    assert found[256:] == [0xF1000400, 0x54FFDFE1, 0xD65F03C0]


def test_arm_code_also_for_a_32_bit_process_on_a_64_bit_kernel():
    # add r1, r1, r2; subs r0, r0, #1; bne .-1028; bx lr
    found = words("aarch64", 32)
    assert found == words("armv7l", 32)
    assert found[:256] == [0xE0811002] * 256
    assert found[256:] == [0xE2500001, 0x1AFFFEFD, 0xE12FFF1E]


@pytest.mark.parametrize(("machine", "bits"), [("riscv64", 64), ("x86_64", 32), ("mips", 32)])
def test_machines_without_a_chain(machine, bits):
    assert clock.machine_code(machine, bits) is None


def test_this_machines_own_chain_runs():
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip(f"a chain for {platform.machine()} missing: none is written")
    khz = clock.effective_freq_khz()
    assert khz is not None
    assert 50_000 < khz < 10_000_000
