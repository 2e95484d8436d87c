"""Keeps converters from talking over us: their prints, C++ logs and known deprecations.

Input: a block that imports or calls a third-party converter. Output: nothing on stdout or
stderr; when the block raises, a TargetError that carries the end of what was said.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import IO

from compiler.targets.built import TargetError
from device_agents.contract.artifacts import Target

TAIL_CHARS = 2000

KNOWN_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    # torch 2.13 copies its own pytree specs while it decomposes an exported program.
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    # executorch 1.5.1 reads its operator table through an old importlib function on import.
    (DeprecationWarning, r"(read|open)_(text|binary) is deprecated"),
    # torch.ao, which executorch's partitioner and torchao import, still defines script methods.
    (DeprecationWarning, r"`torch\.jit\.\w+` is deprecated"),
    # The exporter behind fast_onnx; constraints.txt pins a torch that has it.
    (DeprecationWarning, r"You are using the legacy TorchScript-based ONNX export"),
    (DeprecationWarning, r"The feature will be removed\. Please remove usage of this function"),
    # ai-edge-quantizer asks its interpreter for every tensor, which is what calibration is.
    (UserWarning, r"Warning: Enabling `experimental_preserve_all_tensors`"),
)
"""Inside the converters, which only their next releases can mend."""


@contextlib.contextmanager
def contained(target: Target, step: str) -> Iterator[None]:
    """Runs a block with file descriptors 1 and 2 going to a temporary file.

    Descriptors, because absl and XNNPACK log from C++; the whole process is silenced meanwhile,
    so the block should hold the converter's calls and nothing else. Whatever the block raises
    comes out as a TargetError that names ``step``; a TargetError passes unchanged.
    """
    with tempfile.TemporaryFile() as said:
        try:
            with _descriptors_into(said), _known_warnings_ignored():
                yield
        except TargetError:
            raise
        except Exception as error:
            raise TargetError(
                target,
                f"{step} failed ({type(error).__name__}: {str(error)[:TAIL_CHARS]})"
                + _quoted(_tail(said)),
                "see the error above; ship this network in another form until it is solved",
            ) from error


@contextlib.contextmanager
def _descriptors_into(said: IO[bytes]) -> Iterator[None]:
    # sys.stdout need not stand on descriptor 1, so prints are sent there; this stream stays
    # usable for a library that keeps it. sys.stderr is left alone: log handlers made inside the
    # block keep it for good.
    prints = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "replace")
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    try:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        with contextlib.redirect_stdout(prints):
            yield
    finally:
        prints.flush()
        sys.stderr.flush()
        for descriptor, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


@contextlib.contextmanager
def _known_warnings_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        for category, message in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


def _tail(said: IO[bytes]) -> str:
    end = said.seek(0, os.SEEK_END)
    said.seek(max(0, end - TAIL_CHARS))
    return said.read().decode("utf-8", errors="replace").strip()


def _quoted(tail: str) -> str:
    return f". It said:\n{tail}\n" if tail else ""
