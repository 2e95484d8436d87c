#!/usr/bin/python3 -IS
"""What the agent may have root do on a board, and nothing else: /usr/local/sbin/fleetcut-set.

Input: argv. Output: exit status 0 done, 1 the kernel refused, 2 not allowed; why on stderr.

    fleetcut-set write PATH VALUE   a governor or a clock limit of one cpufreq policy
    fleetcut-set nvpmodel NUMBER    a Jetson's power mode
    fleetcut-set check              nothing: it is installed and may be called

It is installed as it stands (the agent's verb `helper` prints it), owned by root, and let by one
line of sudoers to one group. It therefore imports nothing of ours and trusts no argument: a path is
matched as a whole before and after its symbolic links are resolved, a file is never made, and
nothing is handed to a shell. Python 3.8 or later, standard library, isolated from the caller's
environment by -I.
"""

import os
import re
import stat
import subprocess
import sys
from typing import List, Optional

NVPMODEL = "/usr/sbin/nvpmodel"
_REFUSED = 2
_FAILED = 1
_CPU = "devices/system/cpu"
_PATH = re.compile(
    _CPU
    + r"/(?:cpufreq/policy[0-9]{1,4}|cpu[0-9]{1,4}/cpufreq)"
    + r"/(scaling_governor|scaling_min_freq|scaling_max_freq)"
)
_VALUES = {
    "scaling_governor": re.compile(r"[a-z][a-z_]{0,31}"),
    "scaling_min_freq": re.compile(r"[1-9][0-9]{0,8}"),
    "scaling_max_freq": re.compile(r"[1-9][0-9]{0,8}"),
}
_MODE = re.compile(r"[0-9]{1,3}")
_NVPMODEL_S = 60


def main(argv: List[str], sys_folder: str = "/sys", nvpmodel: str = NVPMODEL) -> int:
    """sys_folder and nvpmodel: for tests, which call this function; no argument reaches them."""
    try:
        if len(argv) == 3 and argv[0] == "write":
            return _write(argv[1], argv[2], sys_folder)
        if len(argv) == 2 and argv[0] == "nvpmodel":
            return _set_mode(argv[1], nvpmodel)
        if argv == ["check"]:
            return 0
    except (OSError, subprocess.SubprocessError) as error:
        return _no(_FAILED, getattr(error, "strerror", None) or str(error))
    return _no(_REFUSED, "usage: fleetcut-set write PATH VALUE | nvpmodel NUMBER | check")


def _write(path: str, value: str, sys_folder: str) -> int:
    prefix = sys_folder + "/"
    found = _PATH.fullmatch(path[len(prefix) :]) if path.startswith(prefix) else None
    if found is None:
        return _no(_REFUSED, f"this path may not be written: {path[:200]!r}")
    if not _VALUES[found.group(1)].fullmatch(value):
        return _no(_REFUSED, f"{found.group(1)} may not be set to {value[:80]!r}")
    # cpuN/cpufreq is itself a link to a policy: what it leads to must be a policy's file too.
    real = os.path.realpath(path)
    real_prefix = os.path.realpath(sys_folder) + "/"
    leads_to = _PATH.fullmatch(real[len(real_prefix) :]) if real.startswith(real_prefix) else None
    if leads_to is None or leads_to.group(1) != found.group(1):
        return _no(_REFUSED, f"this path leads elsewhere: {path[:200]!r}")
    fd = os.open(real, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return _no(_REFUSED, f"this is no plain file: {path[:200]!r}")
        os.write(fd, value.encode("ascii"))
    finally:
        os.close(fd)
    return 0


def _set_mode(number: str, nvpmodel: str) -> int:
    if not _MODE.fullmatch(number):
        return _no(_REFUSED, f"a power mode is a number, not {number[:40]!r}")
    complaint = run_nvpmodel(number, nvpmodel)
    return 0 if complaint is None else _no(_FAILED, complaint)


def run_nvpmodel(number: str, nvpmodel: str = NVPMODEL) -> Optional[str]:
    """Set a power mode, as root. Returns what nvpmodel says against it, None when it is done.

    Raises OSError and subprocess.SubprocessError.
    """
    done = subprocess.run(
        [nvpmodel, "-m", number],
        # Some modes ask whether to reboot now. The answer is no.
        input=b"no\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_NVPMODEL_S,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        cwd="/",
    )
    if done.returncode == 0:
        return None
    said = done.stdout.decode("utf-8", "replace").splitlines()
    return " ".join(line for line in said if line)[:300] or "nvpmodel failed"


def _no(status: int, text: str) -> int:
    sys.stderr.write(f"fleetcut-set: {text}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
