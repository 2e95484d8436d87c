"""What a board lacks, each with the command that mends it."""

import os
import pwd

import pytest

from device_agents import checks
from device_agents.home import Home


@pytest.fixture
def check(tree, tmp_path):
    def run(name: str):
        found = checks.run_checks(Home(tmp_path / "home"), tree.root)
        return next((c for c in found if c.name == name), None)

    return run


LOGIND = "etc/systemd/logind.conf"


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, False),
        ({LOGIND: "[Login]\n#KillUserProcesses=yes\n"}, False),
        ({LOGIND: "[Login]\nKillUserProcesses=yes\n"}, True),
        ({LOGIND: "[Login]\nKillUserProcesses = true\n"}, True),
        ({LOGIND: "KillUserProcesses=yes\n",
          f"{LOGIND}.d/10-lab.conf": "[Login]\nKillUserProcesses=no\n"}, False),
        ({f"{LOGIND}.d/10-lab.conf": "[Login]\nKillUserProcesses=on\n"}, True),
    ],
)  # fmt: skip
def test_a_login_that_ends_what_it_started_is_noticed(check, tree, monkeypatch, files, ends):
    monkeypatch.setattr(os, "getuid", lambda: pwd.getpwnam("nobody").pw_uid)
    tree.put(files)
    found = check("login")
    assert (found is not None) == ends
    if found is not None:
        assert not found.ok
        assert found.next_step == "sudo loginctl enable-linger nobody"
        tree.put({"var/lib/systemd/linger/nobody": ""})
        assert check("login").ok


def test_a_full_disk_and_no_runtime_are_mended_from_the_workstation(check, monkeypatch):
    monkeypatch.setattr(checks, "_FREE_BYTES_MIN", 1 << 60)
    assert check("disk").next_step.startswith("fleetcut clean --to-mib 0")
    monkeypatch.setattr(checks, "runtime_versions", tuple)
    for runtime in ("ort", "tflite"):
        found = check(runtime)
        assert not found.ok
        assert found.next_step == f"fleetcut provision --runtime {runtime} for this board"


@pytest.mark.parametrize(
    ("libc", "ok"), [(("glibc", "2.36"), True), (("glibc", "2.13"), False), (("", ""), False)]
)
def test_a_c_library_that_no_wheel_fits_is_noticed(check, monkeypatch, libc, ok):
    monkeypatch.setattr(checks.platform, "libc_ver", lambda *_: libc)
    monkeypatch.setattr(checks, "runtime_versions", tuple)
    found = check("glibc")
    assert found.ok == ok
    if not ok:
        assert "system's own packages" in found.next_step
