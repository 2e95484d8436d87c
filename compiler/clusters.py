"""Boards that behave alike, found from their latencies on the anchor networks.

Input: anchor runs of every board. Output: DeviceClusters: a label a board, one representative and
weight a cluster, outliers by name, a figure for stability; JSON, and labels for new boards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from scipy.spatial.distance import pdist
from sklearn.base import BaseEstimator
from sklearn.metrics import adjusted_rand_score

from compiler.cluster_stages import FloatArray, IntArray, distances, grouped, with_nearest
from compiler.dataset import DatasetError, Runs, lower_median

_NOISE_FLOOR = 0.005
_BOOTSTRAP_BOARDS = 2_000


@dataclass(frozen=True)
class AnchorLatencies:
    """What each board took for each anchor.

    median_ms: (n_boards, n_anchors), > 0. noise: (n_anchors,), the standard error of such a
    median as a fraction of it. source_sha256: hash of the runs' file.
    """

    board_ids: tuple[str, ...]
    anchors: tuple[str, ...]
    median_ms: FloatArray
    noise: FloatArray
    source_sha256: str

    def __post_init__(self) -> None:
        if self.median_ms.shape != (len(self.board_ids), len(self.anchors)):
            raise DatasetError(
                f"anchor latencies {self.median_ms.shape} of {len(self.board_ids)} boards "
                f"and {len(self.anchors)} anchors"
            )
        if not self.board_ids or not self.anchors or len(set(self.board_ids)) < len(self.board_ids):
            raise DatasetError("anchor latencies need distinct boards and at least one anchor")
        if not (np.isfinite(self.median_ms).all() and (self.median_ms > 0).all()):
            raise DatasetError("anchor latencies are positive numbers of ms")
        if self.noise.shape != (len(self.anchors),) or not (self.noise >= 0).all():
            raise DatasetError("anchor noise is one fraction >= 0 for each anchor")


def anchor_latencies(runs: Runs, anchors: Sequence[str]) -> AnchorLatencies:
    """Lower medians over each board's repeats, and the noise of such a median.

    anchors: model names. The noise of one run is the spread of a board's repeats around their
    median, pooled over the boards; where no board has two runs of an anchor, the spread between
    the two halves of each run. Raises DatasetError where a board lacks an anchor, or an anchor
    has two files.
    """
    boards = runs.board_ids
    of_cell: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    files: dict[str, set[str]] = {}
    for run in runs.runs:
        if run.model_name in anchors:
            of_cell.setdefault((run.board_id, run.model_name), []).append(run.latency_ms)
            files.setdefault(run.model_name, set()).add(run.model_sha256)
    for board in boards:
        for anchor in anchors:
            if (board, anchor) not in of_cell:
                raise DatasetError(
                    f"{runs.source}: {board} has no valid run of {anchor}. "
                    f"Next: fleetcut measure the anchors on {board} again"
                )
    for anchor, hashes in sorted(files.items()):
        if len(hashes) > 1:
            raise DatasetError(
                f"{runs.source}: {anchor} stands for {len(hashes)} different models. "
                "Next: select one campaign"
            )
    medians = np.array(
        [[lower_median([np.median(r) for r in of_cell[b, a]]) for a in anchors] for b in boards]
    )
    noise = np.array([_noise([of_cell[board, anchor] for board in boards]) for anchor in anchors])
    return AnchorLatencies(boards, tuple(anchors), medians, noise, runs.source_sha256)


def _noise(repeats_by_board: Sequence[Sequence[tuple[float, ...]]]) -> float:
    """Standard error, as a fraction, of one board's median over its repeats of one anchor."""
    repeats = float(np.median([len(runs) for runs in repeats_by_board]))
    groups = [np.log([np.median(run) for run in runs]) for runs in repeats_by_board]
    share = 1.0
    if max(len(group) for group in groups) < 2:
        halves = [
            [run[: len(run) // 2], run[len(run) // 2 :]]
            for runs in repeats_by_board
            for run in runs
            if len(run) > 1
        ]
        groups = [np.log([np.median(half) for half in pair]) for pair in halves]
        share = 0.5  # half a run varies √2 as much as a whole one
    deviations = [
        (group - group.mean()) * math.sqrt(len(group) / (len(group) - 1))
        for group in groups
        if len(group) > 1
    ]
    if not deviations:
        return 0.0
    # The median absolute deviation: one disturbed run must not blur every board's picture.
    spread = 1.4826 * float(np.median(np.abs(np.concatenate(deviations))))
    return spread * math.sqrt(share / repeats)


@dataclass(frozen=True)
class Assignment:
    """Where a new board belongs. distance: in resolutions; outlier: farther than one from it."""

    label: str
    distance: float
    outlier: bool


class DeviceClusters(BaseEstimator):
    """Noise-aware clustering of boards.

    A board's feature is the log-ratio of each anchor's latency to the fleet's median, divided by
    that anchor's resolution: the smallest difference between two boards that counts,
    ``max(min_difference, significance · √2 · noise)``. Two boards' distance is the root mean
    square over the anchors, so 1 is the border between alike and different.

    *Below 30 boards* average linkage is cut at 1. HDBSCAN knows no such border: it compares
    densities, and of six boards alike it reported 2 or 3 clusters in 14 of 20 trials (scikit-learn
    1.9, min_cluster_size 2). *From 30 boards* HDBSCAN finds the clusters, as finely as it can, and
    those whose centres lie within 1 are joined by the same linkage (its cluster_selection_epsilon
    would do this, but raises TypeError with numpy 2.4). *Above 20,000 boards* it does so over
    about 2,000 micro-clusters, weighted by their boards. A mixed rack needs no special case:
    another model's boards are far away.

    min_cluster_size, min_share: groups of fewer boards, or of a smaller fraction of the fleet, are
    outliers; they carry the label of the nearest cluster, so that they count in a fleet's mean,
    and are listed in outliers_. Where none is large enough every group is a cluster; from 30
    boards, those near the fleet's median are one.
    min_difference: a fraction; smaller differences are not worth a surrogate. significance: in
    standard errors. n_bootstrap: trials behind stability_; 0 for none. seed: of those trials and
    of the micro-clusters.

    After fit: board_ids_; labels_ (n_boards,), "c0" the fastest cluster; outliers_ board ids;
    representatives_ {label: board id}, the medoids; weights_ {label: n_k/N}, outliers included;
    stability_: mean adjusted Rand index between labels_ and those of fleets measured again with
    the noise found, in large fleets of 2,000 boards drawn once (1 is perfect; nan without trials);
    centers_ (n_clusters, n_anchors), ratios to the fleet's median; resolution_ (n_anchors,).
    """

    def __init__(
        self,
        min_cluster_size: int = 2,
        min_share: float = 0.005,
        min_difference: float = 0.05,
        significance: float = 3.0,
        n_bootstrap: int = 50,
        seed: int = 0,
    ) -> None:
        self.min_cluster_size = min_cluster_size
        self.min_share = min_share
        self.min_difference = min_difference
        self.significance = significance
        self.n_bootstrap = n_bootstrap
        self.seed = seed

    def fit(self, latencies: AnchorLatencies) -> DeviceClusters:
        noise = np.maximum(latencies.noise, _NOISE_FLOOR)
        self.board_ids_ = latencies.board_ids
        self.anchors_ = latencies.anchors
        self.source_sha256_ = latencies.source_sha256
        self.median_ms_ = np.median(latencies.median_ms, axis=0)
        self.resolution_ = np.maximum(self.min_difference, self.significance * math.sqrt(2) * noise)
        ratios = np.log(latencies.median_ms / self.median_ms_)
        found = self._found(ratios)
        nearest, outlier = with_nearest(self._scaled(ratios), found)
        self._describe(ratios, found, nearest)
        self.outliers_ = tuple(np.asarray(self.board_ids_)[outlier].tolist())
        self.stability_ = self._stability(ratios, noise, nearest)
        return self

    def assign(self, anchor_ms: Mapping[str, float]) -> Assignment:
        """The nearest cluster of a board that was not in the fleet.

        anchor_ms: median ms by anchor name, > 0. Some anchors may be left out where the rest put
        the board within 1 of one cluster only (see probes); what is odd on an anchor left out is
        then not seen as an outlier. Raises DatasetError where they leave doubt.
        """
        wrong = [f"{anchor} {ms} ms" for anchor, ms in anchor_ms.items() if not 0 < ms < math.inf]
        if wrong:
            raise DatasetError(
                f"new board: no latency is {', '.join(wrong)}. Next: measure the anchors on it"
            )
        probed = [i for i, anchor in enumerate(self.anchors_) if anchor in anchor_ms]
        if not probed:
            raise DatasetError(
                f"new board: no latency of {', '.join(self.anchors_)}. "
                "Next: measure the anchors on it"
            )
        ratios = np.log([anchor_ms[self.anchors_[i]] for i in probed] / self.median_ms_[probed])
        apart = (np.log(self.centers_[:, probed]) - ratios) / self.resolution_[probed]
        away = np.sqrt((apart**2).mean(axis=1))
        first, *others = np.argsort(away, kind="stable").tolist()
        if len(probed) < len(self.anchors_) and others and away[others[0]] <= 1:
            self._refuse(first, others[0], probed)
        distance = float(away[first])
        return Assignment(list(self.representatives_)[first], distance, distance > 1)

    def _refuse(self, first: int, second: int, probed: Sequence[int]) -> NoReturn:
        names = list(self.representatives_)
        apart = np.abs(np.log(self.centers_[first] / self.centers_[second])) / self.resolution_
        apart[list(probed)] = 0
        raise DatasetError(
            f"new board: {names[first]} and {names[second]} both fit its latency of "
            f"{', '.join(self.anchors_[i] for i in probed)}. "
            f"Next: measure {self.anchors_[int(np.argmax(apart))]} on it"
        )

    def probes(self, at_most: int = 10) -> tuple[str, ...]:
        """The anchors that assign needs of a new board, most telling first.

        Chosen one by one until any two clusters lie more than 2 apart on them, so that no board
        within 1 of its cluster is as near to another; every anchor where at_most are all there
        are. Raises DatasetError where at_most anchors do not suffice.
        """
        clusters, anchors = self.centers_.shape
        chosen: list[int] = []
        while len(chosen) < min(at_most, anchors):
            rest = [i for i in range(anchors) if i not in chosen]
            chosen.append(max(rest, key=lambda i: self._told_apart([*chosen, i])))
            pairs, _ = self._told_apart(chosen)
            if pairs == clusters * (clusters - 1) // 2 or len(chosen) == anchors:
                return tuple(self.anchors_[i] for i in chosen)
        raise DatasetError(
            f"{at_most} of {anchors} anchors do not tell the {clusters} clusters apart. "
            "Next: allow more probes"
        )

    def _told_apart(self, probed: Sequence[int]) -> tuple[int, float]:
        """Pairs of clusters more than 2 apart on these anchors; the least such distance."""
        centers = np.log(self.centers_[:, probed]) / self.resolution_[probed]
        pairs = pdist(centers) / math.sqrt(len(probed))
        return int((pairs > 2).sum()), float(pairs.min(initial=math.inf))

    def _scaled(self, ratios: FloatArray) -> FloatArray:
        """Euclidean distance of scaled features = root mean square of the differences."""
        return ratios / self.resolution_ / math.sqrt(len(self.resolution_))

    def _found(self, ratios: FloatArray) -> IntArray:
        """Cluster number of each board, -1 for boards of none."""
        smallest = max(self.min_cluster_size, math.ceil(self.min_share * len(ratios)))
        return grouped(self._scaled(ratios), smallest, self.seed)

    def _describe(self, ratios: FloatArray, found: IntArray, nearest: IntArray) -> None:
        """Name clusters by speed; medoids and centres from the boards that are truly in them."""
        scaled = self._scaled(ratios)
        numbers = np.unique(nearest)
        centers = {k: np.median(ratios[found == k], axis=0) for k in numbers.tolist()}
        by_speed = sorted(centers, key=lambda k: (centers[k].mean(), int(np.argmax(found == k))))
        names = {k: f"c{position}" for position, k in enumerate(by_speed)}
        self.labels_ = np.array([names[k] for k in nearest.tolist()])
        self.centers_ = np.exp(np.stack([centers[k] for k in by_speed]))
        self.weights_ = {names[k]: float((nearest == k).mean()) for k in by_speed}
        self.representatives_: dict[str, str] = {}
        for k in by_speed:
            members = np.flatnonzero(found == k)
            middle = self._scaled(centers[k])
            medoid = members[np.argmin(distances(scaled[members], middle))]
            self.representatives_[names[k]] = self.board_ids_[medoid]

    def _stability(self, ratios: FloatArray, noise: FloatArray, nearest: IntArray) -> float:
        if not self.n_bootstrap or len(ratios) < 2:
            return math.nan
        rng = np.random.default_rng(self.seed)
        if len(ratios) > _BOOTSTRAP_BOARDS:
            drawn = rng.choice(len(ratios), _BOOTSTRAP_BOARDS, replace=False)
            ratios, nearest = ratios[drawn], nearest[drawn]
        scores = []
        for _ in range(self.n_bootstrap):
            again = ratios + rng.standard_normal(ratios.shape) * noise
            labels, _ = with_nearest(self._scaled(again), self._found(again))
            scores.append(adjusted_rand_score(nearest, labels))
        return float(np.mean(scores))

    def to_json(self) -> str:
        """The fitted estimator as a document; no pickle."""
        document = {
            "params": self.get_params(),
            "board_ids": self.board_ids_,
            "anchors": self.anchors_,
            "median_ms": self.median_ms_.tolist(),
            "resolution": self.resolution_.tolist(),
            "centers": self.centers_.tolist(),
            "labels": self.labels_.tolist(),
            "outliers": self.outliers_,
            "representatives": self.representatives_,
            "weights": self.weights_,
            "stability": None if math.isnan(self.stability_) else self.stability_,
            "source_sha256": self.source_sha256_,
        }
        return json.dumps(document, indent=1)

    @classmethod
    def from_json(cls, text: str) -> DeviceClusters:
        """Raises ValueError for a document that to_json did not write."""
        try:
            data = json.loads(text)
            clusters = cls(**data["params"])
            clusters.board_ids_ = tuple(data["board_ids"])
            clusters.anchors_ = tuple(data["anchors"])
            clusters.median_ms_ = np.array(data["median_ms"], dtype=np.float64)
            clusters.resolution_ = np.array(data["resolution"], dtype=np.float64)
            clusters.centers_ = np.array(data["centers"], dtype=np.float64)
            clusters.labels_ = np.array(data["labels"])
            clusters.outliers_ = tuple(data["outliers"])
            clusters.representatives_ = dict(data["representatives"])
            clusters.weights_ = dict(data["weights"])
            clusters.stability_ = math.nan if data["stability"] is None else data["stability"]
            clusters.source_sha256_ = str(data["source_sha256"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a document of device clusters: {error}") from None
        return clusters
