"""What the compiler ships: a folder of files named by hash, and the manifest that binds them.

Input: nothing. Output: Target, ArtifactFile, Manifest, Artifact.
The manifest holds only what the same inputs reproduce byte for byte; what boards measured later
stands beside it in release.json and never changes the artifact's id.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Optional, Tuple

from device_agents.contract.canonical import ADDED_LATER, canonical_json

PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Target:
    """What a binary is built for.

    machine: as ``uname -m`` prints it, or "any". os: "linux" or "any". runtime: as a RunSpec names
    it. precision: one of PRECISIONS. cpu: as GCC's -mcpu (x86: -march) names it, "cortex-a72";
    libc: the oldest C library that the board may have, "glibc 2.31"; runtime_version: the oldest
    version of the runtime that must load the file; each "" where the form has no such bound.
    """

    name: str
    machine: str
    os: str
    runtime: str
    precision: str = "fp32"
    threads: int = 1
    cpu: str = field(default="", metadata=ADDED_LATER)
    libc: str = field(default="", metadata=ADDED_LATER)
    runtime_version: str = field(default="", metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if self.threads < 1:
            raise ValueError(f"{self.threads} threads are too few")
        if self.libc and not re.match(r"^(glibc|musl) \d+\.\d+(\.\d+)?$", self.libc):
            raise ValueError(f"libc {self.libc!r} is not a name and a version, 'glibc 2.31'")


@dataclass(frozen=True)
class ArtifactFile:
    """One file of the artifact. name is relative, with forward slashes, and never leaves it."""

    name: str
    sha256: str
    size_bytes: int
    executable: bool = False

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if not self.name or self.name.startswith("/") or any(p in ("", ".", "..") for p in parts):
            raise ValueError(f"artifact file name {self.name!r} leaves its folder")


@dataclass(frozen=True)
class Manifest:
    """Everything that identifies an artifact.

    kind: "onnx", "ort", "tflite", "executable" or "executable-ort" (a program over ONNX Runtime).
    model_file: the file the runtime loads.
    golden_input, golden_output: names of raw little-endian float32 files in the model's own
    layout; the output is PyTorch's for fp32, the form's own on the workstation for int8.
    max_abs_err: the largest deviation from the PyTorch network on the golden input, as
    measured on the workstation; atol: the bound that a board must keep to golden_output.
    predicted_ms_by_cluster: (cluster label, ms). predicted_interval_ms_by_cluster: (cluster label,
    lower, upper), the 90 % interval of the surrogate. predicted_runtime: what it was measured with;
    of another form of the same network it is no prediction. accuracy: fraction of the held-out
    set, 0..1. plan_sha256, parent_sha256: of the pruning plan and of the dense network's weights.
    """

    network: str
    kind: str
    target: Target
    model_file: str
    golden_input: str
    golden_output: str
    input_shape: Tuple[int, ...]
    output_shape: Tuple[int, ...]
    files: Tuple[ArtifactFile, ...]
    atol: float
    max_abs_err: float
    accuracy: float
    predicted_ms_by_cluster: Tuple[Tuple[str, float], ...]
    plan_sha256: str
    parent_sha256: str
    dataset_sha256: str
    recipe_sha256: str
    seed: int
    tool_versions: Tuple[Tuple[str, str], ...]
    predicted_interval_ms_by_cluster: Tuple[Tuple[str, float, float], ...] = field(
        default=(), metadata=ADDED_LATER
    )
    predicted_runtime: str = field(default="", metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        names = [f.name for f in self.files]
        if len(set(names)) != len(names):
            raise ValueError("a manifest names each file once")
        for name in (self.model_file, self.golden_input, self.golden_output):
            if name not in names:
                raise ValueError(f"manifest names {name!r}, which is not among its files")

    def file(self, name: str) -> ArtifactFile:
        """The entry for ``name``. Raises KeyError."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise KeyError(name)


@dataclass(frozen=True)
class Artifact:
    """A manifest and its id."""

    manifest: Manifest

    @property
    def artifact_id(self) -> str:
        """SHA-256 of the canonical manifest, which itself holds the hash of every file."""
        return hashlib.sha256(canonical_json(self.manifest)).hexdigest()


@dataclass(frozen=True)
class BoardProof:
    """What one board showed when the artifact ran there.

    measured_ms: the median, measured_lower_ms and measured_upper_ms its 95 % interval; None where
    nothing was timed, or too little for an interval. predicted_*: of the board's cluster; None
    where there is none for this form. throttled: whether heat or power slowed the board under it.
    """

    board_id: str
    cluster: Optional[str]
    run_id: str
    passed: bool
    measured_ms: Optional[float]
    predicted_ms: Optional[float]
    max_abs_err: Optional[float]
    simulated: bool
    reason: Optional[str] = None
    measured_lower_ms: Optional[float] = None
    measured_upper_ms: Optional[float] = None
    predicted_lower_ms: Optional[float] = None
    predicted_upper_ms: Optional[float] = None
    throttled: Optional[bool] = None


RELEASED, PARTIAL, REFUSED = "released", "partial", "refused"


@dataclass(frozen=True)
class Release:
    """Whether an artifact may ship.

    "released": every proof passed, on a board of every cluster. "partial": every proof passed, but
    boards of unproven_clusters have not been asked yet. "refused": a proof failed.
    """

    artifact_id: str
    state: str
    proofs: Tuple[BoardProof, ...]
    unproven_clusters: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.state not in (RELEASED, PARTIAL, REFUSED):
            raise ValueError(f"release state {self.state!r} is none of released, partial, refused")
        if self.state != self.earned(self.proofs, self.unproven_clusters):
            raise ValueError("released means that every proof passed, in every cluster")

    @staticmethod
    def earned(proofs: Tuple[BoardProof, ...], unproven_clusters: Tuple[str, ...]) -> str:
        """The state that these proofs give."""
        if not (proofs and all(proof.passed for proof in proofs)):
            return REFUSED
        return PARTIAL if unproven_clusters else RELEASED
