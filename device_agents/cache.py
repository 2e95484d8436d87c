"""Room among the blobs: what nobody here needs goes, the longest unused first.

Input: the home, a quota in bytes. Output: what was removed and what is left.
Kept whatever the quota: what a session names that is still here, and what was asked for within
``grace_s``, which another workstation may be about to use. An installed artifact has files of its
own. Only whole files are ever in blobs/: uploads lie in incoming/ until their hash was checked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple

from device_agents.home import SHA256, Home
from device_agents.locks import is_held

GRACE_S = 3600.0
_OTHER_AGENTS_KEPT = 2
"""Beside the one that runs: workstations of several versions may take turns."""
_HASHES = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def touch(home: Home, sha256s: Iterable[str]) -> None:
    """These were asked for now: the blobs' times of change are what 'unused' is told by."""
    for sha256 in sha256s:
        with contextlib.suppress(OSError):
            os.utime(str(home.blob(sha256)))


def make_room(
    home: Home,
    quota_bytes: int,
    coming_bytes: int = 0,
    *,
    grace_s: float = GRACE_S,
    own_agent: Optional[str] = None,
) -> Dict[str, Any]:
    """Remove left-overs, and blobs until those left and ``coming_bytes`` are within the quota.

    own_agent: the file that this agent runs from. Cut at any point it may be run again.
    """
    home.create()
    now_s = time.time()
    freed_bytes = _remove_leftovers(home, now_s, grace_s) + _remove_agents(home, own_agent)
    blobs = sorted(_blobs(home))
    total_bytes = sum(size_bytes for _, size_bytes, _ in blobs)
    needed = needed_by_sessions(home) if total_bytes + coming_bytes > quota_bytes else set()
    removed = 0
    for changed_s, size_bytes, path in blobs:
        if total_bytes + coming_bytes <= quota_bytes:
            break
        # Both ways: a board without a clock of its own may have been in the future before.
        if path.name in needed or abs(now_s - changed_s) < grace_s:
            continue
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        total_bytes -= size_bytes
        freed_bytes += size_bytes
        removed += 1
    return {
        "removed": removed,
        "freed_bytes": freed_bytes,
        "blobs_bytes": total_bytes,
        "free_bytes": shutil.disk_usage(str(home.path)).free,
        "sessions": sorted(folder.name for folder in _sessions(home)),
    }


def needed_by_sessions(home: Home) -> Set[str]:
    """Every hash that the specs of a session name: it may run, or be started again, any time."""
    found: Set[str] = set()
    for folder in _sessions(home):
        with contextlib.suppress(FileNotFoundError), (folder / "specs.jsonl").open("rb") as stream:
            for line in stream:
                found.update(match.decode("ascii") for match in _HASHES.findall(line))
    return found


def _blobs(home: Home) -> Iterator[Tuple[float, int, Path]]:
    """(time of change, bytes, path) of each."""
    for entry in os.scandir(str(home.blobs)):
        if SHA256.fullmatch(entry.name):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat(follow_symlinks=False)
                yield stat.st_mtime, stat.st_size, Path(entry.path)


def _sessions(home: Home) -> List[Path]:
    if not home.sessions.is_dir():
        return []
    return [path for path in home.sessions.iterdir() if not path.name.startswith(".")]


def _remove_leftovers(home: Home, now_s: float, grace_s: float) -> int:
    """Uploads that nobody goes on with, and folders whose removal was cut. Returns bytes freed."""
    freed_bytes = 0
    for path in home.incoming.iterdir():
        with contextlib.suppress(OSError):
            stat = path.lstat()
            if abs(now_s - stat.st_mtime) >= grace_s:
                path.unlink()
                freed_bytes += stat.st_size
    for folder in (home.path, home.sessions, home.artifacts):
        for doomed in folder.glob(".removed-*"):
            shutil.rmtree(str(doomed), ignore_errors=True)
    return freed_bytes


def _remove_agents(home: Home, own_agent: Optional[str]) -> int:
    """Agents of other versions but the last used, with what was compiled of them.

    None while a worker lives: it may be of such a version, and load a module any time.
    """
    workers = [home.board_lock, *(folder / "worker.lock" for folder in _sessions(home))]
    if own_agent is None or any(is_held(lock) for lock in workers):
        return 0
    own = Path(own_agent)
    used: Dict[str, float] = {}
    files = [path for path in own.parent.iterdir() if SHA256.fullmatch(path.name[:64])]
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            used[path.name[:64]] = max(used.get(path.name[:64], 0.0), path.stat().st_mtime)
    used.pop(own.name[:64], None)
    old = set(sorted(used, key=lambda sha256: used[sha256])[:-_OTHER_AGENTS_KEPT])
    freed_bytes = 0
    for path in files:
        if path.name[:64] in old:
            with contextlib.suppress(OSError):
                freed_bytes += path.stat().st_size
                path.unlink()
    return freed_bytes
