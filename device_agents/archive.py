"""The file that this agent runs from.

Input: the program as Python started it. Output: its path and hash. The modules themselves may have
come from a compiled copy beside it, which is not what the agent is called by.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path
from typing import Optional


def own_archive() -> Optional[str]:
    """Path of the agent's file; None where it runs from sources."""
    loader = getattr(sys.modules["__main__"], "__loader__", None)
    archive: Optional[str] = getattr(loader, "archive", None)
    return archive


def own_sha256() -> str:
    """The hash of the agent's file; "source" when it runs from none."""
    archive = own_archive()
    if archive is not None:
        with contextlib.suppress(OSError):
            return hashlib.sha256(Path(archive).read_bytes()).hexdigest()
    return "source"
