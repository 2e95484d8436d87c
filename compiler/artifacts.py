"""A built model as a folder named by its hash, written whole or not at all.

Input: a BuiltModel and its Provenance, or such a folder. Output: Artifact; ArtifactError when a
folder is not byte for byte what its manifest says.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from compiler.errors import CompilerError
from compiler.targets.built import BuiltModel
from device_agents.contract.artifacts import Artifact, ArtifactFile, Manifest
from device_agents.contract.canonical import canonical_json
from device_agents.contract.codec import CodecError, from_plain, parse_object

MANIFEST = "manifest.json"
RELEASE = "release.json"
SIGNATURES = ("manifest.json.sig", "statement.json", "statement.json.sig")
"""Added by the harness beside the artifact: what boards measured, and who vouches for it; no part
of its identity."""

GOLDEN_INPUT = "golden_input.bin"
GOLDEN_OUTPUT = "golden_output.bin"
LICENSES = "LICENSES"

FLEETCUT_LICENCE = """\
fleetcut, and what it adds to this artifact (manifest, golden files' format, the program around a
native network), is licensed under the Apache License, Version 2.0:
https://www.apache.org/licenses/LICENSE-2.0. The network's weights are their owner's.
"""


class ArtifactError(CompilerError):
    """A folder that is not a whole, unchanged artifact. Names the folder, the file, the fact."""


@dataclass(frozen=True)
class Provenance:
    """Where a built model comes from: the fields of Manifest that no builder can know.

    accuracy: fraction of the held-out set, 0..1. predicted_ms_by_cluster: (cluster label, ms);
    predicted_interval_ms_by_cluster: (cluster label, lower, upper); predicted_runtime: of both.
    """

    network: str
    accuracy: float
    predicted_ms_by_cluster: tuple[tuple[str, float], ...]
    plan_sha256: str
    parent_sha256: str
    dataset_sha256: str
    recipe_sha256: str
    seed: int
    predicted_interval_ms_by_cluster: tuple[tuple[str, float, float], ...] = ()
    predicted_runtime: str = ""


def write_artifact(out: Path, built: BuiltModel, provenance: Provenance) -> Artifact:
    """Writes out/ARTIFACT_ID/ by renaming a finished folder, and verifies it.

    manifest.json's bytes hash to the artifact's id. The same inputs give the same bytes, so an
    artifact that is there already is verified and kept. Raises ArtifactError when it is damaged.
    """
    out.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
    try:
        artifact = _fill(staging, built, provenance)
        folder = out / artifact.artifact_id
        if not folder.exists():
            staging.chmod(0o755)  # mkdtemp's folders are private
            _publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return read_artifact(folder)


def read_artifact(folder: Path) -> Artifact:
    """The artifact in ``folder``, whose name is its id, with every byte verified.

    Raises ArtifactError for a manifest that is not canonical or not this folder's, and for a
    file that is changed, missing, not executable, a link, or not in the manifest.
    """
    artifact = Artifact(_read_manifest(folder))
    name = folder.resolve().name
    if artifact.artifact_id != name:
        raise _refused(folder, MANIFEST, f"has id {artifact.artifact_id}, the folder is {name}")
    present = _names(folder) - {MANIFEST, RELEASE, *SIGNATURES}
    expected = {entry.name for entry in artifact.manifest.files}
    for extra in sorted(present - expected):
        raise _refused(folder, extra, "is not in the manifest")
    for missing in sorted(expected - present):
        raise _refused(folder, missing, "is missing")
    for entry in artifact.manifest.files:
        _verify(folder, entry)
    return artifact


def publish(folder: Path, out: Path) -> Path:
    """A verified copy of an artifact as out/ARTIFACT_ID, whole or not at all. ArtifactError."""
    read_artifact(folder)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / folder.name).exists():
        staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
        try:
            shutil.copytree(folder, staging / "copy", copy_function=_copy_synced)
            _publish(staging / "copy", out / folder.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    read_artifact(out / folder.name)
    return out / folder.name


def _copy_synced(source: str, target: str) -> None:
    shutil.copy(source, target)
    with open(target, "rb") as stream:
        os.fsync(stream.fileno())


def _fill(staging: Path, built: BuiltModel, provenance: Provenance) -> Artifact:
    entries = []
    for file in built.files:
        entries.append(_add(staging, file.name, file.path.read_bytes(), file.executable))
    licences = "\n".join((FLEETCUT_LICENCE, *built.licences))
    entries.append(_add(staging, GOLDEN_INPUT, built.golden_input))
    entries.append(_add(staging, GOLDEN_OUTPUT, built.golden_output))
    entries.append(_add(staging, LICENSES, licences.encode("utf-8")))
    manifest = Manifest(
        network=provenance.network,
        kind=built.kind,
        target=built.target,
        model_file=built.model_file,
        golden_input=GOLDEN_INPUT,
        golden_output=GOLDEN_OUTPUT,
        input_shape=built.input_shape,
        output_shape=built.output_shape,
        files=tuple(sorted(entries, key=lambda entry: entry.name)),
        atol=built.atol,
        max_abs_err=built.max_abs_err,
        accuracy=provenance.accuracy,
        predicted_ms_by_cluster=provenance.predicted_ms_by_cluster,
        plan_sha256=provenance.plan_sha256,
        parent_sha256=provenance.parent_sha256,
        dataset_sha256=provenance.dataset_sha256,
        recipe_sha256=provenance.recipe_sha256,
        seed=provenance.seed,
        tool_versions=built.tool_versions,
        predicted_interval_ms_by_cluster=provenance.predicted_interval_ms_by_cluster,
        predicted_runtime=provenance.predicted_runtime,
    )
    _add(staging, MANIFEST, canonical_json(manifest))
    return Artifact(manifest)


def _add(staging: Path, name: str, content: bytes, executable: bool = False) -> ArtifactFile:
    """Writes and syncs one file. Raises ValueError for a name that leaves the folder."""
    sha256 = hashlib.sha256(content).hexdigest()
    entry = ArtifactFile(name, sha256, len(content), executable)
    path = staging / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    path.chmod(0o755 if executable else 0o644)
    return entry


def _publish(staging: Path, folder: Path) -> None:
    try:
        staging.rename(folder)
    except OSError:
        # Another process wrote the same artifact first; the caller verifies it.
        if not folder.exists():
            raise


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise _refused(folder, MANIFEST, "is missing or not a plain file")
    content = path.read_bytes()
    try:
        manifest = from_plain(Manifest, parse_object(content), MANIFEST)
    except CodecError as error:
        raise _refused(folder, MANIFEST, f"is not a manifest ({error})") from error
    if canonical_json(manifest) != content:
        raise _refused(folder, MANIFEST, "is not in canonical form")
    return manifest


def _names(folder: Path) -> set[str]:
    """Every entry that is not a folder, relative, with forward slashes; and empty folders."""
    names = set()
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            names.add(path.relative_to(folder).as_posix())
    return names


def _verify(folder: Path, entry: ArtifactFile) -> None:
    path = folder / entry.name
    if path.is_symlink() or not path.is_file():
        raise _refused(folder, entry.name, "is not a plain file")
    content = path.read_bytes()
    if len(content) != entry.size_bytes:
        raise _refused(
            folder, entry.name, f"has {len(content)} bytes, the manifest says {entry.size_bytes}"
        )
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise _refused(folder, entry.name, f"has sha256 {found}, the manifest says {entry.sha256}")
    if entry.executable and not os.access(path, os.X_OK):
        raise _refused(folder, entry.name, "is not executable")


def _refused(folder: Path, name: str, fact: str) -> ArtifactError:
    return ArtifactError(
        f"artifact {folder}: {name} {fact}. Next: remove the folder and compile again"
    )
