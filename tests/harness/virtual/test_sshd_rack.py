"""Boards that are OpenSSH servers in namespaces of their own. Skipped where none can be made."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from fleetcut.cli import main
from harness.inventory import load_inventory
from harness.virtual import cgroup, namespace, rack
from harness.virtual.errors import RackError
from harness.virtual.procfiles import ProcFiles
from harness.virtual.spec import MODEL, RackSpec, VirtualBoardSpec, uniform_rack

Connect = Callable[[Path, str], paramiko.SSHClient]
Until = Callable[[Callable[[], bool]], None]

POLICY = "/sys/devices/system/cpu/cpufreq/policy0"
ZONE = "/sys/class/thermal/thermal_zone0"


def _missing() -> str:
    try:
        namespace.require_namespaces()
    except RackError as error:
        # A package that is missing fails in CI; a machine that cannot is skipped there too.
        return f"missing: {error}" if "not installed" in str(error) else f"no sshd boards: {error}"
    return ""


MISSING = _missing()
needs_namespaces = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def sshd_rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder, with a blank in its name, of a rack of boards a and b; b heats up at once."""
    folder = tmp_path_factory.mktemp("sshd rack")
    warm = VirtualBoardSpec("b", thermal_resistance_c_per_w=20.0, heat_capacity_j_per_c=0.05)
    rack.up(folder, RackSpec(boards=(VirtualBoardSpec("a"), warm), seed=0), sshd=True)
    yield folder
    rack.down(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "rack"
    rack.down(tmp_path / "rack")


def output(client: paramiko.SSHClient, command: str) -> str:
    return client.exec_command(command)[1].read().decode().strip()


def python(client: paramiko.SSHClient, source: str) -> str:
    stdin, stdout, _ = client.exec_command("python3 -")
    stdin.write(source)
    stdin.channel.shutdown_write()
    return stdout.read().decode().strip()


def busy_jiffies(client: paramiko.SSHClient) -> int:
    name, user, nice, system = output(client, "head -n 1 /proc/stat").split()[:4]
    assert name == "cpu"
    return int(user) + int(nice) + int(system)


def pids_of(folder: Path) -> list[int]:
    return [pid for group in cgroup.leftover_cgroups(folder.resolve()) for pid in group.pids()]


def await_end(pids: list[int]) -> None:
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([fd], [], [], 60.0)[0], f"process {pid} lives on"
        finally:
            os.close(fd)


@needs_namespaces
def test_a_board_shows_its_own_files_at_the_absolute_paths(
    sshd_rack: Path, connect: Connect
) -> None:
    client = connect(sshd_rack, "a")
    assert output(client, "cat /proc/sys/kernel/hostname; uname -n") == "a\na"
    assert output(client, "grep DEPLOYMENT /etc/machine-info") == "DEPLOYMENT=simulated"
    assert output(client, "cat /sys/class/dmi/id/product_name") == MODEL
    assert output(client, f"cat {ZONE}/type {POLICY}/scaling_governor") == (
        "cpu-thermal\nperformance"
    )
    assert output(client, "pwd") == str(sshd_rack.resolve() / "boards/a/home")
    assert output(client, "echo ${FLEETCUT_BOARD_ROOT:-none}") == "none"
    (status, _) = rack.status(sshd_rack).boards
    assert output(client, "cat /proc/sys/kernel/random/boot_id") == status.boot_id
    assert output(client, "ls /proc | grep -c '^[0-9]'") < "9"
    assert status.connections == 1


@needs_namespaces
def test_boards_have_host_keys_of_their_own_and_are_marked_simulated(sshd_rack: Path) -> None:
    one, other = load_inventory(sshd_rack / "inventory.yaml").boards
    assert one.host_key_sha256 != other.host_key_sha256
    assert one.simulated
    assert other.simulated
    assert one.exclusive_group == other.exclusive_group is not None


@needs_namespaces
def test_what_is_written_to_cpufreq_is_honoured_or_put_back(
    sshd_rack: Path, connect: Connect, until: Until
) -> None:
    client = connect(sshd_rack, "a")
    output(client, f"cd {POLICY}; echo userspace > scaling_governor")
    until(lambda: output(client, f"cat {POLICY}/scaling_setspeed") == "1500000")
    output(client, f"echo 750000 > {POLICY}/scaling_setspeed")
    until(lambda: output(client, f"cat {POLICY}/cpuinfo_cur_freq") == "750000")
    output(client, f"echo turbo > {POLICY}/scaling_governor")
    until(lambda: output(client, f"cat {POLICY}/scaling_governor") == "userspace")
    output(client, f"echo performance > {POLICY}/scaling_governor")
    until(lambda: output(client, f"cat {POLICY}/cpuinfo_cur_freq") == "1500000")
    assert output(client, f"cat {POLICY}/scaling_governor") == "performance"


@needs_namespaces
def test_proc_stat_counts_the_boards_own_processes_as_they_run(
    sshd_rack: Path, connect: Connect
) -> None:
    """While other work keeps this machine busy, on the other board and beside both."""
    idle, loaded = connect(sshd_rack, "a"), connect(sshd_rack, "b")
    idle_before = busy_jiffies(idle)
    own = python(
        loaded,
        "import time\n"
        "def busy():\n"
        "    return sum(map(int, open('/proc/stat').readline().split()[1:4])) * 10_000_000\n"
        "before, own = busy(), time.process_time_ns()\n"
        "while time.process_time_ns() - own < 600_000_000: pass\n"
        "print((busy() - before) / (time.process_time_ns() - own))",
    )
    assert float(own) == pytest.approx(1.0, abs=0.2)
    assert busy_jiffies(idle) - idle_before < 30


@needs_namespaces
def test_work_that_never_looks_at_the_clock_heats_the_board(
    sshd_rack: Path, connect: Connect, until: Until
) -> None:
    client = connect(sshd_rack, "b")
    # Read from outside: each log-in would heat the board, of 25 °C and 20 °C/W times 2 W, itself.
    temp = next((sshd_rack / "boards/b").rglob("thermal_zone0/temp"))
    until(lambda: int(temp.read_text()) < 66_000)
    output(client, "while :; do :; done >&- 2>&- <&- & echo $!; echo $! > burner")
    until(lambda: int(temp.read_text()) > 70_000)
    assert int(output(client, f"cat {ZONE}/temp")) > 66_000
    output(client, "kill -9 $(cat burner)")


@needs_namespaces
def test_a_file_comes_whole_over_sftp(sshd_rack: Path, connect: Connect) -> None:
    client = connect(sshd_rack, "a")
    data = os.urandom(200_000)
    with client.open_sftp() as sftp, sftp.open("upload", "wb") as remote:
        remote.write(data)
    assert (sshd_rack / "boards/a/home/upload").read_bytes() == data


@needs_namespaces
def test_a_reboot_ends_the_boards_processes_and_gives_a_new_boot_id(
    sshd_rack: Path, connect: Connect
) -> None:
    before, bystander = (board.boot_id for board in rack.status(sshd_rack).boards)
    client = connect(sshd_rack, "a")
    output(client, "echo kept > file; (setsid sleep 1000 <&- >&- 2>&- &)")
    held = pids_of(sshd_rack)
    status = rack.reboot(sshd_rack, "a")
    assert status.boot_id != before
    again = connect(sshd_rack, "a")
    assert output(again, "cat /proc/sys/kernel/random/boot_id file") == f"{status.boot_id}\nkept"
    assert output(again, "ps ax | grep -c '[s]leep 1000'") == "0"
    assert rack.status(sshd_rack).boards[1].boot_id == bystander
    await_end([pid for pid in held if pid not in pids_of(sshd_rack)])


@needs_namespaces
@pytest.mark.parametrize("how", ["down", "SIGKILL"])
def test_nothing_is_left_of_a_rack_however_it_ends(
    folder: Path, connect: Connect, how: str
) -> None:
    status = rack.up(folder, uniform_rack(2), sys.executable, sshd=True)
    output(connect(folder, "vb-01"), "(setsid sleep 1000 <&- >&- 2>&- &)")
    output(connect(folder, "vb-02"), "(env -i setsid sleep 1000 <&- >&- 2>&- &)")
    pids = pids_of(folder)
    assert len(pids) >= 6
    if how == "down":
        rack.down(folder)
    else:
        assert status.pid is not None
        os.kill(status.pid, signal.SIGKILL)
    await_end(pids)
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert not rack.down(folder).running
    assert not cgroup.rack_cgroup(folder.resolve()).exists()


@needs_namespaces
def test_eight_boards_come_up_at_once_from_the_command_line_and_keep_their_ports(
    folder: Path, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["rack", "up", "--sshd", "--folder", str(folder), "--json"]
    argv += ["--behaviours", "nominal,slow-bin", "--each", "4"]
    assert main(argv) == 0
    assert len(json.loads(capsys.readouterr().out)["boards"]) == 8
    inventory = (folder / "inventory.yaml").read_text()
    assert output(connect(folder, "vb-08"), "uname -n") == "vb-08"
    rack.down(folder)
    assert main(argv) == 0
    assert (folder / "inventory.yaml").read_text() == inventory
    assert main([*argv[:2], *argv[3:]]) == 1
    assert "another rack runs here. Next: fleetcut rack down" in capsys.readouterr().err


def test_without_root_the_command_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["rack", "up", "--sshd", "--folder", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "need root" in error
    assert "Next: run this with sudo" in error
    assert not folder.exists()


@needs_namespaces
def test_an_sshd_that_does_not_start_is_told_with_its_own_words(folder: Path) -> None:
    rack.up(folder, uniform_rack(2), sshd=True)
    rack.down(folder)
    (folder / "boards/vb-01/host_key").chmod(0o644)
    with pytest.raises(RackError, match=r"vb-01: sshd .*no hostkeys .* Next: read .*sshd\.log$"):
        rack.up(folder, uniform_rack(2), sshd=True)
    assert not rack.status(folder).running
    assert pids_of(folder) == []


def test_the_files_of_proc_have_one_length_whatever_they_say(tmp_path: Path) -> None:
    files = ProcFiles(tmp_path, cores=2)
    files.show_stat(0.0, 0.0, 0.0, 1)
    files.add_load(0.0, 1.0)
    lengths = [path.stat().st_size for path in (files.stat, files.loadavg)]
    files.show_stat(1e6, 2e5, 5e6, 1_800_000_000)
    files.add_load(2.0, 1e9)
    assert [path.stat().st_size for path in (files.stat, files.loadavg)] == lengths
    total, *cores = files.stat.read_text().splitlines()[:3]
    assert total == "cpu  100000000 0 20000000 880000000 0 0 0 0 0 0"
    assert [core.split()[:2] for core in cores] == [["cpu0", "50000000"], ["cpu1", "50000000"]]
    assert files.loadavg.read_text().split() == ["2.00", "2.00", "2.00", "2/1", "1"]
    files.close()
