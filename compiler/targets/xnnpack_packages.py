"""Debian's XNNPACK of any machine, taken out of its packages without installing them.

Input: a machine as ``uname -m`` prints it. Output: a folder with lib/, include/ and licences/.
apt fetches and verifies them with a state of its own, so that neither root nor
``dpkg --add-architecture`` is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

VERSION = "0.0~git20220216.ae108ef-2"
"""Of Debian 12. Later ones have other functions: the runner is written for this one."""

PACKAGES = (
    *(f"libxnnpack0={VERSION}", f"libxnnpack-dev={VERSION}"),
    *("libpthreadpool0", "libpthreadpool-dev", "libcpuinfo0"),
)
LIBRARIES = ("libXNNPACK.so.0", "libpthreadpool.so.0", "libcpuinfo.so.0")
HEADERS = ("xnnpack.h", "pthreadpool.h")

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}
"""Debian's names of machines."""

TIMEOUT_S = 900


def fetch(machine: str, triplet: str, folder: Path) -> None:
    """Leaves ``folder`` whole or not at all.

    Raises subprocess.SubprocessError with apt's words on stderr, OSError where there is no apt,
    or where a package holds other files than expected.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as work:
        packages = _download(ARCHITECTURES[machine], Path(work))
        tree, kept = Path(work) / "tree", Path(work) / "kept"
        for package in packages:
            _run(["dpkg-deb", "--extract", str(package), str(tree)], Path(work))
        sources = (
            *((tree / "usr/lib" / triplet / name, "lib") for name in LIBRARIES),
            *((tree / "usr/include" / name, "include") for name in HEADERS),
        )
        for path, kind in sources:
            (kept / kind).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, kept / kind / path.name)
        (kept / "licences").mkdir()
        for text in sorted((tree / "usr/share/doc").glob("*0/copyright")):
            shutil.copyfile(text, kept / "licences" / text.parent.name)
        if not folder.exists():
            kept.rename(folder)


def _download(architecture: str, work: Path) -> list[Path]:
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "state/status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "APT::Sandbox::User": "",  # its own user could not write here
        "Acquire::Languages": "none",
        "Dir::State": str(work / "state"),
        "Dir::State::status": str(work / "state/status"),
        "Dir::Cache": str(work / "cache"),
    }
    apt = ["apt-get", "--quiet=2", *(f"-o{key}={value}" for key, value in options.items())]
    # One archive of several that does not answer fails an update; what is missing fails a download.
    said = subprocess.run(
        [*apt, "update"], cwd=work, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    try:
        _run([*apt, "download", *PACKAGES], work)
    except subprocess.CalledProcessError as error:
        error.stderr = f"{said.stderr}{error.stderr}"
        raise
    return sorted(work.glob("*.deb"))


def _run(command: Sequence[str], folder: Path) -> None:
    subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
