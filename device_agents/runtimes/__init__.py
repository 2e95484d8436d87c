"""Inference runtimes behind one Protocol. The only place on a board that may import numpy.

Input: a model file, a number of threads. Output: a Runner that times single inferences in ns.
Tensors cross this border as raw little-endian bytes in the model's own layout.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, List, Mapping, Protocol, Sequence, Tuple, runtime_checkable

from device_agents.contract import Switch
from device_agents.errors import RunFailedError
from device_agents.sysfs import Root


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. dtype: numpy's name. A free dimension is 1."""

    name: str
    dtype: str
    shape: Tuple[int, ...]

    def count(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


class Runner(Protocol):
    """A loaded model. version: the runtime's. provider: what really runs the operators.

    provider_asked: what should; where the two differ the runtime fell back.
    pid: the process that holds the model.
    """

    pid: int
    version: str
    provider: str
    provider_asked: str
    inputs: Tuple[TensorSpec, ...]
    outputs: Tuple[TensorSpec, ...]

    def set_inputs(self, tensors: Sequence[bytes]) -> None:
        """One raw tensor an input, in order. Raises RunFailedError when one does not fit."""

    def time_batch(self, count: int) -> List[int]:
        """Raw ns of ``count`` inferences, each timed around the runtime's own call."""

    def read_outputs(self) -> List[bytes]:
        """What the last inference gave, raw, in order."""

    def profile(self, count: int) -> Tuple[Tuple[str, int], ...]:
        """(operator, mean ns an inference) over count inferences, in order of execution.

        The operator is its name and its type. In a pass of its own, for profiling costs time;
        nothing but ``close`` may follow. Raises RunFailedError where the runtime tells none.
        """

    def close(self) -> None:
        """Give back memory, processes and files."""


@runtime_checkable
class Switching(Protocol):
    """A Runner that holds several networks and runs the one that the board's clock asks for.

    switches: those since it follows the clock.
    """

    @property
    def switches(self) -> Tuple[Switch, ...]: ...

    def follow(self, root: Root, cpufreq_policies: Sequence[str]) -> None:
        """From now on the clock below root decides; until then the widest network runs."""


Loader = Callable[[Path, int, Path], Runner]
"""(model file, threads, folder for temporary files) → Runner. Raises RunFailedError."""


@contextlib.contextmanager
def _numpy_for(distribution: str) -> Iterator[None]:
    """Numpy comes with either runtime: a board without it has neither."""
    try:
        yield
    except ImportError as error:
        raise RunFailedError(
            "runtime",
            f"{distribution} does not import ({error})",
            f"pip install {distribution} on the board",
        ) from None


def _ort(model: Path, threads: int, scratch: Path) -> Runner:
    with _numpy_for("onnxruntime"):
        from device_agents.runtimes.ort import OrtRunner

    return OrtRunner(model, threads, scratch)


def _tflite(model: Path, threads: int, scratch: Path) -> Runner:
    with _numpy_for("ai-edge-litert"):
        from device_agents.runtimes.tflite import TfliteRunner

    return TfliteRunner(model, threads)


def _executable(model: Path, threads: int, scratch: Path) -> Runner:
    from device_agents.runtimes.executable import ExecutableRunner

    return ExecutableRunner(model, threads, scratch)


def _switchable(model: Path, threads: int, scratch: Path) -> Runner:
    with _numpy_for("onnxruntime"):
        from device_agents.runtimes.switchable import SwitchableRunner

    return SwitchableRunner(model, threads, scratch)


# Imported on use: a board has one or two of them, and the worker itself imports none.
RUNTIMES: Mapping[str, Loader] = {
    "ort": _ort,
    "tflite": _tflite,
    "executable": _executable,
    "switchable": _switchable,
}
