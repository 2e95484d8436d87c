import os
import threading

from device_agents import telemetry
from device_agents.platforms import Linux
from device_agents.telemetry import Sampler, observation_cpu_ns


class Counting(Linux):
    """Tells when it was observed often enough."""

    def __init__(self, root, wanted: int) -> None:
        super().__init__(root)
        self.left = wanted
        self.reached = threading.Event()

    def observe(self, effective_freq_khz=None):
        self.left -= 1
        if self.left <= 0:
            self.reached.set()
        return super().observe(effective_freq_khz)


def test_samples_are_in_order_and_a_bad_zone_drops_nothing(tree):
    tree.put(
        {
            "sys/class/thermal/thermal_zone0/type": "cpu",
            "sys/class/thermal/thermal_zone0/temp": "50000",
            "sys/class/thermal/thermal_zone1/type": "bad",
        }
    )
    tree.unreadable("sys/class/thermal/thermal_zone1/temp")
    board = Counting(tree.root, 3)
    with Sampler(board, period_s=0.001) as sampler:
        assert board.reached.wait(60)
    states = sampler.states
    assert len(states) >= 3
    times = [state.monotonic_ns for state in states]
    assert times == sorted(times)
    assert all(s.temp_c_by_zone == (("cpu", 50.0), ("bad", None)) for s in states)


def test_the_shortest_block_has_its_first_and_its_last_sample(tree):
    with Sampler(Linux(tree.root), period_s=1000) as sampler:
        pass
    assert len(sampler.states) == 2
    assert not any(thread.name == "telemetry" for thread in threading.enumerate())


def test_without_a_period_nothing_is_observed(tree):
    board = Counting(tree.root, 1)
    with Sampler(board, period_s=None) as sampler:
        assert not any(thread.name == "telemetry" for thread in threading.enumerate())
    assert sampler.states == ()
    assert not board.reached.is_set()


class Clock:
    """A monotonic clock that stands still but for what is waited and what a reading takes."""

    def __init__(self, waits: int) -> None:
        self.now_s = 100.0
        self.waits = waits

    def monotonic(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> bool:
        self.now_s += seconds
        self.waits -= 1
        return self.waits <= 0


def test_the_schedule_does_not_drift(tree, monkeypatch):
    clock = Clock(waits=5)
    takes_s = iter([0.01, 0.03, 0.25, 0.0, 0.0, 0.0])
    begun_s = []

    class Slow(Linux):
        def observe(self, effective_freq_khz=None):
            begun_s.append(round(clock.now_s, 6))
            clock.now_s += next(takes_s)
            return super().observe(effective_freq_khz)

    sampler = Sampler(Slow(tree.root), period_s=0.1)
    monkeypatch.setattr(telemetry.time, "monotonic", clock.monotonic)
    monkeypatch.setattr(sampler._ended, "wait", clock.wait)
    sampler._observe(0.1, 0)
    # The third takes two periods and a half: two samples fall out, none after it is late.
    assert begun_s == [100.0, 100.1, 100.2, 100.5, 100.6, 100.7]


def test_a_zone_that_hangs_in_the_run_is_given_up_and_the_others_go_on(tree):
    zones = [f"sys/class/thermal/thermal_zone{i}" for i in range(3)]
    tree.put({f"{zone}/temp": f"{i}1000\n" for i, zone in enumerate(zones)})
    board = Counting(tree.root, 3)
    (tree.path / zones[1] / "temp").unlink()
    os.mkfifo(tree.path / zones[1] / "temp")  # opening it waits for a writer
    hanging = f"{zones[1]}/temp"
    with Sampler(board, period_s=0.001, stall_s=0.05) as sampler:
        assert board.reached.wait(60)
        # What hung comes back now: it must not count beside the observer that took its place.
        os.close(os.open(tree.path / hanging, os.O_WRONLY))
    assert board.root.given_up == {hanging}
    for state in sampler.states:
        assert state.temp_c_by_zone == (
            ("thermal_zone0", 1.0), ("thermal_zone1", None), ("thermal_zone2", 21.0)
        )  # fmt: skip
    times = [state.monotonic_ns for state in sampler.states]
    assert times == sorted(times)
    assert board.observe().temp_c() == 21.0


def test_no_file_stays_open_after_the_block(tree):
    tree.put(tree.cpufreq)
    before = set(os.listdir("/proc/self/fd"))
    board = Counting(tree.root, 3)
    with Sampler(board, period_s=0.001):
        assert board.reached.wait(60)
        assert len(os.listdir("/proc/self/fd")) > len(before)
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_an_observation_costs(tree):
    tree.put(tree.cpufreq)
    assert 0 < observation_cpu_ns(Linux(tree.root), count=3) < 1_000_000_000
