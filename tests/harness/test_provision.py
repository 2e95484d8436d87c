"""Wheels for a board without internet: found by pip here, unpacked there, and measured with.

Most tests give pip an index of two or three wheels of their own. Those that need a registry are
skipped by name where pip reaches none.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compiler.targets import fast_tflite
from fleetcut.cli import main
from harness.inventory import load_inventory
from harness.provision import choose
from harness.store import Store
from harness.virtual import namespace, rack
from harness.virtual.errors import RackError
from harness.virtual.spec import uniform_rack
from harness.wheelhouse import Platform, UnreachableIndexError, WheelhouseError, resolve

DEBIANS_PYTHON = "/usr/bin/python3"
BULLSEYE = Platform("3.9", "armv7l", "2.31")
HERE = Platform("3.11", "x86_64", "2.36")


def wheel(folder: Path, name: str, version: str, *requires: str, tag: str = "py3-none-any",
          files: dict[str, str] | None = None) -> Path:  # fmt: skip
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    path = folder / f"{module}-{version}-{tag}.whl"
    meta = "".join(f"Requires-Dist: {text}\n" for text in requires)
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files or {f"{module}/__init__.py": ""}).items():
            archive.writestr(file, text)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{meta}",
        )
        archive.writestr(
            f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip knows, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_the_newest_wheel_that_fits_the_board_and_not_this_machine(index, tmp_path):
    for version, tag in (
        ("1.0", "cp39-cp39-manylinux_2_31_armv7l"),
        ("1.1", "cp39-cp39-manylinux2014_armv7l"),
        ("1.2", "cp39-cp39-manylinux_2_34_armv7l"),
        ("1.3", "cp311-cp311-manylinux_2_31_armv7l"),
        ("1.4", "cp39-cp39-manylinux_2_17_x86_64"),
    ):
        wheel(index, "runtime", version, tag=tag)
    assert resolve(BULLSEYE, ["runtime"], tmp_path / "c").versions() == {"runtime": "1.1"}
    newer = Platform("3.9", "armv7l", "2.34")
    assert resolve(newer, ["runtime"], tmp_path / "c").versions() == {"runtime": "1.2"}


def test_conditions_of_dependencies_are_the_boards(index, tmp_path):
    wheel(
        index, "runtime", "1.0", "old ; python_version < '3.10'", "new ; python_version >= '3.10'",
        "arm ; platform_machine == 'armv7l'", "never ; sys_platform == 'win32'",
    )  # fmt: skip
    for name in ("old", "new", "arm", "never"):
        wheel(index, name, "1.0")
    assert set(resolve(BULLSEYE, ["runtime"], tmp_path / "c").versions()) == {
        "runtime",
        "old",
        "arm",
    }
    assert set(resolve(HERE, ["runtime"], tmp_path / "c").versions()) == {"runtime", "new"}


def test_a_set_is_kept_and_needs_no_index_again(index, tmp_path):
    wheel(index, "runtime", "1.0", "numpy<2")
    wheel(index, "numpy", "1.26.4")
    wheel(index, "numpy", "2.1.0")
    first = resolve(HERE, ["runtime"], tmp_path / "c")
    assert first.versions() == {"runtime": "1.0", "numpy": "1.26.4"}
    shutil.rmtree(index)
    assert resolve(HERE, ["runtime"], tmp_path / "c") == first
    assert all(hashlib.sha256(w.path.read_bytes()).hexdigest() == w.sha256 for w in first.wheels)
    with pytest.raises(WheelhouseError, match="No matching distribution"):
        resolve(HERE, ["runtime"], tmp_path / "c", refresh=True)


def test_what_a_board_has_stands_for_what_has_no_wheel(index, tmp_path):
    wheel(index, "tflite-runtime", "2.14.0", "numpy>=1.23.2", tag="cp39-cp39-linux_armv7l")
    with pytest.raises(WheelhouseError, match="numpy.*apt-get install python3-numpy"):
        choose(BULLSEYE, ["tflite"], tmp_path / "c")
    for version, fits in (("1.24.2", True), ("2.0", False)):
        platform = Platform("3.9", "armv7l", "2.31", (("numpy", version),))
        if fits:
            found = choose(platform, ["ort", "tflite"], tmp_path / "c")
            assert found.versions() == {"tflite-runtime": "2.14.0"}
        else:
            with pytest.raises(WheelhouseError):
                choose(platform, ["tflite"], tmp_path / "c")


def test_a_runtime_that_has_no_wheel_does_not_hide_the_other(index, tmp_path):
    wheel(index, "onnxruntime", "1.19.2", "numpy")
    wheel(index, "numpy", "2.0.2")
    assert set(choose(BULLSEYE, ["ort", "tflite"], tmp_path / "c").versions()) == {
        "onnxruntime", "numpy"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--for", "nonsense"], "is no platform. Next: write PYTHON-MACHINE-GLIBC"),
        (["--for", "3.9-armv7l-2.31", "--with", "numpy<<2"], "write it as pip takes it"),
        (["--for", "3.9-armv7l-2.31", "--with=--index-url=x"], "write it as pip takes it"),
        (["--for", "3.9-armv7l-2.31", "--has", "numpy"], "write NAME==VERSION"),
        (["--for", "3.9-armv7l-2.31"], "No matching distribution"),
    ],
)
def test_mistakes_end_in_one_line(index, capsys, argv, said):
    assert main(["provision", *argv]) in (1, 2)
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_an_index_that_cannot_be_reached_is_said_to_be_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UnreachableIndexError, match="cannot reach its index"):
        choose(HERE, ["ort"], tmp_path / "c")


# --- on boards ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two boards with Debian's Python and nothing in it."""
    if not Path(DEBIANS_PYTHON).exists():
        pytest.skip("missing: python3")
    folder = tmp_path_factory.mktemp("bare")
    rack.up(folder, uniform_rack(2), DEBIANS_PYTHON)
    yield folder / "inventory.yaml"
    rack.down(folder)


def test_boards_get_what_they_lack_once(index, bare_rack, capsys):
    wheel(index, "onnxruntime", "99.0", "numpy")
    wheel(index, "numpy", "98.0")
    argv = ["provision", "--inventory", str(bare_rack), "--json", "--runtime", "ort"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.count('"onnxruntime": "99.0"') == 2
    assert out.count('"uploads": 3') == 2
    assert main(argv) == 0
    assert capsys.readouterr().out.count('"uploads": 0') == 2
    assert main(["probe", "--inventory", str(bare_rack), "--json"]) == 0
    assert capsys.readouterr().out.count('"99.0"') == 2


def test_a_set_that_does_not_import_leaves_the_board_as_it_was(index, bare_rack, capsys):
    broken = {"tflite_runtime/__init__.py": "", "tflite_runtime/interpreter.py": "import nowhere\n"}
    wheel(index, "tflite-runtime", "1.0", files=broken)
    wheel(index, "numpy", "1.20.0")
    argv = ["provision", "--inventory", str(bare_rack), "--runtime", "tflite", "vb-01"]
    assert main(argv) == 3
    err = capsys.readouterr().err
    assert "vb-01: agent provision failed" in err
    assert "No module named 'nowhere'" in err


def test_cleaning_says_what_is_there(bare_rack, capsys):
    argv = ["clean", "--inventory", str(bare_rack), "--json", "--to-mib", "0"]
    assert main(argv) == 0
    assert '"blobs_bytes": 0' in capsys.readouterr().out


@pytest.fixture(scope="session")
def tflite_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolution."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU()).eval()
    path = tmp_path_factory.mktemp("tflite") / "net.tflite"
    path.write_bytes(fast_tflite(network, torch.zeros(1, 3, 32, 32)))
    return path


def registry_or_skip(platform: Platform, *requirements: str, cache: Path) -> None:
    try:
        resolve(platform, requirements, cache)
    except UnreachableIndexError as error:
        pytest.skip(f"no registry: {error}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "runtimes", "expected"),
    [
        (Platform("3.8", "aarch64", "2.31"), ["ort", "tflite"],
         {"onnxruntime": "1.19.2", "tflite-runtime": "2.13.0", "numpy": "1.24.4"}),
        (Platform("3.9", "armv7l", "2.34", (("numpy", "1.24.2"),)), ["tflite"],
         {"tflite-runtime": "2.14.0"}),
        (Platform("3.11", "armv7l", "2.36", (("numpy", "1.24.2"),)), ["tflite"],
         {"tflite-runtime": "2.14.0"}),
        (Platform("3.13", "aarch64", "2.41"), ["ort", "tflite"], {}),
    ],
)  # fmt: skip
def test_real_wheels_of_old_and_small_boards(tmp_path, platform, runtimes, expected):
    registry_or_skip(HERE, "packaging", cache=tmp_path)
    found = choose(platform, runtimes, tmp_path).versions()
    assert expected.items() <= found.items()
    if not expected:
        assert {"onnxruntime", "ai-edge-litert"} <= set(found)


def namespaces_missing() -> str:
    try:
        namespace.require_namespaces()
    except RackError as error:
        return f"missing: {error}" if "not installed" in str(error) else f"no sshd boards: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_sshd_board_is_measured_with_what_it_was_given(tmp_path, tflite_model, capsys):
    if missing := namespaces_missing():
        pytest.skip(missing)
    registry_or_skip(HERE, "packaging", cache=tmp_path / "c")
    rack.up(tmp_path / "rack", uniform_rack(1), DEBIANS_PYTHON, sshd=True)
    try:
        inventory = tmp_path / "rack" / "inventory.yaml"
        assert [b.board_id for b in load_inventory(inventory).boards] == ["vb-01"]
        asked = ["--with", "tflite-runtime==2.14.0", "--with", "numpy<2"]
        assert main(["provision", "--inventory", str(inventory), "--json", *asked]) == 0
        assert '"numpy": "1.26.4"' in capsys.readouterr().out
        record = measured(tmp_path, inventory, tflite_model, "tflite")
    finally:
        rack.down(tmp_path / "rack")
    assert record.error is None
    assert record.runtime_version == "tflite-runtime 2.14.0"
    assert len(record.latency_ns) >= 5


def measured(folder: Path, inventory: Path, model: Path, runtime: str):
    campaign = folder / "campaign.yaml"
    campaign.write_text(
        "version: 1\ncampaign_id: provisioned\n"
        f"models: [{{name: net, path: {model}}}]\nruntimes: [{runtime}]\n"
        "stopping: {warmup_min: 1, warmup_max: 5, samples_min: 5, samples_max: 20}\n"
    )
    database = folder / "lab.db"
    argv = ["measure", str(campaign), "--inventory", str(inventory), "--store", str(database)]
    assert main(argv) == 0
    store = Store(database)
    try:
        (stored,) = store.runs()
    finally:
        store.close()
    return stored.record
