"""A process that times models for another: started under other conditions than its parent's.

Input: lines of JSON on standard input: {"runtime", "models": [paths], "rounds"}. Output: a line
of JSON for each: milliseconds (rounds, n_models). Ends when its input does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from benchmarks.stopwatch import interleaved_ms, load

FloatArray = NDArray[np.float64]


class StopwatchWorker:
    """interleaved_ms in a process of its own. env: its whole environment."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fleetcut-bench-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stopwatch_worker"],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> StopwatchWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def interleaved_ms(self, runtime: str, models: Sequence[bytes], rounds: int) -> FloatArray:
        """(rounds, n_models). Raises RuntimeError where the worker died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        paths = []
        for number, model in enumerate(models):
            path = Path(self._folder.name) / f"{number}.model"
            path.write_bytes(model)
            paths.append(str(path))
        task = {"runtime": runtime, "models": paths, "rounds": rounds}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the stopwatch worker ended with {self._process.wait()}")
        return np.asarray(json.loads(answer), dtype=np.float64)


def main() -> None:
    for line in sys.stdin:
        task = json.loads(line)
        inferences = [load(task["runtime"], Path(path).read_bytes()) for path in task["models"]]
        print(json.dumps(interleaved_ms(inferences, task["rounds"]).tolist()), flush=True)


if __name__ == "__main__":
    main()
