"""What a virtual rack is made of: the numbers of every simulated board, and nothing that runs.

Input: a seed or a count. Output: a RackSpec of frozen VirtualBoardSpecs, units in every name.
Raises ValueError for a board that physics could not run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

NOMINAL = "nominal"
SLOW_BIN = "slow-bin"
WORN_BATTERY = "worn-battery"
BEHAVIOURS = (NOMINAL, SLOW_BIN, WORN_BATTERY)

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
    behaviours = list(BEHAVIOURS) * 2
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


def _drawn_board(
    board_id: str, behaviour: str, resistance_c_per_w: float, rng: random.Random
) -> VirtualBoardSpec:
    spread = rng.uniform(0.985, 1.015)
    charge_pct = rng.uniform(9.0, 12.0) if behaviour == WORN_BATTERY else rng.uniform(70.0, 95.0)
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
    )
