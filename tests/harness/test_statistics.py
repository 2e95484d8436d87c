"""What samples can say: percentiles they support, intervals that cover, correlation counted."""

import numpy as np
import pytest

from harness.statistics import (
    effective_sample_size,
    median_interval_ns,
    samples_for_percentile,
    summarise,
)


def autoregressive(rng: np.random.Generator, n: int, phi: float) -> list[int]:
    """Latencies about a median of exactly 1 ms, each phi-correlated with the one before."""
    x = [float(rng.normal())]
    for shock in rng.normal(0, np.sqrt(1 - phi**2), n - 1):
        x.append(phi * x[-1] + float(shock))
    return [round(1e6 * float(np.exp(0.05 * v))) for v in x]


def test_the_least_samples_of_each_percentile():
    assert [samples_for_percentile(p) for p in (0.9, 0.95, 0.99)] == [64, 130, 662]


@pytest.mark.parametrize(
    ("n", "given"),
    [(63, ()), (64, ("p90_ns",)), (662, ("p90_ns", "p95_ns", "p99_ns"))],
)
def test_a_percentile_that_the_samples_cannot_support_is_none(n, given):
    # Alternating values: no positive correlation takes anything off n.
    summary = summarise([1000 + i % 2 for i in range(n)])
    assert summary.effective_n == n
    assert tuple(p for p in ("p90_ns", "p95_ns", "p99_ns") if getattr(summary, p)) == given


def test_correlated_samples_support_less():
    samples = autoregressive(np.random.default_rng(3), 200, 0.9)
    assert effective_sample_size(samples) < 64
    assert summarise(samples).p90_ns is None


def test_figures_of_a_run():
    summary = summarise([4, 1, 3, 2, 10])
    assert (summary.n, summary.min_ns, summary.p50_ns, summary.max_ns) == (5, 1, 3, 10)
    assert summary.mean_ns == 4.0
    assert summary.mad_ns == 1.0
    assert summary.stdev_ns == pytest.approx(12.5**0.5)
    assert summarise([7]).stdev_ns == 0.0
    with pytest.raises(ValueError, match="no latency"):
        summarise([])


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_the_interval_covers_the_median_of_correlated_samples(phi):
    rng = np.random.default_rng(11)
    intervals = [median_interval_ns(autoregressive(rng, 200, phi)) for _ in range(200)]
    known = [i for i in intervals if i is not None]
    assert len(known) == 200
    assert np.mean([low <= 1_000_000 <= high for low, high in known]) >= 0.93


def test_too_few_samples_give_no_interval():
    assert median_interval_ns([5, 6, 7, 8, 9]) is None
    assert median_interval_ns([]) is None
