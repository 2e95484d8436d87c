"""Programs that answer line by line, timed side by side: their start, their memory, their latency.

Input: commands that speak the protocol of ``--serve``. Output: Start of each, and latencies of all
of them in one interleaved loop. Everything runs on the CPUs that the caller is bound to.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Command = Sequence[str]

UNTIMED = 2
"""Inferences before the timed ones of a turn: the others have filled the caches meanwhile."""


@dataclass(frozen=True)
class Start:
    """first_ms: from spawning the process until its first answer is written. peak_mib: resident at
    most until then (VmHWM), code and mapped files included.
    """

    first_ms: float
    peak_mib: float


class Running:
    """A contender's process, ended on exit."""

    def __init__(self, command: Command) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Its next line. Raises ValueError where it says an error or is gone."""
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def latency_ms(self, runs: int) -> FloatArray:
        """(runs,), by the contender's own clock."""
        self.write(f"bench {UNTIMED + runs}")
        return np.array(self.read()["latency_ns"][UNTIMED:], float) / 1e6

    def peak_mib(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None, "Linux tells it"
        return int(found[1]) / 1024


def start(command: Command) -> Start:
    """One fresh process, from nothing to its first answer."""
    with tempfile.NamedTemporaryFile() as answer:
        started = time.perf_counter()
        with Running(command) as running:
            running.write(f"output {answer.name}")
            ready, done = running.read(), running.read()
            first_ms = (time.perf_counter() - started) * 1e3
            assert ready["ready"], done["ok"]
            return Start(first_ms, running.peak_mib())


def starts(commands: Mapping[str, Command], rounds: int) -> dict[str, list[Start]]:
    """By name, one a round, taken in turns; an untimed round first, for the page cache."""
    found: dict[str, list[Start]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            taken = start(command)
            if number > 0:
                found[name].append(taken)
    return found


def latencies_ms(commands: Mapping[str, Command], rounds: int, runs: int) -> dict[str, FloatArray]:
    """By name (rounds,), the median of each turn of ``runs``; every round in another order."""
    rng = np.random.default_rng(0)
    ms: dict[str, list[float]] = {name: [] for name in commands}
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(Running(command)) for name, command in commands.items()
        }
        for contender in running.values():
            contender.read()  # ready
        for _ in range(rounds):
            for name in rng.permutation(list(running)):
                ms[name].append(float(np.median(running[name].latency_ms(runs))))
    return {name: np.array(taken) for name, taken in ms.items()}
