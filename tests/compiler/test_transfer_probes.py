"""Probes: distinct, better than chance for describing a new board, and aware of what is known."""

import numpy as np
import pytest

from compiler.transfer.estimators import METHODS
from compiler.transfer.pool import Pool
from compiler.transfer.probes import choose_probes


def clustered(seed: int, n: int = 300):
    """Most models are alike; the few large ones tell what a new board is like."""
    rng = np.random.default_rng(seed)
    size = np.where(np.arange(n) < 20, rng.uniform(2, 4, n), rng.uniform(0, 0.3, n))
    kind = rng.uniform(0, 1, n)
    x = np.column_stack([size, size * kind])
    mix = rng.uniform(0.3, 1.5, (7, 2))
    ms = np.exp(x @ mix.T + rng.normal(0, 0.03, (n, 7)))
    return Pool(ms[:, :-1], x, tuple("abcdef")), ms[:, -1]


def error(pool: Pool, ms, rows) -> float:
    rest = np.setdiff1d(np.arange(len(pool)), rows)
    predicted = METHODS["mixture"]().fit(pool, rows, ms[rows]).predict(rest)
    return float(np.abs(np.log(predicted / ms[rest])).mean())


def test_probes_describe_a_new_board_better_than_models_drawn_at_random():
    ours, chance = [], []
    for seed in range(8):
        pool, ms = clustered(seed)
        ours.append(error(pool, ms, choose_probes(pool, 6)))
        draws = np.random.default_rng(seed)
        chance += [error(pool, ms, draws.permutation(len(pool))[:6]) for _ in range(4)]
    assert np.mean(ours) < 0.8 * np.mean(chance)


def test_probes_are_distinct_and_a_shorter_list_is_the_beginning_of_a_longer():
    pool, _ = clustered(0)
    ten = choose_probes(pool, 10)
    assert len(set(ten.tolist())) == 10
    assert choose_probes(pool, 4).tolist() == ten[:4].tolist()
    assert sorted(choose_probes(pool, len(pool)).tolist()) == list(range(len(pool)))


def test_what_is_known_is_neither_asked_again_nor_forgotten():
    pool, _ = clustered(1)
    ten = choose_probes(pool, 10)
    assert choose_probes(pool, 5, known=ten[:5]).tolist() == ten[5:].tolist()
    other = choose_probes(pool, 5, known=np.arange(20, 120))
    assert not set(other.tolist()) & set(range(20, 120))


def test_models_that_are_the_same_are_not_both_asked():
    rng = np.random.default_rng(0)
    base = np.exp(rng.normal(0, 1, (10, 3)))
    twice = Pool(np.vstack([base, base]), np.empty((20, 0)), tuple("abc"))
    asked = choose_probes(twice, 4)
    assert len({int(row) % 10 for row in asked}) == 4


def test_more_than_there_are_is_refused():
    pool, _ = clustered(0)
    for n, known in ((0, ()), (301, ()), (1, np.arange(300))):
        with pytest.raises(ValueError, match="probes of 300"):
            choose_probes(pool, n, known)
