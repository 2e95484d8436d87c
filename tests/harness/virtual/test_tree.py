from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness.virtual.physics import initial_physics, write_policy
from harness.virtual.spec import BatterySpec, VirtualBoardSpec
from harness.virtual.tree import POLICY, BoardTree, dynamic_files
from harness.virtual.watch import WriteWatch

SPEC = VirtualBoardSpec("vb-07", cores=4, battery=BatterySpec(charge_pct=10.0))


def shown(tmp_path: Path) -> BoardTree:
    tree = BoardTree(tmp_path / "root")
    tree.create(SPEC, "11111111-2222-3333-4444-555555555555", initial_physics(SPEC))
    return tree


def test_a_boot_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    tree = shown(tmp_path)
    (tree.root / "etc/stray").write_text("x")
    (tree.root / POLICY / "scaling_governor").write_text("powersave\n")
    unbattered = replace(SPEC, battery=None, cores=1)
    tree.create(unbattered, "other", initial_physics(unbattered))
    fresh = BoardTree(tmp_path / "fresh")
    fresh.create(unbattered, "other", initial_physics(unbattered))
    assert _contents(tree.root) == _contents(fresh.root)


def _contents(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() if p.is_file() else "" for p in root.rglob("*")}


def test_every_file_is_in_the_kernels_unit_and_form(tmp_path: Path) -> None:
    root = shown(tmp_path).root
    expected = {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "42000\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_temp": "80000\n",
        "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
        "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
        "sys/class/thermal/cooling_device0/cur_state": "0\n",
        "sys/class/thermal/cooling_device0/max_state": "4\n",
        "sys/devices/system/cpu/online": "0-3\n",
        f"{POLICY}/scaling_governor": "performance\n",
        f"{POLICY}/scaling_cur_freq": "1500000\n",
        f"{POLICY}/cpuinfo_cur_freq": "750000\n",
        f"{POLICY}/scaling_setspeed": "<unsupported>\n",
        f"{POLICY}/affected_cpus": "0 1 2 3\n",
        "sys/devices/system/cpu/cpu3/cpufreq/cpuinfo_max_freq": "1500000\n",
        "sys/class/power_supply/BAT0/type": "Battery\n",
        "sys/class/power_supply/BAT0/status": "Discharging\n",
        "sys/class/power_supply/BAT0/capacity": "10\n",
        "sys/class/power_supply/BAT0/voltage_now": "3390000\n",
        "sys/class/power_supply/BAT0/current_now": "590000\n",
        "sys/class/power_supply/BAT0/temp": "292\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "60006\n",
        "sys/class/hwmon/hwmon0/power1_input": "2000000\n",
        "proc/device-tree/model": "fleetcut virtual board (simulated)\0",
        "proc/sys/kernel/hostname": "vb-07\n",
        "proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
    }
    assert {name: (root / name).read_text() for name in expected} == expected


def test_the_board_says_that_it_is_simulated(tmp_path: Path) -> None:
    root = shown(tmp_path).root
    assert "DEPLOYMENT=simulated" in (root / "etc/machine-info").read_text().splitlines()
    assert "simulated" in (root / "etc/os-release").read_text()
    cpuinfo = (root / "proc/cpuinfo").read_text()
    assert cpuinfo.count("processor\t:") == 4
    assert all("simulated" in line for line in cpuinfo.splitlines() if "model name" in line)
    host_lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = [line for line in host_lines if line.lower().startswith(("flags", "features"))]
    assert not flags or flags[0] in cpuinfo


def test_only_what_changed_is_replaced_and_always_whole(tmp_path: Path) -> None:
    tree = shown(tmp_path)
    temp = tree.root / "sys/class/thermal/thermal_zone0/temp"
    governor = tree.root / POLICY / "scaling_governor"
    before = (temp.stat().st_ino, governor.stat().st_ino)
    with temp.open() as held:
        tree.publish(dynamic_files(SPEC, replace(initial_physics(SPEC), temp_c=55.55)))
        assert held.read() == "42000\n"
    assert temp.read_text() == "55600\n"
    assert temp.stat().st_ino != before[0]
    assert governor.stat().st_ino == before[1]


def test_only_cpufreqs_own_knobs_are_writable(tmp_path: Path) -> None:
    tree = shown(tmp_path)
    writable = {
        path.name for path in tree.root.rglob("*") if path.is_file() and path.stat().st_mode & 0o222
    }
    assert writable == {
        "scaling_governor",
        "scaling_min_freq",
        "scaling_max_freq",
        "scaling_setspeed",
    }


def test_a_write_in_place_is_seen_and_our_own_renames_are_not(tmp_path: Path) -> None:
    tree = shown(tmp_path)
    watch = WriteWatch()
    try:
        watch.add(tree.root / POLICY)
        state = write_policy(SPEC, initial_physics(SPEC), "scaling_max_freq", "1000000")
        tree.publish(dynamic_files(SPEC, state))
        assert list(watch.written()) == []
        (tree.root / POLICY / "scaling_governor").write_text("powersave\n")
        assert set(watch.written()) == {(tree.root / POLICY, "scaling_governor")}
    finally:
        watch.close()


def test_a_valid_write_is_left_alone_and_an_invalid_one_is_put_back(tmp_path: Path) -> None:
    tree = shown(tmp_path)
    governor = tree.root / POLICY / "scaling_governor"
    governor.write_text("powersave")
    inode = governor.stat().st_ino
    tree.settle_policy("scaling_governor", "powersave", "powersave\n")
    assert (governor.read_text(), governor.stat().st_ino) == ("powersave", inode)
    governor.write_text("turbo\n")
    tree.settle_policy("scaling_governor", "turbo\n", "powersave\n")
    assert governor.read_text() == "powersave\n"
