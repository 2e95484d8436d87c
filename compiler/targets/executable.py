"""A network as one native program, its engine and all that this needs inside.

Input: a network in eval mode, one example (1, C, H, W), and samples for int8. Output: BuiltModel
around ``model``, an ELF for this workstation's machine or another. ExecuTorch's XNNPACK path or
ONNX Runtime run it under native_runner.cc; machines that neither knows get Debian's XNNPACK, which
xnnpack_runner.c runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compiler.targets.built import (
    ATOL_FP32,
    BuiltFile,
    BuiltModel,
    Floats,
    TargetError,
    int8_atol,
    parity,
    raw_bytes,
    reference_output,
    require_calibration,
    require_fp32,
)
from compiler.targets.native_libc import Version, glibc_floor
from compiler.targets.native_lowering import lower
from compiler.targets.native_pieces import COMMON, Pieces, link_against, pieces, run
from compiler.targets.ort_program import ort_program
from compiler.targets.quiet import contained
from compiler.targets.toolchains import (
    ONNXRUNTIME,
    RUNTIME,
    RUNTIMES,
    XNNPACK,
    MissingToolError,
    find,
)
from compiler.targets.xnnpack_lowering import plan_of
from compiler.targets.xnnpack_pieces import xnnpack_pieces
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

PROGRAM = "model"
SOURCES = (
    "native_launcher.c",
    "native_library.c",
    "native_library.h",
    "native_program.h",
    "embed.S",
)

RUN_TIMEOUT_S = 600
SAID_CHARS = 2000


@dataclass(frozen=True)
class Content:
    """What one program holds inside. golden_output, atol: what its self-test compares with."""

    program: bytes
    operators: tuple[str, ...]
    golden_input: Floats
    golden_output: Floats
    atol: float


def build_executable(
    network: nn.Module,
    example: Tensor,
    out: Path,
    target: Target,
    calibration: Tensor | None = None,
) -> BuiltModel:
    """Writes out/model for target.machine. The answer's target names the C library it needs.

    What it answers is checked by running it; for another machine, by running the same network in a
    program of this machine. Raises TargetError for a missing tool, boards whose C library is too
    old, a failing exporter, missing samples, or float32 that deviates by more than ATOL_FP32;
    ValueError for a network in training mode or an unfit example.
    """
    engine = RUNTIMES.get(target.machine, (RUNTIME,))[0]
    return _build("executable", engine, network, example, out, target, calibration)


def build_ort_executable(
    network: nn.Module,
    example: Tensor,
    out: Path,
    target: Target,
    calibration: Tensor | None = None,
) -> BuiltModel:
    """The same over ONNX Runtime, where that is published for target.machine."""
    if ONNXRUNTIME not in RUNTIMES.get(target.machine, ()):
        raise TargetError(
            target,
            f"no ONNX Runtime is published for {target.machine}",
            "deploy the executable of kind executable to such boards",
        )
    return _build("executable-ort", ONNXRUNTIME, network, example, out, target, calibration)


def _build(
    kind: str,
    engine: str,
    network: nn.Module,
    example: Tensor,
    out: Path,
    target: Target,
    calibration: Tensor | None,
) -> BuiltModel:
    if engine == XNNPACK:
        require_fp32(target)
    here, there = pieces_of(target, engine)
    int8 = target.precision == "int8"
    if int8:
        require_calibration(target, example, calibration)
    expected = reference_output(network, example)
    program, operators = _lowered(engine, network, example, target, calibration)
    content = Content(program, operators, example.numpy(), expected, ATOL_FP32)
    found = _answers(target, here, content)(content.golden_input)
    max_abs_err = parity(target, expected, found, math.inf if int8 else ATOL_FP32)
    if not int8:
        return ship(target, there, content, max_abs_err, out, kind)
    content = replace(content, golden_output=found, atol=int8_atol(found))
    built = ship(target, there, content, max_abs_err, out, kind)
    return replace(built, answers=_answers(target, here, content))


def _lowered(
    engine: str, network: nn.Module, example: Tensor, target: Target, calibration: Tensor | None
) -> tuple[bytes, tuple[str, ...]]:
    """What the engine reads, and the operators that take its library of kernels along."""
    if engine == ONNXRUNTIME:
        return ort_program(network, example, target, calibration), ()
    if engine == XNNPACK:
        with contained(target, "lowering to XNNPACK"):
            return plan_of(network, example, target), ()
    int8 = target.precision == "int8"
    samples = require_calibration(target, example, calibration) if int8 else None
    with contained(target, "lowering to ExecuTorch"):
        return lower(network, example, samples)


def pieces_of(target: Target, runtime: str) -> tuple[Pieces, Pieces]:
    """Of this machine, where a program is tried, and of the target's.

    Raises TargetError for a missing tool and for boards whose C library is too old.
    """
    here, there = (_pieces(target, name, runtime) for name in (platform.machine(), target.machine))
    _require_libc(target, there.floor)
    return here, there


def ship(
    target: Target,
    there: Pieces,
    content: Content,
    max_abs_err: float,
    out: Path,
    kind: str = "executable",
) -> BuiltModel:
    """Writes out/model. Raises TargetError when the linker fails."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / PROGRAM
    floor = link(target, there, content, path)
    return BuiltModel(
        kind=kind,
        target=replace(target, libc=_glibc(floor)),
        model_file=PROGRAM,
        files=(BuiltFile(PROGRAM, path, executable=True),),
        input_layout="NCHW",
        input_shape=content.golden_input.shape,
        output_shape=content.golden_output.shape,
        golden_input=raw_bytes(content.golden_input),
        golden_output=raw_bytes(content.golden_output),
        atol=content.atol,
        max_abs_err=max_abs_err,
        tool_versions=_tool_versions(there, int8=target.precision == "int8"),
        licences=there.licences(),
    )


def run_executable(target: Target, program: Path, x: Floats) -> Floats:
    """Its answers to the tensors of ``x``, one after the other, as a flat float32 array.

    Raises TargetError when it does not run.
    """
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
            "check that this machine's kernel is 3.17 or newer and its memory suffices",
        ) from error
    return np.frombuffer(done.stdout, "<f4").astype(np.float32)


def self_tested(target: Target, program: Path) -> float:
    """The largest deviation from all golden outputs inside. Raises TargetError beyond its bound."""
    done = subprocess.run(
        [program.resolve(), "--selftest"], capture_output=True, timeout=RUN_TIMEOUT_S, check=False
    )
    said = json.loads(done.stdout or b"{}")
    if done.returncode != 0 or not said.get("passed"):
        raise TargetError(
            target,
            f"its self-test fails: {said or done.stderr[-SAID_CHARS:].decode(errors='replace')}",
            "do not ship it; look for an operator that the converter approximates",
        )
    return float(said["max_abs_err"])


def _answers(target: Target, here: Pieces, content: Content) -> Callable[[Floats], Floats]:
    """``BuiltModel.answers`` by a program of this machine, whatever machine it is shipped to."""

    def answers(x: Floats) -> Floats:
        with tempfile.TemporaryDirectory() as work:
            program = Path(work) / PROGRAM
            link(target, here, content, program)
            found = run_executable(target, program, x)
        return found.reshape(len(x), *content.golden_output.shape[1:])

    return answers


def _pieces(target: Target, machine: str, runtime: str) -> Pieces:
    try:
        with _compiling(target):
            toolchain = find(machine, runtime)
            return xnnpack_pieces(toolchain) if runtime == XNNPACK else pieces(toolchain)
    except MissingToolError as missing:
        raise TargetError(target, missing.fact, missing.next_step) from missing


@contextlib.contextmanager
def _compiling(target: Target) -> Iterator[None]:
    """Failures of the compiler are TargetErrors that quote it."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or "")[-SAID_CHARS:]
        command = getattr(error, "cmd", None) or ["the compiler"]
        status = getattr(error, "returncode", None)
        raise TargetError(
            target,
            f"{Path(command[0]).name} failed ({f'status {status}' if status else error}):\n{said}",
            "check that it is GCC 9 or newer and matches the runtime it links with",
        ) from error


def _require_libc(target: Target, floor: Version) -> None:
    """Raises TargetError where the board's C library may be older than the program's floor."""
    if not target.libc:
        return
    name, _, version = target.libc.partition(" ")
    if name != "glibc" or tuple(map(int, version.split("."))) < floor:
        raise TargetError(
            target,
            f"the program needs {_glibc(floor)} and the board may have {target.libc}",
            "deploy the onnx or tflite artifact to such boards",
        )


def link(target: Target, linked: Pieces, content: Content, path: Path) -> Version:
    """Writes the program to ``path``; the C library that it and all inside it needs."""
    libraries = linked.libraries(kernels=bool(content.operators))
    with tempfile.TemporaryDirectory() as work, _compiling(target):
        folder = Path(work)
        for source in SOURCES:
            shutil.copyfile(Path(__file__).parent / source, folder / source)
        (folder / "stubs").symlink_to(linked.folder / "stubs")
        (folder / "model.pte").write_bytes(content.program)
        (folder / "golden_input.bin").write_bytes(raw_bytes(content.golden_input))
        (folder / "golden_output.bin").write_bytes(raw_bytes(content.golden_output))
        for library in libraries:
            (folder / f"{_symbol(library)}.so").symlink_to(library)
        run(
            [
                *(linked.toolchain.cxx, *COMMON, "-s", "-pie"),
                *(f"-D{name}={value}" for name, value in _facts(target, linked, content).items()),
                *("-x", "c", "native_launcher.c", "-x", "c", "native_library.c"),
                *("-x", "assembler-with-cpp", "embed.S"),
                *("-x", "none", "-o", PROGRAM, "-Wl,--no-as-needed"),
                *link_against(linked.stubs),
            ],
            folder,
        )
        shutil.copyfile(folder / PROGRAM, path)
        path.chmod(0o755)
        return max(linked.floor, glibc_floor(linked.toolchain, [path]))


def _facts(target: Target, linked: Pieces, content: Content) -> dict[str, str]:
    """What native_launcher.c is told about its network."""
    libraries = linked.libraries(kernels=bool(content.operators))
    return {
        "FLEETCUT_LIBRARIES": " ".join(f"LIBRARY({_symbol(library)})" for library in libraries),
        "FLEETCUT_INPUT_SHAPE": ",".join(map(str, content.golden_input.shape)),
        "FLEETCUT_OUTPUT_SHAPE": ",".join(map(str, content.golden_output.shape)),
        "FLEETCUT_ATOL": repr(content.atol),
        "FLEETCUT_VERSION": f'"{linked.version()}"',
        "FLEETCUT_PRECISION": f'"{target.precision}"',
        "FLEETCUT_MACHINE": f'"{linked.toolchain.machine}"',
        "FLEETCUT_LIBC": f'"{_glibc(linked.floor)}"',
        "FLEETCUT_THREADS": str(target.threads),
    }


def _symbol(library: Path) -> str:
    """As libstdcxx for libstdc++.so.6."""
    return library.name.split(".")[0].replace("+", "x")


def _glibc(version: Version) -> str:
    return f"glibc {'.'.join(map(str, version))}"


def _tool_versions(linked: Pieces, *, int8: bool) -> tuple[tuple[str, str], ...]:
    compiler = (Path(linked.toolchain.cxx).name, linked.toolchain.version())
    return tuple(sorted((*linked.tools(int8=int8), compiler)))
