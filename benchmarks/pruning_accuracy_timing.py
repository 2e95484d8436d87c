"""Latency of networks side by side: onnxruntime, one thread, one loop over all of them.

Input: networks with their input's shape. Output: milliseconds of every timed inference. What
disturbs the machine for a moment disturbs each network alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from compiler.targets.onnx import fast_onnx

WARMUP = 2


def interleaved_ms(
    networks: Mapping[str, nn.Module], input_shape: Sequence[int], rounds: int, runs: int
) -> dict[str, NDArray[np.float64]]:
    """By name (rounds, runs): each round times every network in turn, after WARMUP runs."""
    example = torch.zeros(1, *input_shape)
    sessions = {name: _session(network, example) for name, network in networks.items()}
    x = np.random.default_rng(0).standard_normal(example.shape).astype(np.float32)
    ms: dict[str, list[list[float]]] = {name: [] for name in sessions}
    order = list(sessions)
    for number in range(rounds):
        # Every second round backwards: a drift within rounds falls on both ends alike.
        for name in order if number % 2 == 0 else reversed(order):
            ms[name].append(_timed(sessions[name], x, runs))
    return {name: np.array(rows) for name, rows in ms.items()}


def _session(network: nn.Module, example: torch.Tensor) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = fast_onnx(network.to("cpu").eval(), example)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _timed(session: Any, x: NDArray[np.float32], runs: int) -> list[float]:
    feed = {session.get_inputs()[0].name: x}
    taken = []
    for number in range(WARMUP + runs):
        started = time.perf_counter()
        session.run(None, feed)
        if number >= WARMUP:
            taken.append((time.perf_counter() - started) * 1e3)
    return taken
