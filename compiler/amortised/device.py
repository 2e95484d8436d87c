"""What the two networks know of a board: its anchors, its clock, its cores, its ISA, the runtime.

Input: runs of one board on one runtime. Output: DeviceFeatures, and vectors of one fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from compiler.anchors import ANCHORS
from compiler.dataset import DatasetError, Runs, lower_median

FloatArray = NDArray[np.float64]

RUNTIMES = ("ort", "tflite", "executable")
ISA = (
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "neon",
    "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_tile",
)  # fmt: skip
"""Names of /proc/cpuinfo that decide which kernels a runtime takes; others tell nothing here."""

N_ANCHORS = len(ANCHORS)


@dataclass(frozen=True)
class DeviceFeatures:
    """One board with one runtime in one state.

    anchor_ms: latency of each of ANCHORS in their order, > 0. effective_freq_khz: what the clock
    really ran at, None where unreadable; so cores. isa: names of /proc/cpuinfo, any order.
    """

    name: str
    anchor_ms: tuple[float, ...]
    effective_freq_khz: int | None
    cores: int | None
    isa: tuple[str, ...]
    runtime: str

    def __post_init__(self) -> None:
        if len(self.anchor_ms) != N_ANCHORS or not all(
            math.isfinite(ms) and ms > 0 for ms in self.anchor_ms
        ):
            raise ValueError(f"{self.name}: anchors {self.anchor_ms} are not {N_ANCHORS} times > 0")
        if self.runtime not in RUNTIMES:
            raise ValueError(f"{self.name}: runtime {self.runtime!r} is none of {RUNTIMES}")

    def vector(self) -> FloatArray:
        """(N_FEATURES,): logarithms of what is positive, 0 or 1 of what is so or not.

        An unreadable clock or count is 0, which a further entry tells from a clock of 1 kHz.
        """
        clock, cores = self.effective_freq_khz, self.cores
        return np.array(
            [
                *np.log(self.anchor_ms),
                math.log(clock) if clock else 0.0,
                float(bool(clock)),
                math.log(cores) if cores else 0.0,
                float(bool(cores)),
                *(float(name in self.isa) for name in ISA),
                *(float(name == self.runtime) for name in RUNTIMES),
            ]
        )


CLOCK = N_ANCHORS
"""Where a vector holds the clock's logarithm; the anchors' stand before it."""
N_FEATURES = N_ANCHORS + 4 + len(ISA) + len(RUNTIMES)


def device_features(runs: Runs, board_id: str, runtime: str) -> DeviceFeatures:
    """Of the anchors that this board ran with this runtime: lower medians over its repeats.

    Raises DatasetError naming the anchor that is missing.
    """
    own = [run for run in runs.runs if run.board_id == board_id and run.runtime == runtime]
    of_anchors = [run for run in own if run.model_name in ANCHORS]
    ms: list[float] = []
    for anchor in ANCHORS:
        found = [run.p50_ms for run in of_anchors if run.model_name == anchor]
        if not found:
            raise DatasetError(
                f"{board_id}: {anchor} was not measured with {runtime}. "
                "Next: measure proposals/anchors/campaign.yaml on it and export again"
            )
        ms.append(lower_median(found))
    clocks = [float(run.effective_freq_khz) for run in of_anchors if run.effective_freq_khz]
    return DeviceFeatures(
        name=board_id,
        anchor_ms=tuple(ms),
        effective_freq_khz=int(lower_median([float(clock) for clock in clocks]))
        if clocks
        else None,
        cores=of_anchors[0].cores,
        isa=of_anchors[0].isa_features,
        runtime=runtime,
    )


def as_documents(devices: Sequence[DeviceFeatures]) -> list[dict[str, object]]:
    """Plain data, one mapping a device; from_document reads one back."""
    return [{f.name: getattr(device, f.name) for f in fields(device)} for device in devices]


def from_document(document: dict[str, object]) -> DeviceFeatures:
    """Raises ValueError for another document."""
    try:
        values = {f.name: document[f.name] for f in fields(DeviceFeatures)}
        for name in ("anchor_ms", "isa"):
            values[name] = tuple(values[name])  # type: ignore[arg-type]
        return DeviceFeatures(**values)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a device: {error}") from None
