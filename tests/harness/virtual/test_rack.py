from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from harness.inventory import Board
from harness.virtual import rack
from harness.virtual.errors import RackError
from harness.virtual.physics import THROTTLE_SOFT_LIMIT
from harness.virtual.spec import MODEL, demo_rack, uniform_rack

Connect = Callable[[Path, str], paramiko.SSHClient]
Until = Callable[[Callable[[], bool]], None]

DAEMON = """
import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
print(os.getpid(), os.getppid(), flush=True)
os.close(0); os.close(1); os.close(2)
while True: time.sleep(1000)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a rack, taken down after the test whatever happened."""
    yield tmp_path / "rack"
    rack.down(tmp_path / "rack")


def output(client: paramiko.SSHClient, command: str) -> str:
    return client.exec_command(command)[1].read().decode().strip()


def daemon(client: paramiko.SSHClient) -> int:
    """The pid of a process that forked twice on the board."""
    stdin, stdout, _ = client.exec_command("python3 -")
    stdin.write(DAEMON)
    stdin.channel.shutdown_write()
    return int(stdout.readline().split()[0])


def test_up_writes_what_the_harness_needs_and_plants_apart_from_it(folder: Path) -> None:
    spec = demo_rack(3)
    status = rack.up(folder, spec, sys.executable)
    assert status.running
    assert [board.board_id for board in status.boards] == list(spec.planted())
    assert json.loads(status.planted.read_text()) == spec.planted()
    inventory = status.inventory.read_text()
    assert inventory.count(MODEL) == 6
    for behaviour in set(spec.planted().values()):
        assert behaviour not in inventory
    for secret in [folder / "id_ed25519", *folder.glob("boards/*/host_key")]:
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_boards_are_marked_simulated_and_share_their_silicon(
    rack_folder: Path, board_entry: Callable[[Path, str], Board]
) -> None:
    entries = [board_entry(rack_folder, i) for i in ("plain", "battery")]
    assert all(entry.simulated and "simulated" in entry.model for entry in entries)
    assert entries[0].exclusive_group == entries[1].exclusive_group is not None


def test_up_twice_is_one_rack_and_another_spec_is_refused(folder: Path) -> None:
    first = rack.up(folder, uniform_rack(2), sys.executable)
    second = rack.up(folder, uniform_rack(2), sys.executable)
    assert second.pid == first.pid
    assert [b.port for b in second.boards] == [b.port for b in first.boards]
    with pytest.raises(RackError, match=r"another rack runs here\. Next: fleetcut rack down"):
        rack.up(folder, uniform_rack(3), sys.executable)


def test_the_rack_outlives_who_brought_it_up(folder: Path) -> None:
    source = (
        "import sys, pathlib; from harness.virtual import rack, spec\n"
        "print(rack.up(pathlib.Path(sys.argv[1]), spec.uniform_rack(1), sys.executable).pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )
    status = rack.status(folder)
    assert status.pid == int(done.stdout)
    assert os.getsid(int(done.stdout)) == int(done.stdout)


def test_down_leaves_no_process_and_can_be_said_twice(
    folder: Path, connect: Connect, ended: Callable[[int], None]
) -> None:
    status = rack.up(folder, uniform_rack(2), sys.executable)
    client = connect(folder, "vb-01")
    pids = [daemon(client), daemon(connect(folder, "vb-02"))]
    foreground = client.exec_command("echo $$; exec sleep 1000")[1]
    pids.append(int(foreground.readline()))
    pids.append(int(output(client, "env -i setsid sleep 1000 <&- >&- 2>&- & echo $!")))
    assert all(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert rack.down(folder) == rack.RackStatus(folder.resolve())
    for pid in [*pids, status.pid]:
        assert pid is not None
        ended(pid)
    assert not rack.status(folder).running
    assert not rack.down(folder).running
    assert (folder / "server.log").read_text() == ""


def test_keys_and_ports_stay_over_down_and_up(folder: Path) -> None:
    before = rack.up(folder, uniform_rack(3), sys.executable)
    inventory = before.inventory.read_text()
    rack.down(folder)
    after = rack.up(folder, uniform_rack(3), sys.executable)
    assert after.inventory.read_text() == inventory
    assert {b.boot_id for b in after.boards}.isdisjoint(b.boot_id for b in before.boards)


def test_a_port_that_is_taken_by_now_is_replaced(folder: Path, connect: Connect) -> None:
    before = rack.up(folder, uniform_rack(1), sys.executable)
    rack.down(folder)
    with socket.create_server(("127.0.0.1", before.boards[0].port)):
        after = rack.up(folder, uniform_rack(1), sys.executable)
    assert after.boards[0].port != before.boards[0].port
    assert output(connect(folder, "vb-01"), "hostname") == "vb-01"


def test_a_crashed_rack_is_recovered_without_its_leftovers(
    folder: Path, connect: Connect, ended: Callable[[int], None]
) -> None:
    before = rack.up(folder, uniform_rack(1), sys.executable)
    inventory = before.inventory.read_text()
    left_over = daemon(connect(folder, "vb-01"))
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    ended(before.pid)
    assert not rack.status(folder).running
    after = rack.up(folder, uniform_rack(1), sys.executable)
    ended(left_over)
    assert after.running
    assert after.inventory.read_text() == inventory
    assert output(connect(folder, "vb-01"), "hostname") == "vb-01"


def test_a_rack_that_cannot_start_says_why(folder: Path) -> None:
    folder.mkdir()
    (folder / "boards").write_text("in the way")
    with pytest.raises(RackError, match="cannot hold a rack"):
        rack.up(folder, uniform_rack(1), sys.executable)
    assert not rack.status(folder).running


def test_a_reboot_drops_connections_kills_processes_and_spares_the_home(
    folder: Path, connect: Connect, ended: Callable[[int], None]
) -> None:
    rack.up(folder, uniform_rack(2), sys.executable)
    client, other = connect(folder, "vb-01"), connect(folder, "vb-02")
    victim, bystander = daemon(client), daemon(other)
    output(client, "echo kept > file; echo powersave > $FLEETCUT_BOARD_ROOT/" + GOVERNOR)
    boot_id = output(client, f"cat $FLEETCUT_BOARD_ROOT/{BOOT_ID}")
    status = rack.reboot(folder, "vb-01")
    ended(victim)
    assert status.boot_id != boot_id
    with pytest.raises((paramiko.SSHException, OSError, EOFError)):
        output(client, "true")
    again = connect(folder, "vb-01")
    assert output(again, f"cat $FLEETCUT_BOARD_ROOT/{BOOT_ID} file") == f"{status.boot_id}\nkept"
    assert output(again, f"cat $FLEETCUT_BOARD_ROOT/{GOVERNOR}") == "performance"
    assert output(other, f"kill -0 {bystander} && echo lives") == "lives"
    with pytest.raises(RackError, match=r"no board 'vb-9'\. Next: use one of vb-01, vb-02"):
        rack.reboot(folder, "vb-9")


def test_a_governor_written_on_the_board_is_honoured_and_a_bad_one_put_back(
    rack_folder: Path, connect: Connect, until: Until
) -> None:
    client = connect(rack_folder, "plain")
    policy = f"cd $FLEETCUT_BOARD_ROOT/{Path(GOVERNOR).parent}"
    output(client, f"{policy}; echo userspace > scaling_governor")
    until(lambda: output(client, f"{policy}; cat scaling_setspeed") == "1500000")
    output(client, f"{policy}; echo 750000 > scaling_setspeed")
    until(lambda: output(client, f"{policy}; cat scaling_cur_freq") == "750000")
    assert _stretch(client) == pytest.approx(2.04, rel=0.06)
    output(client, f"{policy}; echo turbo > scaling_governor")
    until(lambda: output(client, f"{policy}; cat scaling_governor") == "userspace")
    output(client, f"{policy}; echo performance > scaling_governor")
    until(lambda: output(client, f"{policy}; cat scaling_cur_freq") == "1500000")
    assert _stretch(client) == pytest.approx(1.02, rel=0.06)


def test_a_flat_battery_slows_the_board_down(
    rack_folder: Path, connect: Connect, until: Until
) -> None:
    client = connect(rack_folder, "battery")
    assert _stretch(client) == pytest.approx(1.02, rel=0.06)
    low = rack.set_environment(rack_folder, "battery", charge_pct=5.0)
    assert low.charge_pct == pytest.approx(5.0, abs=0.1)
    assert output(client, f"cat $FLEETCUT_BOARD_ROOT/{THROTTLED}") == "60006"
    assert _stretch(client) == pytest.approx(2.04, rel=0.06)
    with pytest.raises(RackError, match="no battery"):
        rack.set_environment(rack_folder, "plain", charge_pct=5.0)


def test_load_on_a_badly_cooled_board_throttles_it_and_rest_frees_it(
    rack_folder: Path, connect: Connect, until: Until
) -> None:
    client = connect(rack_folder, "bad-cooling")

    def soft_limit() -> bool:
        bits = int(output(client, f"cat $FLEETCUT_BOARD_ROOT/{THROTTLED}"), 16)
        return bool(bits & THROTTLE_SOFT_LIMIT)

    assert not soft_limit()
    load = client.exec_command("exec python3 -c 'import time\nwhile 1: time.monotonic()'")[1]
    until(soft_limit)
    load.channel.close()
    until(lambda: not soft_limit())
    (plain,) = (b for b in rack.status(rack_folder).boards if b.board_id == "plain")
    assert plain.throttle_bits == 0


def test_sixty_boards_stand_in_one_process(folder: Path, connect: Connect) -> None:
    status = rack.up(folder, uniform_rack(60), sys.executable)
    assert len({board.port for board in status.boards}) == 60
    assert output(connect(folder, "vb-60"), "hostname") == "vb-60"


GOVERNOR = "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"
BOOT_ID = "proc/sys/kernel/random/boot_id"
THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"


def _stretch(client: paramiko.SSHClient) -> float:
    """Time over CPU time of a loop on the board: a low quantile, which other load cannot raise."""
    stdin, stdout, _ = client.exec_command("python3 -")
    stdin.write(
        "import time\nfound = []\n"
        "for _ in range(300):\n"
        "    t0 = time.perf_counter(); c0 = time.process_time()\n"
        "    for i in range(10000): pass\n"
        "    c1 = time.process_time(); found.append((time.perf_counter() - t0) / (c1 - c0))\n"
        "print(sorted(found)[30])"
    )
    stdin.channel.shutdown_write()
    return float(stdout.read())
