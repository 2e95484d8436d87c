"""What any Linux board shows of its state below /sys: heat, clock, charge, throttling.

Input: a sysfs Root. Output: BoardState and its parts. Formats: kernel.org, ABI/testing/sysfs-*.
Folders are listed once, when the object is made, so that `observe`, at 10 Hz, only reads files.
"""

from __future__ import annotations

import copy
import os
import time
from typing import List, Optional, Tuple, TypeVar

from device_agents.contract import BoardState
from device_agents.errors import RunFailedError
from device_agents.platforms.procstat import parse_busy_ns
from device_agents.sysfs import Root

Readings = Tuple[Tuple[str, Optional[int]], ...]
"""(name, its mW, kHz or count)"""

L = TypeVar("L", bound="Linux")

# Drivers answer -256 °C and the like for a sensor that is switched off.
_TEMP_C_PLAUSIBLE = (-60.0, 200.0)
_INPUT_LABELS = ("VDD_IN", "VIN")
_PROC_STAT = "proc/stat"


class Linux:
    """Generic Linux. Subclasses override only what their boards do otherwise."""

    name = "linux"
    cpu_cooling_types: Tuple[str, ...] = ("cpufreq-", "thermal-cpufreq-", "Processor")

    def __init__(self, root: Root) -> None:
        self.root = root
        self.policies = root.glob("sys/devices/system/cpu/cpufreq/policy[0-9]*") or root.glob(
            "sys/devices/system/cpu/cpu[0-9]*/cpufreq"
        )
        self._zones = root.glob("sys/class/thermal/thermal_zone[0-9]*")
        self._zone_types = [root.read_text(f"{z}/type") or z.split("/")[-1] for z in self._zones]
        self._cooling = [
            device
            for device in root.glob("sys/class/thermal/cooling_device[0-9]*")
            if (root.read_text(f"{device}/type") or "").startswith(self.cpu_cooling_types)
        ]
        supplies = root.glob("sys/class/power_supply/*")
        self._batteries = [s for s in supplies if self._is_board_battery(s)]
        self._power_uw_file = _board_power_sensor(root)
        self._mains = [
            s
            for s in supplies
            if (root.read_text(f"{s}/type") or "").startswith(("Mains", "USB", "Wireless"))
        ]
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")

    def watching(self: L, root: Root) -> L:
        """The same board for a thread of its own, which reads it through ``root``."""
        other = copy.copy(self)
        other.root = root
        return other

    def observe(self, effective_freq_khz: Optional[int] = None) -> BoardState:
        """One reading of all that costs no process. effective_freq_khz: from clock.py."""
        monotonic_ns = time.monotonic_ns()
        throttled, under_voltage = self.caps()
        power_mw, rails = self.power()
        return BoardState(
            monotonic_ns=monotonic_ns,
            temp_c_by_zone=self.temp_c_by_zone(),
            freq_khz_by_policy=self.freq_khz_by_policy(),
            effective_freq_khz=effective_freq_khz,
            governor=self.governor(),
            battery_pct=self.battery_pct(),
            power_mw=power_mw,
            throttled=throttled,
            under_voltage=under_voltage,
            power_mw_by_rail=rails,
            power_mode=self.power_mode_on_file(),
            power_source=self.power_source(),
            cpu_busy_ns=parse_busy_ns(self.root.read_text(_PROC_STAT), self._ticks_per_s),
            battery_temp_c=self.battery_temp_c(),
            freq_khz_by_device=self.freq_khz_by_device(),
            over_current_counts=self.over_current_counts(),
        )

    def observe_fully(self, effective_freq_khz: Optional[int] = None) -> BoardState:
        """As observe, and what only the vendor's programs say: never in a timed phase."""
        return self.observe(effective_freq_khz)

    def temp_c_by_zone(self) -> Tuple[Tuple[str, Optional[float]], ...]:
        return tuple(
            (kind, self._temp_c(f"{zone}/temp"))
            for kind, zone in zip(self._zone_types, self._zones)
        )

    def freq_khz_by_policy(self) -> Tuple[Tuple[str, Optional[int]], ...]:
        """cpuinfo_cur_freq is the hardware's word but often root's alone; else the request."""
        return tuple(
            (policy_name(policy), self._first_int(policy, "cpuinfo_cur_freq", "scaling_cur_freq"))
            for policy in self.policies
        )

    def governor(self) -> Optional[str]:
        """The governor; several in order of policy, joined by '+', where policies differ."""
        names: List[str] = []
        for policy in self.policies:
            name = self.root.read_text(f"{policy}/scaling_governor")
            if name is not None and name not in names:
                names.append(name)
        return "+".join(names) or None

    def battery_pct(self) -> Optional[float]:
        for battery in self._batteries:
            capacity_pct = self.root.read_int(f"{battery}/capacity")
            if capacity_pct is not None and 0 <= capacity_pct <= 100:
                return float(capacity_pct)
        return None

    def battery_status(self) -> Optional[str]:
        """The kernel's word: Charging, Discharging, Not charging, Full or Unknown."""
        for battery in self._batteries:
            status = self.root.read_text(f"{battery}/status")
            if status is not None:
                return status
        return None

    def battery_temp_c(self) -> Optional[float]:
        for battery in self._batteries:
            tenths_c = self.root.read_int(f"{battery}/temp")
            if tenths_c is not None:
                return _plausible_c(tenths_c / 10)
        return None

    def power_mw(self) -> Optional[int]:
        return self.power()[0]

    def power(self) -> Tuple[Optional[int], Readings]:
        """The board's draw and that of its rails.

        The draw is of a battery that is discharging, else of the sensor at the board's input. The
        sign of current_now differs by driver: the battery's status tells the direction.
        """
        for battery in self._batteries:
            if self.root.read_text(f"{battery}/status") != "Discharging":
                continue
            power_uw = self.root.read_int(f"{battery}/power_now")
            if power_uw is not None:
                return round(abs(power_uw) / 1e3), ()
            voltage_uv = self.root.read_int(f"{battery}/voltage_now")
            current_ua = self.root.read_int(f"{battery}/current_now")
            if voltage_uv is not None and current_ua is not None:
                return round(voltage_uv * abs(current_ua) / 1e9), ()
        if self._power_uw_file is not None:
            power_uw = self.root.read_int(self._power_uw_file)
            return None if power_uw is None else round(power_uw / 1e3), ()
        return None, ()

    def throttled(self) -> Optional[bool]:
        return self.caps()[0]

    def caps(self) -> Tuple[Optional[bool], Optional[bool]]:
        """Whether a CPU's clock is held down now, and whether the supply's voltage is too low.

        Generic Linux: the kernel's thermal framework on a CPU's cooling device, and nothing.
        """
        states = [self.root.read_int(f"{device}/cur_state") for device in self._cooling]
        readable = [state for state in states if state is not None]
        return (any(state > 0 for state in readable) if readable else None), None

    def freq_khz_by_device(self) -> Readings:
        """Clocks of what is no CPU; none on generic Linux."""
        return ()

    def over_current_counts(self) -> Readings:
        """Events since boot, by alarm; none on generic Linux."""
        return ()

    def power_source(self) -> Optional[str]:
        """Either "mains" or "battery"; None when the kernel does not say."""
        online = [self.root.read_int(f"{supply}/online") for supply in self._mains]
        if any(value is not None and value > 0 for value in online):
            return "mains"
        for battery in self._batteries:
            status = self.root.read_text(f"{battery}/status")
            if status == "Discharging":
                return "battery"
            if status in ("Charging", "Full", "Not charging"):
                return "mains"
        return None

    def has_battery(self) -> bool:
        return bool(self._batteries)

    def power_mode(self) -> Optional[str]:
        """The active mode's name; None where a board has none or does not say."""
        return None

    def power_mode_on_file(self) -> Optional[str]:
        """The same as far as files tell it: what `observe` records."""
        return None

    def power_modes(self) -> Tuple[str, ...]:
        """The modes that can be set; none on generic Linux."""
        return ()

    def set_power_mode(self, name: str) -> None:
        """Set a mode and read it back. Raises RunFailedError ("condition")."""
        raise RunFailedError(
            "condition",
            f"power mode {name[:40]!r} cannot be set on {self.name}",
            "leave power_mode out, or set the mode by hand and name the board's label",
        )

    def _is_board_battery(self, supply: str) -> bool:
        # scope "Device" is a mouse or a keyboard.
        scope = self.root.read_text(f"{supply}/scope")
        return self.root.read_text(f"{supply}/type") == "Battery" and scope != "Device"

    def _temp_c(self, relative: str) -> Optional[float]:
        millidegrees = self.root.read_int(relative)
        return None if millidegrees is None else _plausible_c(millidegrees / 1e3)

    def _first_int(self, folder: str, *names: str) -> Optional[int]:
        for name in names:
            value = self.root.read_int(f"{folder}/{name}")
            if value is not None and value > 0:
                return value
        return None


def _plausible_c(temp_c: float) -> Optional[float]:
    low, high = _TEMP_C_PLAUSIBLE
    return temp_c if low <= temp_c <= high else None


def _board_power_sensor(root: Root) -> Optional[str]:
    """power1_input (µW) of an INA2xx on the board's input; None when none says that it is.

    The kernel's ina2xx driver; a sensor that is labelled otherwise measures only a part.
    """
    sensors = [
        folder
        for folder in root.glob("sys/class/hwmon/hwmon[0-9]*")
        if (root.read_text(f"{folder}/name") or "").startswith("ina2")
        and root.exists(f"{folder}/power1_input")
    ]
    labelled = [s for s in sensors if root.read_text(f"{s}/in1_label") in _INPUT_LABELS]
    alone = sensors if len(sensors) == 1 and not root.exists(f"{sensors[0]}/in1_label") else []
    chosen = labelled or alone
    return f"{chosen[0]}/power1_input" if chosen else None


def policy_name(policy: str) -> str:
    """Short name: "policy0" from a policy's path, "cpu0" from …/cpu0/cpufreq."""
    parts = policy.split("/")
    return parts[-2] if parts[-1] == "cpufreq" else parts[-1]
