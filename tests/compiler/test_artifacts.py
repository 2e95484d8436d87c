"""Artifacts are whole, named by their bytes, and the same for the same inputs."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compiler.artifacts import ArtifactError, Provenance, read_artifact, write_artifact
from compiler.targets import TARGETS, BuiltFile, BuiltModel
from device_agents.contract.artifacts import Target
from device_agents.contract.canonical import canonical_json

PROVENANCE = Provenance(
    network="mobile-digits",
    accuracy=0.98,
    predicted_ms_by_cluster=(("0", 1.25), ("1", 2.0)),
    plan_sha256="a" * 64,
    parent_sha256="b" * 64,
    dataset_sha256="c" * 64,
    recipe_sha256="d" * 64,
    seed=0,
)


def build_everything(out: str) -> list[str]:
    """The ids of one network in every form; a process of its own runs this too."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    ).eval()
    example = torch.rand(1, 3, 32, 32)
    ids = []
    for kind, build in TARGETS.items():
        if kind != "executable" or shutil.which("g++"):
            target = Target(f"here-{kind}", platform.machine(), "linux", kind)
            built = build(network, example, Path(out, "built", kind), target)
            ids.append(write_artifact(Path(out, "artifacts"), built, PROVENANCE).artifact_id)
    return ids


@pytest.fixture
def built(tmp_path) -> BuiltModel:
    folder = tmp_path / "built"
    (folder / "lib").mkdir(parents=True)
    (folder / "model").write_bytes(b"program")
    (folder / "lib" / "runtime.so").write_bytes(b"library")
    return BuiltModel(
        kind="executable",
        target=Target("pi", "aarch64", "linux", "executable"),
        model_file="model",
        files=(
            BuiltFile("model", folder / "model", executable=True),
            BuiltFile("lib/runtime.so", folder / "lib" / "runtime.so"),
        ),
        input_layout="NCHW",
        input_shape=(1, 3, 32, 32),
        output_shape=(1, 10),
        golden_input=bytes(16),
        golden_output=bytes(8),
        atol=1e-4,
        max_abs_err=1e-7,
        tool_versions=(("g++", "12.2.0"), ("torch", "2.13.0")),
        licences=("Some licence of the runtime.",),
    )


@pytest.fixture
def folder(built, tmp_path) -> Path:
    artifact = write_artifact(tmp_path / "out", built, PROVENANCE)
    return tmp_path / "out" / artifact.artifact_id


def test_what_is_written_is_read_back(built, folder):
    artifact = read_artifact(folder)
    manifest = artifact.manifest
    assert (manifest.network, manifest.kind, manifest.target) == (
        "mobile-digits",
        "executable",
        built.target,
    )
    assert manifest.predicted_ms_by_cluster == (("0", 1.25), ("1", 2.0))
    assert [(file.name, file.executable) for file in manifest.files] == [
        ("LICENSES", False),
        ("golden_input.bin", False),
        ("golden_output.bin", False),
        ("lib/runtime.so", False),
        ("model", True),
    ]
    assert os.access(folder / "model", os.X_OK)
    licences = (folder / "LICENSES").read_text()
    assert "Apache License, Version 2.0" in licences
    assert "Some licence of the runtime." in licences


def test_the_manifests_bytes_hash_to_the_folders_name(folder):
    content = (folder / "manifest.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == folder.name
    assert content == canonical_json(read_artifact(folder).manifest)


def test_writing_twice_gives_one_folder_and_leaves_nothing_else(built, folder):
    again = write_artifact(folder.parent, built, PROVENANCE)
    assert again == read_artifact(folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_another_origin_is_another_artifact(built, folder):
    other = write_artifact(folder.parent, built, dataclasses.replace(PROVENANCE, seed=1))
    assert other.artifact_id != folder.name


def test_a_release_beside_the_files_changes_nothing(folder):
    (folder / "release.json").write_text("{}")
    assert read_artifact(folder).artifact_id == folder.name


def test_a_link_to_the_folder_is_followed(folder, tmp_path):
    (tmp_path / "deployed").symlink_to(folder)
    assert read_artifact(tmp_path / "deployed").artifact_id == folder.name


NAMES = ["LICENSES", "golden_input.bin", "golden_output.bin", "lib/runtime.so", "model"]


@pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
@pytest.mark.parametrize("where", [0, -1], ids=["first", "last"])
def test_a_changed_byte_is_refused(folder, name, where):
    content = bytearray((folder / name).read_bytes())
    content[where] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f": {name} "):
        read_artifact(folder)


@pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
def test_a_missing_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f": ({name}|lib) is (missing|not in the manifest)"):
        read_artifact(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_file_is_refused(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=f"{name} has {len(content) - 1} bytes, the manifest"):
        read_artifact(folder)


@pytest.mark.parametrize("name", ["extra.txt", "lib/extra.so", "lib/release.json"])
def test_an_extra_file_is_refused(folder, name):
    (folder / name).write_bytes(b"")
    with pytest.raises(ArtifactError, match=f"{name} is not in the manifest"):
        read_artifact(folder)


def test_an_empty_extra_folder_is_refused(folder):
    (folder / "plugins").mkdir()
    with pytest.raises(ArtifactError, match="plugins is not in the manifest"):
        read_artifact(folder)


def test_a_link_in_place_of_a_file_is_refused(folder, tmp_path):
    (folder / "model").rename(tmp_path / "elsewhere")
    (folder / "model").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="model is not a plain file"):
        read_artifact(folder)


def test_a_program_that_lost_its_mode_is_refused(folder):
    (folder / "model").chmod(0o644)
    with pytest.raises(ArtifactError, match="model is not executable"):
        read_artifact(folder)


def test_a_folder_of_another_name_is_refused(folder):
    other = folder.rename(folder.with_name("0" * 64))
    with pytest.raises(ArtifactError, match=r"manifest\.json has id .*, the folder is 0000"):
        read_artifact(other)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"network": "x"}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_manifest_that_is_none_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json is not a manifest"):
        read_artifact(folder)


def test_a_reformatted_manifest_is_refused(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ArtifactError, match=r"manifest\.json is not in canonical form"):
        read_artifact(folder)


def test_a_damaged_artifact_is_not_taken_for_the_one_being_written(built, folder):
    (folder / "model").write_bytes(b"progRam")
    with pytest.raises(ArtifactError, match="model has sha256"):
        write_artifact(folder.parent, built, PROVENANCE)


def test_a_failed_write_leaves_nothing(built, tmp_path):
    built.files[1].path.unlink()
    with pytest.raises(FileNotFoundError):
        write_artifact(tmp_path / "out", built, PROVENANCE)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_name_that_leaves_the_folder_is_refused(built, tmp_path):
    outside = dataclasses.replace(built.files[0], name="../model")
    with pytest.raises(ValueError, match="leaves its folder"):
        write_artifact(tmp_path / "out", dataclasses.replace(built, files=(outside,)), PROVENANCE)
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_every_target_is_the_same_bytes_in_another_process(tmp_path):
    """Another hash seed, folder and module state; its streams stay clean, too."""
    other = subprocess.Popen(
        [
            *(sys.executable, "-W", "error", "-c"),
            "import runpy, sys; print(*runpy.run_path(sys.argv[1])['build_everything']('.'))",
            __file__,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ids = build_everything(str(tmp_path / "here"))
    said, logged = other.communicate(timeout=200)
    assert (said.split(), logged) == (ids, "")
    for artifact_id in ids:
        one = read_artifact(tmp_path / "here" / "artifacts" / artifact_id)
        assert one == read_artifact(tmp_path / "artifacts" / artifact_id)
