"""What a virtual rack is made of: the numbers of every simulated board, and nothing that runs.

Input: a seed, a count, behaviours. Output: a RackSpec of frozen VirtualBoardSpecs, units in names.
Raises ValueError for a board that physics could not run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

NOMINAL = "nominal"
SLOW_BIN = "slow-bin"
WORN_BATTERY = "worn-battery"
MEMORY_BOUND = "memory-bound"
RUNTIME_BOUND = "runtime-bound"
DEMO_BEHAVIOURS = (NOMINAL, SLOW_BIN, WORN_BATTERY)
"""They differ in scale: every network is slower by one factor."""
BEHAVIOURS = (*DEMO_BEHAVIOURS, MEMORY_BOUND, RUNTIME_BOUND)
"""The last two differ in shape: networks are slower by what they touch, or by their operators."""

MEMORY_BOUND_BYTES_PER_S = 4_000_000_000
RUNTIME_BOUND_MALLOC_NS = 3_000
LEAST_CACHE_BYTES = 2 * 1024**2
"""Python by itself touches about that between two looks at the clock."""

MODEL = "fleetcut virtual board (simulated)"
USER = "fleetcut"

GOVERNORS = ("performance", "powersave", "userspace", "ondemand", "schedutil")


@dataclass(frozen=True)
class BatterySpec:
    """A battery that only discharges.

    charge_pct: at start, 0..100. Below cap_below_pct the firmware holds the clock at cap_freq_khz.
    """

    charge_pct: float
    energy_full_wh: float = 100.0
    cap_below_pct: float = 15.0
    cap_freq_khz: int = 750_000


@dataclass(frozen=True)
class VirtualBoardSpec:
    """One simulated board.

    freqs_khz: the operating points, ascending. speed_fraction: the clock the silicon really
    reaches over the clock it reports. base_stretch: how much slower than the host's own CPU a
    board at full clock is; at least speed_fraction, for nothing runs faster than the host.
    core_power_w: what one busy core adds at full clock; it falls with the clock to the power
    power_exponent. Between soft_trip_c and soft_trip_c - hysteresis_c the clock stays as it is.
    cores: at most what the host has, or two busy cores are one.
    memory_bytes_per_s: at which a process gets the pages that it touches beyond cache_bytes; None:
    as fast as the host. malloc_ns: what each allocation costs more, at full clock.
    """

    board_id: str
    behaviour: str = NOMINAL
    freqs_khz: tuple[int, ...] = (600_000, 750_000, 1_000_000, 1_200_000, 1_500_000)
    governor: str = "performance"
    cores: int = 2
    memory_bytes: int = 4 * 1024**3
    speed_fraction: float = 1.0
    base_stretch: float = 1.02
    ambient_c: float = 25.0
    thermal_resistance_c_per_w: float = 8.5
    heat_capacity_j_per_c: float = 3.5
    idle_power_w: float = 2.0
    core_power_w: float = 1.5
    power_exponent: float = 2.2
    soft_trip_c: float = 80.0
    hysteresis_c: float = 4.0
    hard_trip_c: float = 95.0
    battery: BatterySpec | None = None
    memory_bytes_per_s: int | None = None
    cache_bytes: int = 4 * 1024**2
    malloc_ns: int = 0

    def __post_init__(self) -> None:
        if list(self.freqs_khz) != sorted(set(self.freqs_khz)) or not self.freqs_khz:
            raise ValueError(f"{self.board_id}: freqs_khz must ascend: {self.freqs_khz}")
        if self.governor not in GOVERNORS:
            raise ValueError(f"{self.board_id}: governor {self.governor!r} is none of {GOVERNORS}")
        if not 0 < self.speed_fraction <= self.base_stretch:
            raise ValueError(
                f"{self.board_id}: speed_fraction {self.speed_fraction} must be in "
                f"(0, base_stretch {self.base_stretch}]: no board is faster than its host"
            )
        if min(self.thermal_resistance_c_per_w, self.heat_capacity_j_per_c, self.cores) <= 0:
            raise ValueError(f"{self.board_id}: thermal constants and cores must be positive")
        if self.memory_bytes_per_s is not None and self.memory_bytes_per_s <= 0:
            raise ValueError(f"{self.board_id}: memory_bytes_per_s must be positive, or None")
        if self.cache_bytes < LEAST_CACHE_BYTES or self.malloc_ns < 0:
            raise ValueError(
                f"{self.board_id}: cache_bytes must be at least {LEAST_CACHE_BYTES} and "
                "malloc_ns not negative"
            )
        if self.battery is not None and self.battery.cap_freq_khz not in self.freqs_khz:
            raise ValueError(f"{self.board_id}: cap_freq_khz is not an operating point")


@dataclass(frozen=True)
class RackSpec:
    """The boards of one rack, in the inventory's order. name becomes their label ``rack``."""

    boards: tuple[VirtualBoardSpec, ...]
    seed: int
    name: str = "virtual"

    def __post_init__(self) -> None:
        ids = [board.board_id for board in self.boards]
        if not ids or len(set(ids)) != len(ids):
            raise ValueError(f"a rack needs boards, and each id once: {ids}")

    def planted(self) -> dict[str, str]:
        """board_id → behaviour: what the compiler has to find and never gets to read."""
        return {board.board_id: board.behaviour for board in self.boards}


DEMO_FREQS_KHZ = (1_200_000, 1_500_000, 2_000_000, 2_400_000, 3_000_000)


def demo_rack(seed: int) -> RackSpec:
    """Six boards, vb-01 to vb-06, two of each behaviour, shuffled over the names by the seed.

    Cooling differs so that temperatures do, but two busy cores stay below the trip on each board.
    """
    rng = random.Random(seed)  # noqa: S311 — a seed for physics, not for secrets
    behaviours = list(DEMO_BEHAVIOURS) * 2
    rng.shuffle(behaviours)
    resistances_c_per_w = [6.5, 7.2, 7.9, 8.6, 9.3, 10.0]
    rng.shuffle(resistances_c_per_w)
    boards = tuple(
        _drawn_board(f"vb-{i + 1:02d}", behaviours[i], resistances_c_per_w[i], rng)
        for i in range(len(behaviours))
    )
    return RackSpec(boards=boards, seed=seed)


def uniform_rack(n_boards: int, *, seed: int = 0, prefix: str = "vb") -> RackSpec:
    """Nominal boards that differ only in their name: for scale, and for tests of one board."""
    width = max(2, len(str(n_boards)))
    ids = (f"{prefix}-{i + 1:0{width}d}" for i in range(n_boards))
    return RackSpec(boards=tuple(VirtualBoardSpec(board_id=i) for i in ids), seed=seed)


def behaviours_rack(
    behaviours: Sequence[str], *, each: int = 2, seed: int = 0, prefix: str = "vb"
) -> RackSpec:
    """``each`` boards of each behaviour, shuffled over the names by the seed.

    behaviours: of BEHAVIOURS, each once. Raises ValueError for others, or none.
    """
    unknown = sorted(set(behaviours) - set(BEHAVIOURS))
    if unknown or not behaviours or len(set(behaviours)) < len(behaviours) or each < 1:
        raise ValueError(
            f"behaviours {', '.join(behaviours) or 'none'}, {each} boards of each: "
            f"name some of {', '.join(BEHAVIOURS)} once, and at least one board of each"
        )
    rng = random.Random(seed)  # noqa: S311 — a seed for physics, not for secrets
    planted = list(behaviours) * each
    rng.shuffle(planted)
    width = max(2, len(str(len(planted))))
    boards = tuple(
        _drawn_board(f"{prefix}-{i + 1:0{width}d}", behaviour, rng.uniform(6.5, 10.0), rng)
        for i, behaviour in enumerate(planted)
    )
    return RackSpec(boards=boards, seed=seed)


def _drawn_board(
    board_id: str, behaviour: str, resistance_c_per_w: float, rng: random.Random
) -> VirtualBoardSpec:
    spread = rng.uniform(0.985, 1.015)
    charge_pct = rng.uniform(9.0, 12.0) if behaviour == WORN_BATTERY else rng.uniform(70.0, 95.0)
    memory_bytes_per_s, malloc_ns = None, 0
    if behaviour == MEMORY_BOUND:
        memory_bytes_per_s = round(MEMORY_BOUND_BYTES_PER_S * rng.uniform(0.98, 1.02))
    if behaviour == RUNTIME_BOUND:
        malloc_ns = round(RUNTIME_BOUND_MALLOC_NS * rng.uniform(0.98, 1.02))
    return VirtualBoardSpec(
        board_id=board_id,
        behaviour=behaviour,
        speed_fraction=round(spread * (0.78 if behaviour == SLOW_BIN else 1.0), 5),
        # About what a core of a workstation reaches: the agent measures the host's, stretched.
        freqs_khz=DEMO_FREQS_KHZ,
        ambient_c=round(rng.uniform(22.0, 26.0), 2),
        thermal_resistance_c_per_w=resistance_c_per_w,
        heat_capacity_j_per_c=round(30.0 / resistance_c_per_w, 4),
        battery=BatterySpec(charge_pct=round(charge_pct, 2), cap_freq_khz=DEMO_FREQS_KHZ[1]),
        memory_bytes_per_s=memory_bytes_per_s,
        malloc_ns=malloc_ns,
    )
