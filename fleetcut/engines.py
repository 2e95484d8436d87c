"""The verb that has boards build TensorRT engines of ONNX artifacts.

Input: parsed arguments as plain values. Output: an exit status; a Console says the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fleetcut.console import Console
from fleetcut.verbs import BOARDS_FAILED, DONE
from harness.bundle import build_bundle
from harness.deploy import load_artifact
from harness.engines import Precision, build_engine, refuse_unfit
from harness.inventory import load_inventory
from harness.ssh import SshTransport
from harness.visit import visit


def engine(
    console: Console,
    inventory_path: Path,
    folder: Path,
    board_ids: Sequence[str] | None,
    precision: Precision,
) -> int:
    """Each board builds its own, or has it already; minutes, in which it measures nothing else."""
    artifact = load_artifact(folder)
    refuse_unfit(artifact)
    boards = load_inventory(inventory_path).select(board_ids)
    with console.steps(f"build a TensorRT engine on {len(boards)} boards"):
        visits = visit(
            boards,
            SshTransport,
            build_bundle(),
            lambda agent: build_engine(agent, artifact, precision),
        )
    built = [v.answer for v in visits if v.answer is not None]
    failures = {v.board_id: str(v.failure) for v in visits if v.failure is not None}
    for failure in failures.values():
        console.error(failure)
    console.table(
        "TensorRT engines",
        ("board", "GPU", "TensorRT", "GPU time", "largest error", "engine"),
        [
            (
                e.board_id,
                e.gpu,
                e.tensorrt,
                "–" if e.gpu_ms is None else f"{e.gpu_ms:.3f} ms",
                f"{e.max_abs_err:.2g}",
                e.path,
            )
            for e in built
        ],
    )
    console.answer({"engines": [asdict(e) for e in built], "failures": failures})
    console.next(
        "fleetcut check" if failures else "trtexec --loadEngine=ENGINE on the board runs it"
    )
    return BOARDS_FAILED if failures else DONE
