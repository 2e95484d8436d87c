"""A network as one native program: ExecuTorch's XNNPACK path, with the network inside.

Input: a network in eval mode and one example (1, C, H, W). Output: BuiltModel around ``model``,
an ELF that runs native_runner.cc, and the runtime's shared libraries in lib/.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.targets.built import (
    ATOL_FP32,
    BuiltFile,
    BuiltModel,
    Floats,
    TargetError,
    parity,
    raw_bytes,
    reference_output,
    require_fp32,
    versions,
)
from compiler.targets.quiet import contained
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

COMPILER = "g++"
SOURCES = ("native_runner.cc", "embed.S")

RUNTIME_LIBRARIES = (
    "libexecutorch.so",
    "libexecutorch_backend_xnnpack.so",
    "libexecutorch_threadpool.so",
)
"""What the wheel ships, already stripped. It has no static archives to link instead."""

KERNEL_LIBRARY = "libexecutorch_kernels_optimized.so"
"""10 MB, taken along only when an operator of the network is not XNNPACK's."""

DEFINITIONS = ("C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED", "ET_USE_THREADPOOL")
"""What executorch-config.cmake (EXECUTORCH_COMPILE_DEFINITIONS) asks of its users."""

XNNPACK_NOTE = """\
libexecutorch_backend_xnnpack.so and libexecutorch_threadpool.so, as shipped in the executorch
wheel, contain XNNPACK (BSD-3-Clause, https://github.com/google/XNNPACK), pthreadpool and cpuinfo
(BSD-2-Clause, https://github.com/google/pthreadpool, https://github.com/pytorch/cpuinfo).
"""

COMPILE_TIMEOUT_S = 300
RUN_TIMEOUT_S = 60
SAID_CHARS = 2000


def build_executable(
    network: nn.Module,
    example: Tensor,
    out: Path,
    target: Target,
    calibration: Tensor | None = None,
) -> BuiltModel:
    """Writes out/model and out/lib/*.so for this workstation's own machine.

    The program is checked by running it. Raises TargetError for another machine, a missing
    compiler, a failing exporter or a deviation above ATOL_FP32; ValueError for a network in
    training mode or an unfit example.
    """
    require_fp32(target)
    compiler = _require_toolchain(target)
    expected = reference_output(network, example)
    golden_input, golden_output = raw_bytes(example.numpy()), raw_bytes(expected)
    with contained(target, "lowering to ExecuTorch"):
        program, operators = _lower(network, example)
    libraries = RUNTIME_LIBRARIES + ((KERNEL_LIBRARY,) if operators else ())
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "model.pte").write_bytes(program)
        (folder / "golden_input.bin").write_bytes(golden_input)
        (folder / "golden_output.bin").write_bytes(golden_output)
        facts = _facts(target, tuple(example.shape), expected.shape)
        _link(target, compiler, folder, facts, libraries)
        files = _collect(folder / "model", out, libraries)
    found = run_executable(target, files[0].path, example.numpy()).reshape(expected.shape)
    return BuiltModel(
        kind="executable",
        target=target,
        model_file="model",
        files=files,
        input_layout="NCHW",
        input_shape=tuple(example.shape),
        output_shape=expected.shape,
        golden_input=golden_input,
        golden_output=golden_output,
        atol=ATOL_FP32,
        max_abs_err=parity(target, expected, found),
        tool_versions=(
            *versions("executorch"),
            (COMPILER, _compiler_version(compiler)),
            *versions("torch"),
        ),
        licences=_licences(),
    )


def run_executable(target: Target, program: Path, x: Floats) -> Floats:
    """The program's answer as a flat float32 array. Raises TargetError when it does not run."""
    try:
        done = subprocess.run(
            [program.resolve()],
            input=raw_bytes(x),
            capture_output=True,
            timeout=RUN_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"")[-SAID_CHARS:].decode(errors="replace")
        raise TargetError(
            target,
            f"the program that was built does not run ({error}) {said}",
            "check that the C++ library g++ links against is the one this machine loads",
        ) from error
    return np.frombuffer(done.stdout, "<f4").astype(np.float32)


def _require_toolchain(target: Target) -> str:
    """The compiler's path. Raises TargetError naming what is missing, before any slow step."""
    here = platform.machine()
    if platform.system() != "Linux" or target.machine != here:
        raise TargetError(
            target,
            f"no toolchain for executables on {target.machine!r}: this workstation is {here}, and "
            f"a {target.machine} compiler and ExecuTorch's {target.machine} wheel are missing",
            "deploy the onnx or tflite artifact to such boards, or compile on a machine like them",
        )
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise TargetError(
            target,
            f"{COMPILER} is not on PATH",
            "install it (Debian: apt-get install g++) and compile again",
        )
    return compiler


def _lower(network: nn.Module, example: Tensor) -> tuple[bytes, tuple[str, ...]]:
    """The .pte program, and the operators in it that XNNPACK did not take."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(network, (example,)).run_decompositions(
        {torch.ops.aten.mean.dim: _mean_that_keeps_dimensions}
    )
    program = to_edge_transform_and_lower(
        exported, partitioner=[XnnpackPartitioner()]
    ).to_executorch()
    (plan,) = program.executorch_program.execution_plan
    return bytes(program.buffer), tuple(operator.name for operator in plan.operators)


def _mean_that_keeps_dimensions(
    x: Tensor, dim: list[int] | None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """XNNPACK takes the mean over height and width only with keepdim=True."""
    if keepdim or dtype is not None or x.ndim != 4 or sorted(d % 4 for d in dim or ()) != [2, 3]:
        return NotImplemented
    return x.mean(dim, keepdim=True).flatten(1)


def _facts(
    target: Target, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> dict[str, str]:
    """What native_runner.cc is told about its network."""
    version = importlib.metadata.version("executorch")
    return {
        "FLEETCUT_INPUT_SHAPE": ",".join(map(str, input_shape)),
        "FLEETCUT_OUTPUT_SHAPE": ",".join(map(str, output_shape)),
        "FLEETCUT_ATOL": repr(ATOL_FP32),
        "FLEETCUT_EXECUTORCH_VERSION": f'"{version}"',
        "FLEETCUT_THREADS": str(target.threads),
    }


def _link(
    target: Target, compiler: str, folder: Path, facts: dict[str, str], libraries: tuple[str, ...]
) -> None:
    """Compiles folder/model. Only relative names, so that the bytes do not know the folder."""
    package = _executorch_folder()
    for source in SOURCES:
        shutil.copyfile(Path(__file__).parent / source, folder / source)
    command = [
        compiler,
        *("-std=c++17", "-O2", "-s", "-pipe"),
        # Paths of this machine stay out of __FILE__; no random seed, no build id.
        *(f"-ffile-prefix-map={package}=executorch", "-frandom-seed=fleetcut"),
        "-Wl,--build-id=none",
        *(f"-D{name}" for name in DEFINITIONS),
        *(f"-D{name}={value}" for name, value in facts.items()),
        # -isystem: warnings in the runtime's headers are not ours to mend.
        *("-isystem", f"{package}/include"),
        *("-isystem", f"{package}/include/executorch/runtime/core/portable_type/c10"),
        *SOURCES,
        *("-o", "model", f"-L{package}/lib"),
        # Backends and kernels register themselves: nothing refers to them by name.
        "-Wl,--no-as-needed",
        *(f"-l:{library}" for library in libraries),
        "-Wl,-rpath,$ORIGIN/lib",
    ]
    try:
        subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or "")[-SAID_CHARS:]
        status = getattr(error, "returncode", None)
        raise TargetError(
            target,
            f"{COMPILER} failed ({f'status {status}' if status else error}):\n{said}",
            f"check that {COMPILER} is 9 or newer and matches the installed executorch",
        ) from error


def _collect(program: Path, out: Path, libraries: tuple[str, ...]) -> tuple[BuiltFile, ...]:
    """Moves the program to ``out`` and copies the libraries beside it."""
    (out / "lib").mkdir(exist_ok=True)
    shutil.copyfile(program, out / "model")
    (out / "model").chmod(0o755)
    files = [BuiltFile("model", out / "model", executable=True)]
    for library in libraries:
        copy = out / "lib" / library
        shutil.copyfile(_executorch_folder() / "lib" / library, copy)
        files.append(BuiltFile(f"lib/{library}", copy))
    return tuple(files)


def _executorch_folder() -> Path:
    """Where the wheel is installed, without importing it (3 s)."""
    spec = importlib.util.find_spec("executorch")
    assert spec is not None, "executorch is a dependency"
    assert spec.submodule_search_locations is not None, "executorch is a package"
    return Path(next(iter(spec.submodule_search_locations)))


def _compiler_version(compiler: str) -> str:
    done = subprocess.run(
        [compiler, "-dumpfullversion"], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.strip()


def _licences() -> tuple[str, ...]:
    text = importlib.metadata.distribution("executorch").read_text("licenses/LICENSE")
    assert text is not None, "the executorch wheel carries its licence"
    return (text, XNNPACK_NOTE)
