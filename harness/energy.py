"""Energy of an inference, from the board's draw while it was timed.

Input: a MeasurementRecord. Output: µJ; None where no power sensor was read often enough.
The record stays raw: power and time as they were read, and this derived from them anywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from device_agents.contract import BoardState, MeasurementRecord

_UJ_PER_MW_NS = 1e-6


def energy_uj(record: MeasurementRecord) -> float | None:
    """What an inference takes of the whole board, in µJ, > 0: mean draw by mean time.

    The draw is that of the samples in the timed loop, less the first, which is of the board at rest
    before it. The time is the loop's length over its inferences, or their mean latency where the
    length is unknown. What the board draws idle is not subtracted.
    """
    # Before the load, after warm-up, then the loop's own, and one after it.
    power_mw = mean_power_mw(record.states[3:-1])
    if power_mw is None or not record.latency_ns:
        return None
    length_ns = record.timed_ns or sum(record.latency_ns)
    return power_mw * length_ns / len(record.latency_ns) * _UJ_PER_MW_NS


def mean_power_mw(states: Sequence[BoardState]) -> float | None:
    """Mean draw in mW by the trapezoid rule over monotonic time; states in order of time.

    Samples without a reading are bridged. None with fewer than two readings, or none above 0.
    """
    read = [(s.monotonic_ns, s.power_mw) for s in states if s.power_mw is not None]
    if len(read) < 2 or read[-1][0] <= read[0][0]:
        return None
    area_mw_ns = sum(
        (later_mw + earlier_mw) / 2 * (later_ns - earlier_ns)
        for (earlier_ns, earlier_mw), (later_ns, later_mw) in itertools.pairwise(read)
    )
    return area_mw_ns / (read[-1][0] - read[0][0]) or None
