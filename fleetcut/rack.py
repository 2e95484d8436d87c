"""The embedded rack from the command line: up, status, down.

Input: a folder. Output: an exit status; what runs is said on the console, called simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from fleetcut.console import Console
from fleetcut.verbs import CHECK_FAILED, DONE
from harness.virtual.rack import RackStatus, down, status, up
from harness.virtual.spec import demo_rack


def rack_up(console: Console, folder: Path, seed: int) -> int:
    """Start the rack, or say that it runs."""
    return _show(console, folder, up(folder, demo_rack(seed)))


def rack_status(console: Console, folder: Path, _seed: int) -> int:
    """Say whether the rack runs."""
    return _show(console, folder, status(folder))


def rack_down(console: Console, folder: Path, _seed: int) -> int:
    """End the rack and everything that runs on its boards."""
    down(folder)
    console.line(f"The rack in {folder} is down.")
    console.answer({"folder": str(folder), "running": False})
    console.next(f"fleetcut rack up --folder {folder}")
    return DONE


def _show(console: Console, folder: Path, rack: RackStatus) -> int:
    console.answer({**asdict(rack), "folder": str(rack.folder), "running": rack.running})
    if not rack.running:
        console.line(f"No rack runs in {folder}.")
        console.next(f"fleetcut rack up --folder {folder}")
        return CHECK_FAILED
    console.line(f"{len(rack.boards)} simulated boards run in {folder} (pid {rack.pid}).")
    console.next(f"fleetcut check --inventory {rack.inventory}")
    return DONE


ACTIONS: Mapping[str, Callable[[Console, Path, int], int]] = {
    "up": rack_up,
    "status": rack_status,
    "down": rack_down,
}
