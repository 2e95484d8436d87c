"""A board's physics: CPU time → power → heat and battery → governor and firmware → clock.

Input: a VirtualBoardSpec, time steps, and what was written to cpufreq. Output: BoardPhysics.
Pure: time is an argument, every function returns a new state. KernelRefusal is EINVAL.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.virtual.spec import GOVERNORS, VirtualBoardSpec

THERMAL_POLL_S = 1.0
"""How often the kernel looks at a tripped zone: one cooling state at most per look."""

_SUBSTEP_S = 0.25
_BUSY_FRACTION = 0.05

THROTTLE_CAPPED = 1 << 1
THROTTLE_THROTTLED = 1 << 2
THROTTLE_SOFT_LIMIT = 1 << 3
_STICKY_SHIFT = 16


class KernelRefusal(ValueError):  # noqa: N818 — an errno, not a fault of the program
    """What a kernel answers with EINVAL: the value is not taken and the old one stays."""


@dataclass(frozen=True)
class BoardPhysics:
    """A board at one moment.

    governor, min_khz, max_khz, setspeed_khz: the cpufreq policy; setspeed_khz None unless the
    governor is userspace. cooling_state: operating points that the kernel took away for heat.
    requested_khz: what cpufreq asked for, and reports. running_khz: what firmware lets a busy
    core have. throttle_bits: as ``vcgencmd get_throttled``. utilisation: busy cores, 0..cores.
    backlog_core_s: CPU time reported late, still to be turned into heat.
    energy_wh: in the battery, None without one.
    """

    governor: str
    min_khz: int
    max_khz: int
    setspeed_khz: int | None
    temp_c: float
    ambient_c: float
    energy_wh: float | None
    cooling_state: int = 0
    requested_khz: int = 0
    running_khz: int = 0
    throttle_bits: int = 0
    power_w: float = 0.0
    utilisation: float = 0.0
    backlog_core_s: float = 0.0
    since_poll_s: float = 0.0


def initial_physics(spec: VirtualBoardSpec) -> BoardPhysics:
    """The board as it comes up: idle and settled at its idle temperature."""
    top_khz = spec.freqs_khz[-1]
    state = BoardPhysics(
        governor=spec.governor,
        min_khz=spec.freqs_khz[0],
        max_khz=top_khz,
        setspeed_khz=top_khz if spec.governor == "userspace" else None,
        temp_c=spec.ambient_c + spec.idle_power_w * spec.thermal_resistance_c_per_w,
        ambient_c=spec.ambient_c,
        energy_wh=(
            None
            if spec.battery is None
            else spec.battery.energy_full_wh * spec.battery.charge_pct / 100
        ),
        power_w=spec.idle_power_w,
    )
    return _with_clock(spec, state)


def step(
    spec: VirtualBoardSpec, state: BoardPhysics, dt_s: float, busy_core_s: float
) -> BoardPhysics:
    """The board dt_s seconds later, in which its cores were busy for busy_core_s seconds together.

    dt_s > 0, busy_core_s >= 0. More busy time than the cores could spend is carried over.
    """
    if not dt_s > 0 or busy_core_s < 0:
        raise ValueError(f"dt_s {dt_s} must be > 0 and busy_core_s {busy_core_s} >= 0")
    n_substeps = max(1, round(dt_s / _SUBSTEP_S))
    backlog_core_s = state.backlog_core_s + busy_core_s
    spent_core_s = min(backlog_core_s, spec.cores * dt_s)
    state = replace(
        state, utilisation=spent_core_s / dt_s, backlog_core_s=backlog_core_s - spent_core_s
    )
    for _ in range(n_substeps):
        state = _substep(spec, state, dt_s / n_substeps)
    return state


def stretch(spec: VirtualBoardSpec, state: BoardPhysics) -> float:
    """How many times longer than on the host a computation takes now; >= 1."""
    slowdown = spec.freqs_khz[-1] / state.running_khz
    return max(1.0, spec.base_stretch * slowdown / spec.speed_fraction)


def charge_pct(spec: VirtualBoardSpec, state: BoardPhysics) -> float | None:
    """The battery's charge, 0..100; None without a battery."""
    if spec.battery is None or state.energy_wh is None:
        return None
    return 100 * state.energy_wh / spec.battery.energy_full_wh


def with_charge(spec: VirtualBoardSpec, state: BoardPhysics, pct: float) -> BoardPhysics:
    """The same board with its battery at pct, 0..100. Raises ValueError without a battery."""
    if spec.battery is None or not 0 <= pct <= 100:
        raise ValueError(f"{spec.board_id}: no battery to set to {pct} %, or not in 0..100")
    return _with_clock(spec, replace(state, energy_wh=spec.battery.energy_full_wh * pct / 100))


def with_ambient(state: BoardPhysics, ambient_c: float) -> BoardPhysics:
    """The same board in a room of ambient_c; its own temperature follows by and by."""
    return replace(state, ambient_c=ambient_c)


def write_policy(spec: VirtualBoardSpec, state: BoardPhysics, name: str, text: str) -> BoardPhysics:
    """What follows when text is written to the cpufreq file ``name``. Raises KernelRefusal."""
    value = text.strip()
    if name == "scaling_governor":
        if value not in GOVERNORS:
            raise KernelRefusal(f"governor {value!r}")
        setspeed_khz = state.requested_khz if value == "userspace" else None
        if value == state.governor:
            setspeed_khz = state.setspeed_khz
        return _with_clock(spec, replace(state, governor=value, setspeed_khz=setspeed_khz))
    khz = _clamped_khz(spec, value)
    if name == "scaling_min_freq" and khz <= state.max_khz:
        return _with_clock(spec, replace(state, min_khz=khz))
    if name == "scaling_max_freq" and khz >= state.min_khz:
        return _with_clock(spec, replace(state, max_khz=khz))
    if name == "scaling_setspeed" and state.governor == "userspace":
        return _with_clock(spec, replace(state, setspeed_khz=_nearest_above_khz(spec, khz)))
    raise KernelRefusal(f"{name} {value!r}")


def _clamped_khz(spec: VirtualBoardSpec, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 10:
        raise KernelRefusal(f"frequency {value[:20]!r}")
    return min(max(int(value), spec.freqs_khz[0]), spec.freqs_khz[-1])


def _nearest_above_khz(spec: VirtualBoardSpec, khz: int) -> int:
    return min(f for f in spec.freqs_khz if f >= khz)


def _highest_within_khz(spec: VirtualBoardSpec, khz: int) -> int:
    return max((f for f in spec.freqs_khz if f <= khz), default=spec.freqs_khz[0])


def _substep(spec: VirtualBoardSpec, state: BoardPhysics, dt_s: float) -> BoardPhysics:
    clock_fraction = state.running_khz / spec.freqs_khz[-1]
    power_w = spec.idle_power_w + spec.core_power_w * state.utilisation * (
        clock_fraction**spec.power_exponent
    )
    lost_w = (state.temp_c - state.ambient_c) / spec.thermal_resistance_c_per_w
    temp_c = state.temp_c + dt_s * (power_w - lost_w) / spec.heat_capacity_j_per_c
    energy_wh = state.energy_wh
    if energy_wh is not None:
        energy_wh = max(0.0, energy_wh - power_w * dt_s / 3600)
    state = replace(state, power_w=power_w, temp_c=temp_c, energy_wh=energy_wh)
    return _with_clock(spec, _with_cooling(spec, state, dt_s))


def _with_cooling(spec: VirtualBoardSpec, state: BoardPhysics, dt_s: float) -> BoardPhysics:
    """One cooling state up per look while above the trip, one down once below the hysteresis."""
    since_poll_s = state.since_poll_s + dt_s
    if since_poll_s < THERMAL_POLL_S:
        return replace(state, since_poll_s=since_poll_s)
    deepest = len(spec.freqs_khz) - 1
    cooling_state = state.cooling_state
    if state.temp_c >= spec.hard_trip_c:
        cooling_state = deepest
    elif state.temp_c >= spec.soft_trip_c:
        cooling_state = min(deepest, cooling_state + 1)
    elif state.temp_c < spec.soft_trip_c - spec.hysteresis_c:
        cooling_state = max(0, cooling_state - 1)
    return replace(state, since_poll_s=0.0, cooling_state=cooling_state)


def _with_clock(spec: VirtualBoardSpec, state: BoardPhysics) -> BoardPhysics:
    """Governor, kernel cooling and firmware cap, in this order, to one clock.

    ondemand and schedutil ramp within milliseconds, far below a step: whatever runs on a core
    runs at the highest clock allowed, and only what is *reported* falls when the board is idle.
    """
    cooled_khz = spec.freqs_khz[len(spec.freqs_khz) - 1 - state.cooling_state]
    allowed_khz = _highest_within_khz(spec, min(state.max_khz, cooled_khz))
    lowest_khz = _nearest_above_khz(spec, state.min_khz)
    requested_khz = running_khz = allowed_khz
    if state.governor == "powersave":
        requested_khz = running_khz = min(lowest_khz, allowed_khz)
    elif state.governor == "userspace" and state.setspeed_khz is not None:
        requested_khz = running_khz = min(max(state.setspeed_khz, lowest_khz), allowed_khz)
    elif state.governor in ("ondemand", "schedutil") and state.utilisation < _BUSY_FRACTION:
        requested_khz = min(lowest_khz, allowed_khz)
    live_bits = 0
    if state.cooling_state > 0:
        live_bits |= THROTTLE_CAPPED | THROTTLE_THROTTLED | THROTTLE_SOFT_LIMIT
    pct = charge_pct(spec, state)
    if spec.battery is not None and pct is not None and pct < spec.battery.cap_below_pct:
        live_bits |= THROTTLE_CAPPED | THROTTLE_THROTTLED
        running_khz = min(running_khz, spec.battery.cap_freq_khz)
    sticky_bits = state.throttle_bits & ~((1 << _STICKY_SHIFT) - 1)
    return replace(
        state,
        requested_khz=requested_khz,
        running_khz=running_khz,
        throttle_bits=sticky_bits | live_bits | live_bits << _STICKY_SHIFT,
    )
