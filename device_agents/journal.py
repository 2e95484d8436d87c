"""What came of a session, a line an event, on the disk before anyone hears of it.

Input: events. Output: JSON lines with an ascending ``seq`` from 1, appended and fsynced.
A line without its newline, or that is no such JSON, was cut by a power loss: recovery drops it
and whatever follows, so that its run is measured again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from device_agents.files import fsync_folder

Entry = Dict[str, Any]


class Journal:
    """Opened for appending by the one worker that holds the session's lock."""

    def __init__(self, path: Path) -> None:
        existed = path.exists()
        self._fd = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.entries, self._size_bytes = _recover(self._fd)
        os.lseek(self._fd, self._size_bytes, os.SEEK_SET)
        if not existed:
            fsync_folder(path.parent)

    @property
    def last_seq(self) -> int:
        return int(self.entries[-1]["seq"]) if self.entries else 0

    def append(self, event: str, **fields: Any) -> int:
        """Write one entry and flush it to the disk. Returns its seq. Raises OSError.

        When the disk is full the file is cut back to its last whole line first.
        """
        entry = {"seq": self.last_seq + 1, "event": event, **fields}
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode("utf-8") + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.write(self._fd, line[written:])
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size_bytes)
            os.lseek(self._fd, self._size_bytes, os.SEEK_SET)
            raise
        self._size_bytes += len(line)
        # Kept without its payload: latencies of a long session would fill a small board.
        self.entries.append(_summary(entry))
        return int(entry["seq"])

    def done(self) -> List[str]:
        """The run_ids that have a record."""
        return [str(e["run_id"]) for e in self.entries if e["event"] == "record"]

    def reboots(self) -> Dict[str, int]:
        """run_id → how often the board booted anew while it ran.

        A worker writes its boot_id as it starts; a run that was begun under another one has no
        record, and what ended it was no kill.
        """
        counts: Dict[str, int] = {}
        boot_id = running = None
        for entry in self.entries:
            if entry["event"] == "session":
                booted = None not in (boot_id, entry["boot_id"]) and boot_id != entry["boot_id"]
                if running is not None and booted:
                    counts[running] = counts.get(running, 0) + 1
                boot_id, running = entry["boot_id"], None
            else:
                running = entry["run_id"] if entry["event"] == "run_started" else None
        return counts

    def close(self) -> None:
        os.close(self._fd)


def read(path: Path, after_seq: int = 0) -> List[Tuple[Entry, bytes]]:
    """Whole entries after ``after_seq``, each with its line. [] when there is no journal."""
    return list(Reader(path, after_seq).new())


class Reader:
    """Follows a journal that another process appends to."""

    def __init__(self, path: Path, after_seq: int = 0) -> None:
        self._path = path
        self._seq = after_seq
        self._offset = 0
        self.last_event: Optional[str] = None
        """Of the whole journal as read so far, also of entries not given for their seq."""

    def new(self) -> Iterator[Tuple[Entry, bytes]]:
        """Whole entries that were not given before. Stops at a line that was cut."""
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            return
        with stream:
            stream.seek(self._offset)
            for line in stream:
                entry = parse_line(line)
                if entry is None:
                    return
                self._offset += len(line)
                self.last_event = str(entry["event"])
                if entry["seq"] > self._seq:
                    self._seq = entry["seq"]
                    yield entry, line


def parse_line(line: bytes) -> Optional[Entry]:
    """The entry, or None when the line is cut or is not one."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("event"), str):
        return None
    seq = entry.get("seq")
    return entry if isinstance(seq, int) and not isinstance(seq, bool) and seq > 0 else None


def _recover(fd: int) -> Tuple[List[Entry], int]:
    """Summaries of the whole entries and their size; what follows them is cut from the file."""
    entries: List[Entry] = []
    size_bytes = 0
    with os.fdopen(os.dup(fd), "rb") as stream:
        for line in stream:
            entry = parse_line(line)
            if entry is None or entry["seq"] != len(entries) + 1:
                break
            entries.append(_summary(entry))
            size_bytes += len(line)
        if os.fstat(fd).st_size > size_bytes:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
    return entries, size_bytes


def _summary(entry: Entry) -> Entry:
    """What tells which runs are done, and which were under way at which boot."""
    kept = {"session": "boot_id", "run_started": "run_id", "record": "run_id"}
    summary: Entry = {"seq": entry["seq"], "event": entry["event"]}
    name = kept.get(entry["event"])
    if name is not None:
        summary[name] = entry.get(name)
    return summary
