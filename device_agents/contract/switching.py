"""Which sub-network of a switchable network runs at which clock.

Input: laws of latency over the clock, or the JSON in which they travel. Output: ClockLaw, Policy.
The compiler fits it, the artifact carries it, the board asks it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Mapping, Optional, Tuple

POLICY_VERSION = 1

HYSTERESIS = 0.05
"""By how much of the target a switch must come closer to it: less would follow noise of the clock
back and forth."""


@dataclass(frozen=True)
class ClockLaw:
    """latency = a_ms + b_ms_khz / clock in kHz, of one sub-network on one board; b_ms_khz ≥ 0.

    a_ms: what memory and calls take whatever the clock; below 0 where more slows down with the
    clock than the core. fit_mape: mean relative error on the latencies that it was fitted to.
    """

    a_ms: float
    b_ms_khz: float
    fit_mape: float

    def latency_ms(self, khz: float) -> float:
        return self.a_ms + self.b_ms_khz / khz


@dataclass(frozen=True)
class Policy:
    """For boards of one kind: what to run at which clock.

    target_ms: the latency to hold. laws: of each sub-network, the widest first.
    hysteresis: fraction of the target. A board that is slower than another by the same factor at
    everything is slower at its target too: it chooses the same.
    """

    target_ms: float
    laws: Tuple[ClockLaw, ...]
    hysteresis: float = HYSTERESIS

    def __post_init__(self) -> None:
        if not self.laws or not self.target_ms > 0 or not self.hysteresis >= 0:
            raise ValueError("a policy has laws, a target above 0 and a hysteresis of 0 or more")

    def choose(self, khz: float, present: Optional[int] = None) -> int:
        """The position of the sub-network for this clock.

        present: the one that runs now; it stays unless another comes closer to the target by the
        hysteresis. Raises ValueError for a clock of 0 or less.
        """
        if not khz > 0:
            raise ValueError(f"a clock of {khz} kHz")
        distance = [abs(law.latency_ms(khz) - self.target_ms) / self.target_ms for law in self.laws]
        # Of two that are as close the wider one is the more accurate.
        best = min(range(len(distance)), key=lambda position: (distance[position], position))
        if present is None or distance[best] < distance[present] - self.hysteresis:
            return best
        return present

    def covers(self, khz: float, within: float) -> bool:
        """Whether some sub-network's latency at this clock is within a fraction of the target."""
        nearest = self.laws[self.choose(khz)].latency_ms(khz)
        return abs(nearest - self.target_ms) <= within * self.target_ms

    def to_plain(self) -> Mapping[str, Any]:
        return {"version": POLICY_VERSION, **asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_plain(), indent=1, sort_keys=True)

    @classmethod
    def from_plain(cls, document: Any) -> Policy:
        """Raises ValueError for a document that is not a policy."""
        try:
            if document["version"] != POLICY_VERSION:
                raise ValueError(
                    f"policy version {document['version']}, this reads {POLICY_VERSION}"
                )
            laws = tuple(ClockLaw(**law) for law in document["laws"])
            return cls(float(document["target_ms"]), laws, float(document["hysteresis"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a policy: {error}") from None

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Raises ValueError for a text that is not a policy."""
        return cls.from_plain(json.loads(text))
