"""Whose artifacts this board takes, and that no older one comes back under a name.

Input: an artifact's id, a name, the signatures pushed with it. Output: the signer; AgentError.
Signers are root's (/etc/fleetcut/allowed_signers), else those that the first deployment pinned.
For each name the greatest serial seen is kept in serials/; see docs/adr/0017-signed-artifacts.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional, Tuple

from device_agents.contract.codec import CodecError, from_plain, parse_object
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
from device_agents.errors import AgentError
from device_agents.files import sha256_file, write_whole
from device_agents.home import Home
from device_agents.sysfs import Root

ROOTS_SIGNERS = "etc/fleetcut/allowed_signers"

_SIGN = "fleetcut sign the artifact with a key that the board knows"


@dataclass(frozen=True)
class Proof:
    """Blobs, by hash: the signature of the manifest, a Statement and the statement's signature."""

    manifest_signature: str
    statement: str
    statement_signature: str


@dataclass(frozen=True)
class Seen:
    """The greatest serial that a name was given here, and what it stood for."""

    serial: int
    sha256: str


@dataclass(frozen=True)
class Admitted:
    """An artifact that may be installed. signer: None where nobody was asked to sign, or where
    this board cannot check it; ``note`` says which. statement: None when it was unsigned.
    """

    signer: Optional[str]
    note: str
    statement: Optional[Statement]


def admit(
    home: Home,
    root: Root,
    manifest: bytes,
    name: str,
    current: Optional[str],
    proof: Optional[Proof],
) -> Admitted:
    """Whether ``name`` may be switched to an artifact; nothing is changed. Raises AgentError.

    manifest: its bytes. current: what the name leads to now; staying there is no downgrade.
    """
    artifact_id = hashlib.sha256(manifest).hexdigest()
    signers, by_root = signers_of(home, root)
    if proof is None:
        if signers is not None:
            raise _refused(
                f"{artifact_id[:12]} is not signed, and this board takes only signed ones"
            )
        return Admitted(None, "unsigned: no signers are known to this board", None)
    data = _blob(home, proof.statement)
    signature = _blob(home, proof.statement_signature)
    note = ""
    signer: Optional[str] = None
    try:
        if signers is None:
            _fits(read_statement(data), artifact_id, name)
            # Nobody vouches for its serial, so none is kept.
            return Admitted(None, "signed, but no signers are known to this board", None)
        statement, signer = signed_statement(data, signature, signers, RELEASE)
        _fits(statement, artifact_id, name)
        of_manifest = _blob(home, proof.manifest_signature)
        signer_of(manifest, of_manifest, signers, ARTIFACT)
    except NoSshKeygenError as error:
        if by_root:
            raise AgentError(
                f"{ROOTS_SIGNERS} asks for signatures and {error}", "install OpenSSH's client"
            ) from None
        statement, note = _readable(data), f"not checked here: {error}"
        _fits(statement, artifact_id, name)
    except SignatureError as error:
        raise _refused(f"{artifact_id[:12]}: {error}") from None
    if artifact_id != current:
        _no_downgrade(seen(home, name), statement)
    return Admitted(signer, note, statement)


def remember(home: Home, admitted: Admitted) -> None:
    """Before the switch: cut in between, an older version is refused rather than let in."""
    statement = admitted.statement
    if statement is None:
        return
    before = seen(home, statement.name)
    if before is None or statement.serial > before.serial:
        _write_seen(home, statement)


def forget(home: Home, proof: Proof) -> None:
    """The documents did their work: each version would leave three more of them."""
    for sha256 in (proof.manifest_signature, proof.statement, proof.statement_signature):
        with contextlib.suppress(FileNotFoundError):
            home.blob(sha256).unlink()


def seen(home: Home, name: str) -> Optional[Seen]:
    """What is kept for a name, None before its first signed version. Raises AgentError."""
    path = home.serials / f"{name}.json"
    try:
        return from_plain(Seen, parse_object(path.read_bytes()), name)
    except FileNotFoundError:
        return None
    except (OSError, CodecError) as error:
        raise AgentError(
            f"{path} cannot be read ({error})",
            "see what happened to the disk; with the file removed any signed version is taken",
            exit_status=1,
        ) from None


def pin(home: Home, root: Root, sha256: str, proof: Optional[Proof]) -> str:
    """Take the signers in the blob ``sha256``. Returns who decides: "root" or "pinned".

    The first ones are taken as they come. Later ones must be vouched for by one of those that are
    pinned: proof.statement says so. Root's own file stands above both. Raises AgentError.
    """
    if (root.path / ROOTS_SIGNERS).is_file():
        return "root"
    data = _blob(home, sha256)
    if home.signers.exists() and home.signers.read_bytes() != data:
        _admit_signers(home, sha256, proof)
    write_whole(home.signers, data, 0o600)
    return "pinned"


def _admit_signers(home: Home, sha256: str, proof: Optional[Proof]) -> None:
    by_hand = (
        f"fleetcut sign --signers FILE with an old key, or by hand on the board: rm {home.signers}"
    )
    if proof is None:
        raise AgentError(
            "other signers are pinned here than the workstation has", by_hand, exit_status=1
        )
    data = _blob(home, proof.statement)
    signature = _blob(home, proof.statement_signature)
    try:
        statement, _ = signed_statement(data, signature, home.signers, SIGNERS)
    except SignatureError as error:
        raise AgentError(f"the new signers: {error}", by_hand, exit_status=1) from None
    _fits(statement, sha256, SIGNERS_NAME)
    # A deployment's name may be allowed_signers too: that one's file has no blank in its name.
    _no_downgrade(seen(home, _SIGNERS_KEY), statement)
    _write_seen(home, statement, _SIGNERS_KEY)


_SIGNERS_KEY = "allowed signers"


def signers_of(home: Home, root: Root) -> Tuple[Optional[Path], bool]:
    """(the file that decides, None where there is none; whether it is root's)."""
    roots = root.path / ROOTS_SIGNERS
    if roots.is_file():
        return roots, True
    return (home.signers, False) if home.signers.is_file() else (None, False)


def _blob(home: Home, sha256: str) -> bytes:
    """A small pushed document, whose hash is checked. Raises AgentError."""
    path = home.blob(sha256)
    with contextlib.suppress(OSError):
        if sha256_file(path) == sha256:
            return path.read_bytes()
        path.unlink()
    raise AgentError(
        f"{sha256[:12]} is not on the board, or damaged", "the same command again", exit_status=1
    )


def _readable(data: bytes) -> Statement:
    try:
        return read_statement(data)
    except SignatureError as error:
        raise _refused(str(error)) from None


def _fits(statement: Statement, sha256: str, name: str) -> None:
    if (statement.name, statement.sha256) != (name, sha256):
        raise _refused(
            f"its statement is on {statement.name!r} as {statement.sha256[:12]}, "
            f"asked for is {name!r} as {sha256[:12]}"
        )


def _no_downgrade(before: Optional[Seen], statement: Statement) -> None:
    if before is None or statement.serial > before.serial:
        return
    if (statement.serial, statement.sha256) == (before.serial, before.sha256):
        return
    raise AgentError(
        f"{statement.name!r} {statement.sha256[:12]} has serial {statement.serial}, and "
        f"{before.sha256[:12]} with serial {before.serial} was here: that is a downgrade",
        "fleetcut rollback to go back to the version before, or fleetcut sign it anew",
        exit_status=1,
    )


def _write_seen(home: Home, statement: Statement, key: Optional[str] = None) -> None:
    document = json.dumps(asdict(Seen(statement.serial, statement.sha256)), sort_keys=True)
    path = home.serials / f"{key or statement.name}.json"
    write_whole(path, document.encode("utf-8"), 0o600)


def _refused(fact: str) -> AgentError:
    return AgentError(fact, _SIGN, exit_status=1)
