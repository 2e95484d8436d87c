"""Jetson: power rails, clocks of GPU and memory, over-current alarms and power modes.

Input: a sysfs Root, and NVIDIA's programs for what files lack. Output: as Linux. In process:
INA3221 monitors, devfreq, soctherm_oc, nvpmodel's state; before and after: nvpmodel, tegrastats.
"""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from typing import Dict, List, Optional, Tuple

from device_agents.contract import BoardState
from device_agents.errors import RunFailedError
from device_agents.platforms.ina3221 import find_rails, total_mw
from device_agents.platforms.jetson_clocks import parse_locked
from device_agents.platforms.linux import Linux, Readings
from device_agents.platforms.nvpmodel import needs_reboot, parse_modes, parse_query, parse_state
from device_agents.platforms.tegrastats import parse_line
from device_agents.platforms.tools import NOBODY, Tools
from device_agents.privilege import PERMISSION
from device_agents.sysfs import Root

_MODES = "etc/nvpmodel.conf"
_STATE = "var/lib/nvpmodel/status"
# The GPU's node is "gpu" or the chip's own name: gm20b, gp10b, gv11b, ga10b.
_GPU = re.compile(r"gpu|g[a-z][0-9]{2}b")
# Debugfs is root's alone; the last is a Thor's, which all may read.
_EMC_HZ = (
    "sys/kernel/debug/bpmp/debug/clk/emc/rate",
    "sys/kernel/debug/clk/emc/clk_rate",
    "sys/class/devfreq/bwmgr/cur_freq",
)


class Jetson(Linux):
    """Rails and devices are found once; a sample only reads their files."""

    name = "jetson"
    cpu_cooling_types = (
        *Linux.cpu_cooling_types,
        "cpu-balanced",
        "cpu-throttle-alert",
        "bcpu-throttle-alert",
        "mcpu-throttle-alert",
    )

    def __init__(self, root: Root, tools: Tools = NOBODY) -> None:
        super().__init__(root)
        self._tools = tools
        self._rails = find_rails(root)
        self._hz_files = _hz_files(root)
        self._alarms = [
            path
            for folder in root.glob("sys/class/hwmon/hwmon[0-9]*")
            if root.read_text(f"{folder}/name") == "soctherm_oc"
            for path in root.glob(f"{folder}/oc[0-9]_event_cnt")
        ]
        self._modes = parse_modes(root.read_text(_MODES))

    def power(self) -> Tuple[Optional[int], Readings]:
        rails = tuple((rail.label, rail.read_mw(self.root)) for rail in self._rails)
        return (total_mw(rails), rails) if rails else super().power()

    def freq_khz_by_device(self) -> Readings:
        found = ((name, self.root.read_int(path)) for name, path in self._hz_files)
        return tuple(
            (name, hz // 1000 if hz is not None and hz > 0 else None) for name, hz in found
        )

    def over_current_counts(self) -> Readings:
        return tuple(
            (p.rsplit("/", 1)[1].split("_")[0], self.root.read_int(p)) for p in self._alarms
        )

    def observe_fully(self, effective_freq_khz: Optional[int] = None) -> BoardState:
        """Where files of a rail, a zone or a clock are missing or root's, tegrastats is asked."""
        state = replace(self.observe(effective_freq_khz), power_mode=self.power_mode())
        if state.power_mw is not None and state.temp_c() is not None and len(self._hz_files) > 1:
            return state
        stats = parse_line(self._tools.ask_line(("tegrastats", "--interval", "100")))
        if state.power_mw is None and stats.power_mw_by_rail:
            rails = stats.power_mw_by_rail
            state = replace(state, power_mw=total_mw(rails), power_mw_by_rail=rails)
        if state.temp_c() is None:
            state = replace(state, temp_c_by_zone=stats.temp_c_by_zone)
        clocks: Dict[str, Optional[int]] = dict(stats.freq_khz_by_device)
        clocks.update(state.freq_khz_by_device)
        return replace(state, freq_khz_by_device=tuple(clocks.items()))

    def power_mode(self) -> Optional[str]:
        return parse_query(self._tools.ask(("nvpmodel", "-q"))) or self.power_mode_on_file()

    def power_mode_on_file(self) -> Optional[str]:
        number = parse_state(self.root.read_text(_STATE))
        return next((name for name, known in self._modes.items() if known == number), None)

    def power_modes(self) -> Tuple[str, ...]:
        return tuple(self._modes)

    def set_power_mode(self, name: str) -> None:
        number = self._modes.get(name)
        if number is None:
            known = f"use one of {', '.join(self._modes)}" if self._modes else f"see /{_MODES}"
            raise RunFailedError("condition", f"there is no power mode {name[:40]!r}", known)
        try:
            self._tools.set_nvpmodel(str(number))
        except OSError as error:
            raise _unset(name, number, error) from None
        found = self.power_mode()
        if found != name:
            raise RunFailedError(
                "condition",
                f"the power mode is {found or 'unreadable'} after it was set to {name}",
                f"set it by hand: sudo nvpmodel -m {number}",
            )

    def clocks_are_locked(self) -> Optional[bool]:
        """Whether jetson_clocks holds them. None: it is not there, or this user may not ask."""
        return parse_locked(self._tools.ask(("jetson_clocks", "--show")))


def _hz_files(root: Root) -> List[Tuple[str, str]]:
    """("gpu" or "emc", file of its clock in Hz), each once."""
    found: Dict[str, str] = {}
    for folder in root.glob("sys/class/devfreq/*"):
        node = root.read_text(f"{folder}/device/of_node/name") or folder.rsplit(".", 1)[-1]
        if _GPU.fullmatch(node) or "/gpu-gpc" in folder:
            found.setdefault("gpu", f"{folder}/cur_freq")
    for path in _EMC_HZ:
        if root.read_int(path) is not None:
            found.setdefault("emc", path)
    return list(found.items())


def _unset(name: str, number: int, error: OSError) -> RunFailedError:
    said = str(error.strerror or error)
    if needs_reboot(said):
        return RunFailedError(
            "condition",
            f"power mode {name} is only reached by a reboot",
            f"type sudo nvpmodel -m {number} on the board, let it reboot, and leave power_mode out",
        )
    may_not = error.errno in (errno.EACCES, errno.EPERM)
    return RunFailedError(
        "condition",
        f"power mode {name} cannot be set ({said})",
        PERMISSION if may_not else f"see sudo nvpmodel -m {number}",
    )
