"""Comparisons on simulated noise: few false alarms, planted changes found, wild pairs ignored."""

import math

import numpy as np
import pytest

from harness.comparison import (
    compare_boards,
    compare_paired,
    control_false_discoveries,
    level_of,
    pairs_of,
)

SAMPLE_MS = 1.0


def paired(a_ns, b_ns):
    return pairs_of([level_of(run) for run in a_ns], [level_of(run) for run in b_ns])


def noise(
    rng: np.random.Generator, n: int, *, share_slow: float = 0.25, mode_ms: float = 300.0
) -> np.ndarray:
    """Factors of n samples in a row on a shared machine.

    Two modes of the host (x1.6, exponential dwell), a correlated wander, drift, preemptions.
    """
    slow = np.zeros(n, dtype=bool)
    at, is_slow = 0, rng.random() < share_slow
    while at < n:
        mean_ms = mode_ms if is_slow else mode_ms * (1 - share_slow) / share_slow
        length = max(1, int(rng.exponential(mean_ms) / SAMPLE_MS))
        slow[at : at + length] = is_slow
        at, is_slow = at + length, not is_slow
    wander = np.empty(n)
    wander[0] = 0.0
    shocks = rng.normal(0, 0.006 * math.sqrt(1 - 0.9**2), n)
    for i in range(1, n):
        wander[i] = 0.9 * wander[i - 1] + shocks[i]
    drift = 0.03 * np.sin(2 * np.pi * (np.arange(n) / n * rng.uniform(0.3, 2) + rng.random()))
    preempted = 1 + np.where(rng.random(n) < 0.02, rng.uniform(1, 4, n), 0)
    return np.exp(wander + drift + math.log(1.6) * slow) * preempted


def campaign(rng, *, change: float, n_pairs: int = 25, n: int = 100, **kind):
    """Runs of A and B in pairs, which goes first by chance. Returns (a_ns, b_ns)."""
    factors = noise(rng, 2 * n_pairs * n, **kind).reshape(n_pairs, 2, n)
    a, b = [], []
    for pair in factors:
        first = int(rng.integers(2))
        a.append([round(1e6 * f) for f in pair[first]])
        b.append([round(1e6 * f * (1 + change)) for f in pair[1 - first]])
    return a, b


@pytest.mark.parametrize(
    "kind",
    [
        {"share_slow": 0.25, "mode_ms": 300.0},
        {"share_slow": 0.1, "mode_ms": 2000.0},
        {"share_slow": 0.4, "mode_ms": 100.0},
    ],
    ids=["tenths", "seconds", "much"],
)
def test_few_false_alarms_and_planted_changes_found(kind):
    rng = np.random.default_rng(2024)
    equal = [compare_paired(*campaign(rng, change=0.0, **kind)).verdict for _ in range(40)]
    slower = [compare_paired(*campaign(rng, change=0.03, **kind)).verdict for _ in range(40)]
    assert sum(v in ("slower", "faster") for v in equal) <= 2
    assert sum(v == "slower" for v in slower) >= 36


def test_the_interval_covers_the_planted_change():
    rng = np.random.default_rng(7)
    found = [compare_paired(*campaign(rng, change=0.03, n=40)) for _ in range(30)]
    assert sum(c.change_low <= 0.03 <= c.change_high for c in found) >= 28


def test_a_few_wild_pairs_decide_nothing():
    a = [[1_000_000 + 1000 * ((7 * i + j) % 5) for j in range(30)] for i in range(20)]
    b = [[1_000_000 + 1000 * ((3 * i + j) % 5) for j in range(30)] for i in range(20)]
    for i in (2, 9, 15, 17):
        b[i] = [8 * ns // 5 for ns in b[i]]
    result = compare_paired(a, b)
    assert result.verdict == "same"
    assert result.n_wild == 4
    assert abs(result.change) < 0.002


def test_swapping_a_and_b_turns_the_answer_round():
    a, b = campaign(np.random.default_rng(5), change=0.05)
    there, back = compare_paired(a, b), compare_paired(b, a)
    assert (there.verdict, back.verdict) == ("slower", "faster")
    assert there.p_value == pytest.approx(back.p_value)
    assert (1 + there.change) * (1 + back.change) == pytest.approx(1.0)


def test_a_change_below_the_tolerance_is_the_same_however_sure():
    a = [[1_000_000] * 30 for _ in range(20)]
    b = [[1_004_000] * 30 for _ in range(20)]
    result = compare_paired(a, b)
    assert result.p_value < 0.001
    assert result.verdict == "same"


def test_few_pairs_are_unclear_and_say_how_many_more():
    a, b = [[1_000_000] * 30] * 5, [[1_100_000] * 30] * 5
    result = compare_paired(a, b)
    assert result.verdict == "unclear"
    assert (result.change_low, result.change_high) == (-1.0, math.inf)
    assert result.p_value == pytest.approx(2 / 2**5)
    assert result.more_pairs == 3
    assert compare_paired(a[:1], b[:1]).more_pairs is None


def test_noisier_pairs_need_more_of_them():
    rng = np.random.default_rng(1)
    a = [[round(1e6 * math.exp(f))] * 10 for f in rng.normal(0, 0.06, 12)]
    b = [[round(1e6 * math.exp(f))] * 10 for f in rng.normal(0, 0.06, 12)]
    result = compare_paired(a, b)
    assert result.verdict == "unclear"
    # Normal approximation: (2.576 + 1.282)² · 2 · (0.06 / ln 1.03)² is about 120.
    assert 40 < result.more_pairs < 240


def test_over_boards_each_counts_alike():
    level = [[1_000_000] * 30] * 10
    quick, slow = [[900_000] * 30] * 10, [[1_250_000] * 30] * 10
    fleet = compare_boards([paired(level, quick), paired(level, slow)])
    assert fleet.change == pytest.approx(math.sqrt(0.9 * 1.25) - 1)
    assert fleet.n_pairs == 20


def test_large_fleets_are_judged_as_small_ones():
    rng = np.random.default_rng(9)
    boards = []
    for _ in range(60):
        a = [[round(1e6 * math.exp(f))] for f in rng.normal(0, 0.01, 10)]
        b = [[round(1.02e6 * math.exp(f))] for f in rng.normal(0, 0.01, 10)]
        boards.append(paired(a, b))
    fleet = compare_boards(boards)
    assert fleet.verdict == "slower"
    assert fleet.change_low < 0.02 < fleet.change_high
    assert compare_boards(boards[:40]).change_high > fleet.change_low


def cells(seed: int, changes):
    """A comparison of 20 single-sample pairs, 2.8 % noise each, for every change."""
    rng = np.random.default_rng(seed)
    found = []
    for change in changes:
        a = [[round(1e6 * math.exp(f))] for f in rng.normal(0, 0.02, 20)]
        b = [[round(1e6 * (1 + change) * math.exp(f))] for f in rng.normal(0, 0.02, 20)]
        found.append(compare_paired(a, b))
    return found


def test_p_values_of_equal_things_are_uniform():
    p_values = np.array([c.p_value for c in cells(4, [0.0] * 200)])
    assert 0.4 < np.mean(p_values <= 0.5) < 0.6
    assert np.mean(p_values <= 0.05) < 0.09


def test_many_cells_judged_together_raise_fewer_alarms_and_keep_the_true_one():
    alone = cells(4, [0.0] * 200 + [0.1])
    together = control_false_discoveries(alone)
    alarms = [sum(c.verdict in ("slower", "faster") for c in x[:-1]) for x in (alone, together)]
    assert alarms[1] < alarms[0]
    assert alarms[1] <= 1
    assert together[-1].verdict == "slower"
    assert all(t.p_value >= a.p_value for t, a in zip(together, alone, strict=True))
    assert control_false_discoveries([]) == []


@pytest.mark.parametrize(("a", "b"), [([], []), ([[1]], [[1], [2]]), ([[]], [[]])])
def test_what_cannot_be_paired_is_refused(a, b):
    with pytest.raises(ValueError, match=r"paired|no latency"):
        compare_paired(a, b)
