"""Where provisioned packages lie, and how this process comes to find them; wheels.py brings them.

Input: the home. Output: a folder of it on sys.path, where there is one. Every verb asks for it,
so it imports next to nothing.
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
from pathlib import Path

from device_agents.home import Home

_32_BIT = {"x86_64": "i686", "aarch64": "armv7l", "armv8l": "armv7l"}


def activate(home: Home) -> None:
    """Let this process find what was provisioned: after the standard library, before the rest."""
    folder = str(site_folder(home))
    if not os.path.isdir(folder) or folder in sys.path:
        return
    names = ("site-packages", "dist-packages")
    first = (i for i, entry in enumerate(sys.path) if os.path.basename(entry) in names)
    sys.path.insert(next(first, len(sys.path)), folder)
    importlib.invalidate_caches()


def site_folder(home: Home) -> Path:
    """A link to the set of packages of this Python on this machine."""
    tag = sys.implementation.cache_tag or sys.implementation.name
    return home.path / "site" / f"{tag}-{machine()}"


def machine() -> str:
    """Of this Python: on a 64-bit kernel it may be a 32-bit one."""
    kernel = os.uname().machine
    return _32_BIT.get(kernel, kernel) if struct.calcsize("P") == 4 else kernel
