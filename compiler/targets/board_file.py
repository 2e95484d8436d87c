"""targets/*.yaml: what a board is to the compiler, and which forms of a network run there.

Input: a packaged board's name, a file, or the profile of a probed board. Output: BoardTarget.
Raises TargetFileError: the file, the key in it, what is wrong, what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from compiler.errors import CompilerError
from device_agents.contract import DeviceProfile

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
LIBC_PATTERN = r"^(glibc \d+\.\d+)?$"
CPU_PATTERN = r"^[a-z0-9][a-z0-9._+-]*$|^$"

Kind = Literal["onnx", "ort", "tflite", "executable", "executable-ort"]
KINDS: tuple[Kind, ...] = ("onnx", "ort", "tflite", "executable", "executable-ort")
Precision = Literal["fp32", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
Runtime = Literal["ort", "tflite", "executable"]
RUNTIME_OF_KIND: dict[Kind, Runtime] = {
    "onnx": "ort",
    "ort": "ort",
    "tflite": "tflite",
    "executable": "executable",
    "executable-ort": "executable",
}

MACHINES_WITHOUT_ORT = ("armv7l",)
"""No ONNX Runtime is published for them that a program could hold."""

CPU_OF_SOC = {
    "brcm,bcm2837": "cortex-a53",
    "brcm,bcm2711": "cortex-a72",
    "brcm,bcm2712": "cortex-a76",
    "nvidia,tegra210": "cortex-a57",
    "nvidia,tegra234": "cortex-a78ae",
}
"""Device trees' names of systems on chips → GCC's names of their CPUs."""

X86_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512vl", "avx2", "fma", "f16c"}),
    ("x86-64-v3", {"avx2", "fma", "f16c"}),
    ("x86-64-v2", {"sse4_2"}),
)
"""Levels of the x86-64 psABI by those of their features that a profile records."""

RUNTIME_OF_DISTRIBUTION: dict[str, Runtime] = {
    "onnxruntime": "ort",
    "ai-edge-litert": "tflite",
    "tflite-runtime": "tflite",
}


class TargetFileError(CompilerError):
    """A board file that cannot be used."""


def kinds_of(machine: str, runtimes: Collection[str]) -> tuple[Kind, ...]:
    """The forms that a machine with these runtimes can run; those of every runtime where none is
    named.
    """
    return tuple(
        kind
        for kind in KINDS
        if (not runtimes or RUNTIME_OF_KIND[kind] in runtimes)
        and (kind != "executable-ort" or machine not in MACHINES_WITHOUT_ORT)
    )


class BoardTarget(BaseModel):
    """A kind of board.

    machine: as ``uname -m`` prints it. cpu: as GCC's -mcpu (x86: -march) names it, "" for any of
    the machine. libc: the oldest C library such boards have. runtimes: which there are, each with
    the oldest version that must load a file made for them ("" where it has none: executables bring
    theirs). threads: that an inference may take.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = Field(examples=[1])
    name: str = Field(pattern=NAME_PATTERN, examples=["raspberry-pi-4-64"])
    machine: str = Field(pattern=r"^[a-z0-9_]+$", examples=["aarch64"])
    cpu: str = Field(default="", pattern=CPU_PATTERN, examples=["cortex-a72"])
    libc: str = Field(default="", pattern=LIBC_PATTERN, examples=["glibc 2.31"])
    os: Literal["linux"] = Field(default="linux", examples=["linux"])
    threads: int = Field(default=1, ge=1, examples=[1])
    runtimes: dict[Runtime, Annotated[str, StringConstraints(pattern=r"^(\d+(\.\d+)*)?$")]] = Field(
        min_length=1, examples=["{ort: 1.19.2, tflite: 2.13.0, executable: ''}"]
    )

    def kinds(self) -> tuple[Kind, ...]:
        """The forms whose runtime such a board has."""
        return kinds_of(self.machine, self.runtimes)

    def to_yaml(self) -> str:
        """What ``load_board`` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def packaged_boards() -> tuple[str, ...]:
    """Names that a recipe may give without a file of its own."""
    folder = resources.files("compiler.targets") / "boards"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir()))


def load_board(reference: str) -> BoardTarget:
    """The packaged board of that name; with a slash or .yaml in it, a file. TargetFileError."""
    if "/" in reference or reference.endswith((".yaml", ".yml")):
        return _parse(reference, _text(Path(reference)))
    if reference not in packaged_boards():
        raise TargetFileError(
            f"target {reference!r} is none of {', '.join(packaged_boards())}. "
            "Next: name one of these, or a file of your own: ./my-board.yaml"
        )
    name = f"{reference}.yaml"
    text = (resources.files("compiler.targets") / "boards" / name).read_text(encoding="utf-8")
    return _parse(name, text)


def board_of_profile(name: str, profile: DeviceProfile) -> BoardTarget:
    """What a probed board says of itself; where it is silent, nothing is claimed.

    Raises TargetFileError where that makes no target, as for a name that cannot be one.
    """
    libc = re.match(r"\d+\.\d+", profile.glibc or "")
    runtimes = {
        RUNTIME_OF_DISTRIBUTION[distribution]: re.sub(r"[^0-9.].*$", "", version).rstrip(".")
        for distribution, version in profile.runtime_versions
        if distribution in RUNTIME_OF_DISTRIBUTION
    }
    return _checked(
        f"profile of {name}",
        {
            "version": 1,
            "name": name,
            "machine": profile.machine,
            "cpu": _cpu(profile),
            "libc": f"glibc {libc.group()}" if libc else "",
            "runtimes": {**dict(sorted(runtimes.items())), "executable": ""},
        },
    )


def _cpu(profile: DeviceProfile) -> str:
    if profile.machine == "x86_64":
        has = set(profile.isa_features)
        return next((level for level, needs in X86_LEVELS if needs <= has), "x86-64")
    return CPU_OF_SOC.get(profile.soc or "", "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TargetFileError(
            f"{path}: cannot be read ({error.strerror}). Next: fleetcut probe BOARD --target {path}"
        ) from None
    except UnicodeDecodeError:
        raise TargetFileError(f"{path}: is not UTF-8 text. Next: save it as UTF-8 YAML") from None


def _parse(source: str, text: str) -> BoardTarget:
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        fact = getattr(error, "problem", None) or "is not YAML"
        raise TargetFileError(f"{source}{where}: {fact}. Next: mend the YAML there") from None
    if isinstance(data, dict) and isinstance(data.get("runtimes"), dict):
        # 2.14 is a number to YAML, and 2.10 would be another one.
        _refuse_numbers(source, data["runtimes"])
    return _checked(source, data)


def _refuse_numbers(source: str, runtimes: dict[object, object]) -> None:
    for name, version in runtimes.items():
        if isinstance(version, int | float):
            raise TargetFileError(
                f"{source}: runtimes.{name}: {version!r} is a number to YAML. "
                f'Next: put the version in quotes, {name}: "{version}"'
            )


def _checked(source: str, data: object) -> BoardTarget:
    try:
        return BoardTarget.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "the document"
        parts = map(str, first["loc"])  # a key may hold a line break
        where = ".".join(part if part.isprintable() else repr(part) for part in parts) or field
        if field in BoardTarget.model_fields:
            example = (BoardTarget.model_fields[field].examples or [""])[0]
            instead = f"write for example {field}: {example}"
        else:
            instead = f"known keys are {', '.join(BoardTarget.model_fields)}"
        raise TargetFileError(f"{source}: {where}: {_fact(first)}. Next: {instead}") from None


def _fact(error: object) -> str:
    assert isinstance(error, dict)
    if error["type"] in ("missing", "extra_forbidden"):
        return {"missing": "is missing", "extra_forbidden": "is not a key known here"}[
            error["type"]
        ]
    return f"{error['msg'][:1].lower()}{error['msg'][1:]} (found {repr(error['input'])[:60]})"
