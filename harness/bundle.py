"""The agent as one reproducible file: device_agents/ zipped, the same bytes on every workstation.

Input: the installed device_agents package. Output: Bundle: agent.pyz, its hash, a compiled copy.
"""

from __future__ import annotations

import functools
import hashlib
import io
import marshal
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path

import device_agents

# What the harness pushed beside it is named in the environment; of another Python it is passed by.
_MAIN = b"""\
import gc
import os
import sys

if sys.version_info < (3, 8):
    sys.exit("Python 3.8 is needed and this is %d.%d. Next: install a newer python3 on the board, "
             "or name another in the inventory (python:)" % sys.version_info[:2])
compiled = os.environ.pop("FLEETCUT_COMPILED", "")
if ".%s." % sys.implementation.cache_tag in compiled:
    sys.path.insert(0, compiled)
# Nothing of what importing leaves behind is garbage: not looked for now, nor after a fork.
gc.disable()
from device_agents.main import main
gc.freeze()
gc.enable()

sys.exit(main())
"""
# The oldest date that a zip can hold: time of building must not change the hash.
_EPOCH = (1980, 1, 1, 0, 0, 0)


_READ_AS_SOURCE = ("device_agents/fleetcut_set.py",)
"""Modules whose text a board asks for: see device_agents/privilege.py."""

_UNCHECKED = 1
"""Flags of a .pyc that is not compared with a source: https://peps.python.org/pep-0552/"""


@dataclass(frozen=True)
class Bundle:
    """The agent's bytes and their name on a board.

    compiled: the same for boards whose Python is the workstation's, which then need not compile it
    at every start (two fifths of its CPU time). It is another on every Python, so the agent is
    called by the hash of its sources alone.
    """

    data: bytes
    sha256: str
    compiled: bytes
    cache_tag: str

    @property
    def python_series(self) -> str:
        """The workstation's, 3.11 for instance, which the compiled copy is for."""
        return f"{sys.version_info[0]}.{sys.version_info[1]}"

    @property
    def remote_path(self) -> str:
        return f".fleetcut/agents/{self.sha256}.pyz"

    @property
    def compiled_sha256(self) -> str:
        return hashlib.sha256(self.compiled).hexdigest()

    @property
    def compiled_path(self) -> str:
        return f".fleetcut/agents/{self.sha256}.{self.cache_tag}.{self.compiled_sha256[:16]}.zip"


def build_bundle(package: Path | None = None) -> Bundle:
    """Zip every .py file of the package, in sorted order, with fixed times and modes."""
    root = package or Path(device_agents.__file__).parent
    sources = {
        f"device_agents/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*.py"))
    }
    data = _zipped({"__main__.py": _MAIN, **sources})
    compiled = {f"{name}c": _compiled(name, source) for name, source in sources.items()}
    compiled |= {name: sources[name] for name in _READ_AS_SOURCE if name in sources}
    return Bundle(
        data,
        hashlib.sha256(data).hexdigest(),
        _zipped(compiled),
        str(sys.implementation.cache_tag),
    )


@functools.lru_cache(maxsize=1024)
def _compiled(name: str, source: bytes) -> bytes:
    code = compile(source, name, "exec", dont_inherit=True)
    flags = _UNCHECKED.to_bytes(4, "little")
    return MAGIC_NUMBER + flags + source_hash(source) + marshal.dumps(code)


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            _write(archive, name, data)
    return buffer.getvalue()


def _write(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    info.create_system = 3
    archive.writestr(info, data)
