"""The agent's home on a board: which path holds what, and that no name leads out of it.

Input: the folder given as --home. Output: paths below it; blobs and model files by hash.
Every name that comes from outside is matched here before it becomes a path.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from device_agents.contract import CodecError, Manifest, RunSpec
from device_agents.contract.codec import from_plain, parse_object
from device_agents.errors import AgentError, RunFailedError
from device_agents.files import fsync_file, fsync_folder, sha256_file

SHA256 = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def checked_sha256(text: str) -> str:
    """The same text when it is a SHA-256 in lower-case hex. Raises AgentError."""
    if not SHA256.fullmatch(text):
        raise AgentError(
            f"{text[:80]!r} is not a SHA-256", "give 64 hexadecimal digits in lower case"
        )
    return text


def checked_name(text: str, what: str) -> str:
    """The same text when it is a plain file name. Raises AgentError."""
    if not NAME.fullmatch(text):
        raise AgentError(
            f"{text[:80]!r} is not a name for {what}",
            "use letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )
    return text


class Home:
    """Paths below one home folder. ``create`` makes what is missing, private to its owner."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs"
        self.incoming = path / "incoming"
        self.artifacts = path / "artifacts"
        self.deployed = path / "deployed"
        self.sessions = path / "sessions"
        self.scratch = path / "scratch"
        self.serials = path / "serials"
        self.signers = path / "allowed_signers"
        self.board_lock = path / "board.lock"
        self.restore_file = path / "restore.json"

    def create(self) -> None:
        """Raises AgentError when the home cannot be made."""
        folders = (
            self.path,
            self.blobs,
            self.incoming,
            self.artifacts,
            self.deployed,
            self.sessions,
            self.scratch,
            self.serials,
        )
        try:
            for folder in folders:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise AgentError(
                f"the agent's home {self.path} cannot be made ({error.strerror})",
                "give a writable folder with --home",
                exit_status=1,
            ) from None

    def session(self, session_id: str) -> Path:
        return self.sessions / checked_name(session_id, "a session")

    def blob(self, sha256: str) -> Path:
        return self.blobs / checked_sha256(sha256)

    def artifact(self, artifact_id: str) -> Path:
        return self.artifacts / checked_sha256(artifact_id)

    def present(self, sha256s: List[str]) -> Tuple[List[str], List[str]]:
        """Those blobs that are here and those that are not, each in the order asked."""
        present = [digest for digest in sha256s if self.blob(digest).is_file()]
        return present, [digest for digest in sha256s if digest not in present]

    def adopt(self, file_name: str, sha256: str) -> None:
        """Move ``incoming/file_name`` to its place among the blobs when its hash fits.

        Asked twice, because the first answer was lost, it succeeds twice. Raises AgentError.
        """
        source = self.incoming / checked_name(file_name, "an upload")
        blob = self.blob(sha256)
        try:
            found = sha256_file(source)
        except FileNotFoundError:
            if blob.is_file() and sha256_file(blob) == sha256:
                return
            raise AgentError(
                f"incoming/{file_name} is not there", "upload it again", exit_status=1
            ) from None
        if found != sha256:
            source.unlink()
            raise AgentError(
                f"incoming/{file_name} has hash {found[:12]}, expected {sha256[:12]}",
                "upload it again",
                exit_status=1,
            )
        fsync_file(source)
        os.replace(str(source), str(blob))
        fsync_folder(self.blobs)

    def manifest(self, artifact_id: str) -> Manifest:
        """The manifest of an installed artifact. Raises OSError and CodecError."""
        data = (self.artifact(artifact_id) / "manifest.json").read_bytes()
        return from_plain(Manifest, parse_object(data), "manifest")


class Inputs:
    """A run's files, each hashed before its first use. For the life of one process."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._verified: Dict[Path, Tuple[str, int, int]] = {}

    def model(self, spec: RunSpec) -> Path:
        """The file that the runtime loads. Raises RunFailedError."""
        if spec.artifact_id is None:
            return self._verify(self._home.blob(spec.model_sha256), spec.model_sha256)
        manifest = self._manifest(spec.artifact_id)
        path = self._home.artifact(spec.artifact_id) / manifest.model_file
        expected = manifest.file(manifest.model_file).sha256
        if expected != spec.model_sha256:
            raise RunFailedError(
                "missing_blob",
                f"the model of artifact {spec.artifact_id[:12]} is {expected[:12]}, "
                f"the run asks for {spec.model_sha256[:12]}",
                "name the artifact and the model of one manifest",
            )
        return self._verify(path, spec.model_sha256)

    def tensor(self, sha256: str, artifact_id: Optional[str]) -> bytes:
        """A golden tensor from the blobs, else from the artifact's folder."""
        path = self._home.blob(sha256)
        if artifact_id is not None and not path.is_file():
            for entry in self._manifest(artifact_id).files:
                if entry.sha256 == sha256:
                    path = self._home.artifact(artifact_id) / entry.name
        return self._verify(path, sha256).read_bytes()

    def _manifest(self, artifact_id: str) -> Manifest:
        try:
            return self._home.manifest(artifact_id)
        except (OSError, CodecError) as error:
            raise RunFailedError(
                "missing_blob",
                f"artifact {artifact_id[:12]} is not installed whole ({error})",
                "fleetcut deploy",
            ) from None

    def _verify(self, path: Path, sha256: str) -> Path:
        again = "the same command again: what a board lacks is pushed"
        try:
            stat = path.stat()
            seen = (sha256, stat.st_mtime_ns, stat.st_size)
            if self._verified.get(path) == seen:
                return path
            found = sha256_file(path)
        except OSError as error:
            raise RunFailedError(
                "missing_blob", f"{sha256[:12]} cannot be read ({error.strerror})", again
            ) from None
        if found != sha256:
            # Out of the way, so that `has` reports it missing and it is pushed anew.
            with contextlib.suppress(OSError):
                path.unlink()
            raise RunFailedError(
                "missing_blob", f"{path.name[:12]} holds {found[:12]}, not {sha256[:12]}", again
            )
        self._verified[path] = seen
        return path
