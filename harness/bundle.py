"""The agent as one reproducible file: device_agents/ zipped, the same bytes on every workstation.

Input: the installed device_agents package. Output: Bundle (agent.pyz and its sha256).
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import device_agents

_MAIN = b"import sys\nfrom device_agents.main import main\nsys.exit(main())\n"
# The oldest date that a zip can hold: time of building must not change the hash.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Bundle:
    """The agent's bytes and their name on a board."""

    data: bytes
    sha256: str

    @property
    def remote_path(self) -> str:
        return f".fleetcut/agents/{self.sha256}.pyz"


def build_bundle(package: Path | None = None) -> Bundle:
    """Zip every .py file of the package, in sorted order, with fixed times and modes."""
    root = package or Path(device_agents.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        _write(archive, "__main__.py", _MAIN)
        for path in sorted(root.rglob("*.py")):
            name = f"device_agents/{path.relative_to(root).as_posix()}"
            _write(archive, name, path.read_bytes())
    data = buffer.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest())


def _write(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    info.create_system = 3
    archive.writestr(info, data)
