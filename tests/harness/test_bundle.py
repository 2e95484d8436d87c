"""agent.pyz is reproducible, and whole: it starts with nothing of the workstation's in reach."""

import subprocess
import sys
import zipfile

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
