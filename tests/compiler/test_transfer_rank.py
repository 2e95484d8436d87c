"""Rank correlation of boards: its interval covers, and the pairs come from measured runs."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from compiler.transfer.rank import LEAST_MODELS, rank_correlation


def test_its_value_is_spearmans_with_ties():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 40).astype(float)
    b = a + rng.integers(0, 4, 40)
    found = rank_correlation(a, b)
    assert found.value == pytest.approx(spearmanr(a, b).statistic)
    assert found.lower < found.value < found.upper
    assert found.n == 40


@pytest.mark.parametrize("n", [6, 10, 20, 50])
@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_the_interval_holds_the_true_value_as_often_as_it_says(n, rho):
    rng = np.random.default_rng(n)
    true = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of a bivariate normal (Pearson 1907)
    hits = []
    for _ in range(500):
        a, e = rng.standard_normal((2, n))
        found = rank_correlation(a, rho * a + np.sqrt(1 - rho * rho) * e)
        hits.append(found.lower <= true <= found.upper)
    assert np.mean(hits) >= 0.93


def test_full_agreement_still_has_a_width_that_shrinks_with_more_models():
    widths = []
    for n in (4, 10, 40):
        found = rank_correlation(np.arange(n), np.arange(n))
        assert found.value == found.upper == pytest.approx(1)
        widths.append(1 - found.lower)
    assert widths[0] > widths[1] > widths[2] > 0


def test_too_few_models_and_no_order_say_nothing():
    few = rank_correlation([1, 2, 3], [1, 2, 3])
    assert len([1, 2, 3]) < LEAST_MODELS
    assert (few.lower, few.upper) == (-1, 1)
    flat = rank_correlation(np.arange(20), np.ones(20))
    assert (flat.value, flat.lower, flat.upper) == (0, -1, 1)


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        rank_correlation([1, 2, np.nan, 4], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="rank correlation of"):
        rank_correlation([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="coverage"):
        rank_correlation([1, 2, 3], [1, 2, 3], coverage=1)
