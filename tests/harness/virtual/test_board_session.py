from __future__ import annotations

import hashlib
import io
import random
import threading
from collections.abc import Callable
from pathlib import Path

import asyncssh
import paramiko
import pytest

from harness.inventory import Board
from harness.virtual import rack

Connect = Callable[[Path, str], paramiko.SSHClient]


def run(client: paramiko.SSHClient, command: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """(exit status, stdout, stderr), all three streams moved at once."""
    channel = client.get_transport().open_session()  # type: ignore[union-attr]
    channel.exec_command(command)
    parts: dict[str, bytes] = {}
    readers = [
        threading.Thread(target=lambda: parts.update(out=channel.makefile("rb").read())),
        threading.Thread(target=lambda: parts.update(err=channel.makefile_stderr("rb").read())),
    ]
    for reader in readers:
        reader.start()
    channel.sendall(stdin)
    channel.shutdown_write()
    for reader in readers:
        reader.join()
    return channel.recv_exit_status(), parts["out"], parts["err"]


@pytest.mark.parametrize(
    ("command", "status", "out", "err"),
    [
        ("hostname", 0, b"plain\n", b""),
        ("uname -n", 0, b"plain\n", b""),
        ("echo to-out; echo to-err >&2; exit 7", 7, b"to-out\n", b"to-err\n"),
        ("no-such-program", 127, b"", None),
        ("kill -TERM $$", -1, b"", b""),
        ("python3 -c 'import sys; print(sys.version_info[0])'", 0, b"3\n", b""),
        ("echo $USER $LANG", 0, b"fleetcut C.UTF-8\n", b""),
        ("cat $FLEETCUT_BOARD_ROOT/etc/machine-info | head -1", 0, b"DEPLOYMENT=simulated\n", b""),
    ],
)
def test_commands_run_for_real(
    rack_folder: Path, connect: Connect, command: str, status: int, out: bytes, err: bytes | None
) -> None:
    found = run(connect(rack_folder, "plain"), command)
    assert found[:2] == (status, out)
    assert err is None or found[2] == err


def test_the_environment_is_the_boards_own(
    rack_folder: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETCUT_LEAK", "1")
    _, out, _ = run(connect(rack_folder, "plain"), "env; pwd")
    names = {line.split(b"=")[0].decode() for line in out.splitlines() if b"=" in line}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        *("HOME", "USER", "LOGNAME", "SHELL", "LANG", "PATH"),
        *("FLEETCUT_BOARD_ROOT", "FLEETCUT_CLOCK_PAGE", "LD_PRELOAD"),
    }
    assert out.endswith(f"{rack_folder.resolve()}/boards/plain/home\n".encode())


def test_binary_streams_larger_than_every_buffer_pass_both_ways(
    rack_folder: Path, connect: Connect
) -> None:
    data = random.Random(0).randbytes(8_000_000)
    status, out, err = run(connect(rack_folder, "plain"), "tee /dev/stderr", data)
    assert (status, out, err) == (0, data, data)


def test_a_command_that_does_not_read_its_input_still_ends(
    rack_folder: Path, connect: Connect
) -> None:
    client = connect(rack_folder, "plain")
    channel = client.get_transport().open_session()  # type: ignore[union-attr]
    channel.exec_command("echo done")
    assert channel.recv_exit_status() == 0


def test_without_a_command_the_board_says_what_to_do(rack_folder: Path, connect: Connect) -> None:
    channel = connect(rack_folder, "plain").get_transport().open_session()  # type: ignore[union-attr]
    channel.invoke_shell()
    assert b"Next: ssh HOST COMMAND" in channel.makefile_stderr("rb").read()
    assert channel.recv_exit_status() == 1


def test_sftp_and_commands_mean_the_same_files(rack_folder: Path, connect: Connect) -> None:
    client = connect(rack_folder, "battery")
    data = random.Random(1).randbytes(3_000_000)
    with client.open_sftp() as sftp:
        home = sftp.normalize(".")
        assert run(client, "echo $HOME")[1].decode().strip() == home
        sftp.mkdir("files")
        sftp.putfo(io.BytesIO(data), "files/.part")
        sftp.posix_rename("files/.part", "files/whole")
        assert sftp.stat(f"{home}/files/whole").st_size == len(data)
        sftp.chmod("files/whole", 0o750)
        sftp.symlink("whole", "files/link")
        assert sftp.readlink("files/link") == "whole"
        with sftp.open(f"{home}/files/link", "rb") as remote:
            assert remote.read() == data
        assert sorted(sftp.listdir("files")) == ["link", "whole"]
    _, out, _ = run(client, "sha256sum files/whole; stat -c %a files/whole")
    assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert out.split()[-1] == b"750"


@pytest.mark.parametrize("path", ["/etc/passwd", "..", "../../plain/home", "/", "a/../../x"])
def test_sftp_stays_in_the_boards_home(rack_folder: Path, connect: Connect, path: str) -> None:
    with connect(rack_folder, "battery").open_sftp() as sftp, pytest.raises(PermissionError):
        sftp.stat(path)


def test_each_board_has_its_own_key_home_and_name(
    rack_folder: Path, connect: Connect, board_entry: Callable[[Path, str], Board]
) -> None:
    ids = ["plain", "battery", "bad-cooling"]
    assert len({board_entry(rack_folder, i).host_key_sha256 for i in ids}) == 3
    assert len({board_entry(rack_folder, i).port for i in ids}) == 3
    said = [run(connect(rack_folder, i), "hostname; pwd")[1].decode().split() for i in ids]
    assert [name for name, _ in said] == ids
    assert len({home for _, home in said}) == 3


@pytest.mark.parametrize("user", ["fleetcut", "root"])
def test_another_key_or_user_is_refused(
    rack_folder: Path, board_entry: Callable[[Path, str], Board], user: str
) -> None:
    board = board_entry(rack_folder, "plain")
    stranger = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(stranger))
    if user == "root":
        key = paramiko.Ed25519Key.from_private_key_file(str(board.key_file))
    with paramiko.Transport((board.host, board.port)) as transport:
        transport.start_client()
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey(user, key)


def test_nothing_but_a_key_lets_in(
    rack_folder: Path, board_entry: Callable[[Path, str], Board]
) -> None:
    board = board_entry(rack_folder, "plain")
    with paramiko.Transport((board.host, board.port)) as transport:
        transport.start_client()
        with pytest.raises(paramiko.BadAuthenticationType) as refused:
            transport.auth_none(board.user)
    assert refused.value.allowed_types == ["publickey"]


def test_a_closed_connection_ends_the_command_and_not_what_detached(
    rack_folder: Path,
    connect: Connect,
    until: Callable[[Callable[[], bool]], None],
    ended: Callable[[int], None],
) -> None:
    client = connect(rack_folder, "plain")
    _, stdout, _ = client.exec_command(
        "setsid sleep 1000 </dev/null >/dev/null 2>&1 & "
        "sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1000; done' & "
        "echo $!; echo $$; wait"
    )
    foreground = {int(stdout.readline()) for _ in range(3)}
    client.close()
    for pid in foreground:
        ended(pid)
    until(lambda: all(not board.connections for board in rack.status(rack_folder).boards))
    _, out, _ = run(connect(rack_folder, "plain"), "pgrep -x sleep -a || ps ax")
    assert b"sleep 1000" in out


def test_a_closed_channel_ends_its_command_on_a_living_connection(
    rack_folder: Path, connect: Connect, ended: Callable[[int], None]
) -> None:
    client = connect(rack_folder, "plain")
    _, stdout, _ = client.exec_command("echo $$; exec sleep 1000")
    pid = int(stdout.readline())
    stdout.channel.close()
    ended(pid)
    assert run(client, "echo still here")[1] == b"still here\n"
