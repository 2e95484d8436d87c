"""A Jetson's power monitors: which files speak of which rail, and what they add up to.

Input: a sysfs Root. Output: rails with their files; mW.
Source: NVIDIA Jetson Linux Developer Guide, "Power monitor" (hwmon since JetPack 5, iio before);
https://docs.kernel.org/hwmon/ina3221.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

from device_agents.sysfs import Root

# The rail that feeds all others; where there is none the rails are summed.
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
# Not connected; and the chip's own sum, which has no voltage.
NO_RAILS = ("NC", "sum of shunt voltages")


@dataclass(frozen=True)
class Rail:
    """voltage: a file of mV. current: of mA. power: of mW, where there is one."""

    label: str
    voltage: str
    current: str
    power: Optional[str] = None

    def read_mw(self, root: Root) -> Optional[int]:
        """None when unreadable; a current that is a little negative is a rail at rest."""
        voltage_mv, current_ma = root.read_int(self.voltage), root.read_int(self.current)
        if voltage_mv is not None and current_ma is not None:
            return max(0, round(voltage_mv * current_ma / 1e3))
        return None if self.power is None else root.read_int(self.power)


def find_rails(root: Root) -> Tuple[Rail, ...]:
    """In the kernel's order of devices and channels, each label once."""
    rails = _hwmon_rails(root) or _iio_rails(root)
    by_label = {rail.label: rail for rail in rails if rail.label not in NO_RAILS}
    return tuple(by_label.values())


def total_mw(draws: Tuple[Tuple[str, Optional[int]], ...]) -> Optional[int]:
    """The board's draw; None when a rail that counts is unreadable: a part of a sum is no draw."""
    by_label = dict(draws)
    for total in TOTAL_RAILS:
        if total in by_label:
            return by_label[total]
    readable = [mw for mw in by_label.values() if mw is not None]
    return sum(readable) if readable and len(readable) == len(by_label) else None


def _hwmon_rails(root: Root) -> List[Rail]:
    rails = []
    for path in root.glob("sys/bus/i2c/devices/*/hwmon/hwmon*/in[1-3]_label"):
        folder, name = path.rsplit("/", 1)
        number = name[2]
        label = root.read_text(path)
        if label is not None:
            voltage, current = f"{folder}/in{number}_input", f"{folder}/curr{number}_input"
            rails.append(Rail(label, voltage, current))
    return rails


def _iio_rails(root: Root) -> List[Rail]:
    rails = []
    for path in root.glob("sys/bus/i2c/devices/*/iio:device*/rail_name_[0-9]"):
        folder, name = path.rsplit("/", 1)
        label = root.read_text(path)
        if label is not None:
            voltage, current, power = (
                f"{folder}/in_{quantity}{name[-1]}_input"
                for quantity in ("voltage", "current", "power")
            )
            rails.append(Rail(label, voltage, current, power))
    return rails
