"""A runtime in Python as one would use it on a board, spoken to like a native executable.

Input: argv RUNTIME MODEL INPUT (ort | litert), then lines on stdin: ``bench N``, ``output FILE``,
``quit``. Output: a JSON line each. It imports nothing but what it needs: its start is measured.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def ort(path: str, x: Any) -> Callable[[], Any]:
    # As in the agent and in native programs: no thread and no database of telemetry.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    feed = {taken.name: x.reshape(taken.shape)}
    return lambda: session.run(None, feed)[0]


def litert(path: str, x: Any) -> Callable[[], Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    (taken,) = interpreter.get_input_details()
    (given,) = interpreter.get_output_details()
    interpreter.set_tensor(taken["index"], x.reshape(taken["shape"]))

    def run() -> Any:
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    return run


def main(runtime: str, model: str, source: str) -> None:
    run = {"ort": ort, "litert": litert}[runtime](model, np.fromfile(source, "<f4"))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        verb, _, argument = line.strip().partition(" ")
        if verb == "quit":
            return
        if verb == "output":
            run().tofile(argument)
            print(json.dumps({"ok": True}), flush=True)
            continue
        latency_ns = []
        for _ in range(int(argument)):
            started = time.perf_counter_ns()
            run()
            latency_ns.append(time.perf_counter_ns() - started)
        print(json.dumps({"latency_ns": latency_ns}), flush=True)


main(*sys.argv[1:])
