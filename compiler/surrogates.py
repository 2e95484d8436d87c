"""One measured quantity predicted from features, with an interval, for the boards of one cluster.

Input: a Dataset of latency, energy or peak memory. Output: Surrogate: median and 90 % interval in
the quantity's unit, cross-validated error, refusal outside what was measured; and the fleet's mean
latency over several of them. Saved as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sklearn
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls
from sklearn.base import BaseEstimator
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import RidgeCV

from compiler.dataset import Dataset
from compiler.errors import CompilerError
from compiler.features import WHOLE, feature_names, physics_features
from compiler.pruning.widths import PruneSpace

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Predictor = Callable[[FloatArray], FloatArray]
"""x (n, n_features) → (n,), > 0, in the unit of what it was fitted to."""


class SurrogateError(CompilerError):
    """A surrogate that cannot be fitted, or not again as it was saved."""


class OutOfDomainError(SurrogateError):
    """A prediction was asked where nothing near was measured."""


def mape(measured: ArrayLike, predicted: ArrayLike) -> float:
    """Mean absolute percentage error, a fraction (0.05 = 5 %).

    measured, predicted: (n_runs,) of one unit, measured > 0. Raises ValueError if empty or of
    different lengths.
    """
    y = np.asarray(measured, dtype=np.float64)
    pred = np.asarray(predicted, dtype=np.float64)
    if not y.size or y.shape != pred.shape:
        raise ValueError(f"error of {pred.shape} predictions against {y.shape} measurements")
    return float(np.mean(np.abs(pred / y - 1)))


def _usual_error(y: FloatArray, left_out: FloatArray) -> float:
    """Mean absolute percentage error but for the worst 2 % of runs, by which families are compared.

    Those are disturbed runs, or the dense and the smallest shape, beyond all others when left out:
    one such error would outweigh what tells the families apart.
    """
    apart = np.sort(np.abs(left_out / y - 1))
    return float(np.mean(apart[: math.ceil(0.98 * len(apart))]))


def additive_costs(x: FloatArray, y: FloatArray) -> FloatArray:
    """(1 + n_features,): c and a of ``y = c + Σ a_j · x_j``, all ≥ 0. x (n, n_features), y > 0.

    Costs add up, and no work costs less than none. Least squares on the relative error under these
    bounds (Lawson and Hanson's NNLS). A disturbed run is slower, never faster, so residuals beyond
    1.345 spreads are weighted down (Huber), in ten rounds. A ridge of 1e-6 settles columns that
    say the same.
    """
    design = np.column_stack([np.ones(len(x)), x])
    scale = np.abs(design).max(axis=0)
    scale[scale == 0] = 1.0
    relative = design / scale / y[:, None]
    bound = math.sqrt(1e-6 * len(x)) * np.eye(design.shape[1]) / np.median(y)
    weight = np.ones(len(x))
    for _ in range(10):
        root = np.sqrt(weight)
        left = np.vstack([relative * root[:, None], bound])
        coefficients, _ = nnls(left, np.concatenate([root, np.zeros(len(bound))]))
        residual = np.abs(relative @ coefficients - 1)
        limit = max(1.345 * 1.4826 * float(np.median(residual)), 1e-9)
        weight = limit / np.maximum(residual, limit)
    return np.asarray(coefficients / scale)


def _additive(x: FloatArray, y: FloatArray, seed: int) -> Predictor:
    """The sum of additive_costs, and at least a tenth of what was measured at best."""
    del seed
    costs = additive_costs(x, y)
    floor = 0.1 * float(y.min())
    return lambda points: np.maximum(costs[0] + points @ costs[1:], floor)


def _ridge(x: FloatArray, y: FloatArray, seed: int) -> Predictor:
    """Ridge on the logarithm over features and their logarithms; its strength by leave-one-out."""
    del seed

    def expand(points: FloatArray) -> FloatArray:
        return np.column_stack([points, np.log1p(np.maximum(points, 0))])

    center, spread = expand(x).mean(axis=0), expand(x).std(axis=0)
    spread[spread <= 1e-12 * np.maximum(np.abs(center), 1)] = 1.0
    model = RidgeCV(np.logspace(-4, 4, 25)).fit((expand(x) - center) / spread, np.log(y))
    # Linear in the logarithm, so it could leave every scale: keep it within a decade of the data.
    low, high = math.log(y.min() / 10), math.log(y.max() * 10)

    def predict(points: FloatArray) -> FloatArray:
        return np.exp(np.clip(model.predict((expand(points) - center) / spread), low, high))

    return predict


def _trees(x: FloatArray, y: FloatArray, seed: int) -> Predictor:
    """Gradient-boosted trees on the logarithm."""
    model = GradientBoostingRegressor(
        n_estimators=200, max_depth=3, learning_rate=0.1, subsample=0.8, random_state=seed
    ).fit(x, np.log(y))
    return lambda points: np.exp(model.predict(points))


Family = Callable[[FloatArray, FloatArray, int], Predictor]
"""(x, y, seed) → predictor."""


@dataclass(frozen=True)
class FamilyEntry:
    """A model family. by_stage: whether it learns from features of stages, or of whole kinds."""

    fit: Family
    by_stage: bool = False


FAMILIES: dict[str, FamilyEntry] = {
    "additive": FamilyEntry(_additive),
    "staged": FamilyEntry(_additive, by_stage=True),
    "ridge": FamilyEntry(_ridge),
    "trees": FamilyEntry(_trees),
}
"""Model family by name. Totals of whole kinds of layers learn from few samples; time spent stage
by stage tells apart shapes of equal work, once there are enough."""


def _on_its_columns(entry: FamilyEntry, names: Sequence[str]) -> Family:
    """The family's fit on the columns it learns from; on all where features tell no stages.

    What is counted over the whole network serves every family.
    """
    staged = np.array(["@" in name for name in names], dtype=bool)
    if not staged.any():
        return entry.fit
    whole = np.array([name.startswith(f"{WHOLE}.") for name in names], dtype=bool)
    columns = np.flatnonzero(whole | (staged == entry.by_stage))

    def fit(x: FloatArray, y: FloatArray, seed: int) -> Predictor:
        predict = entry.fit(x[:, columns], y, seed)
        return lambda points: predict(points[:, columns])

    return fit


class Surrogate(BaseEstimator):
    """One quantity of one cluster's boards, its model family chosen by cross-validation.

    Folds never split a configuration: rows with equal features stay together, so a repeat of a
    measured shape is not taken for a new one. Intervals are CV+ (Barber et al. 2021, "Predictive
    inference with the jackknife+", section 3) on its logarithm: the folds' own predictions plus and
    minus their left-out errors. They widen where the folds disagree, so their width serves the
    search as predictive variance; a split-conformal interval would be equally wide everywhere.

    families: keys of FAMILIES to choose from. n_folds: 2 or more. coverage: 0..1.
    domain_margin: how far outside the measured range of a feature is still its domain, as a
    fraction of that range. seed: of folds and trees.

    After fit: family_; cv_mape_, a fraction, of the chosen family; cv_mape_by_family_;
    feature_names_; quantity_; source_sha256_; domain_min_, domain_max_ (n_features,), without the
    margin.
    """

    def __init__(
        self,
        families: Sequence[str] = tuple(FAMILIES),
        n_folds: int = 5,
        coverage: float = 0.9,
        domain_margin: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.families = families
        self.n_folds = n_folds
        self.coverage = coverage
        self.domain_margin = domain_margin
        self.seed = seed

    def fit(self, dataset: Dataset) -> Surrogate:
        """Raises SurrogateError for fewer than two configurations a fold."""
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown or not self.families:
            raise ValueError(f"families {unknown or 'none'}: choose from {', '.join(FAMILIES)}")
        folds = self._folds(dataset)
        families = {
            name: _on_its_columns(FAMILIES[name], dataset.feature_names) for name in self.families
        }
        fits = {name: self._fit_folds(family, dataset, folds) for name, family in families.items()}
        self.cv_mape_by_family_ = {
            name: mape(dataset.y, left_out) for name, (_, left_out) in fits.items()
        }
        usual = {name: _usual_error(dataset.y, left_out) for name, (_, left_out) in fits.items()}
        # min() keeps the first of equals: the order of families breaks ties.
        self.family_ = min(self.families, key=lambda name: usual[name])
        self.cv_mape_ = self.cv_mape_by_family_[self.family_]
        self._fold_predictors, left_out = fits[self.family_]
        self._fold_of_row = folds
        self._residuals = np.abs(np.log(dataset.y) - np.log(left_out))
        self._predictor = families[self.family_](dataset.x, dataset.y, self.seed)
        self._dataset = dataset
        self.feature_names_ = dataset.feature_names
        self.source_sha256_ = dataset.source_sha256
        self.quantity_ = dataset.quantity
        self.domain_min_ = dataset.x.min(axis=0)
        self.domain_max_ = dataset.x.max(axis=0)
        return self

    def predict(
        self, x: ArrayLike, *, extrapolate: bool = False
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(median, lower, upper), each (n,), in quantity_'s unit, for x (n, n_features).

        lower ≤ median ≤ upper. Raises OutOfDomainError, naming the feature, for a point outside
        the domain, unless extrapolate; ValueError for another number of features.
        """
        points = self._points(x)
        if not extrapolate:
            self._refuse_outside(points)
        median = self._predictor(points)
        by_fold = np.log(np.stack([predict(points) for predict in self._fold_predictors]))
        around = by_fold[self._fold_of_row]  # (n_runs, n): each run's left-out model
        residual = self._residuals[:, None]
        alpha = 1 - self.coverage
        lower = np.exp(order_statistic(around - residual, alpha, upper=False))
        upper = np.exp(order_statistic(around + residual, alpha, upper=True))
        return median, np.minimum(lower, median), np.maximum(upper, median)

    def in_domain(self, x: ArrayLike) -> NDArray[np.bool_]:
        """(n,): every feature within its measured range, widened by domain_margin of it."""
        return np.asarray(self._inside(self._points(x)).all(axis=1))

    def to_json(self) -> str:
        """The training set and parameters: from_json fits again, which is deterministic.

        With the version of scikit-learn and the predictions for the training set, which
        from_json compares; no pickle, which breaks across versions and runs code.
        """
        document = {
            "params": {**self.get_params(), "families": list(self.families)},
            "family": self.family_,
            "sklearn": sklearn.__version__,
            "x": self._dataset.x.tolist(),
            "y": self._dataset.y.tolist(),
            "board_ids": self._dataset.board_ids,
            "feature_names": self.feature_names_,
            "quantity": self.quantity_,
            "source_sha256": self.source_sha256_,
            "fitted": self._predictor(self._dataset.x).tolist(),
        }
        return json.dumps(document, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Surrogate:
        """Raises ValueError for another document, SurrogateError where it fits otherwise now."""
        try:
            data = json.loads(text)
            dataset = Dataset(
                x=np.array(data["x"], dtype=np.float64),
                y=np.array(data["y"], dtype=np.float64),
                board_ids=tuple(data["board_ids"]),
                feature_names=tuple(data["feature_names"]),
                source_sha256=str(data["source_sha256"]),
                quantity=data["quantity"],
            )
            params = {**data["params"], "families": tuple(data["params"]["families"])}
            family, fitted = str(data["family"]), np.array(data["fitted"], dtype=np.float64)
            version = str(data["sklearn"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a document of a surrogate: {error}") from None
        surrogate = cls(**params).fit(dataset)
        again = surrogate._predictor(dataset.x)
        if surrogate.family_ != family or not np.allclose(again, fitted, rtol=1e-6, atol=0):
            raise SurrogateError(
                f"surrogate of {dataset.quantity} saved with scikit-learn {version} fits otherwise "
                f"with {sklearn.__version__}. Next: fleetcut compile again"
            )
        return surrogate

    def _points(self, x: ArrayLike) -> FloatArray:
        points = np.asarray(x, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != len(self.feature_names_):
            raise ValueError(f"x {points.shape} for {len(self.feature_names_)} features")
        return points

    def _inside(self, points: FloatArray) -> NDArray[np.bool_]:
        # A feature that never varied has no range: rounding of the last digit is allowed for.
        slack = self.domain_margin * (self.domain_max_ - self.domain_min_)
        slack = np.maximum(slack, 1e-9 * np.abs(self.domain_max_))
        low, high = self.domain_min_ - slack, self.domain_max_ + slack
        return np.asarray((points >= low) & (points <= high))

    def _refuse_outside(self, points: FloatArray) -> None:
        outside = np.argwhere(~self._inside(points))
        if len(outside):
            row, column = outside[0]
            raise OutOfDomainError(
                f"{self.feature_names_[column]} = {points[row, column]:g} lies outside what was "
                f"measured, {self.domain_min_[column]:g} to {self.domain_max_[column]:g}. "
                "Next: measure shapes there"
            )

    def _folds(self, dataset: Dataset) -> IntArray:
        """Fold number of each run; runs with equal features share one."""
        _, configuration = np.unique(dataset.x, axis=0, return_inverse=True)
        configuration = np.asarray(configuration).reshape(-1)
        n = int(configuration.max()) + 1
        if self.n_folds < 2 or n < 2 * self.n_folds:
            raise SurrogateError(
                f"{n} configurations for {self.n_folds} folds: at least 2 folds of 2 are needed. "
                "Next: measure more shapes"
            )
        order = np.random.default_rng(self.seed).permutation(n)
        fold = np.empty(n, dtype=np.int64)
        fold[order] = np.arange(n) % self.n_folds
        return fold[configuration]

    def _fit_folds(
        self,
        family: Family,
        dataset: Dataset,
        folds: IntArray,
    ) -> tuple[list[Predictor], FloatArray]:
        """One predictor a fold, fitted without it, and the left-out predictions (n_runs,)."""
        predictors, left_out = [], np.empty(len(dataset.y))
        for fold in range(self.n_folds):
            out = folds == fold
            predictors.append(family(dataset.x[~out], dataset.y[~out], self.seed))
            left_out[out] = predictors[-1](dataset.x[out])
        return predictors, left_out


LatencySurrogate = Surrogate
"""Where latency alone is meant."""


def order_statistic(values: FloatArray, alpha: float, *, upper: bool) -> FloatArray:
    """CV+'s quantile of (n_runs, n) along the runs: the ceil((1 - alpha)(n + 1))-th smallest.

    For the lower end the mirror image. Fewer runs than 1/alpha give the outermost value.
    """
    n = len(values)
    rank = min(math.ceil((1 - alpha) * (n + 1)), n)
    position = rank - 1 if upper else n - rank
    return np.asarray(np.partition(values, position, axis=0)[position])


def cluster_latency(
    space: PruneSpace, surrogates: Mapping[str, Surrogate]
) -> Callable[[IntArray], tuple[FloatArray, FloatArray]]:
    """Latency on every cluster, as a search asks for it.

    surrogates: by cluster label. The function returned takes widths (n, n_groups) and gives (ms,
    spread_ms), each (n, n_clusters), the labels sorted: spread is the half width of a surrogate's
    interval. Shapes outside a surrogate's domain take inf, which no search accepts. Raises
    ValueError for features that do not fit.
    """
    names = feature_names(space)
    for label, surrogate in surrogates.items():
        if surrogate.quantity_ != "latency_ms":
            raise ValueError(f"surrogate {label} predicts {surrogate.quantity_}, not latency")
        if surrogate.feature_names_ != names:
            raise ValueError(f"surrogate {label} has other features than {space.network}")

    def ms_and_spread(widths: IntArray) -> tuple[FloatArray, FloatArray]:
        x = physics_features(space, np.atleast_2d(widths))
        ms, spread = np.empty((2, len(x), len(surrogates)))
        for column, label in enumerate(sorted(surrogates)):
            median, lower, upper = surrogates[label].predict(x, extrapolate=True)
            ms[:, column] = np.where(surrogates[label].in_domain(x), median, np.inf)
            spread[:, column] = (upper - lower) / 2
        return ms, spread

    return ms_and_spread


def fleet_latency(
    space: PruneSpace,
    surrogates: Mapping[str, Surrogate],
    weights: Mapping[str, float],
) -> Callable[[IntArray], tuple[FloatArray, FloatArray]]:
    """Mean latency over the fleet, ``Σ_k w_k · ŷ_k(widths)``, and its spread, each (n,).

    Both mappings by cluster label; weights are positive and sum to 1. Otherwise as
    cluster_latency. Raises ValueError for labels or features that do not fit.
    """
    if set(surrogates) != set(weights) or not weights:
        raise ValueError(f"surrogates of {sorted(surrogates)}, weights of {sorted(weights)}")
    if min(weights.values()) <= 0 or not math.isclose(sum(weights.values()), 1, abs_tol=1e-6):
        raise ValueError(f"weights {dict(weights)} are not shares of one fleet")
    by_cluster = cluster_latency(space, surrogates)
    shares = np.array([weights[label] for label in sorted(weights)])

    def mean_and_spread_ms(widths: IntArray) -> tuple[FloatArray, FloatArray]:
        ms, spread = by_cluster(widths)
        return (ms * shares).sum(axis=1), (spread * shares).sum(axis=1)

    return mean_and_spread_ms
