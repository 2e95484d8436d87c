"""A network that is a program: spoken to over its standard input and output.

Input: an executable file. Output: a Runner. It answers ``--describe`` with one JSON line; with
``--serve --threads N`` it answers each of ``input FILE``, ``bench N``, ``output FILE`` with one,
and where it holds several networks ``follow ROOT`` and ``switches`` too.
It times its own inferences by CLOCK_MONOTONIC: our pipe is no part of a latency.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from device_agents.contract import Switch
from device_agents.errors import RunFailedError
from device_agents.files import copy_flushed
from device_agents.processes import die_with_parent, signal_name
from device_agents.runtimes import TensorSpec
from device_agents.sysfs import Root

_SWITCH_FIELDS = ("monotonic_ns", "khz", "before", "after", "took_ns")
_REBUILD = "build the executable anew for this board's machine"


class ExecutableRunner:
    """The program and a folder of its own, both gone after ``close``."""

    def __init__(self, model: Path, threads: int, scratch: Path) -> None:
        self._follows = False
        self._told: Tuple[Switch, ...] = ()
        self._folder = Path(tempfile.mkdtemp(prefix="run-", dir=str(scratch)))
        try:
            program = _runnable(model, self._folder)
            described = _describe(program)
            self._process = _spawn([str(program), "--serve", "--threads", str(threads)])
            self.pid = self._process.pid
        except BaseException:
            shutil.rmtree(str(self._folder), ignore_errors=True)
            raise
        try:
            self._read_description(described)
            if self._answer().get("ready") is not True:
                raise _protocol_error("it did not say that it is ready")
        except BaseException:
            self.close()
            raise

    def set_inputs(self, tensors: Sequence[bytes]) -> None:
        path = self._folder / "input.f32"
        path.write_bytes(tensors[0])
        self._ask(f"input {path}")

    def time_batch(self, count: int) -> List[int]:
        latency_ns = self._ask(f"bench {count}").get("latency_ns")
        if (
            not isinstance(latency_ns, list)
            or len(latency_ns) != count
            or not all(type(ns) is int and ns > 0 for ns in latency_ns)
        ):
            raise _protocol_error(f"bench {count} did not give {count} positive integers")
        return latency_ns

    def read_outputs(self) -> List[bytes]:
        path = self._folder / "output.f32"
        self._ask(f"output {path}")
        try:
            return [path.read_bytes()]
        except OSError as error:
            raise _protocol_error(f"it wrote no output ({error.strerror})") from None

    def profile(self, count: int) -> Tuple[Tuple[str, int], ...]:
        raise RunFailedError(
            "runtime",
            f"an executable of {self.provider} tells no time an operator",
            "measure the same network on ort with operators",
        )

    def follow(self, root: Root, cpufreq_policies: Sequence[str]) -> None:
        """Nothing where the program holds one network. It finds the policies by itself."""
        self._follows = self._switchable
        if self._follows:
            self._ask(f"follow {os.path.abspath(str(root.path))}")

    @property
    def switches(self) -> Tuple[Switch, ...]:
        """After ``close`` too."""
        if self._follows:
            told = self._ask("switches").get("switches")
            if not isinstance(told, list):
                raise _protocol_error("it did not list its switches")
            self._told = tuple(_switch(entry) for entry in told)
        return self._told

    def close(self) -> None:
        with contextlib.suppress(RunFailedError):
            self._told = self.switches
        self._follows = False
        with contextlib.suppress(OSError):
            self._pipe("stdin").close()
        self._process.kill()
        self._process.wait()
        self._pipe("stdout").close()
        shutil.rmtree(str(self._folder), ignore_errors=True)

    def _read_description(self, described: Dict[str, Any]) -> None:
        self.version = str(described.get("version"))
        self.provider = self.provider_asked = str(described.get("runtime"))
        self._switchable = "ratios" in described
        shapes = [_shape(described.get(key)) for key in ("input_shape", "output_shape")]
        self.inputs: Tuple[TensorSpec, ...] = (TensorSpec("input", "float32", shapes[0]),)
        self.outputs: Tuple[TensorSpec, ...] = (TensorSpec("output", "float32", shapes[1]),)

    def _ask(self, line: str) -> Dict[str, Any]:
        try:
            self._pipe("stdin").write(line.encode("utf-8") + b"\n")
            self._pipe("stdin").flush()
        except BrokenPipeError:
            raise self._gone() from None
        return self._answer()

    def _answer(self) -> Dict[str, Any]:
        line = self._pipe("stdout").readline()
        if not line.endswith(b"\n"):
            raise self._gone()
        answer = _object(line)
        if "error" in answer:
            raise RunFailedError("model", f"the executable says: {answer['error']}", _REBUILD)
        return answer

    def _gone(self) -> RunFailedError:
        return RunFailedError("crashed", f"the executable {_ended(self._process.wait())}", _REBUILD)

    def _pipe(self, name: str) -> Any:
        return getattr(self._process, name)


def _runnable(model: Path, folder: Path) -> Path:
    """The model itself, or a copy of it that may be executed: blobs are pushed without x."""
    if os.access(str(model), os.X_OK):
        return model
    program = folder / "program"
    copy_flushed(model, program, 0o755)
    return program


def _spawn(argv: List[str]) -> subprocess.Popen[bytes]:
    parent_pid = os.getpid()
    try:
        # Forked before the sampler's thread starts, so that preexec_fn meets no held lock.
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: die_with_parent(parent_pid),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RunFailedError("runtime", f"it cannot be executed ({error})", _REBUILD) from None


def _describe(program: Path) -> Dict[str, Any]:
    process = _spawn([str(program), "--describe"])
    out, _ = process.communicate()
    if process.returncode != 0:
        raise RunFailedError("crashed", f"--describe {_ended(process.returncode)}", _REBUILD)
    return _object(out.split(b"\n")[0])


def _object(line: bytes) -> Dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _protocol_error(f"it answered {line[:60]!r}, which is not a JSON object")
    return found


def _shape(found: Any) -> Tuple[int, ...]:
    if not isinstance(found, list) or not all(type(size) is int and size > 0 for size in found):
        raise _protocol_error(f"it describes a shape as {str(found)[:60]}")
    return tuple(found)


def _switch(entry: Any) -> Switch:
    numbers = [entry.get(name) for name in _SWITCH_FIELDS] if isinstance(entry, dict) else [None]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _protocol_error(f"it tells of a switch as {str(entry)[:60]}")
    return Switch(*numbers)


def _ended(status: int) -> str:
    """A Popen's return code in words; negative is a signal."""
    if status < 0:
        return f"ended by {signal_name(-status)}"
    return f"ended with exit status {status}"


def _protocol_error(fact: str) -> RunFailedError:
    return RunFailedError("runtime", f"the executable breaks its protocol: {fact}", _REBUILD)
