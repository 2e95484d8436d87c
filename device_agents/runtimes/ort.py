"""ONNX and .ort models through onnxruntime on the CPU.

Input: a model file. Output: a Runner.
Threads do not spin between operators: spinning ones heat the board and drain its battery while
nothing is computed, and on shared cores they turn a short wait into a long tail.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from device_agents.errors import RunFailedError
from device_agents.runtimes import TensorSpec
from device_agents.runtimes.arrays import array_of, bytes_of
from device_agents.runtimes.ort_profile import mean_operator_ns

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}
_ERRORS_ONLY = 3
_PROFILE_WARMUPS = 1
PROVIDER = "CPUExecutionProvider"


def imported_onnxruntime() -> Any:
    """The package, without the thread and the database of its telemetry, which its wheels have from
    1.31 on: a board measures what it was asked, and tells nobody else.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise RunFailedError(
            "runtime", f"onnxruntime does not import ({error})", "pip install onnxruntime"
        ) from None
    return onnxruntime


class OrtRunner:
    """One InferenceSession on the CPUExecutionProvider."""

    def __init__(self, model: Path, threads: int, scratch: Path) -> None:
        onnxruntime = imported_onnxruntime()
        self._model, self._threads, self._scratch = model, threads, scratch
        self.pid = os.getpid()
        self.version = str(onnxruntime.__version__)
        self._session = _session(onnxruntime, model, threads)
        self.provider = str(self._session.get_providers()[0])
        self.provider_asked = PROVIDER
        self.inputs = _specs(self._session.get_inputs())
        self.outputs = _specs(self._session.get_outputs())
        self._feeds: Any = {}
        self._answers: List[Any] = []

    def set_inputs(self, tensors: Sequence[bytes]) -> None:
        self._feeds = {spec.name: array_of(spec, data) for spec, data in zip(self.inputs, tensors)}

    def time_batch(self, count: int) -> List[int]:
        run, feeds, clock_ns = self._session.run, self._feeds, time.perf_counter_ns
        latency_ns = []
        try:
            for _ in range(count):
                start_ns = clock_ns()
                answers = run(None, feeds)
                latency_ns.append(clock_ns() - start_ns)
        except Exception as error:  # onnxruntime's errors share no base class with a name
            raise RunFailedError(
                "runtime", f"onnxruntime: {error}", "run the model on the workstation first"
            ) from None
        self._answers = answers
        return latency_ns

    def read_outputs(self) -> List[bytes]:
        return [bytes_of(answer) for answer in self._answers]

    def profile(self, count: int) -> Tuple[Tuple[str, int], ...]:
        onnxruntime = imported_onnxruntime()
        # One session at a time: a small board may not hold the model twice.
        self._session = None
        session = _session(onnxruntime, self._model, self._threads, self._scratch / "profile")
        try:
            for _ in range(_PROFILE_WARMUPS + count):
                session.run(None, self._feeds)
        except Exception as error:  # onnxruntime's errors share no base class with a name
            raise RunFailedError(
                "runtime", f"onnxruntime: {error}", "run the model on the workstation first"
            ) from None
        finally:
            written = Path(session.end_profiling())
            text = _taken(written)
        operators = mean_operator_ns(text, _PROFILE_WARMUPS)
        if not operators:
            raise RunFailedError(
                "runtime",
                f"onnxruntime {self.version} wrote no profile that can be read",
                "see that the board's disk is not full, or leave operators out",
            )
        return operators

    def close(self) -> None:
        self._feeds, self._answers = {}, []
        self._session = None


def session_options(onnxruntime: Any, threads: int) -> Any:
    """How every session of ours runs: in order, on so many threads, which sleep while they wait."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _session(
    onnxruntime: Any, model: Path, threads: int, profile_prefix: Optional[Path] = None
) -> Any:
    options = session_options(onnxruntime, threads)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if _is_ort_format(model):
        # A blob is named by its hash: there is no suffix to tell the formats apart.
        options.add_session_config_entry("session.load_model_format", "ORT")
    try:
        return onnxruntime.InferenceSession(str(model), sess_options=options, providers=[PROVIDER])
    except Exception as error:
        raise RunFailedError(
            "model", f"onnxruntime cannot load it: {error}", "see that its opset fits the board"
        ) from None


def _taken(path: Path) -> str:
    """The text of a file that is then gone; empty when it was not written."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_ort_format(model: Path) -> bool:
    with model.open("rb") as stream:
        return stream.read(8)[4:] == b"ORTM"


def _specs(arguments: Any) -> Tuple[TensorSpec, ...]:
    specs = []
    for argument in arguments:
        shape = tuple(size if isinstance(size, int) and size > 0 else 1 for size in argument.shape)
        specs.append(TensorSpec(argument.name, _DTYPES.get(argument.type, argument.type), shape))
    return tuple(specs)
