"""agent.pyz is reproducible, and whole: it starts with nothing of the workstation's in reach."""

import subprocess
import sys
import zipfile
from pathlib import Path

from harness.bundle import build_bundle


def test_the_same_sources_give_the_same_bytes():
    assert build_bundle() == build_bundle()


def test_a_changed_source_is_another_agent(tmp_path):
    package = tmp_path / "device_agents"
    package.mkdir()
    (package / "__init__.py").write_text("")
    before = build_bundle(package)
    (package / "main.py").write_text("x = 1\n")
    assert build_bundle(package).sha256 != before.sha256


def test_nothing_but_sources_is_in_it(tmp_path):
    path = tmp_path / "agent.pyz"
    path.write_bytes(build_bundle().data)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert "__main__.py" in names
    assert all(name.endswith(".py") for name in names)


def test_it_starts_where_only_the_standard_library_is(tmp_path):
    path = tmp_path / "agent.pyz"
    path.write_bytes(build_bundle().data)
    done = subprocess.run(
        [sys.executable, "-I", "-S", path, "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "probe" in done.stdout + done.stderr


def start(tmp_path, compiled: Path | str) -> subprocess.CompletedProcess[str]:
    bundle = build_bundle()
    path = tmp_path / "agent.pyz"
    path.write_bytes(bundle.data)
    return subprocess.run(
        [sys.executable, "-I", "-S", "-v", path, "--home", tmp_path, "has"],
        env={"FLEETCUT_COMPILED": str(compiled)}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip


def test_the_compiled_copy_is_used_by_the_python_it_was_compiled_for(tmp_path):
    bundle = build_bundle()
    compiled = tmp_path / Path(bundle.compiled_path).name
    compiled.write_bytes(bundle.compiled)
    done = start(tmp_path, compiled)
    assert done.returncode == 0, done.stderr
    assert f'zipimporter object "{compiled}' in main_module(done.stderr)


def test_a_compiled_copy_of_another_python_is_passed_by(tmp_path):
    other = tmp_path / "agent.cpython-38.0123456789abcdef.zip"
    other.write_bytes(b"not even a zip")
    done = start(tmp_path, other)
    assert done.returncode == 0, done.stderr
    assert f'zipimporter object "{tmp_path / "agent.pyz"}' in main_module(done.stderr)


def main_module(verbose: str) -> str:
    """What python -v says of where that module came from."""
    return next(line for line in verbose.splitlines() if "import 'device_agents.main'" in line)
