"""Raw samples of the benchmark on disk, and the interval of a ratio of two sides' p50s.

Input: anything that JSON can hold. Output: the same, compressed, in a file.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.comparison import compare_paired


def keep(path: Path, document: object) -> None:
    """Write it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spooled = path.with_suffix(".new")
    spooled.write_bytes(zlib.compress(json.dumps(document).encode("utf-8"), 6))
    spooled.replace(path)


def kept(path: Path) -> Any:
    """What ``keep`` wrote; None where there is nothing."""
    return json.loads(zlib.decompress(path.read_bytes())) if path.exists() else None


def ratio_interval(
    a_ns: Sequence[Sequence[int]], b_ns: Sequence[Sequence[int]]
) -> list[float] | None:
    """Of b's p50 over a's, at 99 %; None where the pairs are too few to have one."""
    found = compare_paired(a_ns, b_ns)
    low, high = 1 + found.change_low, 1 + found.change_high
    return [low, high] if low > 0 and math.isfinite(high) else None
