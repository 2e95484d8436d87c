"""What a board was before it was touched, on disk until it is that again.

Input: a platform and the home's restore.json. Output: power mode, governors and clock limits as
they were. The file names its owner, and restoring takes a lock: a worker, its watchdog and the
next worker may each come to it at any time, and what one has put back the others leave alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Tuple

from device_agents import cpufreq
from device_agents.cpufreq import Limits, read_limits
from device_agents.errors import RunFailedError
from device_agents.files import fsync_folder, write_whole
from device_agents.platforms import Linux


class Restorer:
    """One worker's memory of its board. Inherited by its watchdog, with the owner's name."""

    def __init__(self, platform: Linux, restore_file: Path) -> None:
        self._platform = platform
        self._file = restore_file
        self._owner = os.urandom(16).hex()

    def remember(self) -> None:
        """Write down what the board is now, before it is touched. Raises OSError."""
        root = self._platform.root
        remembered = {
            "owner": self._owner,
            "power_mode": self._platform.power_mode(),
            "policies": [asdict(read_limits(root, p)) for p in self._platform.policies],
        }
        with self._locked():
            write_whole(self._file, json.dumps(remembered).encode("utf-8"))

    def restore(self, only_own: bool = False) -> None:
        """Put back what restore.json says, if there is one; only_own: if this worker wrote it.

        What cannot be put back is said in the log and stays in the file for the next worker: it
        must not cost the record that was measured meanwhile.
        """
        with self._locked():
            try:
                data = self._file.read_bytes()
            except FileNotFoundError:
                return
            try:
                owner, power_mode, limits = _parse(data)
            except (ValueError, TypeError, KeyError) as error:
                aside = self._file.with_name(self._file.name + ".unreadable")
                os.replace(str(self._file), str(aside))
                _say(f"{self._file.name} cannot be read ({error})", f"see {aside}, or reboot")
                return
            if only_own and owner != self._owner:
                return
            if self._put_back(power_mode, limits):
                self._file.unlink()
                fsync_folder(self._file.parent)

    def _put_back(self, power_mode: Optional[str], limits: List[Limits]) -> bool:
        """Whether all of it is back. The mode first: it sets limits of its own."""
        platform = self._platform
        is_back = True
        if power_mode is not None and platform.power_mode() != power_mode:
            is_back = _attempt(lambda: platform.set_power_mode(power_mode))
        throttled = platform.throttled() is True
        for entry in limits:
            put_back = functools.partial(cpufreq.restore, platform.root, entry, throttled)
            is_back = _attempt(put_back) and is_back
        return is_back

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Held for as long as restoring takes; it dies with its holder."""
        path = str(self._file.with_name("restore.lock"))
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _parse(data: bytes) -> Tuple[str, Optional[str], List[Limits]]:
    """Raises ValueError, TypeError and KeyError."""
    found = json.loads(data)
    return (
        str(found["owner"]),
        found["power_mode"],
        [Limits(**fields) for fields in found["policies"]],
    )


def _attempt(put_back: Callable[[], None]) -> bool:
    try:
        put_back()
    except RunFailedError as failed:
        _say(failed.error.fact, failed.error.next_step)
        return False
    return True


def _say(fact: str, next_step: str) -> None:
    print(f"not restored: {fact}. Next: {next_step}", file=sys.stderr, flush=True)
