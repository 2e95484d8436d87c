import json
import os
import signal

import pytest

from device_agents import conditioning, cpufreq
from device_agents.conditioning import Conditioner
from device_agents.contract import BoardState, Condition
from device_agents.errors import RunFailedError, StoppedError
from device_agents.platforms import Linux


class Kernel(Linux):
    """Runs at the upper limit at once, or where its firmware caps it."""

    cap_khz = 10**9

    def freq_khz_by_policy(self):
        most = [self.root.read_int(f"{policy}/scaling_max_freq") for policy in self.policies]
        names = [name for name, _ in super().freq_khz_by_policy()]
        return tuple((name, min(khz, self.cap_khz)) for name, khz in zip(names, most, strict=True))


def conditioner(tree, tmp_path, board=None) -> Conditioner:
    board = board or Kernel(tree.root)
    return Conditioner(board, tmp_path / "restore.json", lambda seconds: None, ())


def settings(tree) -> tuple[str, str, str]:
    names = ("scaling_governor", "scaling_min_freq", "scaling_max_freq")
    return tuple(tree.read(f"{tree.policy}/{name}") for name in names)


BEFORE = ("ondemand", "600000", "1500000")


def test_nothing_asked_is_nothing_touched(tree, tmp_path):
    with conditioner(tree, tmp_path).hold(Condition(), 1):
        assert not (tmp_path / "restore.json").exists()


def test_governor_and_clock_are_held_and_put_back(tree, tmp_path):
    tree.put(tree.cpufreq)
    condition = Condition(governor="performance", freq_khz=1000000)
    with conditioner(tree, tmp_path).hold(condition, 1):
        assert settings(tree) == ("performance", "1000000", "1000000")
        assert (tmp_path / "restore.json").exists()
    assert settings(tree) == BEFORE
    assert not (tmp_path / "restore.json").exists()


def test_they_are_put_back_after_a_failure(tree, tmp_path):
    tree.put(tree.cpufreq)
    held = conditioner(tree, tmp_path).hold(Condition(freq_khz=600000), 1)
    with pytest.raises(StoppedError), held:
        raise StoppedError
    assert settings(tree) == BEFORE


def test_what_a_killed_worker_left_is_put_back_by_the_next(tree, tmp_path):
    tree.put(tree.cpufreq)
    held = conditioner(tree, tmp_path).hold(Condition(freq_khz=1500000), 1)
    held.__enter__()
    assert settings(tree) == ("ondemand", "1500000", "1500000")
    conditioner(tree, tmp_path).restore()
    assert settings(tree) == BEFORE


def test_a_clock_that_firmware_keeps_lower_is_not_the_one_asked_for(tree, tmp_path):
    tree.put(tree.cpufreq)
    board = Kernel(tree.root)
    board.cap_khz = 950_000  # within what dividers round to
    with conditioner(tree, tmp_path, board).hold(Condition(freq_khz=1000000), 1):
        pass
    board.cap_khz = 750_000
    fact = unmet(tree, tmp_path, Condition(freq_khz=1000000), board)
    assert fact == "policy0 runs at 750000 kHz after it was set to 1000000 kHz"
    assert settings(tree) == BEFORE


def test_a_clock_that_cannot_be_read_is_taken_as_set(tree, tmp_path):
    tree.put(tree.cpufreq)
    tree.put({f"{tree.policy}/scaling_cur_freq": "<unknown>"})
    with conditioner(tree, tmp_path, Linux(tree.root)).hold(Condition(freq_khz=1000000), 1):
        assert settings(tree)[1:] == ("1000000", "1000000")


@pytest.mark.parametrize(
    ("present", "wanted"),
    [
        ((600000, 1000000), (1500000, 1500000)),
        ((1000000, 1500000), (600000, 600000)),
        ((600000, 600000), (600000, 1500000)),
        ((1500000, 1500000), (600000, 1000000)),
        ((600000, 1500000), (1000000, 1000000)),
    ],
)
def test_the_maximum_never_falls_below_the_minimum(tree, monkeypatch, present, wanted):
    tree.put(tree.cpufreq)
    names = [f"{tree.policy}/scaling_min_freq", f"{tree.policy}/scaling_max_freq"]
    tree.put({name: f"{khz}" for name, khz in zip(names, present, strict=True)})
    write = type(tree.root).write_text

    def kernel(root, name, text):
        write(root, name, text)
        low, high = (int(tree.read(name)) for name in names)
        assert low <= high

    monkeypatch.setattr(type(tree.root), "write_text", kernel)
    cpufreq.set_range(tree.root, tree.policy, *wanted)
    assert tuple(int(tree.read(name)) for name in names) == wanted


def unmet(tree, tmp_path, condition: Condition, board=None) -> str:
    held = conditioner(tree, tmp_path, board).hold(condition, 0)
    with pytest.raises(RunFailedError) as caught, held:
        pytest.fail("the run was not to begin")
    assert caught.value.error.kind == "condition"
    assert caught.value.error.next_step
    return caught.value.error.fact


@pytest.mark.parametrize(
    ("condition", "fact"),
    [
        (Condition(governor="turbo"), "no governor 'turbo'"),
        (Condition(freq_khz=1234), "no CPU offers 1234 kHz"),
        (Condition(power_mode="15W"), "'15W' cannot be set on linux"),
        (Condition(battery_pct_min=50), "no battery"),
        (Condition(power_source="battery"), "runs from mains"),
        (Condition(temp_c_max=50), "no temperature"),
    ],
)
def test_what_cannot_be_had_is_said(tree, tmp_path, condition, fact):
    tree.put(tree.cpufreq)
    assert fact in unmet(tree, tmp_path, condition)
    assert settings(tree) == BEFORE


def test_no_cpufreq_at_all(tree, tmp_path):
    assert "no cpufreq policy" in unmet(tree, tmp_path, Condition(governor="performance"))


def test_a_file_that_may_not_be_written(tree, tmp_path, monkeypatch):
    tree.put(tree.cpufreq)

    def refused(root, name, text):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tree.root), "write_text", refused)
    fact = unmet(tree, tmp_path, Condition(governor="performance"))
    assert fact == "policy0/scaling_governor cannot be set to performance (Permission denied)"


def test_a_write_that_does_not_stay_is_seen(tree, tmp_path, monkeypatch):
    tree.put(tree.cpufreq)
    monkeypatch.setattr(type(tree.root), "write_text", lambda root, name, text: None)
    fact = unmet(tree, tmp_path, Condition(governor="performance"))
    assert fact == "policy0/scaling_governor is 'ondemand' after writing 'performance'"


def test_what_cannot_be_put_back_costs_no_record(tree, tmp_path, monkeypatch, capsys):
    tree.put(tree.cpufreq)
    with conditioner(tree, tmp_path).hold(Condition(governor="performance"), 1):
        monkeypatch.setattr(type(tree.root), "write_text", lambda root, name, text: None)
    assert "not restored" in capsys.readouterr().err
    remembered = json.loads((tmp_path / "restore.json").read_text())
    assert remembered[0]["governor"] == "ondemand"


def test_clusters_that_share_no_clock(tree, tmp_path):
    other = tree.policy.replace("policy0", "policy4")
    tree.put(tree.cpufreq).put(
        {k.replace("policy0", "policy4"): v for k, v in tree.cpufreq.items()}
    )
    tree.put({f"{other}/scaling_available_frequencies": "2000000"})
    with conditioner(tree, tmp_path).hold(Condition(freq_khz=1000000), 1):
        assert settings(tree)[1:] == ("1000000", "1000000")
        assert tree.read(f"{other}/scaling_min_freq") == "600000"


def battery(pct: str, status: str) -> dict[str, str]:
    supply = "sys/class/power_supply/BAT0"
    return {f"{supply}/type": "Battery", f"{supply}/capacity": pct, f"{supply}/status": status}


def test_charge_and_source(tree, tmp_path):
    tree.put(battery("40", "Discharging"))
    with conditioner(tree, tmp_path).hold(
        Condition(battery_pct_min=30, battery_pct_max=50, power_source="battery"), 1
    ):
        pass
    fact = unmet(tree, tmp_path, Condition(battery_pct_min=50))
    assert fact == "the battery is at 40 %, asked for 50.. %"
    assert "from battery, asked for 'mains'" in unmet(
        tree, tmp_path, Condition(power_source="mains")
    )


class Oven(Linux):
    """Warms by 2 °C a look while something burns, and cools by 1 °C while nothing does."""

    def __init__(self, root, temp_c: float) -> None:
        super().__init__(root)
        self.now_c = temp_c
        self.burners: list[int] = []
        self.looks: list[tuple[float, bool]] = []

    def observe(self, effective_freq_khz=None) -> BoardState:
        self.now_c += 2 if self.burners else -1
        self.looks.append((self.now_c, bool(self.burners)))
        return BoardState(monotonic_ns=1, temp_c_by_zone=(("cpu", self.now_c),))


@pytest.fixture
def oven(tree, monkeypatch):
    def make(temp_c: float) -> Oven:
        board = Oven(tree.root, temp_c)

        def fork(run, close_fds):
            board.burners.append(1)
            return 1

        monkeypatch.setattr(conditioning, "fork", fork)
        monkeypatch.setattr(conditioning, "kill_group", lambda pid: board.burners.pop())
        return board

    return make


@pytest.mark.parametrize("start_c", [20.0, 90.0, 55.0])
def test_a_band_is_reached_from_below_from_above_and_from_within(tree, tmp_path, oven, start_c):
    board = oven(start_c)
    with conditioner(tree, tmp_path, board).hold(Condition(temp_c_min=50, temp_c_max=60), 60):
        assert 50 <= board.now_c <= 60
        assert not board.burners


def test_a_band_that_is_not_reached_in_time(tree, tmp_path, oven):
    board = oven(20.0)
    fact = unmet(tree, tmp_path, Condition(temp_c_min=80), board)
    assert fact.startswith("80.. °C was not reached in time")
    assert not board.burners


def test_burners_are_processes_that_end(tree, tmp_path, monkeypatch):
    tree.put(
        {
            "sys/class/thermal/thermal_zone0/type": "cpu",
            "sys/class/thermal/thermal_zone0/temp": "40000",
        }
    )
    pids = []
    fork = conditioning.fork

    def remembering(run, close_fds):
        pids.append(fork(run, close_fds))
        return pids[-1]

    monkeypatch.setattr(conditioning, "fork", remembering)

    def heat(seconds):
        assert pids
        for pid in pids:
            os.kill(pid, 0)
        tree.put({"sys/class/thermal/thermal_zone0/temp": "70000"})

    held = Conditioner(Linux(tree.root), tmp_path / "restore.json", heat, ())
    with held.hold(Condition(temp_c_min=60), 60):
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
