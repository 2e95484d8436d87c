"""Bring a board into the state a run asks for, hold it, and put back what was touched.

Input: a Condition. Output: the block runs in that state, or RunFailedError ("condition").
Power mode, governor and clock are set and read back; heat is reached by load and by waiting; the
charge is waited for while it moves there, the power source only looked at. What the board was
stands in restore.json until it is that again, and from before the first touch a watchdog waits
for this worker's end, so that not even SIGKILL leaves the board changed.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Iterator, Optional, Sequence, Tuple

from device_agents.charge import await_charge, check_source
from device_agents.contract import Condition
from device_agents.cpufreq import is_lowered, offers, read_limits, set_governor, set_range
from device_agents.errors import RunFailedError
from device_agents.heat import Burners, Heat, Wait
from device_agents.platforms import Linux
from device_agents.platforms.linux import policy_name
from device_agents.restore import Restorer
from device_agents.watchdog import Watchdog

_POLL_S = 0.2
_CLOCK_SETTLES_S = 1.0
# Hardware rounds to its own dividers: 11 % of operating points are more than 3 % off, 4 % more
# than 10 % (363 public board reports).
_CLOCK_TOLERANCE = 0.10


class Conditioner:
    """One board's states. close_fds: the worker's locks, which a heating child must not hold."""

    def __init__(
        self, platform: Linux, restore_file: Path, wait: Wait, close_fds: Sequence[int]
    ) -> None:
        self._platform = platform
        self._restorer = Restorer(platform, restore_file)
        self._watchdog = Watchdog(lambda: self._restorer.restore(only_own=True))
        self._wait = wait
        self._close_fds = (*close_fds, *self._watchdog.fds)
        self._burners: Optional[Burners] = None

    @property
    def fds(self) -> Tuple[int, int]:
        """What no child of the worker may keep open: they hold the watchdog back."""
        return self._watchdog.fds

    @property
    def burners(self) -> Optional[Burners]:
        return self._burners

    def prepare(self, conditions: Sequence[Condition]) -> None:
        """Make the burners that any of these will need, before the measuring process is made."""
        if self._burners is None and any(c.temp_c_min is not None for c in conditions):
            self._burners = Burners(self._close_fds)

    @contextlib.contextmanager
    def hold(self, condition: Condition, limit_s: float) -> Iterator[None]:
        """Reach the condition within limit_s, run the block, restore in any case."""
        deadline_s = time.monotonic() + limit_s
        check_source(self._platform, condition.power_source)
        await_charge(
            self._platform,
            condition.battery_pct_min,
            condition.battery_pct_max,
            deadline_s,
            self._wait,
        )
        try:
            if _touches(condition):
                self._remember(deadline_s)
                self._set_power_mode(condition.power_mode)
                self._set_clock(condition)
            self._reach_heat(condition, deadline_s)
            yield
        finally:
            self.restore()

    def restore(self) -> None:
        """Put back what restore.json says, if there is one; failures go to the log."""
        if self._burners is not None:
            # A measuring process that was killed may have left them at work.
            self._burners.rest()
        self._restorer.restore()

    def end(self) -> None:
        """Nothing that was made here is left. The board is to be restored by now."""
        if self._burners is not None:
            self._burners.end()
        self._watchdog.end()

    def _remember(self, deadline_s: float) -> None:
        """A maximum that the kernel lowers for heat would be remembered as the board's own."""
        while self._platform.throttled() and any(
            is_lowered(self._platform.root, read_limits(self._platform.root, policy))
            for policy in self._platform.policies
        ):
            if time.monotonic() >= deadline_s:
                raise _unmet(
                    "the board is throttled, so its own clock limits cannot be read",
                    "let it cool down, or mend its supply: fleetcut check",
                )
            self._wait(_POLL_S)
        self._watchdog.start()
        self._restorer.remember()

    def _set_power_mode(self, wanted: Optional[str]) -> None:
        """Before the clock: a mode sets limits of its own."""
        if wanted is None or self._platform.power_mode() == wanted:
            return
        known = self._platform.power_modes()
        if known and wanted not in known:
            raise _unmet(
                f"there is no power mode {wanted[:40]!r}", f"use one of {', '.join(known)}"
            )
        self._platform.set_power_mode(wanted)
        found = self._platform.power_mode()
        if found != wanted:
            raise _unmet(
                f"the power mode is {found!r} after setting {wanted!r}",
                "see what else sets it, or set it by hand and name the board's label",
            )

    def _set_clock(self, condition: Condition) -> None:
        governor, freq_khz = condition.governor, condition.freq_khz
        if governor is None and freq_khz is None:
            return
        root, policies = self._platform.root, self._platform.policies
        if not policies:
            raise _unmet("no cpufreq policy can be read", "leave governor and freq_khz out")
        if governor is not None:
            for policy in policies:
                set_governor(root, policy, governor)
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
        low_c, high_c = condition.temp_c_min, condition.temp_c_max
        if low_c is None and high_c is None:
            return
        burners = self._burners
        heat = Heat(self._platform, low_c, high_c, self._wait, self._close_fds, burners)
        try:
            heat.reach(deadline_s)
        finally:
            heat.close()


def _touches(condition: Condition) -> bool:
    return (condition.governor, condition.freq_khz, condition.power_mode) != (None, None, None)


def _is_off(reported_khz: Optional[int], wanted_khz: int) -> bool:
    if reported_khz is None:  # unreadable: the limits' own read-back is all there is
        return False
    return abs(reported_khz - wanted_khz) > _CLOCK_TOLERANCE * wanted_khz


def _unmet(fact: str, next_step: str) -> RunFailedError:
    return RunFailedError("condition", fact, next_step)
