"""What works on a board, what does not, and what to do about it.

Input: the home and a sysfs Root. Output: a Check each. Nothing is changed but a probe file in
the home, which is removed again.
"""

from __future__ import annotations

import os
import platform
import pwd
import shlex
import shutil
import sys
from dataclasses import dataclass
from typing import List

from device_agents.clock import effective_freq_khz
from device_agents.contract.signatures import SignatureError, require_ssh_keygen
from device_agents.errors import AgentError
from device_agents.files import write_whole
from device_agents.home import Home
from device_agents.platforms import Linux, select
from device_agents.platforms.jetson import Jetson
from device_agents.privilege import HELPER, helper_works, is_machine, setup_commands
from device_agents.probe import runtime_versions
from device_agents.sysfs import Root
from device_agents.telemetry import PERIOD_S, observation_cpu_ns
from device_agents.trust import signers_of

_FREE_BYTES_MIN = 200 << 20
_GLIBC_MIN = (2, 17)
"""Of manylinux2014, the oldest that runtimes are still built for."""
_FIRMWARE = "/dev/vcio"
_NOTHING = "nothing to do"
# Compared at run time: where the syntax still parses, an old Python is told what is wrong.
_PYTHON_MIN = (3, 8)


@dataclass(frozen=True)
class Check:
    """One fact. next_step: what to do, also where it is well and could be better."""

    name: str
    ok: bool
    fact: str
    next_step: str = _NOTHING


def run_checks(home: Home, root: Root) -> List[Check]:
    board = select(root)
    return [
        _python(),
        _c_library(),
        _home(home),
        _disk(home),
        *_login(root),
        *_groups(root),
        *_runtimes(),
        _thermal(board),
        _cpufreq(board),
        *_power_mode(board),
        *_locked_clocks(board),
        _clock(),
        _telemetry(board),
        _battery(board),
        _signatures(home, root),
    ]


def _signatures(home: Home, root: Root) -> Check:
    """Whether the board can ask what it was told to ask; see docs/deploying.md."""
    signers, by_root = signers_of(home, root)
    try:
        require_ssh_keygen()
        able = "its ssh-keygen can check them"
    except SignatureError as error:
        able = str(error)
        if signers is not None:
            return Check(
                "signatures", not by_root, f"not checked: {able}", "install openssh-client"
            )
    if signers is None:
        return Check("signatures", True, f"any artifact is taken: no signers are known; {able}")
    return Check("signatures", True, f"asked for, by {signers}; {able}")


def _python() -> Check:
    fact = f"Python {platform.python_version()} ({sys.executable or 'path unknown'})"
    if tuple(sys.version_info) >= _PYTHON_MIN:
        return Check("python", True, fact)
    return Check("python", False, f"{fact}, 3.8 is needed", "install a newer Python 3")


def _home(home: Home) -> Check:
    try:
        home.create()
        probe = home.incoming / ".check"
        write_whole(probe, b"")
        probe.unlink()
    except AgentError as error:
        return Check("home", False, error.fact, error.next_step)
    except OSError as error:
        return Check(
            "home",
            False,
            f"{home.path} cannot be written ({error.strerror})",
            f"chown -R $USER {home.path}",
        )
    return Check("home", True, f"{home.path} is writable")


def _disk(home: Home) -> Check:
    folder = home.path
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free_bytes = shutil.disk_usage(str(folder)).free
    fact = f"{free_bytes >> 20} MiB free at {folder}"
    if free_bytes >= _FREE_BYTES_MIN:
        return Check("disk", True, fact)
    need = f"free at least {_FREE_BYTES_MIN >> 20} MiB there"
    return Check("disk", False, fact, f"fleetcut clean --to-mib 0 for this board; else {need}")


def _c_library() -> Check:
    """Wheels with machine code are made for glibc, of 2.17 at least."""
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    fact = f"{name or 'a C library that is not glibc'} {version}".strip()
    if name == "glibc" and numbers >= _GLIBC_MIN:
        return Check("glibc", True, fact)
    any_runtime = bool(runtime_versions())
    return Check(
        "glibc",
        any_runtime,
        f"{fact}: no runtime's wheels fit",
        _NOTHING if any_runtime else "install onnxruntime by the system's own packages",
    )


def _login(root: Root) -> List[Check]:
    """Only where systemd-logind ends what outlives a login, as a detached worker has to."""
    if _logind_setting(root, "KillUserProcesses") != "yes":
        return []
    user = pwd.getpwuid(os.getuid()).pw_name
    if root.exists(f"var/lib/systemd/linger/{user}") or os.getuid() == 0:
        return [Check("login", True, f"{user} lingers: its processes outlive a login")]
    return [
        Check(
            "login",
            False,
            "KillUserProcesses=yes: a run ends with the connection",
            f"sudo loginctl enable-linger {shlex.quote(user)}",
        )
    ]


def _logind_setting(root: Root, key: str) -> str:
    """As systemd reads it: the drop-ins after the file, the last one counts."""
    value = ""
    drop_ins = sorted(root.glob("etc/systemd/logind.conf.d/*.conf"))
    for path in ("etc/systemd/logind.conf", *drop_ins):
        for line in (root.read_text(path) or "").splitlines():
            name, equals, found = line.partition("=")
            if equals and name.strip() == key:
                value = found.strip().lower()
    return {"1": "yes", "true": "yes", "on": "yes"}.get(value, value)


def _groups(root: Root) -> List[Check]:
    """Only of Raspberry Pis: their firmware answers to one group."""
    if not is_machine(root) or not os.path.exists(_FIRMWARE):
        return []
    if os.access(_FIRMWARE, os.R_OK | os.W_OK):
        return [Check("groups", True, f"{_FIRMWARE} can be asked")]
    user = shlex.quote(pwd.getpwuid(os.getuid()).pw_name)
    return [
        Check(
            "groups",
            False,
            f"{_FIRMWARE} cannot be asked: throttling may go unseen",
            f"sudo usermod -aG video {user}, then log in again",
        )
    ]


def _runtimes() -> List[Check]:
    """One of the two is enough: not every board has wheels for both."""
    found = dict(runtime_versions())
    ort = found.get("onnxruntime") or found.get("onnxruntime-gpu")
    litert = [f"{n} {found[n]}" for n in ("ai-edge-litert", "tflite-runtime") if n in found]
    any_runtime = bool(ort or litert)
    # From the workstation: neither pip nor internet is needed here.
    give = "fleetcut provision --runtime {} for this board"
    return [
        Check("ort", True, f"onnxruntime {ort}")
        if ort
        else Check("ort", any_runtime, "onnxruntime is not installed", give.format("ort")),
        Check("tflite", True, ", ".join(litert))
        if litert
        else Check("tflite", any_runtime, "no TFLite runtime is installed", give.format("tflite")),
    ]


def _thermal(board: Linux) -> Check:
    zones = board.temp_c_by_zone()
    readable = [kind for kind, temp_c in zones if temp_c is not None]
    if readable:
        unreadable = len(zones) - len(readable)
        also = f"; {unreadable} zones cannot be read" if unreadable else ""
        return Check("thermal", True, f"temperature of {', '.join(readable)}{also}")
    return Check(
        "thermal",
        False,
        f"none of {len(zones)} thermal zones can be read",
        "see /sys/class/thermal: records will carry no temperature",
    )


def _cpufreq(board: Linux) -> Check:
    freqs = board.freq_khz_by_policy()
    if not any(khz is not None for _, khz in freqs):
        return Check(
            "cpufreq",
            False,
            "no CPU clock can be read",
            "see /sys/devices/system/cpu/cpufreq: records will carry no reported clock",
        )
    fact = f"{len(freqs)} policies"
    names = ("scaling_governor", "scaling_min_freq", "scaling_max_freq")
    if all(board.root.writable(f"{p}/{n}") for p in board.policies for n in names):
        return Check("cpufreq", True, f"{fact}, readable and writable")
    if not is_machine(board.root):
        return Check(
            "cpufreq",
            True,
            f"{fact}, readable and not writable",
            f"to measure with a governor or a fixed clock, let this user write {', '.join(names)}",
        )
    if helper_works():
        return Check("cpufreq", True, f"{fact}, readable, and writable by {HELPER}")
    return Check("cpufreq", True, f"{fact}, readable and not writable", _setup("set clocks"))


def _power_mode(board: Linux) -> List[Check]:
    """Only of boards that have modes."""
    modes = board.power_modes()
    if not modes:
        return []
    fact = f"power mode {board.power_mode() or 'unreadable'} of {', '.join(modes)}"
    if os.geteuid() == 0 or helper_works():
        return [Check("power_mode", True, fact)]
    return [Check("power_mode", True, f"{fact}, not to be set", _setup("set power modes"))]


def _locked_clocks(board: Linux) -> List[Check]:
    """Only of Jetsons that say so: root's."""
    if not isinstance(board, Jetson) or board.clocks_are_locked() is not True:
        return []
    fact = "jetson_clocks holds the clocks at their mode's maximum"
    return [Check("jetson_clocks", False, fact, "sudo jetson_clocks --restore, or reboot")]


def _telemetry(board: Linux) -> Check:
    cost_us = observation_cpu_ns(board) / 1e3
    share_pct = cost_us / 1e6 / PERIOD_S * 100
    fact = f"a sample takes {cost_us:.0f} µs of CPU, {share_pct:.2f} % of a core"
    if not board.root.given_up:
        return Check("telemetry", True, fact)
    given_up = ", ".join(sorted(board.root.given_up))
    return Check("telemetry", True, f"{fact}; {given_up} hangs and is not read", "see its driver")


def _setup(purpose: str) -> str:
    return (
        f"to {purpose}, type on the board: {'; '.join(setup_commands())}; then log in again"
        " (docs/preparing-boards.md)"
    )


def _clock() -> Check:
    khz = effective_freq_khz()
    if khz is not None:
        return Check("clock", True, f"a core runs at {khz / 1e3:.0f} MHz, as measured")
    return Check(
        "clock",
        True,
        f"the effective clock cannot be measured on {os.uname().machine}",
        "drift of the clock will not be seen in records",
    )


def _battery(board: Linux) -> Check:
    if not board.has_battery():
        return Check("battery", True, "no battery")
    battery_pct = board.battery_pct()
    if battery_pct is None:
        return Check(
            "battery", False, "the battery's charge cannot be read", "see /sys/class/power_supply"
        )
    return Check("battery", True, f"battery at {battery_pct:g} %")
