"""How much memory a process had resident at most, as the kernel counted it.

Input: a process id. Output: bytes; None or False where the kernel does not say.
The real /proc is read, not the board's root: it is the process that is asked about.
"""

from __future__ import annotations

from typing import Optional

_RESET_PEAK = "5"


def reset_peak_rss(pid: int) -> bool:
    """Let the peak start again from what is resident now. False before Linux 4.0 and elsewhere.

    https://docs.kernel.org/filesystems/proc.html, /proc/PID/clear_refs
    """
    try:
        with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as file:
            file.write(_RESET_PEAK)
    except OSError:
        return False
    return True


def peak_rss_bytes(pid: int) -> Optional[int]:
    """VmHWM: the largest resident set of all the process holds, its interpreter included."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        parts = value.split()
        if name == "VmHWM" and len(parts) == 2 and parts[0].isdigit() and parts[1] == "kB":
            return int(parts[0]) * 1024
    return None
