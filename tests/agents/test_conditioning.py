import itertools
import json

import pytest

from device_agents import cpufreq
from device_agents.conditioning import Conditioner
from device_agents.contract import Condition, RunError
from device_agents.errors import RunFailedError, StoppedError
from device_agents.platforms import Linux


class Kernel(Linux):
    """Runs at the upper limit at once, or where its firmware caps it."""

    cap_khz = 10**9

    def freq_khz_by_policy(self):
        most = [self.root.read_int(f"{policy}/scaling_max_freq") for policy in self.policies]
        names = [name for name, _ in super().freq_khz_by_policy()]
        return tuple((name, min(khz, self.cap_khz)) for name, khz in zip(names, most, strict=True))


made: list[Conditioner] = []


def conditioner(tree, tmp_path, board=None, wait=lambda seconds: None) -> Conditioner:
    made.append(Conditioner(board or Kernel(tree.root), tmp_path / "restore.json", wait, ()))
    return made[-1]


@pytest.fixture(autouse=True)
def ended():
    yield
    while made:
        made.pop().end()


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
    return unmet_error(tree, tmp_path, condition, board).fact


def unmet_error(tree, tmp_path, condition: Condition, board=None) -> RunError:
    held = conditioner(tree, tmp_path, board).hold(condition, 0)
    with pytest.raises(RunFailedError) as caught, held:
        pytest.fail("the run was not to begin")
    assert caught.value.error.kind == "condition"
    assert caught.value.error.next_step
    return caught.value.error


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
    assert remembered["policies"][0]["governor"] == "ondemand"


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
    assert "from battery, asked for 'mains'" in unmet(
        tree, tmp_path, Condition(power_source="mains")
    )
    tree.put(battery("40", "Charging"))
    error = unmet_error(tree, tmp_path, Condition(power_source="battery"))
    assert error.fact == "the board runs from mains, asked for 'battery'"
    assert error.next_step == "unplug its supply, then measure again"


@pytest.mark.parametrize(
    ("status", "low", "high", "fact", "next_step"),
    [
        ("Discharging", 50, None, "50.. %, and is discharging", "plug in its supply"),
        ("Not charging", 50, 60, "50..60 %, and is not charging", "plug in its supply"),
        ("Charging", None, 30, "..30 %, and is charging", "unplug its supply"),
        ("Unknown", 10, 30, "10..30 %, and is unknown", "unplug its supply"),
    ],
)
def test_a_charge_that_moves_the_other_way_is_said_at_once(
    tree, tmp_path, status, low, high, fact, next_step
):
    tree.put(battery("40", status))

    def waited(seconds):
        pytest.fail("there was nothing to wait for")

    condition = Condition(battery_pct_min=low, battery_pct_max=high)
    held = conditioner(tree, tmp_path, wait=waited).hold(condition, 1000)
    with pytest.raises(RunFailedError) as caught, held:
        pass
    assert caught.value.error.fact == f"the battery is at 40 %, asked for {fact}"
    assert caught.value.error.next_step == f"{next_step}, then measure again"


@pytest.mark.parametrize(
    ("start", "step", "status", "low", "high"),
    [(40, 3, "Charging", 50, 60), (90, -4, "Discharging", None, 70)],
)
def test_a_charge_that_moves_there_is_waited_for(tree, tmp_path, start, step, status, low, high):
    charges = itertools.count(start, step)
    tree.put(battery(str(next(charges)), status))

    def wait(seconds):
        tree.put(battery(str(next(charges)), status))

    condition = Condition(battery_pct_min=low, battery_pct_max=high)
    with conditioner(tree, tmp_path, wait=wait).hold(condition, 1000):
        reached = Linux(tree.root).battery_pct()
    assert reached == (52 if step > 0 else 70)


def test_a_charge_that_is_full_below_its_band_is_waited_for_no_longer(tree, tmp_path):
    tree.put(battery("40", "Charging"))
    full = [battery("41", "Full")]
    held = conditioner(tree, tmp_path, wait=lambda seconds: tree.put(full.pop())).hold(
        Condition(battery_pct_min=50), 1000
    )
    with pytest.raises(RunFailedError, match="is at 41 %, asked for 50.. %, and is full"), held:
        pass


def test_a_charge_that_takes_too_long_is_said(tree, tmp_path):
    tree.put(battery("40", "Charging"))
    fact = unmet(tree, tmp_path, Condition(battery_pct_min=50))
    assert fact == "the battery is at 40 %, asked for 50.. %, and is still charging"


class Modes(Kernel):
    """A board with power modes, each of which sets clock limits of its own."""

    limits = {"MAXN": "1500000", "10W": "1000000"}  # noqa: RUF012 - never written
    mode = "MAXN"
    obeys = True

    def power_mode(self):
        return self.mode

    def power_modes(self):
        return tuple(self.limits)

    def set_power_mode(self, name):
        if self.obeys:
            self.mode = name
            self.root.write_text(f"{self.policies[0]}/scaling_max_freq", self.limits[name])


def test_a_power_mode_is_held_and_put_back_with_the_limits_it_changed(tree, tmp_path):
    tree.put(tree.cpufreq)
    board = Modes(tree.root)
    condition = Condition(power_mode="10W", freq_khz=600000)
    with conditioner(tree, tmp_path, board).hold(condition, 1):
        assert board.mode == "10W"
        assert settings(tree)[1:] == ("600000", "600000")
        assert json.loads((tmp_path / "restore.json").read_text())["power_mode"] == "MAXN"
    assert board.mode == "MAXN"
    assert settings(tree) == BEFORE


def test_a_power_mode_that_there_is_not_or_that_does_not_stay(tree, tmp_path):
    tree.put(tree.cpufreq)
    board = Modes(tree.root)
    error = unmet_error(tree, tmp_path, Condition(power_mode="15W"), board)
    assert (error.fact, error.next_step) == ("there is no power mode '15W'", "use one of MAXN, 10W")
    board.obeys = False
    fact = unmet(tree, tmp_path, Condition(power_mode="10W"), board)
    assert fact == "the power mode is 'MAXN' after setting '10W'"
    assert settings(tree) == BEFORE


class Throttled(Kernel):
    """The kernel lowers the maximum for heat: the file shows the lowest of all requests."""

    hot = True

    def throttled(self):
        return self.hot


def test_a_limit_that_the_kernel_lowers_for_heat_is_not_taken_for_the_boards_own(tree, tmp_path):
    tree.put(tree.cpufreq)
    most = {f"{tree.policy}/scaling_max_freq": "1000000"}
    board = Throttled(tree.root)
    tree.put(most)
    assert "throttled" in unmet(tree, tmp_path, Condition(governor="performance"), board)
    assert not (tmp_path / "restore.json").exists()

    def cools(seconds):
        board.hot = False
        tree.put(tree.cpufreq)

    with conditioner(tree, tmp_path, board, cools).hold(Condition(freq_khz=600000), 1000):
        pass
    assert settings(tree) == BEFORE


def test_limits_are_put_back_while_the_kernel_lowers_them(tree, tmp_path, monkeypatch, capsys):
    tree.put(tree.cpufreq)
    board = Throttled(tree.root)
    board.hot = False
    write = type(tree.root).write_text

    def kernel(root, name, text):
        write(root, name, "1000000" if name.endswith("max_freq") and board.hot else text)

    monkeypatch.setattr(type(tree.root), "write_text", kernel)
    with conditioner(tree, tmp_path, board).hold(Condition(freq_khz=600000), 1):
        board.hot = True
    assert settings(tree) == ("ondemand", "600000", "1000000")
    assert not (tmp_path / "restore.json").exists()
    assert capsys.readouterr().err == ""


def test_one_policy_that_cannot_be_put_back_keeps_no_other_from_it(
    tree, tmp_path, monkeypatch, capsys
):
    other = tree.policy.replace("policy0", "policy4")
    tree.put(tree.cpufreq).put(
        {k.replace("policy0", "policy4"): v for k, v in tree.cpufreq.items()}
    )
    write = type(tree.root).write_text

    def broken(root, name, text):
        if tree.policy not in name:
            write(root, name, text)

    with conditioner(tree, tmp_path).hold(Condition(governor="performance"), 1):
        monkeypatch.setattr(type(tree.root), "write_text", broken)
    assert tree.read(f"{other}/scaling_governor") == "ondemand"
    assert "policy0/scaling_governor" in capsys.readouterr().err
    assert (tmp_path / "restore.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"owner": "x"}'])
def test_a_memory_that_cannot_be_read_is_put_aside_and_said(tree, tmp_path, text, capsys):
    (tmp_path / "restore.json").write_text(text)
    conditioner(tree, tmp_path).restore()
    assert "restore.json cannot be read" in capsys.readouterr().err
    assert (tmp_path / "restore.json.unreadable").read_text() == text
    assert not (tmp_path / "restore.json").exists()


def heated(tree, temp_c: float) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    tree.put({f"{zone}/type": "cpu", f"{zone}/temp": f"{temp_c * 1000:.0f}"})


@pytest.mark.parametrize("prepared", [True, False])
def test_heat_is_reached_before_the_run(tree, tmp_path, prepared):
    heated(tree, 40)
    condition = Condition(temp_c_min=60)
    held = conditioner(tree, tmp_path, wait=lambda seconds: heated(tree, 70))
    if prepared:
        held.prepare([Condition(), condition])
        assert held.burners is not None
    with held.hold(condition, 1000):
        assert Linux(tree.root).observe().temp_c() == 70


def test_burners_are_made_only_where_a_run_needs_them(tree, tmp_path):
    conditions = [Condition(), Condition(temp_c_max=50)]
    held = conditioner(tree, tmp_path)
    held.prepare(conditions)
    assert held.burners is None
