"""Weights on disk and their identity.

Input: a state dict (name → tensor), or a file of one. Output: a safetensors file, the state
dict, or a network that holds it; nothing is pickled, and a state's sha256 is its file's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from compiler.errors import CompilerError

State = Mapping[str, Tensor]
LEGACY_SUFFIXES = (".pt", ".pth", ".th", ".tar", ".bin")
WRAPPER_PREFIX = "module."
"""What torch.nn.DataParallel puts before every name."""


class WeightsError(CompilerError, ValueError):
    """A file that holds no state dict; the message names it."""


def to_bytes(state: State) -> bytes:
    """The safetensors document: names in order, tensors dense and on the CPU, no metadata."""
    plain = {name: state[name].detach().to("cpu").contiguous().clone() for name in sorted(state)}
    return safetensors.torch.save(plain)


def sha256(state: State) -> str:
    """64 hex digits: the hash of to_bytes(state), so equal to that of the file save() writes."""
    return hashlib.sha256(to_bytes(state)).hexdigest()


def save(state: State, path: Path) -> str:
    """Writes a safetensors file, whole or not at all. Returns its sha256."""
    document = to_bytes(state)
    write_whole(path, document)
    return hashlib.sha256(document).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a kill or a power loss leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_sha256(path: Path) -> str:
    """64 hex digits of a file's bytes. Raises WeightsError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def load(path: Path) -> dict[str, Tensor]:
    """The state dict of a safetensors file, or of a torch file by its suffix.

    Torch files are read with weights_only, which runs no code of theirs; one level of
    {"state_dict": …} is opened. Raises WeightsError, and FileNotFoundError.
    """
    if path.suffix in LEGACY_SUFFIXES:
        return _load_legacy(path)
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path}: not a safetensors file: {error}") from None


def load_into(network: nn.Module, path: Path, name: str) -> None:
    """Puts a file's weights into a network, all of them or an error.

    DataParallel's "module." before every name is left out. name: the network's, for messages.
    Raises WeightsError naming the file and the first entries that do not fit.
    """
    try:
        state = load(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    if state and all(entry.startswith(WRAPPER_PREFIX) for entry in state):
        state = {entry.removeprefix(WRAPPER_PREFIX): tensor for entry, tensor in state.items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        # torch's message: a heading, then one line for each kind of misfit, however long.
        misfit = " ".join(str(error).split("\n\t", 1)[-1].split())
        raise WeightsError(
            f"{path}: does not fit {name}: {misfit[:160]}. Next: name weights of this architecture"
        ) from None


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"{path}: cannot be read ({error.strerror}). Next: correct the recipe's weights"
    )


def _load_legacy(path: Path) -> dict[str, Tensor]:
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises whatever its unpickler met
        raise WeightsError(f"{path}: not a file of plain tensors: {error}") from error
    if isinstance(document, dict) and isinstance(document.get("state_dict"), dict):
        document = document["state_dict"]
    if not isinstance(document, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in document.items()
    ):
        raise WeightsError(f"{path}: not a state dict (names to tensors)")
    return dict(document)
