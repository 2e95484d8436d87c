"""Staircases of latency: planted steps are found, smooth latencies have none."""

import time

import numpy as np
import onnxruntime
import pytest
import torch

from compiler.ladders import ladder_network, with_legal_widths
from compiler.pruning.widths import Group, LayerShape, Member, PruneSpace
from compiler.staircase import LADDER, STEPS, fit_step
from compiler.targets import fast_onnx

SEEDS = 40
W = np.asarray(LADDER, dtype=float)


def noisy(ms, seed):
    """What disturbs a run slows it: the lower of two repeats of 1 % one-sided noise."""
    noise = np.abs(np.random.default_rng(seed).standard_normal((2, len(ms)))).min(axis=0)
    return ms * np.exp(0.01 * noise)


def share_found(step, ms):
    return np.mean([fit_step(LADDER, noisy(ms, seed)).step == step for seed in range(SEEDS)])


def padded(step):
    return np.ceil(W / step) * step


@pytest.mark.parametrize("step", [s for s in STEPS if s > 1])
def test_a_planted_step_is_found(step):
    assert share_found(step, 0.2 + 0.01 * padded(step)) >= 0.95


@pytest.mark.parametrize("step", [s for s in STEPS if s > 1])
def test_a_slope_within_the_step_does_not_hide_it(step):
    assert share_found(step, 0.2 + 0.007 * padded(step) + 0.003 * W) >= 0.95


@pytest.mark.parametrize("step", [4, 8, 16])
def test_so_is_a_slower_kernel_off_the_grid(step):
    assert share_found(step, 0.1 + 0.01 * W * (1 + 0.3 * (W % step != 0))) >= 0.95


def test_latency_that_grows_evenly_has_no_step():
    assert share_found(1, 0.2 + 0.01 * W) >= 0.95


@pytest.mark.parametrize("step", [8, 16, 32])
def test_a_finer_grid_of_slow_kernels_does_not_hide_the_blocks(step):
    """As onnxruntime has it on AVX-512: blocks of 16, and slower off multiples of 4."""
    ms = 0.2 + 0.01 * padded(step) + 0.003 * W * (W % 4 != 0)
    assert share_found(step, ms) >= 0.95
    found = fit_step(LADDER, ms)
    assert (found.padded_to, found.slow_off) == (step, 4)
    assert found.r2 > 0.99


def test_few_widths_are_refused():
    with pytest.raises(ValueError, match="8 are needed"):
        fit_step(LADDER[:5], [1.0] * 5)


@pytest.mark.parametrize("kind", ["conv", "pointwise", "depthwise"])
def test_latency_of_a_ladder_can_be_linear_in_its_width(kind):
    """The model's premise: work of every rung is a constant and a multiple of the width."""
    weights = [
        sum(p.numel() for p in ladder_network(kind, w)[0].parameters() if p.dim() == 4)
        for w in LADDER
    ]
    assert np.ptp(np.diff(weights) / np.diff(LADDER)) == 0


def test_a_ladder_measured_here_gives_a_step_with_its_evidence():
    widths = LADDER[:10]
    ms = [best_of_three_ms("pointwise", width) for width in widths]
    found = fit_step(widths, ms)
    assert found.step in STEPS
    assert found.step == max(found.padded_to, found.slow_off)
    assert set(found.error_by_step) == set(STEPS)


def best_of_three_ms(kind, width):
    network, shape = ladder_network(kind, width)
    session = onnxruntime.InferenceSession(
        fast_onnx(network, torch.zeros(1, *shape)), providers=["CPUExecutionProvider"]
    )
    x = np.zeros((1, *shape), dtype=np.float32)
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        session.run(None, {session.get_inputs()[0].name: x})
        best = min(best, (time.perf_counter() - start) * 1e3)
    return best


def space(*channels):
    """A chain of 3 x 3 convolutions on 8 x 8 pictures, its last group read by a linear layer."""
    names = [None, *(f"g{i}" for i in range(len(channels)))]
    sizes = [3, *channels]
    layers = [
        LayerShape(f"c{i}", "conv", names[i], names[i + 1], sizes[i], sizes[i + 1], 9, 64, 64)
        for i in range(len(channels))
    ]
    layers.append(LayerShape("fc", "linear", names[-1], None, sizes[-1], 10, 1, 1, 1))
    groups = tuple(Group(f"g{i}", c, (Member(f"c{i}", 0),)) for i, c in enumerate(channels))
    every = tuple(tuple(range(1, c + 1)) for c in channels)
    return PruneSpace("chain", (3, 8, 8), groups, tuple(layers), every)


def test_legal_widths_are_multiples_of_the_coarsest_step_of_any_cluster():
    found = with_legal_widths(space(64, 128), [{"conv": 8}, {"conv": 16}], 0.25)
    assert found.widths_by_group == ((16, 32, 48, 64), (32, 48, 64, 80, 96, 112, 128))


def test_a_small_group_keeps_a_choice_of_widths():
    found = with_legal_widths(space(12, 64), [{"conv": 32}], 0.1)
    assert found.widths_by_group == ((2, 4, 6, 8, 10, 12), (16, 32, 48, 64))


def test_a_kind_of_little_work_has_no_say():
    found = with_legal_widths(space(64, 64), [{"conv": 4, "linear": 32}], 0.5)
    assert found.widths_by_group[1] == tuple(range(32, 65, 4))
