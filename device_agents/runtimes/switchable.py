"""A switchable network on onnxruntime: the sub-network that the clock asks for, one weight set.

Input: the file that compiler/switchable writes. Output: a Runner that may be told to follow the
clock. A session for each sub-network holds a graph without weights, a few hundred kB; they share
one arena for what they compute and one buffer of weights, into which a switch writes the slice of
the sub-network that is to run, multiplied by its batch norm. The whole weights stay on disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from device_agents.contract import Switch
from device_agents.errors import RunFailedError
from device_agents.runtimes import TensorSpec
from device_agents.runtimes.arrays import array_of, bytes_of
from device_agents.runtimes.ort import PROVIDER, imported_onnxruntime, session_options
from device_agents.runtimes.switchable_file import Tensor, read_switchable, size_of
from device_agents.runtimes.switchable_forms import (
    BLOCKS,
    Form,
    Place,
    aligned,
    optimised_form,
    plain_form,
)
from device_agents.runtimes.switchable_weights import Fill, SharedWeights, fill_of
from device_agents.switching import ClockWatch
from device_agents.sysfs import Root

_M_MMAP_THRESHOLD = -3
_MADE_ONCE = 2048
"""Weights of a sub-network up to this size, 8 kB, are kept as it needs them: they are a hundredth
of a network's, and were a third of a narrow one's switch."""

_RECOMPILE = "fleetcut compile --mode switchable"


@dataclass(frozen=True)
class _Loaded:
    """One sub-network ready to run, once its fills are written."""

    session: Any
    binding: Any
    fills: Tuple[Fill, ...]


class SwitchableRunner:
    """Every sub-network of one file. position: the one that runs, 0 the widest.

    It stays with the widest until it is told to follow the clock.
    """

    def __init__(self, model: Path, threads: int, scratch: Path) -> None:
        onnxruntime = imported_onnxruntime()
        self._threads, self._scratch = threads, scratch
        self._ort = onnxruntime
        self.pid = os.getpid()
        self.version = str(onnxruntime.__version__)
        self.provider = self.provider_asked = PROVIDER
        self._file = read_switchable(model)
        self.inputs: Tuple[TensorSpec, ...] = (self._file.input,)
        self.outputs: Tuple[TensorSpec, ...] = (self._file.output,)
        self._given = np.zeros(self._file.input.shape, dtype=np.float32)
        self._answer = np.zeros(self._file.output.shape, dtype=np.float32)
        self._watch: Optional[ClockWatch] = None
        _return_large_blocks()
        _share_arena(onnxruntime)
        self._load(model)

    def follow(self, root: Root, cpufreq_policies: Sequence[str]) -> None:
        """From now on the clock below root decides, before each inference."""
        self._watch = ClockWatch(root, cpufreq_policies, self._file.policy)

    @property
    def count(self) -> int:
        """Sub-networks that there are."""
        return len(self._loaded)

    @property
    def switches(self) -> Tuple[Switch, ...]:
        return () if self._watch is None else self._watch.log

    def switch_to(self, position: int) -> None:
        """Make another sub-network ready; what it takes is a copy of its weights."""
        self._weights.write(self._loaded[position].fills)
        self.position = position

    def set_inputs(self, tensors: Sequence[bytes]) -> None:
        self._given[...] = array_of(self.inputs[0], tensors[0])

    def time_batch(self, count: int) -> List[int]:
        """As every runner; the look at the clock and a switch are part of an inference's time."""
        clock_ns, latency_ns = time.perf_counter_ns, []
        try:
            for _ in range(count):
                start_ns = clock_ns()
                if self._watch is not None:
                    self._watch.follow(self.position, self.switch_to)
                loaded = self._loaded[self.position]
                loaded.session.run_with_iobinding(loaded.binding)
                latency_ns.append(clock_ns() - start_ns)
        except Exception as error:  # onnxruntime's errors share no base class with a name
            raise RunFailedError(
                "runtime", f"onnxruntime: {error}", "run the model on the workstation first"
            ) from None
        return latency_ns

    def read_outputs(self) -> List[bytes]:
        return [bytes_of(self._answer)]

    def profile(self, count: int) -> Tuple[Tuple[str, int], ...]:
        raise RunFailedError(
            "runtime",
            "a switchable network tells no time an operator",
            "measure its sub-networks on ort with operators",
        )

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._loaded: List[_Loaded] = []
        self._weights.close()

    def _load(self, model: Path) -> None:
        """The fastest form of the graphs that gives the golden answers."""
        fault = None
        for block in (*BLOCKS, None):
            forms = self._forms(block)
            if forms is None:
                continue
            places = [place for form in forms for place in form.places]
            self._weights = SharedWeights(model, self._file, places, self._scratch)
            self._build(forms)
            fault = self._fault()
            if fault is None:
                return
            self.close()
        raise RunFailedError("model", fault or "no sub-network loads", _RECOMPILE)

    def _forms(self, block: Optional[int]) -> Optional[List[Form]]:
        """None for the block where onnxruntime makes of a graph what it cannot be."""
        subs = self._file.sub_networks
        if block is None:
            return [plain_form(sub) for sub in subs]
        spoilt = np.empty(sum(size_of(t.shape) for t in subs[0].tensors), dtype=np.float32)
        forms: List[Form] = []
        for sub in subs:
            with tempfile.TemporaryDirectory(prefix="graph-", dir=str(self._scratch)) as folder:
                options = session_options(self._ort, self._threads)
                form = optimised_form(self._ort, options, sub, spoilt, Path(folder), block)
            if form is None:
                return None
            forms.append(form)
        return forms

    def _build(self, forms: Sequence[Form]) -> None:
        most = max(sum(aligned(place.size) for place in form.places) for form in forms)
        buffer = _on_a_cache_line(most)
        self._loaded = [
            self._loaded_form(form, number, buffer) for number, form in enumerate(forms)
        ]
        self.switch_to(0)

    def _loaded_form(self, form: Form, number: int, buffer: Any) -> _Loaded:
        session = _session(self._ort, form, self._threads)
        binding = session.io_binding()
        tensors = self._file.sub_networks[number].tensors
        # What is this sub-network's alone, and what is small, lies side by side and goes over in
        # one piece: to begin a copy costs more than most of it.
        places = sorted(form.places, key=lambda place: not _is_made_once(place, tensors))
        sizes = (aligned(place.size) for place in places if _is_made_once(place, tensors))
        made = np.zeros(sum(sizes), dtype=np.float32)
        fills, at = [Fill(buffer[: made.size], made, None, None)], 0
        for place in places:
            target = slice(at, at + place.size)
            view = buffer[target].reshape(place.shape)
            _bind(self._ort, binding.bind_ortvalue_input, place.name, view)
            once = at < made.size
            into = made if once else buffer
            tensor = tensors[place.tensor]
            fill = fill_of(into[target], place, tensor, self._file.banks, self._weights)
            if once:
                fill.write()
            else:
                fills.append(fill)
            at += aligned(place.size)
        _bind(self._ort, binding.bind_ortvalue_input, self._file.input.name, self._given)
        _bind(self._ort, binding.bind_ortvalue_output, self._file.output.name, self._answer)
        return _Loaded(session, binding, tuple(fills))

    def _fault(self) -> Optional[str]:
        """What is wrong with the answers to the golden input; None where nothing is."""
        self._given[...] = self._file.golden_input
        try:
            for position, sub in enumerate(self._file.sub_networks):
                self.switch_to(position)
                self._loaded[position].session.run_with_iobinding(self._loaded[position].binding)
                error = float(np.abs(self._answer - sub.golden).max())
                if not error <= self._file.atol:
                    return (
                        f"sub-network {position} deviates {error:.3g} from its golden answer, "
                        f"{self._file.atol:.3g} is allowed"
                    )
        except Exception as error:  # onnxruntime's errors share no base class with a name
            return f"onnxruntime: {error}"
        self.switch_to(0)
        return None


def _is_made_once(place: Place, tensors: Sequence[Tensor]) -> bool:
    return tensors[place.tensor].own is not None or place.size <= _MADE_ONCE


def _session(onnxruntime: Any, form: Form, threads: int) -> Any:
    options = session_options(onnxruntime, threads)
    options.add_session_config_entry("session.use_env_allocators", "1")
    if form.optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(form.model, options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime's errors share no base class with a name
        raise RunFailedError("model", f"onnxruntime cannot load it: {error}", _RECOMPILE) from None


def _return_large_blocks() -> None:
    """Blocks of 128 kB and more go back to the kernel when they are freed, whatever came before.

    By default glibc raises that bound to the largest block freed so far, and each graph's weights
    then lie beside the last one's: mobilenet_v2 took 7 MB more. https://man7.org/mallopt.3
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 * 1024)


def _share_arena(onnxruntime: Any) -> None:
    """One arena for all sessions of this process that ask for it."""
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    # It is registered for the life of the process, and may be so once.
    with contextlib.suppress(Exception):
        onnxruntime.create_and_register_allocator(memory, None)


def _bind(onnxruntime: Any, bind: Any, name: str, array: Any) -> None:
    value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
    if value.data_ptr() != array.ctypes.data:
        raise RunFailedError(
            "runtime",
            f"onnxruntime {onnxruntime.__version__} copies what it is to share",
            "pip install --upgrade onnxruntime",
        )
    bind(name, value)


def _on_a_cache_line(size: int) -> Any:
    room = np.empty(size + 16, dtype=np.float32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + size]
