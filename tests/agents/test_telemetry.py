import threading

from device_agents.platforms import Linux
from device_agents.telemetry import Sampler


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


def test_the_shortest_block_has_one_sample(tree):
    with Sampler(Linux(tree.root), period_s=1000) as sampler:
        pass
    assert len(sampler.states) == 1
    assert not any(thread.name == "telemetry" for thread in threading.enumerate())
