"""What a shape costs the whole fleet: one surrogate a cluster, weighted by how many boards it has.

Input: a Dataset of measured shapes a cluster. Output: Fleet, the search's objective, and
what the held-out measurements say of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.clusters import DeviceClusters
from compiler.dataset import Runs, make_dataset
from compiler.features import feature_names, physics_features
from compiler.pruning.search import FleetLatency
from compiler.pruning.widths import PruneSpace, Widths
from compiler.surrogates import (
    LatencySurrogate,
    fleet_latency,
    mape,
    predicted_ms_by_cluster,
)


@dataclass(frozen=True)
class Fleet:
    """The clusters of one fleet as one network's latency sees them.

    surrogates and weights: by cluster label; the weights add up to 1.
    """

    space: PruneSpace
    surrogates: Mapping[str, LatencySurrogate]
    weights: Mapping[str, float]

    def objective(self) -> FleetLatency:
        """Mean and spread over the fleet, as the search asks for them."""
        return fleet_latency(self.space, self.surrogates, self.weights)

    def by_cluster_ms(self, widths: Widths) -> dict[str, float]:
        """Cluster label → predicted median ms of one width vector."""
        return dict(predicted_ms_by_cluster(self.space, self.surrogates, widths))

    def mean_ms(self, widths: Widths) -> float:
        """Σ_k (n_k/N)·ŷ_k of one width vector: HDAP's objective, arXiv 2501.15240."""
        return sum(self.weights[label] * ms for label, ms in self.by_cluster_ms(widths).items())


def fit_fleet(
    space: PruneSpace,
    widths_by_model: Mapping[str, Widths],
    held_out: Sequence[str],
    runs: Runs,
    clusters: DeviceClusters,
    seed: int,
) -> tuple[Fleet, list[dict[str, Any]]]:
    """A surrogate for every cluster, from its representative's runs of the sampled shapes.

    widths_by_model: model_sha256 → widths. held_out: models that judge and never train.
    Returns the objective and, for each cluster, plain facts for the report.
    """
    x_by_model = {m: physics_features(space, w) for m, w in widths_by_model.items()}
    names = feature_names(space)
    surrogates: dict[str, LatencySurrogate] = {}
    facts: list[dict[str, Any]] = []
    for label, board_id in clusters.representatives_.items():
        train = {m: x for m, x in x_by_model.items() if m not in held_out}
        judge = {m: x_by_model[m] for m in held_out}
        surrogate = LatencySurrogate(seed=seed).fit(make_dataset(runs, train, names, [board_id]))
        test = make_dataset(runs, judge, names, [board_id])
        median_ms, lower_ms, upper_ms = surrogate.predict(test.x, extrapolate=True)
        surrogates[label] = surrogate
        facts.append(
            {
                "cluster": label,
                "family": surrogate.family_,
                "n_train": len(train),
                "n_heldout": len(test.y_ms),
                "heldout_mape": mape(test.y_ms, median_ms),
                "points": [
                    {
                        "measured_ms": float(test.y_ms[i]),
                        "predicted_ms": float(median_ms[i]),
                        "lower_ms": float(lower_ms[i]),
                        "upper_ms": float(upper_ms[i]),
                    }
                    for i in range(len(test.y_ms))
                ],
            }
        )
    return Fleet(space, surrogates, dict(clusters.weights_)), facts
