"""Raspberry Pi: the firmware's own word on throttling, voltage, clock and power.

Input: a sysfs Root, and vcgencmd for what sysfs lacks. Output: as Linux. In process: the throttle
bits from sysfs and the under-voltage alarm of the rpi_volt driver; before and after: vcgencmd.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Tuple

from device_agents.contract import BoardState
from device_agents.platforms import GET_THROTTLED
from device_agents.platforms.linux import Linux
from device_agents.platforms.tools import NOBODY, Tools
from device_agents.platforms.vcgencmd import (
    CAPPED_NOW,
    UNDER_VOLTAGE_NOW,
    parse_clock_khz,
    parse_rails_mw,
    parse_throttled,
    since,
)
from device_agents.sysfs import Root


class RaspberryPi(Linux):
    """Needs the group video for vcgencmd."""

    name = "raspberry_pi"

    def __init__(self, root: Root, tools: Tools = NOBODY) -> None:
        super().__init__(root)
        self._tools = tools
        self._alarm = next(
            (
                f"{folder}/in0_lcrit_alarm"
                for folder in root.glob("sys/class/hwmon/hwmon[0-9]*")
                if root.read_text(f"{folder}/name") == "rpi_volt"
            ),
            None,
        )
        self._counts_what_occurred = False
        self._earlier_bits: Optional[int] = None

    def watching(self, root: Root) -> RaspberryPi:
        """As Linux; what occurs between two of the copy's readings counts for the later one."""
        copy = super().watching(root)
        assert isinstance(copy, RaspberryPi)
        copy._counts_what_occurred = True
        copy._earlier_bits = None
        return copy

    def caps(self) -> Tuple[Optional[bool], Optional[bool]]:
        bits = parse_throttled(self.root.read_text(GET_THROTTLED))
        if bits is not None and self._counts_what_occurred:
            earlier = bits if self._earlier_bits is None else self._earlier_bits
            self._earlier_bits = bits
            bits = since(earlier, bits)
        return self._with_bits(bits)

    def observe_fully(self, effective_freq_khz: Optional[int] = None) -> BoardState:
        state = self.observe(effective_freq_khz)
        if effective_freq_khz is None:
            measured_khz = parse_clock_khz(self._tools.ask(("vcgencmd", "measure_clock", "arm")))
            state = replace(state, effective_freq_khz=measured_khz)
        if not state.power_mw_by_rail:
            rails = parse_rails_mw(self._tools.ask(("vcgencmd", "pmic_read_adc")))
            state = replace(state, power_mw_by_rail=rails)
        if not self.root.exists(GET_THROTTLED):
            bits = parse_throttled(self._tools.ask(("vcgencmd", "get_throttled")))
            throttled, under_voltage = self._with_bits(bits)
            state = replace(state, throttled=throttled, under_voltage=under_voltage)
        return state

    def _with_bits(self, bits: Optional[int]) -> Tuple[Optional[bool], Optional[bool]]:
        """The firmware's word and the kernel's: either is enough, neither is None."""
        throttled, _ = super().caps()
        alarm = None if self._alarm is None else self.root.read_int(self._alarm)
        if bits is None:
            return throttled, None if alarm is None else alarm > 0
        return (
            bool(bits & CAPPED_NOW) or throttled is True,
            bool(bits & UNDER_VOLTAGE_NOW) or alarm == 1,
        )
