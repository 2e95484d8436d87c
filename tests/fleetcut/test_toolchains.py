"""The verb ``toolchains``: what is there, what is missing, and how it is got."""

from __future__ import annotations

import json
import platform

import pytest

from compiler.targets import toolchains
from compiler.targets.toolchains import (
    COMMAND,
    RUNTIMES,
    TRIPLETS,
    MissingToolError,
    find,
    install,
)
from fleetcut.cli import main

OTHER = next(machine for machine in TRIPLETS if machine != platform.machine())


def show(capsys, *arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
    status = main(["toolchains", "--json", *arguments])
    return status, {entry["machine"]: entry for entry in json.loads(capsys.readouterr().out)}


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with an empty cache, no compiler, no rights and no registry."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(toolchains.os, "geteuid", lambda: 1000)


def test_every_machine_is_shown_and_the_first_missing_tool_named(bare, capsys):
    status, found = show(capsys)
    assert (status, set(found)) == (1, set(TRIPLETS))
    assert found[platform.machine()]["fact"] == "g++ is not on PATH"
    assert found[OTHER]["fact"] == f"{TRIPLETS[OTHER]}-g++ is not on PATH"
    assert all(COMMAND in entry["next_step"] for entry in found.values())


def test_a_registry_that_does_not_answer_is_said(bare, tmp_path, capsys):
    status, found = show(capsys, "--install", OTHER)
    assert status == 1
    assert "pip failed: " in found[OTHER]["fact"]
    assert list(tmp_path.glob("**/*.so")) == []


def test_a_compiler_is_not_installed_without_root_but_its_package_named(bare):
    with pytest.raises(MissingToolError, match=r"g\+\+ is not installed.*apt-get install g\+\+"):
        install(platform.machine())


def test_an_unknown_machine_is_refused(capsys):
    status, found = show(capsys, "--install", "riscv64")
    assert status == 1
    assert "aarch64, armv7l and x86_64" in found["riscv64"]["fact"]


def test_what_is_complete_is_left_alone(capsys):
    try:
        for runtime in RUNTIMES[platform.machine()]:
            find(platform.machine(), runtime)
    except MissingToolError as missing:
        pytest.skip(str(missing))
    assert install(platform.machine()) == ()
    assert show(capsys, platform.machine())[0] == 0
