"""Latency of networks side by side: onnxruntime, one thread, one loop over all of them.

Input: networks with their input's shape. Output: milliseconds of every timed inference. What
disturbs the machine for a moment disturbs each network alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.stopwatch import WARMUP, Inference, load
from compiler.targets.onnx import fast_onnx


def interleaved_ms(
    networks: Mapping[str, nn.Module], input_shape: Sequence[int], rounds: int, runs: int
) -> dict[str, NDArray[np.float64]]:
    """By name (rounds, runs): each round times every network in turn, after WARMUP runs."""
    example = torch.zeros(1, *input_shape)
    sessions = {
        name: load("ort", fast_onnx(network.to("cpu").eval(), example))
        for name, network in networks.items()
    }
    ms: dict[str, list[list[float]]] = {name: [] for name in sessions}
    order = list(sessions)
    for number in range(rounds):
        # Every second round backwards: a drift within rounds falls on both ends alike.
        for name in order if number % 2 == 0 else reversed(order):
            ms[name].append(_timed(sessions[name], runs))
    return {name: np.array(rows) for name, rows in ms.items()}


def _timed(inference: Inference, runs: int) -> list[float]:
    for _ in range(WARMUP):
        inference()
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        inference()
        taken.append((time.perf_counter() - started) * 1e3)
    return taken
