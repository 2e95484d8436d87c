"""The files in a rack's folder that one process writes and another reads.

Input: RackConfig. Output: rack.json, planted.json, inventory.yaml, each replaced whole.
planted.json is apart from the rest: it is the answer that only the report may look at.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from harness.virtual.errors import RackError
from harness.virtual.spec import MODEL, USER, RackSpec

HOST = "127.0.0.1"
CLIENT_KEY = "id_ed25519"
INVENTORY = "inventory.yaml"
PLANTED = "planted.json"
LOG = "server.log"
_CONFIG = "rack.json"


@dataclass(frozen=True)
class RackConfig:
    """What the rack's process is started with.

    python: the interpreter that the boards call python3. library: the built clockshim.
    ports: (board_id, port) as they were the last time, to be had again where they are free.
    sshd: boards with an OpenSSH server and namespaces of their own, in place of embedded ones.
    """

    spec: RackSpec
    python: str
    library: str
    ports: tuple[tuple[str, int], ...] = ()
    sshd: bool = False


_CONFIG_TYPE = TypeAdapter(RackConfig)


@dataclass(frozen=True)
class Listening:
    """Where a board is reached. host_key_sha256: OpenSSH's fingerprint."""

    board_id: str
    port: int
    host_key_sha256: str


def write_config(folder: Path, config: RackConfig) -> None:
    _write_whole(folder / _CONFIG, _CONFIG_TYPE.dump_json(config, indent=1).decode() + "\n")
    _write_whole(folder / PLANTED, json.dumps(config.spec.planted(), indent=1) + "\n")


def read_config(folder: Path) -> RackConfig:
    """Raises RackError when the folder holds no rack, or one of another version."""
    path = folder / _CONFIG
    try:
        return _CONFIG_TYPE.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = str(error).replace("\n", " ")[:200]
        raise RackError(
            f"{path}: not a rack of this version ({reason}). Next: fleetcut rack up"
        ) from None


def write_inventory(folder: Path, spec: RackSpec, boards: tuple[Listening, ...]) -> None:
    """The rack as the harness's inventory: key_file is relative to it."""
    group = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-.")[:64] or "workstation"
    entries: list[Mapping[str, object]] = [
        {
            "board_id": board.board_id,
            "model": MODEL,
            "host": HOST,
            "port": board.port,
            "user": USER,
            "host_key_sha256": board.host_key_sha256,
            "key_file": CLIENT_KEY,
            "python": "python3",
            "exclusive_group": group,
            "simulated": True,
            "labels": {"rack": spec.name},
        }
        for board in boards
    ]
    text = "# Virtual boards (simulated), written by `fleetcut rack up`: they share one CPU.\n"
    text += yaml.safe_dump({"version": 1, "boards": entries}, sort_keys=False)
    _write_whole(folder / INVENTORY, text)


def read_ports(folder: Path) -> dict[str, int]:
    """board_id → port of the last inventory; empty when there is none that can be read."""
    try:
        document = yaml.safe_load((folder / INVENTORY).read_text(encoding="utf-8"))
        return {entry["board_id"]: int(entry["port"]) for entry in document["boards"]}
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return {}


def _write_whole(path: Path, text: str) -> None:
    spooled = path.with_name(f".{path.name}.{os.getpid()}")
    spooled.write_text(text, encoding="utf-8")
    spooled.replace(path)
