"""Bring a board into the state a run asks for, hold it, and put back what was touched.

Input: a Condition. Output: the block runs in that state, or RunFailedError ("condition").
Governor and clock are set and read back; heat is reached by load and by waiting; charge and
power source are only looked at. What was set stands in restore.json until it is put back, so
that the next worker restores what a killed one could not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Sequence

from device_agents.contract import Condition
from device_agents.cpufreq import Limits, offers, read_limits, restore, set_governor, set_range
from device_agents.errors import RunFailedError
from device_agents.files import fsync_folder, write_whole
from device_agents.platforms import Linux
from device_agents.platforms.linux import policy_name
from device_agents.processes import fork, kill_group

_POLL_S = 0.2
_CLOCK_SETTLES_S = 1.0
# Hardware rounds to its own dividers: 11 % of operating points are more than 3 % off, 4 % more
# than 10 % (363 public board reports).
_CLOCK_TOLERANCE = 0.10
_BURN_BYTES = 1 << 16

Wait = Callable[[float], None]
"""Sleep for seconds. Raises StoppedError when the worker is asked to end."""


class Conditioner:
    """One board's states. close_fds: the worker's locks, which a heating child must not hold."""

    def __init__(
        self, platform: Linux, restore_file: Path, wait: Wait, close_fds: Sequence[int]
    ) -> None:
        self._platform = platform
        self._restore_file = restore_file
        self._wait = wait
        self._close_fds = tuple(close_fds)

    @contextlib.contextmanager
    def hold(self, condition: Condition, limit_s: float) -> Iterator[None]:
        """Reach the condition within limit_s, run the block, restore in any case."""
        self._check_charge(condition)
        before = [read_limits(self._platform.root, p) for p in self._platform.policies]
        try:
            if condition.governor is not None or condition.freq_khz is not None:
                self._remember(before)
                self._set_clock(condition)
            self._reach_heat(condition, time.monotonic() + limit_s)
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Put back what restore.json says, if there is one.

        What cannot be put back is said in the log and stays in the file for the next worker: it
        must not cost the record that was measured meanwhile.
        """
        try:
            remembered = json.loads(self._restore_file.read_bytes())
        except FileNotFoundError:
            return
        try:
            for fields in remembered:
                restore(self._platform.root, Limits(**fields))
        except RunFailedError as failed:
            print(f"not restored: {failed}. Next: {failed.error.next_step}", file=sys.stderr)
            return
        self._restore_file.unlink()
        fsync_folder(self._restore_file.parent)

    def _remember(self, limits: Sequence[Limits]) -> None:
        text = json.dumps([asdict(entry) for entry in limits])
        write_whole(self._restore_file, text.encode("utf-8"))

    def _check_charge(self, condition: Condition) -> None:
        if condition.power_mode is not None:
            raise _unmet(
                f"power mode {condition.power_mode[:40]!r} cannot be set on {self._platform.name}",
                "leave power_mode out, or set the mode by hand and name the board's label",
            )
        low, high = condition.battery_pct_min, condition.battery_pct_max
        if low is not None or high is not None:
            battery_pct = self._platform.battery_pct()
            if battery_pct is None:
                raise _unmet("no battery can be read", "leave battery_pct out for this board")
            if not _within(battery_pct, low, high):
                raise _unmet(
                    f"the battery is at {battery_pct:g} %, asked for {_band(low, high)} %",
                    "charge or discharge it, then measure again",
                )
        wanted = condition.power_source
        if wanted is None:
            return
        # A board without a battery runs from the mains, also where no supply says so.
        source = self._platform.power_source()
        if source is None and not self._platform.has_battery():
            source = "mains"
        if source != wanted:
            raise _unmet(
                f"the board runs from {source or 'an unknown source'}, asked for {wanted[:40]!r}",
                "plug or unplug it, then measure again",
            )

    def _set_clock(self, condition: Condition) -> None:
        root, policies = self._platform.root, self._platform.policies
        if not policies:
            raise _unmet("no cpufreq policy can be read", "leave governor and freq_khz out")
        if condition.governor is not None:
            for policy in policies:
                set_governor(root, policy, condition.governor)
        freq_khz = condition.freq_khz
        if freq_khz is None:
            return
        # Clusters of unlike cores share few operating points: those that have it are pinned.
        able = [policy for policy in policies if offers(root, policy, freq_khz)]
        if not able:
            raise _unmet(f"no CPU offers {freq_khz} kHz", "take one of the board's opp_freqs_khz")
        for policy in able:
            set_range(root, policy, freq_khz, freq_khz)
        self._await_clock(able, freq_khz)

    def _await_clock(self, policies: Sequence[str], freq_khz: int) -> None:
        """Wait until the clock that cpufreq reports is the one that was set.

        Firmware may keep it lower, for heat or a weak battery, while the limits read back well.
        """
        deadline_s = time.monotonic() + _CLOCK_SETTLES_S
        names = [policy_name(policy) for policy in policies]
        while True:
            reported = dict(self._platform.freq_khz_by_policy())
            off = {
                name: reported.get(name) for name in names if _is_off(reported.get(name), freq_khz)
            }
            if not off:
                return
            if time.monotonic() >= deadline_s:
                name, khz = next(iter(off.items()))
                raise _unmet(
                    f"{name} runs at {khz} kHz after it was set to {freq_khz} kHz",
                    "see whether heat, charge or the power supply caps it: fleetcut check",
                )
            self._wait(_POLL_S / 4)

    def _reach_heat(self, condition: Condition, deadline_s: float) -> None:
        low, high = condition.temp_c_min, condition.temp_c_max
        if low is None and high is None:
            return
        burners: List[int] = []
        try:
            aim_low, aim_high = low, high
            while not _within(self._temp_c(), aim_low, aim_high):
                cold = low is not None and self._temp_c() < (aim_low or low)
                if cold and not burners:
                    burners += [fork(_burn, self._close_fds) for _ in range(os.cpu_count() or 1)]
                elif not cold:
                    _end(burners)
                if time.monotonic() >= deadline_s:
                    raise _unmet(
                        f"{_band(low, high)} °C was not reached in time: it is "
                        f"{self._temp_c():.1f} °C",
                        "raise timeout_s, or ask for a band nearer to the room",
                    )
                # Once outside, aim for the middle: the edge would be left at the first breath.
                if low is not None and high is not None:
                    aim_low, aim_high = (
                        ((low + high) / 2, high) if cold else (low, (low + high) / 2)
                    )
                self._wait(_POLL_S)
        finally:
            _end(burners)

    def _temp_c(self) -> float:
        temp_c = self._platform.observe().temp_c()
        if temp_c is None:
            raise _unmet("no temperature can be read", "leave temp_c out for this board")
        return temp_c


def _is_off(reported_khz: Optional[int], wanted_khz: int) -> bool:
    if reported_khz is None:  # unreadable: the limits' own read-back is all there is
        return False
    return abs(reported_khz - wanted_khz) > _CLOCK_TOLERANCE * wanted_khz


def _burn() -> None:
    block = bytes(_BURN_BYTES)
    while True:
        hashlib.sha256(block)


def _end(burners: List[int]) -> None:
    while burners:
        kill_group(burners.pop())


def _within(value: float, low: Optional[float], high: Optional[float]) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _band(low: Optional[float], high: Optional[float]) -> str:
    return f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"


def _unmet(fact: str, next_step: str) -> RunFailedError:
    return RunFailedError("condition", fact, next_step)
