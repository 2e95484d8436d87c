"""Who vouches for an artifact: the statement that is signed, and how a signature is checked.

Input: bytes, an SSH signature of them, an allowed_signers file. Output: the signer's name;
SignatureError. ssh-keygen itself checks, so workstation and board cannot disagree on what fits.
Formats: https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.sshsig, ssh-keygen(1).
"""

from __future__ import annotations

import base64
import binascii
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Tuple

from device_agents.contract.codec import CodecError, decode

ARTIFACT = "fleetcut-artifact"
RELEASE = "fleetcut-release"
SIGNERS = "fleetcut-signers"
"""Namespaces: a signature of a manifest, of a Statement on an artifact, of one on the signers. One
made for another purpose, a git commit say, never fits."""

SIGNERS_NAME = "allowed_signers"
"""The name in the statement that lets a changed allowed_signers file in."""

_TIMEOUT_S = 30.0
_BEGIN, _END, _WRAP = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----", 70


class SignatureError(Exception):
    """A signature that does not fit. str(): the fact."""


class NoSshKeygenError(SignatureError):
    """There is no ssh-keygen here that knows signatures (OpenSSH 8.2, of 2020, is the first)."""


@dataclass(frozen=True)
class Statement:
    """What a signer says may be switched to: ``name`` is ``sha256``, as of ``serial``.

    sha256: of an artifact its id; of the signers, of their file. serial: of two statements on one
    name the greater one counts, and a board that saw it takes no smaller one. created: ISO 8601 in
    UTC, for the reader only.
    """

    name: str
    sha256: str
    serial: int
    created: str

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ValueError(f"{self.sha256[:80]!r} is not a SHA-256")
        if not 0 < self.serial < 1 << 63:
            raise ValueError(f"serial {self.serial} is not a positive 63-bit number")


def signed_statement(
    data: bytes, signature: bytes, signers: Path, namespace: str
) -> Tuple[Statement, str]:
    """(what was said, who said it). Raises SignatureError."""
    signer = signer_of(data, signature, signers, namespace)
    return read_statement(data), signer


def read_statement(data: bytes) -> Statement:
    """The statement, whose signature is checked elsewhere or cannot be. Raises SignatureError."""
    try:
        return decode(Statement, data)
    except CodecError as error:
        raise SignatureError(f"the statement cannot be read ({error})") from None


def signer_of(data: bytes, signature: bytes, signers: Path, namespace: str) -> str:
    """The principal of ``signers`` whose key made ``signature`` over ``data``.

    signers: in ssh-keygen's ALLOWED SIGNERS format. Raises SignatureError; NoSshKeygenError where
    it cannot be checked.
    """
    _require_canonical(signature)
    with tempfile.TemporaryDirectory(prefix="fleetcut-sig-") as folder:
        path = Path(folder, "sig")
        path.write_bytes(signature)
        found = _keygen("find-principals", "-s", path, "-f", signers)
        names = found.stdout.decode("utf-8", "replace").split("\n")
        for name in filter(None, names):
            asked = ("-f", signers, "-I", name, "-n", namespace, "-s", path)
            if _keygen("verify", *asked, stdin=data).returncode == 0:
                return name
    if found.returncode != 0:
        raise SignatureError(f"its signer is not among {signers.name} ({_last_line(found)})")
    raise SignatureError(f"its signature does not fit what was signed as {namespace}")


def require_ssh_keygen() -> None:
    """Raises NoSshKeygenError where no signature can be checked."""
    _keygen("find-principals")


def _require_canonical(signature: bytes) -> None:
    """As ssh-keygen wrote it, to the last byte: it would read other forms of the same one too."""
    body = b"".join(signature.split(b"\n")[1:-2])
    try:
        raw = base64.b64decode(body, validate=True)
    except binascii.Error:
        raw = b""
    text = base64.b64encode(raw)
    lines = [text[at : at + _WRAP] for at in range(0, len(text), _WRAP)]
    if not raw or signature != b"\n".join([_BEGIN, *lines, _END, b""]):
        raise SignatureError("its signature is not in the form that ssh-keygen writes")


def _keygen(
    operation: str, *args: object, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", operation, *map(str, args)],
            input=stdin,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise NoSshKeygenError(f"ssh-keygen cannot be run ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise SignatureError("ssh-keygen did not answer") from None
    said = done.stderr.lower()
    if b"unknown option" in said or b"illegal option" in said or b"unsupported operation" in said:
        raise NoSshKeygenError("ssh-keygen is older than OpenSSH 8.2")
    return done


def _last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:120] if lines else f"exit status {done.returncode}"
