"""A rack of real SSH boards on loopback for the harness's tests; simulated, and no root needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.inventory import Board, Inventory, load_inventory
from harness.store import StoreAddress
from harness.virtual import rack
from harness.virtual.spec import uniform_rack
from tests.harness import databases
from tests.harness.work_samples import save_tiny_model


@pytest.fixture(scope="session")
def two_boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a rack of two equal boards."""
    folder = tmp_path_factory.mktemp("two")
    rack.up(folder, uniform_rack(2))
    yield folder
    rack.down(folder)


@pytest.fixture
def inventory(two_boards: Path) -> Inventory:
    return load_inventory(two_boards / "inventory.yaml")


@pytest.fixture
def board(inventory: Inventory) -> Board:
    return inventory.boards[0]


@pytest.fixture
def stranger(board: Board) -> Board:
    """The same board under a host key that nobody agreed to."""
    return replace(board, host_key_sha256="SHA256:" + "A" * 43)


@pytest.fixture(scope="session")
def postgres() -> Iterator[databases.Server]:
    """A PostgreSQL server of this test run's own."""
    if reason := databases.missing():
        pytest.skip(reason)
    with databases.server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> StoreAddress:
    """A new database of each kind."""
    if request.param == "sqlite":
        return tmp_path / "lab.db"
    server: databases.Server = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network."""
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    save_tiny_model(path)
    return path
