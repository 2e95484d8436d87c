"""onnxruntime's own profile of a session, read.

Input: the text of the file that InferenceSession.end_profiling names. Output: mean ns an operator.
Source: onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html: Chrome trace events,
a "Node" event a kernel, and a "Session" event model_run after those of its run. Times are whole µs.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Tuple

_KERNEL = "_kernel_time"


def mean_operator_ns(text: str, warmups: int) -> Tuple[Tuple[str, int], ...]:
    """("name (type)", mean ns an inference), in order of execution, without the first runs.

    An operator that a loop runs several times in one inference is counted with all of them. Empty
    when the text is no profile, or holds no more runs than warmups.
    """
    runs = _runs(text)[warmups:]
    total_us: Dict[str, int] = {}
    for run in runs:
        for operator, spent_us in run:
            total_us[operator] = total_us.get(operator, 0) + spent_us
    return tuple((name, round(spent * 1000 / len(runs))) for name, spent in total_us.items())


def _runs(text: str) -> List[List[Tuple[str, int]]]:
    try:
        events = json.loads(text)
    except (ValueError, RecursionError):
        return []
    runs: List[List[Tuple[str, int]]] = []
    current: List[Tuple[str, int]] = []
    for event in events if isinstance(events, list) else []:
        if not isinstance(event, dict):
            continue
        if event.get("cat") == "Session" and event.get("name") == "model_run":
            runs.append(current)
            current = []
        elif event.get("cat") == "Node":
            kernel = _kernel(event)
            if kernel is not None:
                current.append(kernel)
    return runs


def _kernel(event: Dict[str, Any]) -> Optional[Tuple[str, int]]:
    name, spent_us, arguments = event.get("name"), event.get("dur"), event.get("args")
    if not isinstance(name, str) or not name.endswith(_KERNEL) or type(spent_us) is not int:
        return None
    kind = arguments.get("op_name") if isinstance(arguments, dict) else None
    return f"{name[: -len(_KERNEL)]} ({kind})" if kind else name[: -len(_KERNEL)], spent_us
