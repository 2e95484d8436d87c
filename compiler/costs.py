"""What a shape costs besides time: energy and peak memory, for clusters whose boards recorded them.

Input: the runs that the latency surrogates were fitted to. Output: a surrogate for each further
quantity and cluster, and what the held-out shapes say of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compiler.clusters import DeviceClusters
from compiler.dataset import QUANTITIES, DatasetError, Quantity, Runs, make_dataset
from compiler.features import feature_names, physics_features
from compiler.pruning.widths import PruneSpace, Widths
from compiler.surrogates import Surrogate, SurrogateError, mape

COSTS: tuple[Quantity, ...] = tuple(q for q in QUANTITIES if q != "latency_ms")


def fit_costs(
    space: PruneSpace,
    widths_by_model: Mapping[str, Widths],
    held_out: Sequence[str],
    runs: Runs,
    clusters: DeviceClusters,
    seed: int,
) -> tuple[dict[tuple[Quantity, str], Surrogate], list[dict[str, Any]]]:
    """(quantity, cluster label) → surrogate, from the representative's runs, as for latency.

    widths_by_model: model_sha256 → widths. held_out: models that judge and never train. The facts
    have one entry for each quantity and cluster: heldout_mape, a fraction, or why there is none.
    """
    x_by_model = {m: physics_features(space, w) for m, w in widths_by_model.items()}
    train = {m: x for m, x in x_by_model.items() if m not in held_out}
    judge = {m: x_by_model[m] for m in held_out}
    names = feature_names(space)
    surrogates: dict[tuple[Quantity, str], Surrogate] = {}
    facts: list[dict[str, Any]] = []
    for quantity in COSTS:
        for label, board_id in clusters.representatives_.items():
            about: dict[str, Any] = {"quantity": quantity, "cluster": label}
            facts.append(about)
            try:
                data, test = (
                    make_dataset(runs, models, names, [board_id], quantity=quantity)
                    for models in (train, judge)
                )
                surrogate = Surrogate(seed=seed).fit(data)
            except (DatasetError, SurrogateError) as error:
                about["missing"] = str(error)
                continue
            surrogates[quantity, label] = surrogate
            predicted, _, _ = surrogate.predict(test.x, extrapolate=True)
            about.update(
                family=surrogate.family_,
                n_train=len(data.y),
                n_heldout=len(test.y),
                heldout_mape=mape(test.y, predicted),
            )
    return surrogates, facts
