"""TensorRT engines: built on the board that runs them, for they fit no other.

Input: blobs of an ONNX model and of its golden tensors. Output: engines/KEY.engine and what it
showed. KEY names the model, the precision, TensorRT's version and the GPU: where one of them
changes, another engine is built. Untested on hardware, as trtexec is here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from device_agents import trtexec
from device_agents.contract.canonical import canonical_json
from device_agents.errors import AgentError, RunFailedError
from device_agents.files import sha256_file, write_whole
from device_agents.home import Home
from device_agents.locks import acquire
from device_agents.platforms.tools import ask
from device_agents.privilege import is_machine
from device_agents.sysfs import Root
from device_agents.tensors import max_abs_err

BUILD_TIMEOUT_S = 1800.0
_VERSION_TIMEOUT_S = 30.0
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def find_trtexec(root: Root) -> Optional[str]:
    """Where JetPack and NVIDIA's packages put it; never for a tree that is no machine's own."""
    if not is_machine(root):
        return None
    return next((place for place in trtexec.PLACES if os.access(place, os.X_OK)), None)


def gpu_of(root: Root) -> str:
    """Chip and board on a Jetson, whose GPUs of one name differ in size; else the card's name."""
    compatible = root.read_text("proc/device-tree/compatible") or ""
    chips = [name for name in compatible.split("\0") if name.startswith("nvidia,tegra")]
    if chips:
        return f"{chips[-1]} {root.read_text('proc/device-tree/model') or ''}".strip()
    return (ask(_NVIDIA_SMI) or "unknown").splitlines()[0].strip()


def build(
    home: Home,
    program: Optional[str],
    gpu: str,
    model_sha256: str,
    input_name: str,
    golden: Tuple[str, str],
    precision: str,
    atol: float,
) -> Dict[str, Any]:
    """Returns path, sha256, tensorrt, gpu, gpu_ms, max_abs_err, and whether it was built now.

    golden: blobs of input and output. The engine is kept when its answer is within ``atol``.
    Raises AgentError.
    """
    if program is None:
        raise AgentError(
            "there is no trtexec", "apt-get install libnvinfer-bin, which JetPack has", 1
        )
    version = trtexec.parse_version(_said([program, "--help"], _VERSION_TIMEOUT_S)[1])
    if version is None:
        raise AgentError(f"{program} does not say its version", f"run {program} by hand", 1)
    name = ".".join(map(str, version))
    if not trtexec.supported(version, precision):
        raise AgentError(f"TensorRT {name} builds no {precision} engine of it", "ask for fp32")
    facts = {"model_sha256": model_sha256, "precision": precision, "tensorrt": name, "gpu": gpu}
    key = hashlib.sha256(canonical_json(facts)).hexdigest()
    folder = home.path / "engines"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Building times kernels and takes the whole board: no run may be under way.
    board = acquire(home.board_lock)
    if board is None:
        raise AgentError("a session is running here", "wait for its end", exit_status=1)
    try:
        known = _known(folder, key)
        if known is not None:
            return {**known, "built": False}
        found = _build(home, folder / f"{key}.engine", program, facts, input_name, golden)
        if not found["max_abs_err"] <= atol:
            raise AgentError(
                f"the {precision} engine deviates {found['max_abs_err']:.3g} from the golden "
                f"output, {atol:.3g} is allowed",
                "ask for fp32, or run the onnx artifact",
                exit_status=1,
            )
        path = folder / f"{key}.engine"
        os.replace(str(path.with_suffix(".new")), str(path))
        found = {**facts, **found, "path": str(path), "sha256": sha256_file(path)}
        write_whole(folder / f"{key}.json", json.dumps(found).encode("utf-8"))
        return {**found, "built": True}
    finally:
        for left in folder.glob("*.new"):
            left.unlink()
        board.release()


def _known(folder: Path, key: str) -> Optional[Dict[str, Any]]:
    """What an earlier build wrote down, while its engine is still the one it wrote."""
    try:
        found: Any = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        whole = sha256_file(folder / f"{key}.engine") == found["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def _build(
    home: Home,
    engine: Path,
    program: str,
    facts: Dict[str, str],
    input_name: str,
    golden: Tuple[str, str],
) -> Dict[str, Any]:
    for sha256 in (facts["model_sha256"], *golden):
        if not home.blob(sha256).is_file():
            raise AgentError(f"blob {sha256[:12]} is not on the board", "push it again", 1)
    with tempfile.TemporaryDirectory(dir=str(home.scratch)) as scratch:
        output = Path(scratch) / "output.json"
        command = trtexec.build_command(
            program,
            facts["precision"],
            home.blob(facts["model_sha256"]),
            engine.with_suffix(".new"),
            home.blob(golden[0]),
            input_name,
            output,
        )
        status, said = _said(command, BUILD_TIMEOUT_S)
        if status != 0 or not trtexec.passed(said) or not engine.with_suffix(".new").is_file():
            raise AgentError(
                f"trtexec built no engine: {trtexec.first_error(said)[:300]}",
                "run the onnx artifact on the CPU there",
                exit_status=1,
            )
        try:
            answer = trtexec.parse_output(output.read_text(encoding="utf-8"))
            error = max_abs_err(home.blob(golden[1]).read_bytes(), answer)
        except (OSError, ValueError, RunFailedError) as reason:
            raise AgentError(
                f"the engine's answer cannot be compared ({reason})",
                "run the onnx artifact on the CPU there",
                exit_status=1,
            ) from None
    return {
        "device": trtexec.device(said),
        "gpu_ms": trtexec.gpu_ms(said),
        "max_abs_err": error,
    }


def _said(command: Sequence[str], timeout_s: float) -> Tuple[int, str]:
    """Exit status and all that it printed. Raises AgentError where it does not run or end."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise AgentError(
            f"{command[0]} does not run ({error})"[:300], "run it by hand", exit_status=1
        ) from None
    return done.returncode, done.stdout.decode("utf-8", "replace")
