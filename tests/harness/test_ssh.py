"""SSH as it is on boards: pinned keys, deadlines on every step, whole uploads or errors."""

import contextlib
import hashlib
import socket
import struct
import threading
from dataclasses import replace

import paramiko
import pytest

from harness.errors import HostKeyError, StableBoardError, TransientBoardError
from harness.ssh import Deadlines, PatientSocket, SshTransport, fetch_host_key, fingerprint

QUICK = Deadlines(connect_s=5, auth_s=5, user_timeout_s=2, keepalive_s=1)


@pytest.fixture
def transport(board):
    opened = SshTransport(board)
    yield opened
    opened.close()


def test_a_command_its_output_and_its_status(transport):
    done = transport.run(["sh", "-c", "echo out; echo err >&2; exit 7"], timeout_s=30)
    assert (done.exit_status, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert done.last_error() == "err"


def test_arguments_reach_the_command_uninterpreted(transport):
    argument = "a b;$(touch hacked) `id` 'x' \"y\" *"
    done = transport.run(["printf", "%s", argument], timeout_s=30)
    assert done.stdout.decode() == argument


def test_much_output_on_both_pipes_blocks_nobody(transport):
    script = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2"
    done = transport.run(["sh", "-c", script], timeout_s=60)
    assert len(done.stdout) == 3_000_000
    assert done.exit_status == 0


def test_a_command_past_its_deadline_is_given_up(transport):
    with pytest.raises(TransientBoardError, match="did not end within 0.5 s"):
        transport.run(["sleep", "600"], timeout_s=0.5)


def test_a_command_that_keeps_talking_past_its_deadline_is_given_up(transport):
    with pytest.raises(TransientBoardError, match="did not end within 1 s"):
        transport.run(["yes"], timeout_s=1)


def test_lines_come_while_the_command_runs(transport):
    lines = transport.lines(["sh", "-c", "echo one; read x; echo two"], silence_s=30)
    assert next(lines) == b"one"
    lines.close()


def test_an_idle_connection_is_looked_at_once_a_second_and_a_close_is_noticed_at_once():
    """Ten looks a second, paramiko's own, cost a tenth of a core for 64 boards."""
    ours, theirs = socket.socketpair()
    patient = PatientSocket(fileno=ours.detach())
    patient.settimeout(0.1)
    assert patient.gettimeout() == 1.0
    patient.settimeout(600)

    def read() -> None:
        with contextlib.suppress(OSError):  # closed before it began
            patient.recv(1)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    patient.close()
    reader.join(timeout=60)
    assert not reader.is_alive()
    theirs.close()


def test_silence_ends_the_wait(transport):
    lines = transport.lines(["sh", "-c", "echo one; sleep 600"], silence_s=0.5)
    assert next(lines) == b"one"
    with pytest.raises(TransientBoardError, match="silent for 0.5 s"):
        next(lines)


def test_lines_of_a_command_that_fails_say_its_last_error(transport):
    lines = transport.lines(["sh", "-c", "echo one; echo 'no such thing' >&2; exit 2"], silence_s=9)
    assert next(lines) == b"one"
    with pytest.raises(StableBoardError, match="no such thing"):
        next(lines)


TAKE = ["sh", "-c", 'head -c "$1" > "$2" && sha256sum "$2" && read answer && echo "$answer"', "-"]


def test_a_conversation_takes_bytes_and_gives_lines(transport):
    data = bytes(range(256)) * 5000
    stream = transport.converse([*TAKE, str(len(data)), "blob"])
    stream.send(data, silence_s=30)
    said = stream.line(silence_s=30)
    assert said.split()[0].decode() == hashlib.sha256(data).hexdigest()
    stream.send(b"and on\n", silence_s=30)
    assert stream.line(silence_s=30) == b"and on"
    stream.close()


def test_a_conversation_that_ends_says_why(transport):
    stream = transport.converse([*TAKE, "1", "none/blob"])
    with pytest.raises(StableBoardError, match="none/blob"):
        stream.line(silence_s=30)


def test_a_conversation_that_falls_silent_is_given_up(transport):
    stream = transport.converse([*TAKE, "10", "blob"])
    stream.send(b"half", silence_s=30)
    with pytest.raises(TransientBoardError, match="silent for 0.5 s"):
        stream.line(silence_s=0.5)
    stream.close()


def test_a_conversation_that_takes_nothing_is_given_up(transport):
    stream = transport.converse(["sleep", "600"])
    with pytest.raises(TransientBoardError, match="takes no input for 0.5 s"):
        stream.send(bytes(50_000_000), silence_s=0.5)
    stream.close()


def test_a_conversation_whose_other_end_was_killed_may_be_tried_again(transport):
    stream = transport.converse(["sh", "-c", "echo here; kill -9 $$"])
    assert stream.line(silence_s=30) == b"here"
    with pytest.raises(TransientBoardError, match="cut before its end"):
        stream.line(silence_s=30)


def test_a_changed_host_key_is_refused_with_the_command_that_trusts_it(stranger, board):
    with pytest.raises(HostKeyError) as caught:
        SshTransport(stranger)
    assert f"Next: find out why; if the board was reinstalled: fleetcut trust {board.board_id}" in (
        str(caught.value)
    )
    assert caught.value.found == board.host_key_sha256


def test_an_unknown_host_key_is_refused_with_the_command_that_trusts_it(board):
    with pytest.raises(HostKeyError, match=f"fleetcut trust {board.board_id}"):
        SshTransport(replace(board, host_key_sha256=None))


def test_the_key_that_a_board_shows(board):
    assert fetch_host_key(board) == board.host_key_sha256


def test_a_key_that_the_board_does_not_know_is_stable(board, tmp_path):
    key = tmp_path / "id"
    paramiko.ECDSAKey.generate().write_private_key_file(str(key))
    with pytest.raises(StableBoardError, match="refused the key"):
        SshTransport(replace(board, key_file=key))


def test_a_key_file_that_is_not_there_is_named(board, tmp_path):
    with pytest.raises(StableBoardError, match="none does not exist"):
        SshTransport(replace(board, key_file=tmp_path / "none"))


def test_a_key_file_that_holds_something_else_is_named(board, tmp_path):
    key = tmp_path / "id"
    key.write_text("not a key")
    with pytest.raises(StableBoardError, match="id is not a private key"):
        SshTransport(replace(board, key_file=key))


def test_nobody_listens(board):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TransientBoardError, match="cannot connect to 127.0.0.1"):
        SshTransport(replace(board, port=port))


def test_a_port_that_says_nothing_ends_within_its_deadline(board):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(TransientBoardError, match="no SSH at"):
            SshTransport(replace(board, port=port), replace(QUICK, auth_s=0.5))


class CutProxy:
    """Relays one connection to a board and cuts it after a number of bytes from the client."""

    def __init__(self, port: int, cut_after: int, how: str) -> None:
        self._upstream, self._left, self._how = port, cut_after, how
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        self.cut = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client, _ = self._server.accept()
        board = socket.create_connection(("127.0.0.1", self._upstream))
        self._open = [client, board]
        threading.Thread(target=self._relay, args=(board, client, False), daemon=True).start()
        self._relay(client, board, True)

    def _relay(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(16384):
                if counted:
                    self._left -= len(data)
                    if self._left <= 0:
                        self._end()
                        return
                sink.sendall(data)
        except OSError:
            return

    def _end(self) -> None:
        # Before the client can notice.
        self.cut.set()
        if self._how == "reset":
            for sock in self._open:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self._how != "black hole":
            for sock in self._open:
                sock.close()

    def close(self) -> None:
        self._server.close()
        for sock in self._open:
            sock.close()


@pytest.mark.parametrize("how", ["reset", "close", "black hole"])
def test_a_cut_in_mid_upload_is_a_transient_error_and_never_a_hang(board, how):
    proxy = CutProxy(board.port, 200_000, how)
    try:
        transport = SshTransport(replace(board, port=proxy.port), QUICK)
        stream = transport.converse([*TAKE, "2000000", "cut"])
        with pytest.raises(TransientBoardError):
            _send_and_hear(stream, bytes(2_000_000))
        assert proxy.cut.is_set()
        transport.close()
    finally:
        proxy.close()


class Mute(paramiko.ServerInterface):
    """Lets everybody in, and never says whether a command was begun."""

    def __init__(self):
        self.ended = threading.Event()

    def check_auth_publickey(self, username, key):
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username):
        return "publickey"

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        self.ended.wait()
        return False


def test_a_board_that_never_answers_a_command_is_a_transient_error_and_never_a_hang(board):
    key, mute = paramiko.ECDSAKey.generate(), Mute()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve():
            client, _ = listener.accept()
            server = paramiko.Transport(client)
            server.add_server_key(key)
            server.start_server(server=mute)

        threading.Thread(target=serve, daemon=True).start()
        pinned = replace(board, port=port, host_key_sha256=fingerprint(key))
        transport = SshTransport(pinned, replace(QUICK, auth_s=1.0))
        with pytest.raises(TransientBoardError, match="'true'"):
            transport.run(["true"], timeout_s=30)
        mute.ended.set()
        transport.close()


def _send_and_hear(stream, data: bytes) -> bytes:
    # What is sent lies in buffers first: a black hole may be noticed only by what does not come.
    stream.send(data, silence_s=3)
    return stream.line(silence_s=3)
