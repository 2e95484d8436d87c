"""Trusting a board: its host key's fingerprint goes into the inventory, and nothing else changes.

Input: an inventory file, a board and the fingerprint that a person agreed to. Output: the file,
replaced as a whole, comments kept.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import yaml

from harness.errors import DocumentError
from harness.inventory import load_inventory


def write_trust(path: Path, board_id: str, host_key_sha256: str) -> None:
    """Set ``host_key_sha256`` of one board. Raises DocumentError when the file cannot hold it."""
    text = path.read_text(encoding="utf-8")
    entry = _entry(path, text, board_id)
    lines = text.splitlines(keepends=True)
    value = f'host_key_sha256: "{host_key_sha256}"'
    for key, node in entry.value:
        if key.value == "host_key_sha256":
            line = lines[key.start_mark.line]
            tail = line[node.end_mark.column :]
            lines[key.start_mark.line] = line[: key.start_mark.column] + value + tail
            break
    else:
        first = entry.value[0][0].start_mark
        if entry.flow_style:
            raise DocumentError(
                path, first.line + 1, f"{board_id} is written in {{…}} form", f"Add {value} to it"
            )
        _insert_after(lines, entry, first.column, value)
    _replace(path, "".join(lines), board_id, host_key_sha256)


def _entry(path: Path, text: str, board_id: str) -> yaml.MappingNode:
    load_inventory(path).board(board_id)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)  # load_inventory proved it
    for key, boards in root.value:
        if key.value != "boards":
            continue
        for entry in boards.value:
            if any(k.value == "board_id" and v.value == board_id for k, v in entry.value):
                assert isinstance(entry, yaml.MappingNode)
                return entry
    raise DocumentError(path, None, f"board {board_id} is not written in it", "Add the board")


def _insert_after(lines: list[str], entry: yaml.MappingNode, column: int, value: str) -> None:
    """A new line right below the board's id, at the same indentation."""
    for key, node in entry.value:
        if key.value == "board_id":
            at = node.end_mark.line
            if not lines[at].endswith("\n"):
                lines[at] += "\n"
            lines.insert(at + 1, " " * column + value + "\n")
            return


def _replace(path: Path, text: str, board_id: str, host_key_sha256: str) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".inventory-", suffix=".yaml", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # Read back before it takes the old one's place: a file that people wrote is never broken.
        if load_inventory(Path(temporary)).board(board_id).host_key_sha256 != host_key_sha256:
            raise DocumentError(
                path, None, f"{board_id}: the fingerprint could not be written", "Write it by hand"
            )
        os.chmod(temporary, path.stat().st_mode & 0o777)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
