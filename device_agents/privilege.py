"""The few writes that need root: direct where allowed, else through one small helper.

Input: a sysfs Root, a path, a value; or the number of a power mode. Output: it is written, or
OSError. The helper is fleetcut_set.py, installed as /usr/local/sbin/fleetcut-set and let to one
group by one line of sudoers; `sudo -n` never asks for a password.
"""

from __future__ import annotations

import errno
import os
import pkgutil
import pwd
import shlex
import subprocess
import sys
from pathlib import Path
from typing import List

from device_agents.archive import own_archive
from device_agents.fleetcut_set import run_nvpmodel
from device_agents.sysfs import Root

HELPER = "/usr/local/sbin/fleetcut-set"
SUDOERS = "/etc/sudoers.d/fleetcut"
GROUP = "fleetcut"
SUDOERS_LINE = f"%{GROUP} ALL=(root) NOPASSWD: {HELPER}"
PERMISSION = "fleetcut check prints the commands that let this user do it"
_TIMEOUT_S = 90.0
_SOURCE = "fleetcut_set.py"


def write(root: Root, relative: str, value: str) -> None:
    """Write a file below the root, by the helper where this user may not. Raises OSError.

    Only the machine's own /sys has a helper: the files below any other root are the user's.
    """
    try:
        root.write_text(relative, value)
    except PermissionError as refused:
        if not is_machine(root):
            raise
        _help(refused, "write", f"/{relative}", value)


def set_nvpmodel(number: str) -> None:
    """Set a power mode by its number, as root or by the helper. Raises OSError."""
    if os.geteuid() != 0:
        _help(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "nvpmodel", number)
        return
    try:
        complaint = run_nvpmodel(number)
    except subprocess.SubprocessError as error:
        raise OSError(errno.ETIMEDOUT, str(error)) from None
    if complaint is not None:
        raise OSError(errno.EIO, complaint)


def helper_works() -> bool:
    """Whether this user may call the helper now, without a password."""
    try:
        _help(PermissionError(errno.EACCES, ""), "check")
    except OSError:
        return False
    return True


def is_machine(root: Root) -> bool:
    """Whether the root is this machine's own, and no captured or virtual one."""
    return root.path == Path("/")


def helper_source() -> bytes:
    """The helper as it is installed."""
    data = pkgutil.get_data("device_agents", _SOURCE)
    assert data is not None
    return data


def setup_commands() -> List[str]:
    """What a person types on the board, once, to let this user set clocks. For any sh."""
    user = shlex.quote(pwd.getpwuid(os.getuid()).pw_name)
    python = shlex.quote(sys.executable or "python3")
    archive = own_archive()
    source = (
        f"{python} {shlex.quote(archive)} helper"
        if archive
        else f"cat {shlex.quote(str(Path(__file__).with_name(_SOURCE)))}"
    )
    install = "sudo install -o root -g root -m"
    return [
        f"sudo groupadd -f {GROUP}",
        f"sudo usermod -aG {GROUP} {user}",
        f"{source} | {install} 0755 /dev/stdin {HELPER}",
        f"echo '{SUDOERS_LINE}' | {install} 0440 /dev/stdin {SUDOERS}",
    ]


def _help(refused: OSError, *argv: str) -> None:
    """Raises what was refused where the helper is of no use, else OSError with its words."""
    if os.geteuid() == 0:
        raise refused
    try:
        done = subprocess.run(
            ["sudo", "-n", HELPER, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise refused from None
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"{HELPER} gave no answer") from None
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OSError(errno.EACCES, said[-1] if said else f"{HELPER} failed")
