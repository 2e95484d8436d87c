"""Signing artifacts with an SSH key, and checking who signed: ssh-keygen -Y sign and verify.

Input: an artifact's folder and a key (a file, or its .pub while an SSH agent holds it).
Output: manifest.json.sig, statement.json and statement.json.sig beside the manifest; Signed.
Raises SigningError. See docs/deploying.md, and docs/adr/0017-signed-artifacts.md for why.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from device_agents.contract import encode
from device_agents.contract.signatures import (
    ARTIFACT,
    RELEASE,
    SIGNERS,
    SIGNERS_NAME,
    NoSshKeygenError,
    SignatureError,
    Statement,
    read_statement,
    signed_statement,
    signer_of,
)
from harness.errors import HarnessError
from harness.files import write_whole

MANIFEST_SIGNATURE = "manifest.json.sig"
STATEMENT = "statement.json"
STATEMENT_SIGNATURE = "statement.json.sig"
SIGNATURE_FILES = (MANIFEST_SIGNATURE, STATEMENT, STATEMENT_SIGNATURE)
"""Beside the manifest, no part of the artifact: its id does not depend on who signed it."""


class SigningError(HarnessError):
    """Something could not be signed, or is not signed as it must be."""


@dataclass(frozen=True)
class Signed:
    """What vouches for an artifact or a file of signers: documents as they lie on the disk.

    of_subject: the signature of what is vouched for; of signers, that of the statement again.
    """

    statement: Statement
    of_subject: Path
    said: Path
    of_said: Path

    def blobs(self) -> dict[str, Path]:
        """sha256 → file, to be pushed."""
        return {hash_of(path): path for path in (self.of_subject, self.said, self.of_said)}

    def hashes(self) -> tuple[str, str, str]:
        """As the agent's --signed takes them."""
        return (hash_of(self.of_subject), hash_of(self.said), hash_of(self.of_said))


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sign_artifact(
    folder: Path, artifact_id: str, name: str, key: Path, serial: int | None
) -> Statement:
    """Sign the manifest, and the statement that ``name`` is this artifact as of ``serial``.

    serial: by default the seconds since 1970, and more than that of a statement already there.
    """
    manifest = (folder / "manifest.json").read_bytes()
    statement = _statement(name, artifact_id, serial, folder / STATEMENT)
    said = encode(statement).encode("utf-8")
    documents = {
        MANIFEST_SIGNATURE: _sign(manifest, key, ARTIFACT),
        STATEMENT: said,
        STATEMENT_SIGNATURE: _sign(said, key, RELEASE),
    }
    for file_name, data in documents.items():
        write_whole(folder / file_name, data)
    return statement


def sign_signers(signers: Path, key: Path, serial: int | None) -> Statement:
    """Vouch for a changed allowed_signers file with a key that the boards know already."""
    said_path, signature_path = _beside(signers)
    statement = _statement(SIGNERS_NAME, hash_of(signers), serial, said_path)
    said = encode(statement).encode("utf-8")
    signature = _sign(said, key, SIGNERS)
    write_whole(said_path, said)
    write_whole(signature_path, signature)
    return statement


def signed_artifact(folder: Path) -> Signed | None:
    """The documents beside a manifest, unchecked; None where there are none.

    Raises SigningError where some of them are missing or cannot be read.
    """
    paths = [folder / name for name in SIGNATURE_FILES]
    there = [path for path in paths if path.is_file() and not path.is_symlink()]
    if not there:
        return None
    for path in paths:
        if path not in there:
            raise SigningError(f"{path} is missing. Next: fleetcut sign {folder}")
    try:
        statement = read_statement(paths[1].read_bytes())
    except SignatureError as error:
        raise SigningError(f"{paths[1]}: {error}. Next: fleetcut sign {folder}") from None
    return Signed(statement, *paths)


def signed_signers(signers: Path) -> Signed | None:
    """What vouches for a file of signers; None where nobody does, or for another version of it."""
    said, signature = _beside(signers)
    try:
        statement = read_statement(said.read_bytes())
    except (OSError, SignatureError):
        return None
    if not signature.is_file() or statement.sha256 != hash_of(signers):
        return None
    return Signed(statement, signature, said, signature)


def check(folder: Path, artifact_id: str, signed: Signed | None, signers: Path) -> str:
    """Who signed the artifact, one of ``signers``. Raises SigningError."""
    again = f"fleetcut sign {folder} --key a key of {signers}"
    if signed is None:
        raise SigningError(f"{folder}: is not signed. Next: {again}")
    if not signers.is_file():
        raise SigningError(f"{signers}: is not there. Next: mend allowed_signers in the inventory")
    try:
        manifest = (folder / "manifest.json").read_bytes()
        signer_of(manifest, signed.of_subject.read_bytes(), signers, ARTIFACT)
        statement, signer = signed_statement(
            signed.said.read_bytes(), signed.of_said.read_bytes(), signers, RELEASE
        )
    except NoSshKeygenError as error:
        raise SigningError(f"{error}. Next: install OpenSSH 8.2 or newer here") from None
    except SignatureError as error:
        raise SigningError(f"{folder}: {error}. Next: {again}") from None
    if statement.sha256 != artifact_id:
        raise SigningError(
            f"{folder}: its statement is on {statement.sha256[:12]}, not on "
            f"{artifact_id[:12]}. Next: {again}"
        )
    return signer


def _beside(signers: Path) -> tuple[Path, Path]:
    name = signers.name
    return signers.with_name(f"{name}.statement.json"), signers.with_name(f"{name}.statement.sig")


def _statement(name: str, sha256: str, serial: int | None, before: Path) -> Statement:
    now_s = time.time()
    if serial is None:
        serial = int(now_s)
        with contextlib.suppress(OSError, SignatureError):  # none yet, or none that counts
            serial = max(serial, read_statement(before.read_bytes()).serial + 1)
    created = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="seconds")
    try:
        return Statement(name, sha256, serial, created)
    except ValueError as error:
        raise SigningError(f"{error}. Next: give --serial a positive number") from None


def _sign(data: bytes, key: Path, namespace: str) -> bytes:
    """ssh-keygen asks for a passphrase on the terminal itself, where the key has one."""
    if not key.is_file():
        raise SigningError(f"key {key} does not exist. Next: ssh-keygen -t ed25519 makes one")
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", namespace],
            input=data,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise SigningError(
            f"ssh-keygen cannot be run ({error.strerror}). Next: install OpenSSH 8.2 or newer"
        ) from None
    if done.returncode != 0 or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE"):
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        fact = lines[-1][:200] if lines else f"exit status {done.returncode}"
        raise SigningError(
            f"key {key} signs nothing ({fact}). Next: ssh-add it, or name another with --key"
        )
    return done.stdout
