"""The optimiser by itself: it descends, stays spread, and trusts no missing fitness."""

from __future__ import annotations

import numpy as np

from compiler.pruning.ncs import NegativelyCorrelatedSearch


def test_asked_and_told_by_hand_it_descends_and_stays_spread() -> None:
    rng = np.random.default_rng(0)
    target = np.array([0.2, 0.7, 0.5])

    def distance(x: np.ndarray) -> np.ndarray:
        return np.asarray(((x - target) ** 2).sum(axis=1))

    x = rng.uniform(0, 1, (6, 3))
    ncs = NegativelyCorrelatedSearch(x, distance(x), rng, generations=200)
    best = distance(x).min()
    for _ in range(200):
        trials = ncs.ask()
        assert trials.min() >= 0
        assert trials.max() <= 1
        fitness = distance(trials)
        ncs.tell(trials, fitness, ncs.worth(trials, fitness))
        best = min(best, fitness.min())
    assert best < 0.002
    # Diversity keeps the individuals from falling onto one point; steps are 0.01 by now.
    gaps = np.linalg.norm(ncs.x[:, None] - ncs.x[None], axis=2)[np.triu_indices(6, 1)]
    assert np.median(gaps) > 0.02


def test_a_trial_without_latency_is_never_worth_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (4, 2))
    ncs = NegativelyCorrelatedSearch(x, np.ones(4), rng, generations=10)
    assert not ncs.worth(ncs.ask(), np.full(4, np.inf)).any()
    assert ncs.worth(ncs.ask(), np.array([0.5, np.inf, 0.5, 0.5])).tolist() == [
        True,
        False,
        True,
        True,
    ]
