"""Predictions for a hardly measured board: each way where it is right, the choice, intervals."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from compiler.transfer.chosen import FAVOURITE, RAW, ChosenTransfer
from compiler.transfer.estimators import METHODS, NEED_FEATURES, RawProxy
from compiler.transfer.pool import Pool, standardised
from compiler.transfer.rank import TransferError

N = 200


def fleet(noise: float = 0.01, n_boards: int = 6, seed: int = 0):
    """Boards whose log-latencies mix three costs, the features; and a new board's own mix."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (N, 3))
    mix = rng.dirichlet(np.ones(3) * 3, n_boards + 1)
    log_ms = 3 * x @ mix.T + rng.normal(0, noise, (N, n_boards + 1))
    ms = np.exp(log_ms)
    names = tuple(f"b{i}" for i in range(n_boards))
    return Pool(ms[:, :-1], x, names), ms[:, -1]


def twin_fleet(seed: int = 0):
    """The target is twice as slow as b3, a board unlike all the others."""
    pool, _ = fleet(seed=seed)
    rng = np.random.default_rng(seed + 100)
    ms = pool.proxies_ms.copy()
    ms[:, 3] = np.exp(rng.normal(0, 1, N))
    x = rng.uniform(0, 1, (N, 3))
    return Pool(ms, x, pool.names), 2 * ms[:, 3] * np.exp(rng.normal(0, 0.01, N))


def judged(method: str, pool: Pool, ms, n: int, seed: int = 0) -> float:
    rows = np.random.default_rng(seed).permutation(N)[:n]
    rest = np.setdiff1d(np.arange(N), rows)
    predicted = METHODS[method]().fit(pool, rows, ms[rows]).predict(rest)
    assert (predicted > 0).all()
    return float(spearmanr(predicted, ms[rest]).statistic)


@pytest.mark.parametrize("method", METHODS)
def test_every_way_predicts_a_board_that_is_like_others(method):
    pool, ms = fleet()
    assert judged(method, pool, ms, 30) > 0.85


def test_the_raw_proxy_finds_the_twin_and_its_factor():
    pool, ms = twin_fleet()
    raw = RawProxy().fit(pool, np.arange(10), ms[:10])
    assert pool.names[raw.proxy_] == "b3"
    assert raw.factor_ == pytest.approx(2, rel=0.02)


def test_the_mixture_is_as_good_as_whichever_way_is_right():
    twin_pool, twin_ms = twin_fleet()
    assert judged("mixture", twin_pool, twin_ms, 10) > 0.99
    pool, ms = fleet()
    assert judged("mixture", pool, ms, 10) > 0.98
    # A board unlike all others: only its own measurements and the features tell of it.
    rng = np.random.default_rng(5)
    alone = Pool(np.exp(rng.normal(0, 1, (N, 4))), pool.x, ("a", "b", "c", "d"))
    assert judged("mixture", alone, ms, 30) > 0.95
    assert judged("raw proxy", alone, ms, 30) < 0.5


@pytest.mark.parametrize("method", ["ridge on boards", "mixture"])
def test_a_disturbed_measurement_does_not_bend_the_rest(method):
    pool, ms = fleet()
    disturbed = ms.copy()
    disturbed[[3, 11]] *= 3
    rows = np.arange(20)
    rest = np.arange(20, N)
    bent = METHODS[method]().fit(pool, rows, disturbed[rows]).predict(rest)
    # By least squares alone: 0.15 and 0.985.
    assert np.median(np.abs(np.log(bent / ms[rest]))) < 0.1
    assert spearmanr(bent, ms[rest]).statistic > 0.99


def test_the_choice_is_judged_on_samples_left_out_and_says_why():
    pool, ms = fleet()
    rows = np.arange(12)
    chosen = ChosenTransfer().fit(pool, rows, ms[rows])
    assert set(chosen.errors_) == set(METHODS)
    assert sum(chosen.weights_.values()) == pytest.approx(1)
    assert set(chosen.weights_) <= set(METHODS)
    assert all(name in chosen.method_ for name in chosen.weights_)
    assert chosen.decision_.startswith(chosen.method_)
    assert "raw proxy" in chosen.decision_
    raw = METHODS[RAW]().fit(pool, rows[1:], ms[rows[1:]])
    assert chosen.errors_[RAW].predicted_ms[0] == pytest.approx(raw.predict(rows[:1])[0])
    assert chosen.correlation_.n == 12


def test_a_way_that_is_clearly_better_than_the_favourite_gets_most_weight():
    rng = np.random.default_rng(0)
    # Linear in the features' logarithms, which of all ways only the ridge on features looks at.
    x = np.exp(rng.uniform(-3, 3, (N, 3)))
    alone = Pool(np.exp(rng.normal(0, 1, (N, 4))), x, ("a", "b", "c", "d"))
    ms = np.prod(x, axis=1) ** 0.2
    rows = np.arange(60)
    chosen = ChosenTransfer().fit(alone, rows, ms[rows])
    errors = {name: left_out.error.mean() for name, left_out in chosen.errors_.items()}
    assert errors["ridge on features"] < 0.5 * errors[FAVOURITE]
    assert chosen.weights_["ridge on features"] > 0.5
    assert chosen.left_out_.error.mean() < 0.7 * errors[FAVOURITE]


def test_the_favourite_is_trusted_until_samples_say_otherwise():
    pool, ms = fleet(noise=0.05)
    rows = np.random.default_rng(0).permutation(N)[:5]
    assert ChosenTransfer().fit(pool, rows, ms[rows]).weights_[FAVOURITE] > 0.5


def test_what_is_predicted_is_the_weighted_mean_of_the_ways():
    pool, ms = fleet()
    rows = np.arange(12)
    chosen = ChosenTransfer().fit(pool, rows, ms[rows])
    parts = [
        weight * np.log(METHODS[name]().fit(pool, rows, ms[rows]).predict(np.arange(N)))
        for name, weight in chosen.weights_.items()
    ]
    assert chosen.predict(np.arange(N))[0] == pytest.approx(np.exp(np.sum(parts, axis=0)))


@pytest.mark.parametrize("n", [10, 40])
def test_intervals_cover_what_was_not_measured(n):
    shares = []
    for seed in range(6):
        pool, ms = fleet(noise=0.05, seed=seed)
        rows = np.random.default_rng(seed).permutation(N)[:n]
        rest = np.setdiff1d(np.arange(N), rows)
        chosen = ChosenTransfer(methods=(RAW, "ridge on boards", FAVOURITE)).fit(
            pool, rows, ms[rows]
        )
        median, lower, upper = chosen.predict(rest)
        assert (lower <= median).all()
        assert (median <= upper).all()
        shares.append(np.mean((lower <= ms[rest]) & (ms[rest] <= upper)))
    assert np.mean(shares) >= 0.87


def test_few_samples_promise_no_more_than_they_can():
    pool, ms = fleet()
    chosen = ChosenTransfer().fit(pool, [0, 1, 2], ms[:3])
    assert chosen.method_ == RAW
    assert chosen.coverage_ == pytest.approx(3 / 4)
    assert "3 samples cannot judge" in chosen.decision_
    with pytest.raises(TransferError, match="Next: measure"):
        ChosenTransfer().fit(pool, [0], ms[:1])


def test_without_features_the_others_carry_on():
    pool, ms = fleet()
    bare = Pool(pool.proxies_ms, np.empty((N, 0)), pool.names)
    rows = np.arange(20)
    chosen = ChosenTransfer().fit(bare, rows, ms[rows])
    assert set(chosen.errors_) == set(METHODS) - NEED_FEATURES
    assert spearmanr(chosen.predict(np.arange(N))[0], ms).statistic > 0.97


def test_one_proxy_alone_is_enough_to_begin_with():
    pool, ms = fleet()
    one = Pool(pool.proxies_ms[:, :1], pool.x, pool.names[:1])
    rows = np.arange(20)
    assert spearmanr(ChosenTransfer().fit(one, rows, ms[rows]).predict(rows)[0], ms[rows])[0] > 0.9


def test_samples_that_do_not_fit_are_refused():
    pool, ms = fleet()
    for rows, values in (
        ([0, 0, 1], ms[:3]),
        ([0, 1, N], ms[:3]),
        ([0, 1, 2], [1.0, -1.0, 2.0]),
        ([0, 1], ms[:3]),
    ):
        with pytest.raises(ValueError, match=r"rows|latency"):
            ChosenTransfer().fit(pool, rows, values)
    with pytest.raises(ValueError, match="choose from"):
        ChosenTransfer(methods=("magic",)).fit(pool, [0, 1], ms[:2])


def test_a_pool_refuses_what_is_no_latency():
    for ms, x, names in (
        (np.zeros((3, 1)), np.ones((3, 1)), ("a",)),
        (np.ones((3, 1)), np.full((3, 1), np.nan), ("a",)),
        (np.ones((3, 1)), np.ones((2, 1)), ("a",)),
        (np.ones((3, 0)), np.ones((3, 1)), ()),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - three different facts
            Pool(ms, x, names)
    assert (standardised(np.array([[1.0, 5.0], [2.0, 5.0]])) == [[-1, 0], [1, 0]]).all()
