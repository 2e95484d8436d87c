"""The rack of simulated boards from the command line: up, status, down.

Input: a folder, and of which boards. Output: an exit status; what runs is said on the console,
called simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fleetcut.console import Console
from fleetcut.verbs import CHECK_FAILED, DONE
from harness.virtual.errors import RackError
from harness.virtual.rack import RackStatus, down, status, up
from harness.virtual.spec import RackSpec, behaviours_rack, demo_rack


@dataclass(frozen=True)
class Boards:
    """Which boards a rack has. behaviours: names with commas between; None: the demo's six.

    sshd: OpenSSH servers in namespaces of their own, and not embedded ones.
    """

    seed: int = 0
    behaviours: str | None = None
    each: int = 2
    sshd: bool = False

    def spec(self) -> RackSpec:
        """Raises RackError for behaviours that there are not."""
        if self.behaviours is None:
            return demo_rack(self.seed)
        names = [name.strip() for name in self.behaviours.split(",") if name.strip()]
        try:
            return behaviours_rack(names, each=self.each, seed=self.seed)
        except ValueError as error:
            raise RackError(f"--behaviours: {error}. Next: --behaviours nominal,slow-bin") from None


def rack_up(console: Console, folder: Path, boards: Boards) -> int:
    """Start the rack, or say that it runs."""
    return _show(console, folder, up(folder, boards.spec(), sshd=boards.sshd))


def rack_status(console: Console, folder: Path, _boards: Boards) -> int:
    """Say whether the rack runs."""
    return _show(console, folder, status(folder))


def rack_down(console: Console, folder: Path, _boards: Boards) -> int:
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


ACTIONS: Mapping[str, Callable[[Console, Path, Boards], int]] = {
    "up": rack_up,
    "status": rack_status,
    "down": rack_down,
}
