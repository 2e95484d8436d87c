"""TFLite models through ai-edge-litert, else tflite-runtime: whichever the board has.

Input: a model file. Output: a Runner.
Both use XNNPACK by default for what it knows; the provider says whether it took any operator.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import time
from pathlib import Path
from typing import Any, List, Sequence, Tuple

from device_agents.errors import RunFailedError
from device_agents.runtimes import TensorSpec
from device_agents.runtimes.arrays import array_of, bytes_of

# The maintained successor first. tflite-runtime 2.14 imports with numpy 2 and fails on use.
PACKAGES = (
    ("ai_edge_litert.interpreter", "ai-edge-litert"),
    ("tflite_runtime.interpreter", "tflite-runtime"),
)
_REFERENCE_PROVIDER = "TfLiteBuiltin"
_XNNPACK_PROVIDER = "TfLiteXNNPackDelegate"
_UNKNOWN = "CPU"


class TfliteRunner:
    """One interpreter with its tensors allocated."""

    def __init__(self, model: Path, threads: int) -> None:
        module, distribution = _import()
        self.pid = os.getpid()
        self.version = f"{distribution} {importlib.metadata.version(distribution)}"
        try:
            self._interpreter = module.Interpreter(model_path=str(model), num_threads=threads)
            self._interpreter.allocate_tensors()
        except SystemError as error:
            raise RunFailedError(
                "runtime", f"{self.version} fails: {error}", "pip install 'numpy<2'"
            ) from None
        except (ValueError, RuntimeError) as error:
            raise RunFailedError(
                "model",
                f"{self.version} cannot load it: {error}",
                "see that its operators fit the board's runtime",
            ) from None
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        self.inputs = _specs(self._inputs)
        self.outputs = _specs(self._outputs)
        self.provider = _provider(self._interpreter)
        # Where nobody can tell what runs the operators, nothing is claimed.
        self.provider_asked = self.provider if self.provider == _UNKNOWN else _XNNPACK_PROVIDER

    def set_inputs(self, tensors: Sequence[bytes]) -> None:
        for detail, spec, data in zip(self._inputs, self.inputs, tensors):
            self._interpreter.set_tensor(detail["index"], array_of(spec, data))

    def time_batch(self, count: int) -> List[int]:
        invoke, clock_ns = self._interpreter.invoke, time.perf_counter_ns
        latency_ns = []
        try:
            for _ in range(count):
                start_ns = clock_ns()
                invoke()
                latency_ns.append(clock_ns() - start_ns)
        except (ValueError, RuntimeError) as error:
            raise RunFailedError(
                "runtime", f"{self.version}: {error}", "run the model on the workstation first"
            ) from None
        return latency_ns

    def read_outputs(self) -> List[bytes]:
        return [bytes_of(self._interpreter.get_tensor(d["index"])) for d in self._outputs]

    def profile(self, count: int) -> Tuple[Tuple[str, int], ...]:
        """Raises: neither package binds a profiler (github.com/tensorflow/tensorflow/issues/59095).

        LiteRT 2 has one for C, of its CompiledModel: another way than the interpreter's.
        """
        raise RunFailedError(
            "runtime",
            f"{self.version} tells Python no time an operator",
            "run benchmark_model --enable_op_profiling=true on the board, or measure on ort",
        )

    def close(self) -> None:
        self._interpreter = None


def _import() -> Tuple[Any, str]:
    errors = []
    for module, distribution in PACKAGES:
        try:
            return importlib.import_module(module), distribution
        except ImportError as error:
            errors.append(f"{distribution}: {error}")
    raise RunFailedError("runtime", "; ".join(errors), "pip install ai-edge-litert")


def _specs(details: Any) -> Tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            str(detail["name"]),
            str(detail["dtype"].__name__),
            tuple(int(size) for size in detail["shape"]),
        )
        for detail in details
    )


def _provider(interpreter: Any) -> str:
    """From the interpreter's own list of operators, a private call: absent, nothing is claimed."""
    details = getattr(interpreter, "_get_ops_details", None)
    if details is None:
        return _UNKNOWN
    names = {str(operator.get("op_name")) for operator in details()}
    return _XNNPACK_PROVIDER if "DELEGATE" in names else _REFERENCE_PROVIDER
