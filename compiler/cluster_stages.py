"""Boards grouped by distance: by linkage, by density, or by density over micro-clusters.

Input: scaled features (n_boards, n_anchors), in which 1 is the smallest difference that counts,
and the smallest number of boards worth a cluster. Output: a cluster number a board, -1 for none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist
from sklearn.cluster import HDBSCAN, MiniBatchKMeans

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

HDBSCAN_FROM = 30
"""Fleets below this size are clustered by linkage (ADR 4)."""
TWO_STAGES_FROM = 20_000
"""HDBSCAN's time grows faster than the fleet; larger ones go through micro-clusters (ADR 7)."""
MICRO_CLUSTERS = 2_000

NO_CLUSTER = -1


def grouped(scaled: FloatArray, smallest: int, seed: int) -> IntArray:
    """Cluster number of each board from 0, NO_CLUSTER for boards of none; never all of none.

    smallest: boards a cluster has at least, unless no group has as many. seed: of the
    micro-clusters, in fleets larger than TWO_STAGES_FROM.
    """
    if len(scaled) < HDBSCAN_FROM:
        return _large_enough(linked(scaled), smallest)
    if len(scaled) > TWO_STAGES_FROM:
        return _by_micro_clusters(scaled, smallest, seed)
    return _by_density(scaled, smallest)


def linked(points: FloatArray) -> IntArray:
    """Average linkage (UPGMA), cut at distance 1: cluster numbers from 0."""
    if len(points) < 2:
        return np.zeros(len(points), dtype=np.int64)
    numbers = fcluster(linkage(points, method="average"), t=1.0, criterion="distance")
    return np.asarray(numbers, dtype=np.int64) - 1


def with_nearest(scaled: FloatArray, found: IntArray) -> tuple[IntArray, NDArray[np.bool_]]:
    """Every board with a cluster, and which are outliers: of no cluster and beyond 1 of all."""
    labels = found.copy()
    outlier = np.zeros(len(found), dtype=bool)
    numbers = np.unique(found[found != NO_CLUSTER])
    centers = np.stack([np.median(scaled[found == k], axis=0) for k in numbers])
    rest = np.flatnonzero(found == NO_CLUSTER)
    position, distance = _nearest(scaled[rest], centers)
    labels[rest] = numbers[position]
    outlier[rest] = distance > 1
    return labels, outlier


def distances(points: FloatArray, point: FloatArray) -> FloatArray:
    """(n_points,): Euclidean."""
    return np.asarray(np.sqrt(((points - point) ** 2).sum(axis=-1)), dtype=np.float64)


def _nearest(points: FloatArray, centers: FloatArray) -> tuple[IntArray, FloatArray]:
    """Position and distance of each point's nearest centre, one centre at a time to save memory."""
    position = np.zeros(len(points), dtype=np.int64)
    least = distances(points, centers[0])
    for number, center in enumerate(centers[1:], start=1):
        distance = distances(points, center)
        position[distance < least] = number
        least = np.minimum(least, distance)
    return position, least


def _large_enough(labels: IntArray, smallest: int) -> IntArray:
    """Clusters below the smallest size become NO_CLUSTER, unless none would be left."""
    counts = np.bincount(labels)
    if counts.max() < smallest:
        return labels
    return np.where(counts[labels] >= smallest, labels, NO_CLUSTER)


def _leaves(**params: object) -> HDBSCAN:
    """HDBSCAN that splits as finely as it can: joining what lies within 1 is the caller's part.

    Its default, the excess of mass, knows no scale: in two of six fleets of 20,000 simulated
    boards it lost two of seven behaviours (ADR 7).
    """
    return HDBSCAN(cluster_selection_method="leaf", allow_single_cluster=True, copy=True, **params)


def _by_density(scaled: FloatArray, smallest: int) -> IntArray:
    found = _leaves(min_cluster_size=max(2, smallest)).fit(scaled)
    labels = _joined(scaled, np.ones(len(scaled), dtype=np.int64), found.labels_)
    if (labels == NO_CLUSTER).all():
        return _one(scaled, smallest)
    return _with_near(scaled, np.ones(len(scaled), dtype=np.int64), labels)


def _one(scaled: FloatArray, smallest: int) -> IntArray:
    """The boards within 1 of the fleet's median, or every board where these are too few."""
    near = distances(scaled, np.median(scaled, axis=0)) <= 1
    return np.where(near | (near.sum() < smallest), 0, NO_CLUSTER)


def _joined(points: FloatArray, weights: IntArray, leaves: IntArray) -> IntArray:
    """Leaves that scatter within 1 of their centre, joined where the centres lie within 1.

    Density alone also groups boards that only share being far from all others.
    """
    labels = np.full(len(points), NO_CLUSTER)
    centers: list[FloatArray] = []
    for leaf in range(leaves.max() + 1):
        members = leaves == leaf
        center = np.average(points[members], axis=0, weights=weights[members])
        squares = ((points[members] - center) ** 2).sum(axis=1)
        if np.average(squares, weights=weights[members]) <= 1:
            labels[members] = len(centers)
            centers.append(center)
    if not centers:
        return labels
    return np.where(labels == NO_CLUSTER, NO_CLUSTER, linked(np.stack(centers))[labels])


def _by_micro_clusters(scaled: FloatArray, smallest: int, seed: int) -> IntArray:
    """MiniBatchKMeans to MICRO_CLUSTERS, then density over these, weighted by their boards.

    The first centres are boards drawn at random, so that micro-clusters lie where boards are;
    k-means++ prefers far points and spends centres on outliers.
    """
    points = scaled.astype(np.float32)
    means = MiniBatchKMeans(
        MICRO_CLUSTERS, init="random", n_init=1, max_iter=1, batch_size=4 * MICRO_CLUSTERS,
        max_no_improvement=None, reassignment_ratio=0.0, compute_labels=False, random_state=seed,
    ).fit(points)  # fmt: skip
    member = np.asarray(means.predict(points), dtype=np.int64)
    offset = np.sqrt(((points - means.cluster_centers_[member]) ** 2).sum(axis=1))
    weights = np.bincount(member, minlength=MICRO_CLUSTERS)
    mean_square = np.bincount(member, offset**2, MICRO_CLUSTERS) / np.maximum(weights, 1)
    # Boards that scatter beyond the border around their own centre do not behave alike.
    kept = np.flatnonzero((weights > 0) & (mean_square <= 1))
    labels = np.full(MICRO_CLUSTERS, NO_CLUSTER)
    if len(kept):
        centers = means.cluster_centers_[kept].astype(np.float64)
        labels[kept] = _weighted(centers, weights[kept], np.sqrt(mean_square[kept]), smallest)
    if (labels == NO_CLUSTER).all():
        return _one(scaled, smallest)
    return np.where(offset <= 1, labels[member], NO_CLUSTER)


def _weighted(centers: FloatArray, weights: IntArray, radii: FloatArray, smallest: int) -> IntArray:
    """Cluster number of each micro-cluster, NO_CLUSTER for those of none.

    centers: (n, n_anchors). weights: boards in each. radii: root mean square distance of these
    from their centre. HDBSCAN takes no weights, so it is given mutual reachabilities: a centre's
    core distance is the one within which `smallest` boards lie, and at least its own radius.
    """
    apart = cdist(centers, centers)
    order = np.argsort(apart, axis=1)
    reached = np.cumsum(weights[order], axis=1) >= min(smallest, int(weights.sum()))
    rows = np.arange(len(centers))
    core = np.maximum(apart[rows, order[rows, reached.argmax(axis=1)]], radii)
    reachability = np.maximum(apart, np.maximum(core[:, None], core))
    np.fill_diagonal(reachability, 0.0)
    fewest = max(2, int(smallest / weights.mean()))
    labels = np.full(len(centers), NO_CLUSTER)
    if len(centers) >= 2 * fewest:
        # min_samples=1: the core distances are already in the matrix.
        leaves = _leaves(metric="precomputed", min_samples=1, min_cluster_size=fewest)
        labels = _joined(centers, weights, leaves.fit(reachability).labels_)
    if (labels != NO_CLUSTER).any():
        labels = _with_near(centers, weights, labels)
    # Too few micro-clusters for HDBSCAN, yet boards enough: a tight behaviour of its own.
    rest = np.flatnonzero((labels == NO_CLUSTER) & (radii <= 0.5))
    labels[rest] = linked(centers[rest]) + labels.max() + 1
    boards = np.bincount(labels + 1, weights)[labels + 1]
    return np.where(boards >= smallest, labels, NO_CLUSTER)


def _with_near(points: FloatArray, weights: IntArray, labels: IntArray) -> IntArray:
    """Points of no cluster join the nearest where that lies within 1: leaves are but the cores."""
    centers = [
        np.average(points[labels == k], axis=0, weights=weights[labels == k])
        for k in range(labels.max() + 1)
    ]
    position, distance = _nearest(points, np.stack(centers))
    return np.where((labels == NO_CLUSTER) & (distance <= 1), position, labels)
