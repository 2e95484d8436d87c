"""One virtual board: its folder, its physics, and the environment of what runs on it.

Input: a VirtualBoardSpec and the rack's folder. Output: VirtualBoard, moved on by tick().
Nothing here listens or waits: the server does.
"""

from __future__ import annotations

import contextlib
import shlex
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.virtual import physics
from harness.virtual.clock import ClockPage, board_clock_environment
from harness.virtual.spec import USER, VirtualBoardSpec
from harness.virtual.tree import POLICY, WRITABLE, BoardTree, dynamic_files, policy_files


@dataclass(frozen=True)
class BoardPaths:
    """Where one board lives below the rack's folder."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    @property
    def host_key(self) -> Path:
        return self.folder / "host_key"

    @property
    def clock_page(self) -> Path:
        return self.folder / "clock_page"


def board_paths(rack: Path, board_id: str) -> BoardPaths:
    """The board's folder in the rack's; ``rack`` is taken as it is, so give it resolved."""
    return BoardPaths(rack / "boards" / board_id)


class VirtualBoard:
    """A board that is powered on."""

    def __init__(self, spec: VirtualBoardSpec, rack: Path, python: str, library: Path) -> None:
        self.spec = spec
        self.paths = board_paths(rack, spec.board_id)
        self.state = physics.initial_physics(spec)
        self.boot_id = ""
        self._library = library
        for folder in (self.paths.home, self.paths.programs):
            folder.mkdir(parents=True, exist_ok=True)
        self._write_programs(python)
        self._page = ClockPage(self.paths.clock_page)
        self._page.set_shape(
            memory_bytes_per_s=spec.memory_bytes_per_s,
            cache_bytes=spec.cache_bytes,
            malloc_ns=spec.malloc_ns,
        )
        self._busy_s = self.busy_s()
        self._tree = BoardTree(self.paths.root)
        self.boot()

    @property
    def policy_folder(self) -> Path:
        """The cpufreq folder, whose writes the server reports to policy_written."""
        return self.paths.root / POLICY

    def boot(self) -> None:
        """A new boot_id and cpufreq as it comes up; heat and charge stay what they were."""
        fresh = physics.initial_physics(self.spec)
        self.boot_id = str(uuid.uuid4())
        self.state = replace(
            fresh,
            temp_c=self.state.temp_c,
            ambient_c=self.state.ambient_c,
            energy_wh=self.state.energy_wh,
        )
        self._tree.create(self.spec, self.boot_id, self.state)
        self._show()

    def tick(self, dt_s: float) -> None:
        """Time has passed: what the board ran in it becomes heat, and the clock moves."""
        busy_s = max(self._busy_s, self.busy_s())
        self.state = physics.step(self.spec, self.state, dt_s, busy_s - self._busy_s)
        self._busy_s = busy_s
        self._show()

    def busy_s(self) -> float:
        """Core-seconds that the board's processes have run so far, as the preloaded library knows.

        One that never looks at the clock is counted at its end, and not at all if it is killed.
        """
        return self._page.busy_s

    def policy_written(self, name: str) -> None:
        """A program wrote the cpufreq file ``name``: it is honoured, or put back if invalid."""
        if name not in WRITABLE:
            return
        text = self._tree.read_policy(name)
        if text == policy_files(self.state)[name]:
            return
        with contextlib.suppress(physics.KernelRefusal):  # then the old value is put back
            self.state = physics.write_policy(self.spec, self.state, name, text)
        self._tree.settle_policy(name, text, policy_files(self.state)[name])
        self._show()

    def set_environment(self, *, ambient_c: float | None, charge_pct: float | None) -> None:
        """Moves the board to a room of ambient_c, or its battery to charge_pct (0..100)."""
        if charge_pct is not None:
            self.state = physics.with_charge(self.spec, self.state, charge_pct)
        if ambient_c is not None:
            self.state = physics.with_ambient(self.state, ambient_c)
        self._show()

    def environment(self) -> Mapping[str, str]:
        """What a command on the board finds in its environment: all of it."""
        return {
            "HOME": str(self.paths.home),
            "USER": USER,
            "LOGNAME": USER,
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "PATH": f"{self.paths.programs}:/usr/bin:/bin",
            "FLEETCUT_BOARD_ROOT": str(self.paths.root),
            **board_clock_environment(self._library, self.paths.clock_page),
        }

    def _show(self) -> None:
        self._page.stretch = physics.stretch(self.spec, self.state)
        self._tree.publish(dynamic_files(self.spec, self.state))

    def _write_programs(self, python: str) -> None:
        """python3 is a wrapper and no link, for a virtual environment is found by its path."""
        name = shlex.quote(self.spec.board_id)
        programs = {
            "python3": f'exec {shlex.quote(python)} "$@"',
            "hostname": f"echo {name}",
            "uname": f'[ "$*" = -n ] && exec echo {name}\nPATH=/usr/bin:/bin exec uname "$@"',
        }
        for program, body in programs.items():
            path = self.paths.programs / program
            path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            path.chmod(0o755)
