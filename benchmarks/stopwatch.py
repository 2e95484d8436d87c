"""Latency of models side by side in one process: one thread, one loop over all of them.

Input: models of one runtime as bytes. Output: milliseconds of every timed inference. Each round
takes the models in another random order, so what disturbs the machine disturbs each alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Inference = Callable[[], None]

WARMUP = 2


def interleaved_ms(inferences: Sequence[Inference], rounds: int, seed: int = 0) -> FloatArray:
    """(rounds, n_models): one timed inference of each a round, after WARMUP untimed ones."""
    rng = np.random.default_rng(seed)
    for inference in inferences:
        for _ in range(WARMUP):
            inference()
    ms = np.empty((rounds, len(inferences)))
    for row in ms:
        for column in rng.permutation(len(inferences)):
            started = time.perf_counter_ns()
            inferences[column]()
            row[column] = (time.perf_counter_ns() - started) / 1e6
    return ms


def load(runtime: str, model: bytes) -> Inference:
    """A closure that runs the model once on noise. runtime: "ort" or "litert"."""
    return {"ort": _onnxruntime, "litert": _litert}[runtime](model)


def _onnxruntime(model: bytes) -> Inference:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    feed = {taken.name: _noise(taken.shape)}

    def run() -> None:
        session.run(None, feed)

    return run


def _litert(model: bytes) -> Inference:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    (taken,) = interpreter.get_input_details()
    interpreter.set_tensor(taken["index"], _noise(taken["shape"]))
    invoke: Inference = interpreter.invoke
    return invoke


def _noise(shape: Sequence[int]) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32)
