import hashlib
import os

import pytest

from device_agents import install as module
from device_agents.contract import Artifact, ArtifactFile, Manifest, Target, canonical_json
from device_agents.errors import AgentError
from device_agents.home import Home, Inputs
from device_agents.install import install as installed
from device_agents.sysfs import Root


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    made.create()
    return made


def install(home: Home, artifact_id: str, name: str):
    """What the name led to before; the board knows no signers."""
    return installed(home, Root(home.path / "no-root"), artifact_id, name).previous


def put(home: Home, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    home.blob(sha256).write_bytes(data)
    return sha256


def push(home: Home, version: str) -> str:
    """An artifact's manifest and files among the blobs. Returns its id."""
    contents = {
        "model": f"program {version}".encode(),
        "golden/input.f32": b"\0\0\0\0",
        "golden/output.f32": b"\0\0\0\0",
    }
    files = tuple(
        ArtifactFile(name, put(home, data), len(data), executable=name == "model")
        for name, data in contents.items()
    )
    manifest = Manifest(
        network="net",
        kind="executable",
        target=Target("board", "aarch64", "linux", "executable"),
        model_file="model",
        golden_input="golden/input.f32",
        golden_output="golden/output.f32",
        input_shape=(1,),
        output_shape=(1,),
        files=files,
        atol=1e-4,
        max_abs_err=0.0,
        accuracy=0.9,
        predicted_ms_by_cluster=(("a", 1.5),),
        plan_sha256="0" * 64,
        parent_sha256="0" * 64,
        dataset_sha256="0" * 64,
        recipe_sha256="0" * 64,
        seed=0,
        tool_versions=(),
    )
    artifact_id = put(home, canonical_json(manifest))
    assert artifact_id == Artifact(manifest).artifact_id
    return artifact_id


def deployed(home: Home, name: str = "net") -> str:
    return (home.deployed / name / "model").read_text()


def test_first_second_and_third_version(home):
    first, second, third = (push(home, str(i)) for i in (1, 2, 3))
    assert install(home, first, "net") is None
    assert deployed(home) == "program 1"
    assert os.access(home.deployed / "net" / "model", os.X_OK)
    assert install(home, second, "net") == first
    assert install(home, third, "net") == second
    assert deployed(home) == "program 3"
    assert deployed(home, "net.previous") == "program 2"
    assert sorted(p.name for p in home.artifacts.iterdir()) == sorted([second, third])
    assert home.manifest(third).model_file == "model"


def test_the_same_version_twice_keeps_the_one_before(home):
    first, second = push(home, "1"), push(home, "2")
    install(home, first, "net")
    install(home, second, "net")
    assert install(home, second, "net") == second
    assert deployed(home, "net.previous") == "program 1"


def test_names_do_not_take_each_others_versions(home):
    first, second = push(home, "1"), push(home, "2")
    install(home, first, "one")
    install(home, second, "two")
    assert deployed(home, "one") == "program 1"
    assert deployed(home, "two") == "program 2"


def test_an_installed_artifact_needs_no_blobs(home):
    first = push(home, "1")
    install(home, first, "net")
    for blob in home.blobs.iterdir():
        blob.unlink()
    assert install(home, first, "net") == first
    manifest = home.manifest(first)
    golden = manifest.file(manifest.golden_input).sha256
    assert Inputs(home).tensor(golden, first) == b"\0\0\0\0"


def test_a_damaged_install_is_built_anew(home):
    first = push(home, "1")
    install(home, first, "net")
    (home.artifact(first) / "model").write_bytes(b"progrXm 1")
    install(home, first, "net")
    assert deployed(home) == "program 1"


def refused(home: Home, artifact_id: str, name: str = "net") -> str:
    with pytest.raises(AgentError) as caught:
        install(home, artifact_id, name)
    assert not (home.deployed / name).exists()
    return str(caught.value)


def test_a_missing_file(home):
    artifact_id = push(home, "1")
    home.blob(hashlib.sha256(b"program 1").hexdigest()).unlink()
    assert "model is not on the board" in refused(home, artifact_id)


def test_a_damaged_blob_is_refused_and_removed(home):
    artifact_id = push(home, "1")
    blob = home.blob(hashlib.sha256(b"program 1").hexdigest())
    blob.write_bytes(b"progrXm 1")
    assert "does not have the hash" in refused(home, artifact_id)
    assert not blob.exists()


def test_a_damaged_manifest_is_refused_and_removed(home):
    artifact_id = push(home, "1")
    home.blob(artifact_id).write_bytes(b"{}")
    assert "or damaged" in refused(home, artifact_id)
    assert not home.blob(artifact_id).exists()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b"\xff", b'{"network": 1}', b'{"files": "../../etc/passwd"}']
)
def test_a_manifest_that_is_none(home, data):
    assert "manifest" in refused(home, put(home, data))


def test_a_manifest_that_is_absent_or_no_hash(home):
    assert "is not on the board" in refused(home, "0" * 64)
    assert "is not a SHA-256" in refused(home, "../../etc")


@pytest.mark.parametrize("name", ["..", "a/b", "", "net.previous"])
def test_bad_names(home, name):
    with pytest.raises(AgentError):
        install(home, push(home, "1"), name)


class PowerCutError(BaseException):
    """Not an Exception: nothing may tidy up after it as if it had gone on."""


@pytest.mark.parametrize("step", range(14))
def test_a_cut_at_any_step_leaves_a_whole_version(home, monkeypatch, step):
    first, second = push(home, "1"), push(home, "2")
    install(home, first, "net")
    left = [step]

    def cutting(real):
        def call(*args, **kwargs):
            if left[0] == 0:
                raise PowerCutError
            left[0] -= 1
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "symlink", "open"):
            patch.setattr(os, name, cutting(getattr(os, name)))
        patch.setattr(module, "copy_flushed", cutting(module.copy_flushed))
        try:
            install(home, second, "net")
        except PowerCutError:
            assert deployed(home) in ("program 1", "program 2")
    assert install(home, second, "net") in (first, second)
    assert deployed(home) == "program 2"
    assert not [p for p in home.artifacts.iterdir() if p.name.startswith(".")]
