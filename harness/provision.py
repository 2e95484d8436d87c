"""A runtime for a board without internet: its wheels are found here and unpacked there.

Input: an AgentSession, which runtimes or requirements. Output: Provisioned: what the board has now.
Raises BoardError for the board, WheelhouseError where no wheels fit it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import StableBoardError
from harness.session import AgentSession
from harness.wheelhouse import (
    Platform,
    UnreachableIndexError,
    Wheelhouse,
    WheelhouseError,
    resolve,
)

RUNTIMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "ort": (("onnxruntime",),),
    # tflite-runtime 2.14 imports with numpy 2 and fails on use; its successor lacks old boards.
    "tflite": (("ai-edge-litert",), ("tflite-runtime", "numpy<2")),
}
"""Runtime → requirements, the preferred first."""

_MODULES = {
    "onnxruntime": "onnxruntime",
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
"""What has to import on the board before it is believed."""

_UNPACK_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Provisioned:
    """What a board was given. packages: distribution → version. uploads: files that it lacked."""

    platform: Platform
    packages: Mapping[str, str]
    uploads: int


def choose(
    platform: Platform, runtimes: Sequence[str], cache: Path, *, refresh: bool = False
) -> Wheelhouse:
    """Wheels of as many of ``runtimes`` as there are for the platform, one at least.

    Raises WheelhouseError: the last reason where there is none.
    """
    chosen: tuple[str, ...] = ()
    best: Wheelhouse | None = None
    reason: WheelhouseError | None = None
    for runtime in runtimes:
        for candidate in RUNTIMES[runtime]:
            try:
                best = resolve(platform, (*chosen, *candidate), cache, refresh=refresh)
            except UnreachableIndexError:
                raise
            except WheelhouseError as error:
                reason = error
                continue
            chosen = (*chosen, *candidate)
            break
    if best is None:
        raise reason or WheelhouseError("no runtime was asked for. Next: --runtime ort")
    return best


def platform_of(agent: AgentSession) -> Platform:
    """What wheels have to fit on the board."""
    answer = agent.ask("platform")
    python, machine, glibc = (answer.get(key) for key in ("python", "machine", "glibc"))
    if not isinstance(python, str) or not isinstance(machine, str):
        raise StableBoardError(
            agent.board.board_id,
            "the agent's platform is not in the agreed form",
            f"fleetcut check {agent.board.board_id}",
        )
    if answer.get("implementation") != "cpython":
        raise StableBoardError(
            agent.board.board_id,
            f"its Python is {str(answer.get('implementation'))[:40]}, wheels are for CPython",
            "name a CPython in the inventory (python:)",
        )
    has = answer.get("packages")
    pairs = has if isinstance(has, list) else []
    packages = tuple((str(p[0]), str(p[1])) for p in pairs if isinstance(p, list) and len(p) == 2)
    return Platform(python, machine, glibc if isinstance(glibc, str) else None, packages)


def install(agent: AgentSession, wheelhouse: Wheelhouse) -> Provisioned:
    """Push what the board lacks of the set, unpack it there, import it, switch to it."""
    plan = {
        "python": wheelhouse.platform.python,
        "machine": wheelhouse.platform.machine,
        "wheels": {wheel.path.name: wheel.sha256 for wheel in wheelhouse.wheels},
        "modules": [_MODULES[w.name] for w in wheelhouse.wheels if w.name in _MODULES],
    }
    data = json.dumps(plan, sort_keys=True).encode()
    plan_sha256 = hashlib.sha256(data).hexdigest()
    blobs = {wheel.sha256: wheel.path for wheel in wheelhouse.wheels}
    with tempfile.TemporaryDirectory(prefix="fleetcut-plan-") as folder:
        path = Path(folder) / "plan.json"
        path.write_bytes(data)
        uploads = agent.push_blobs({**blobs, plan_sha256: path})
    answer = agent.ask("provision", plan_sha256, timeout_s=_UNPACK_TIMEOUT_S)
    packages = answer.get("packages")
    if not isinstance(packages, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in packages
    ):
        raise StableBoardError(
            agent.board.board_id,
            "the agent's list of packages is not in the agreed form",
            f"fleetcut check {agent.board.board_id}",
        )
    found = {str(name): str(version) for name, version in packages}
    return Provisioned(wheelhouse.platform, found, uploads)
