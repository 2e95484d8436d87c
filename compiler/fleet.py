"""What a shape costs the whole fleet: one surrogate a cluster, and each board's ratio to it.

Input: a Dataset of measured shapes a cluster, and the boards' anchor latencies. Output: Fleet: the
search's latencies and objectives, and what the held-out measurements say of the surrogates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.clusters import DeviceClusters
from compiler.dataset import Runs, make_dataset
from compiler.errors import CompilerError
from compiler.features import feature_names, physics_features
from compiler.pruning.judge import FleetLatency
from compiler.pruning.objectives import BoardRatios, Objective, ObjectiveName, make_objective
from compiler.pruning.widths import PruneSpace, Widths
from compiler.surrogates import (
    LatencySurrogate,
    cluster_latency,
    mape,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Fleet:
    """The boards of one fleet as one network's latency sees them.

    surrogates: by cluster label. boards: board id → (its cluster's label, its latency over its
    cluster's prediction, > 0); see board_ratios. Raises ValueError where a cluster has no board or
    a board no cluster. measured: shapes whose latency is known on every cluster: they answer for
    themselves.
    """

    space: PruneSpace
    surrogates: Mapping[str, LatencySurrogate]
    boards: Mapping[str, tuple[str, float]]
    measured: Mapping[Widths, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = {label for label, _ in self.boards.values()}
        if labels != set(self.surrogates):
            raise ValueError(
                f"boards of clusters {sorted(labels)}, surrogates of {sorted(self.surrogates)}"
            )

    def latency(self) -> FleetLatency:
        """Latency and spread on every cluster, as a search asks for them.

        Of a measured shape what was measured, without a spread: a search that exploits an error of
        the surrogates elsewhere does not do so here.
        """
        predicted = cluster_latency(self.space, self.surrogates)
        labels = sorted(self.surrogates)
        truth = {
            np.asarray(widths, dtype=np.int64).tobytes(): [ms[label] for label in labels]
            for widths, ms in self.measured.items()
        }

        def latency(widths: IntArray) -> tuple[FloatArray, FloatArray]:
            ms, spread = predicted(widths)
            if truth:
                rows = np.ascontiguousarray(np.atleast_2d(widths), dtype=np.int64)
                for place, row in enumerate(rows):
                    known = truth.get(row.tobytes())
                    if known is not None:
                        ms[place], spread[place] = known, 0.0
            return ms, spread

        return latency

    def objective(self, name: ObjectiveName, slo_ms: float | None = None) -> Objective:
        """What a search is to lower, over the boards. slo_ms: needed for slo."""
        return make_objective(name, self._ratios, slo_ms)

    def by_cluster_ms(self, widths: Widths) -> dict[str, float]:
        """Cluster label → predicted median ms of one width vector. Raises OutOfDomainError."""
        x = physics_features(self.space, [list(widths)])
        return {label: float(s.predict(x)[0][0]) for label, s in sorted(self.surrogates.items())}

    def mean_ms(self, widths: Widths) -> float:
        """Mean over the boards of one width vector: HDAP's objective, arXiv 2501.15240.

        Its Σ_k (n_k/N)·ŷ_k, but each board counts with its own ratio to its cluster.
        """
        return self.figures(widths).mean_ms

    def figures(self, widths: Widths, slo_ms: float | None = None) -> FleetFigures:
        """Predicted of one width vector. Raises OutOfDomainError."""
        by_cluster = self.by_cluster_ms(widths)
        ms = np.array([[by_cluster[label] for label in sorted(by_cluster)]])
        share = None if slo_ms is None else float(self._ratios.slo_share(ms, slo_ms)[0])
        return FleetFigures(
            float(self._ratios.mean_ms(ms)[0]), float(self._ratios.p95_ms(ms)[0]), share
        )

    @cached_property
    def _ratios(self) -> BoardRatios:
        """In the order of cluster_latency's columns."""
        by_cluster: dict[str, list[float]] = {label: [] for label in sorted(self.surrogates)}
        for label, ratio in self.boards.values():
            by_cluster[label].append(ratio)
        return BoardRatios([np.array(ratios) for ratios in by_cluster.values()])


@dataclass(frozen=True)
class FleetFigures:
    """Over the boards of a fleet. slo_share: at or below the SLO, 0..1; None without one."""

    mean_ms: float
    p95_ms: float
    slo_share: float | None


def board_ratios(
    clusters: DeviceClusters, ratio_by_board: Mapping[str, float]
) -> dict[str, tuple[str, float]]:
    """Fleet.boards: a board's anchors over its representative's, which the surrogate speaks for.

    ratio_by_board: anchor latency of each board over any reference that all of them share, > 0.
    Outliers carry the label of the nearest cluster, and so their ratio to it. Raises CompilerError
    naming a board without one.
    """
    missing = sorted(set(clusters.board_ids_) - set(ratio_by_board))
    if missing:
        raise CompilerError(
            f"{missing[0]}: has a cluster but no anchor ratio. "
            "Next: name another --work folder, so that the boards are clustered again"
        )
    of_cluster = {k: ratio_by_board[board] for k, board in clusters.representatives_.items()}
    return {
        board: (label, ratio_by_board[board] / of_cluster[label])
        for board, label in zip(clusters.board_ids_, clusters.labels_.tolist(), strict=True)
    }


def fit_fleet(
    space: PruneSpace,
    widths_by_model: Mapping[str, Widths],
    held_out: Sequence[str],
    runs: Runs,
    clusters: DeviceClusters,
    seed: int,
) -> tuple[dict[str, LatencySurrogate], list[dict[str, Any]]]:
    """A surrogate for every cluster, from its representative's runs of the sampled shapes.

    widths_by_model: model_sha256 → widths. held_out: models that judge and never train.
    Returns label → surrogate and, for each cluster, plain facts for the report.
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
    return surrogates, facts
