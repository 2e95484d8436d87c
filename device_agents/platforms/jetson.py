"""Jetson: the board's draw from its INA3221 power monitors, read in-process.

Input: a sysfs Root. Output: as Linux, with power_mw from the rails.
Source: NVIDIA Jetson Linux Developer Guide, "Power monitor"; JetPack 4 has the iio layout.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from device_agents.platforms.linux import Linux
from device_agents.sysfs import Root

# The rail that feeds all others; where there is none the rails are summed.
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")


class Jetson(Linux):
    """Rails are found once; a sample reads two small files a rail."""

    name = "jetson"

    def __init__(self, root: Root) -> None:
        super().__init__(root)
        self._rails = _hwmon_rails(root) or _iio_rails(root)

    def power_mw(self) -> Optional[int]:
        """None when a rail that counts cannot be read: a part of a sum is no draw."""
        for total in _TOTAL_RAILS:
            if total in self._rails:
                return self._rail_mw(self._rails[total])
        draws_mw = [self._rail_mw(rail) for rail in self._rails.values()]
        readable = [draw_mw for draw_mw in draws_mw if draw_mw is not None]
        return sum(readable) if readable and len(readable) == len(draws_mw) else None

    def _rail_mw(self, rail: Tuple[str, str]) -> Optional[int]:
        voltage_mv, current_ma = (self.root.read_int(path) for path in rail)
        if voltage_mv is None or current_ma is None:
            return None
        return round(voltage_mv * current_ma / 1e3)


def _hwmon_rails(root: Root) -> Dict[str, Tuple[str, str]]:
    """JetPack 5 and later: label → (millivolt file, milliampere file). NC is not connected."""
    rails: Dict[str, Tuple[str, str]] = {}
    for path in root.glob("sys/bus/i2c/devices/*/hwmon/hwmon*/in[1-3]_label"):
        folder, name = path.rsplit("/", 1)
        number = name[2]
        _add(
            rails,
            root.read_text(path),
            f"{folder}/in{number}_input",
            f"{folder}/curr{number}_input",
        )
    return rails


def _iio_rails(root: Root) -> Dict[str, Tuple[str, str]]:
    """JetPack 4: rail_name_N beside in_voltageN_input (mV) and in_currentN_input (mA)."""
    rails: Dict[str, Tuple[str, str]] = {}
    for path in root.glob("sys/bus/i2c/devices/*/iio:device*/rail_name_[0-9]"):
        folder, name = path.rsplit("/", 1)
        number = name[-1]
        _add(
            rails,
            root.read_text(path),
            f"{folder}/in_voltage{number}_input",
            f"{folder}/in_current{number}_input",
        )
    return rails


def _add(rails: Dict[str, Tuple[str, str]], label: Optional[str], volts: str, amps: str) -> None:
    skipped: List[Optional[str]] = [None, "NC", "sum of shunt voltages"]
    if label not in skipped and label is not None:
        rails[label] = (volts, amps)
