"""A rack of real SSH boards for the tests, and a client that reaches them.

Input: pytest's temporary folders. Output: fixtures rack_folder, connect, until, ended.
"""

from __future__ import annotations

import base64
import hashlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import paramiko
import pytest

from harness.inventory import Board, load_inventory
from harness.virtual import rack
from harness.virtual.spec import BatterySpec, RackSpec, VirtualBoardSpec

DEADLINE_S = 120.0
"""A bound on waiting for something that must come: never what a test measures."""

BOARDS = RackSpec(
    boards=(
        VirtualBoardSpec("plain"),
        VirtualBoardSpec("battery", battery=BatterySpec(charge_pct=80.0)),
        # A tenth of one core takes it to its trip, for a busy machine may give it no more.
        VirtualBoardSpec(
            "bad-cooling",
            thermal_resistance_c_per_w=20.0,
            heat_capacity_j_per_c=0.05,
            core_power_w=8.0,
        ),
    ),
    seed=0,
)


@pytest.fixture(scope="session")
def rack_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a rack that is up, with the boards plain, battery and bad-cooling."""
    folder = tmp_path_factory.mktemp("rack")
    rack.up(folder, BOARDS, sys.executable)
    yield folder
    rack.down(folder)


@pytest.fixture
def connect() -> Iterator[Callable[[Path, str], paramiko.SSHClient]]:
    """Logs in to a board of a rack's folder; every connection is closed after the test."""
    with ExitStack() as stack:

        def connect_to(folder: Path, board_id: str) -> paramiko.SSHClient:
            return stack.enter_context(_logged_in(_board(folder, board_id)))

        yield connect_to


@pytest.fixture
def board_entry() -> Callable[[Path, str], Board]:
    return _board


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Asks again until the answer is yes; fails after a deadline that only a fault can reach."""

    def ask(question: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not question():
            assert time.monotonic() < deadline_s, "it never came"
            select.select([], [], [], 0.02)

    return ask


@pytest.fixture
def ended() -> Callable[[int], None]:
    """Returns once the process has ended; fails when it does not."""

    def wait(pid: int) -> None:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            assert select.select([fd], [], [], DEADLINE_S)[0], f"process {pid} lives on"
        finally:
            os.close(fd)

    return wait


def _board(folder: Path, board_id: str) -> Board:
    return load_inventory(folder / "inventory.yaml").board(board_id)


class _ThisKeyOnly(paramiko.MissingHostKeyPolicy):
    def __init__(self, fingerprint: str | None) -> None:
        self.fingerprint = fingerprint

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
        assert self.fingerprint == f"SHA256:{digest}"


def _logged_in(board: Board) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(_ThisKeyOnly(board.host_key_sha256))
    sock = socket.create_connection((board.host, board.port), DEADLINE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.connect(
        board.host,
        board.port,
        board.user,
        key_filename=str(board.key_file),
        allow_agent=False,
        look_for_keys=False,
        sock=sock,
    )
    return client
