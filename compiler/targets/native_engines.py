"""The two engines that a program of native_runner.cc can hold, as their Python wheels ship them.

Input: nothing. Output: Engine: which libraries, which source of ours, which C library, licences.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from compiler.targets.built import versions
from compiler.targets.native_libc import Version
from compiler.targets.toolchains import ONNXRUNTIME, RUNTIME, Toolchain

XNNPACK_NOTE = """\
The libraries libexecutorch*.so in this program, as shipped in the executorch wheel, contain XNNPACK
(BSD-3-Clause, https://github.com/google/XNNPACK), pthreadpool and cpuinfo (BSD-2-Clause,
https://github.com/google/pthreadpool, https://github.com/pytorch/cpuinfo).
"""


@dataclass(frozen=True)
class Engine:
    """libraries: patterns below a toolchain's runtime folder, in loading order; linked: those that
    the runner is linked against. kernels: one that is taken along only when an operator of the
    network needs it. floor: what the wheel asks of a C library itself.
    """

    package: str
    source: str
    libraries: tuple[str, ...]
    linked: tuple[str, ...]
    floor: Version
    kernels: str = ""
    include: tuple[str, ...] = ()
    definitions: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    int8_tools: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def files(self, toolchain: Toolchain) -> tuple[Path, ...]:
        """Every library of the engine."""
        return tuple(_one(toolchain.runtime, pattern) for pattern in self.libraries)

    def linked_files(self, toolchain: Toolchain) -> tuple[Path, ...]:
        return tuple(_one(toolchain.runtime, pattern) for pattern in self.linked)

    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def tool_versions(self, *, int8: bool) -> tuple[tuple[str, str], ...]:
        return versions(*self.tools, *(self.int8_tools if int8 else ()))

    def licence_texts(self) -> tuple[str, ...]:
        """Of the wheel that is installed here: the other machine's has the same."""
        distribution = importlib.metadata.distribution(self.package)
        found = []
        for name in self.licences:
            text = distribution.read_text(name)
            assert text is not None, f"the {self.package} wheel carries its licence"
            found.append(text)
        return (*found, *self.notes)


EXECUTORCH = Engine(
    package=RUNTIME,
    source="native_executorch.cc",
    libraries=(
        "lib/libexecutorch.so",
        "lib/libexecutorch_threadpool.so",
        "lib/libexecutorch_kernels_optimized.so",
        "lib/libexecutorch_backend_xnnpack.so",
    ),
    linked=("lib/libexecutorch.so", "lib/libexecutorch_threadpool.so"),
    floor=(2, 27),
    kernels="lib/libexecutorch_kernels_optimized.so",
    include=("include", "include/executorch/runtime/core/portable_type/c10"),
    # What executorch-config.cmake (EXECUTORCH_COMPILE_DEFINITIONS) asks of its users.
    definitions=(
        "C10_USING_CUSTOM_GENERATED_MACROS",
        "ET_EVENT_TRACER_ENABLED",
        "ET_USE_THREADPOOL",
    ),
    tools=("executorch", "torch"),
    int8_tools=("torchao",),
    licences=("licenses/LICENSE",),
    notes=(XNNPACK_NOTE,),
)
"""The kernels' library has 10 MB, so it goes along only where it is needed."""

ONNX_RUNTIME = Engine(
    package=ONNXRUNTIME,
    source="native_onnxruntime.cc",
    libraries=("capi/libonnxruntime.so.*",),
    linked=("capi/libonnxruntime.so.*",),
    floor=(2, 28),
    tools=("onnxruntime", "onnx", "onnxscript", "torch"),
    licences=("../onnxruntime/LICENSE", "../onnxruntime/ThirdPartyNotices.txt"),
)

ENGINES = {engine.package: engine for engine in (EXECUTORCH, ONNX_RUNTIME)}


def _one(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found
