"""Weights on disk and their identity.

Input: a state dict (name → tensor), or a file of one. Output: a safetensors file, or the state
dict; nothing is pickled, and the sha256 of a state is that of the file it makes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

State = Mapping[str, Tensor]
LEGACY_SUFFIXES = (".pt", ".pth", ".bin")


class WeightsError(ValueError):
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(document)
    temporary.replace(path)
    return hashlib.sha256(document).hexdigest()


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
