"""The fleet's figures, cluster by cluster, are those over its boards one by one."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.pruning.objectives import (
    MEAN_GIVEN,
    SLO_BAND,
    SLO_TIE_BREAK,
    BoardRatios,
    make_objective,
)


def fleet(seed: int, sizes: tuple[int, ...]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Ratios by cluster, latencies (8, n_clusters), and those of every board (8, n_boards)."""
    rng = np.random.default_rng(seed)
    ratios = [np.exp(rng.normal(0, 0.2, size)).round(2) for size in sizes]
    ms = rng.uniform(1, 5, (8, len(sizes)))
    boards = np.concatenate(
        [column[:, None] * r for column, r in zip(ms.T, ratios, strict=True)], axis=1
    )
    return ratios, ms, boards


@pytest.mark.parametrize("sizes", [(1,), (3, 1), (7, 12, 1), (500, 20, 300)])
def test_the_figures_are_those_over_all_boards(sizes: tuple[int, ...]) -> None:
    ratios, ms, boards = fleet(0, sizes)
    figures = BoardRatios(ratios)
    assert figures.n_boards == sum(sizes)
    np.testing.assert_allclose(figures.mean_ms(ms), boards.mean(axis=1))
    p95 = np.quantile(boards, 0.95, axis=1, method="inverted_cdf")
    np.testing.assert_allclose(figures.p95_ms(ms), p95, rtol=1e-9)
    for slo_ms in (0.1, 2.0, 3.0, 99.0):
        np.testing.assert_allclose(figures.slo_share(ms, slo_ms), (boards <= slo_ms).mean(axis=1))
        ramp = np.clip((slo_ms * (1 + SLO_BAND) - boards) / (2 * SLO_BAND * slo_ms), 0, 1)
        np.testing.assert_allclose(figures.slo_ramp(ms, slo_ms), ramp.mean(axis=1), atol=1e-9)


def test_a_hundred_thousand_boards_take_no_memory_of_boards_times_shapes() -> None:
    ratios, _, _ = fleet(1, (60_000, 40_000))
    ms = np.random.default_rng(2).uniform(1, 5, (3_000, 2))
    figures = BoardRatios(ratios)
    some = slice(0, 20)
    boards = np.concatenate([ms[some, k, None] * ratios[k] for k in (0, 1)], axis=1)
    p95 = np.quantile(boards, 0.95, axis=1, method="inverted_cdf")
    np.testing.assert_allclose(figures.p95_ms(ms)[some], p95, rtol=1e-9)
    assert figures.slo_share(ms, 3.0)[some] == pytest.approx((boards <= 3.0).mean(axis=1))


@pytest.mark.parametrize("name", ["mean", "p95", "slo"])
def test_a_cluster_that_no_surrogate_answers_for_is_never_cheap(name: str) -> None:
    objective = make_objective(name, BoardRatios([np.ones(99), np.ones(1)]), slo_ms=2.0)
    value = objective.value(np.array([[1.0, 1.0], [1.0, np.inf], [np.inf, 1.0]]))
    assert np.isfinite(value).tolist() == [True, False, False]
    assert not np.isfinite(objective.mean_ms(np.array([[1.0, np.inf]]))).any()


def test_slo_ranks_by_share_and_then_by_mean() -> None:
    boards = BoardRatios([np.array([1.0, 1.1]), np.array([1.0, 1.2])])
    slo = make_objective("slo", boards, slo_ms=2.0)
    # All four boards within; three, with a far lower mean; three, slower; none, and slower still.
    value = slo.value(np.array([[1.7, 1.6], [0.1, 1.8], [0.2, 1.8], [4.0, 4.0], [5.0, 5.0]]))
    assert value.tolist() == sorted(value.tolist())
    assert len(set(value.tolist())) == 5
    # Within by more than the band, the share alone is left: the formula of the docstring.
    assert value[0] == pytest.approx(SLO_TIE_BREAK * (1.7 * 2.1 + 1.6 * 2.2) / 4)
    assert slo.slo_ms == 2.0


def test_what_is_no_fleet_or_no_slo_is_refused() -> None:
    for ratios in ([], [np.array([])], [np.array([0.0])], [np.array([1.0, np.nan])]):
        with pytest.raises(ValueError, match="positive numbers"):
            BoardRatios(ratios)
    for slo_ms in (None, 0.0, float("inf")):
        with pytest.raises(ValueError, match="needs a positive one"):
            make_objective("slo", BoardRatios([np.ones(1)]), slo_ms)


def test_latencies_that_are_the_mean_stay_as_they_are() -> None:
    ms = np.array([1.0, np.inf])
    assert MEAN_GIVEN.value(ms) is MEAN_GIVEN.mean_ms(ms) is ms
