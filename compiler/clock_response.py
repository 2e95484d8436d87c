"""How latency follows the clock, and which clocks boards had, from measured runs.

Input: runs and each board's cluster. Output: for each cluster the share of latency that the clock
leaves alone; each board's present clock, and its clock while hot or at a low charge.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.dataset import Run, Runs
from compiler.whatif import LEAST_FIXED, MOST_FIXED, WhatIfError

FloatArray = NDArray[np.float64]

LEAST_CLOCK_RATIO = 1.1
"""Between the slowest and the fastest clock of a fit: closer ones say nothing of a slope."""

ASSUMED_FIXED_SD = 0.3
"""Without such runs latency is taken as b/f, give or take: 90 % between half as steep and half as
steep again, so that half the clock takes 1.5 to 2.5 times as long."""

LEAST_SD = 0.02
"""A few fits that happen to agree do not make a certainty."""


@dataclass(frozen=True)
class ClockResponse:
    """latency(f) = a + b/f, as the share a/(a + b/f) at the present clock f.

    shared_sd: standard deviation of fixed_share for all boards together (another network, few
    boards). board_sd: from board to board. fixed_share_by_board: of the boards that were
    themselves measured at several clocks. measured: False where it is an assumption.
    """

    fixed_share: float
    shared_sd: float
    board_sd: float
    fixed_share_by_board: Mapping[str, float]
    n_models: int
    measured: bool


ASSUMED = ClockResponse(0.0, ASSUMED_FIXED_SD, 0.0, {}, 0, measured=False)


@dataclass(frozen=True)
class RecordedClock:
    """A clock in kHz that boards were seen at in some state. sd: of its logarithm, over boards."""

    khz_by_board: Mapping[str, float]
    sd: float


def clock_khz(run: Run) -> float | None:
    """The measured clock before the load; the reported one where none was measured."""
    khz = run.effective_freq_khz or run.freq_khz
    return float(khz) if khz else None


def present_clocks(runs: Iterable[Run]) -> dict[str, float]:
    """board_id → median clock in kHz; boards whose clock could not be read are left out."""
    return _medians((run for run in runs if run.valid), clock_khz)


def clock_responses(
    runs: Runs, cluster_by_board: Mapping[str, str], present_khz: Mapping[str, float]
) -> dict[str, ClockResponse]:
    """Cluster label → response, fitted where one board ran one model at two clocks or more.

    Valid runs only, of one runtime and number of threads each. Clusters without such runs get
    ASSUMED.
    """
    points: dict[tuple[str, tuple[str, str, int]], list[tuple[float, float]]] = {}
    for run in runs.runs:
        khz = clock_khz(run)
        if run.valid and khz and run.board_id in cluster_by_board and run.board_id in present_khz:
            what = (run.model_sha256, run.runtime, run.threads)
            points.setdefault((run.board_id, what), []).append((khz, run.p50_ms))
    shares: dict[str, dict[tuple[str, object], float]] = {}
    for (board, what), measured in points.items():
        share = fixed_share(measured, present_khz[board])
        if share is not None:
            shares.setdefault(cluster_by_board[board], {})[board, what] = share
    return {
        label: _response(shares[label]) if label in shares else ASSUMED
        for label in sorted(set(cluster_by_board.values()))
    }


def fixed_share(measured: Sequence[tuple[float, float]], at_khz: float) -> float | None:
    """a/(a + b/f) at f = at_khz, by least squares on the relative error.

    measured: (clock in kHz, latency in ms) of one board and model. None where the clocks lie
    closer than LEAST_CLOCK_RATIO. Within LEAST_FIXED..MOST_FIXED.
    """
    khz, ms = np.array(measured).T
    if khz.max() < LEAST_CLOCK_RATIO * khz.min():
        return None
    design = np.column_stack([np.ones(len(khz)), at_khz / khz]) / ms[:, None]
    (a, b), *_ = np.linalg.lstsq(design, np.ones(len(khz)), rcond=None)
    return float(np.clip(a / (a + b), LEAST_FIXED, MOST_FIXED)) if a + b > 0 else MOST_FIXED


def hot_clocks(runs: Iterable[Run], model_by_board: Mapping[str, str]) -> RecordedClock:
    """The clock that boards fell to when heat throttled them, by board, else by board model.

    A throttled run counts as heat unless the board's charge was lower than in each of its runs
    without throttling: then the battery explains it. Raises WhatIfError where none was recorded.
    """
    runs = list(runs)
    calm: dict[str, list[Run]] = {}
    for run in runs:
        if not _throttled(run):
            calm.setdefault(run.board_id, []).append(run)
    hot = [
        run
        for run in runs
        if _throttled(run) and not _charge_explains(run, calm.get(run.board_id, []))
    ]
    return _recorded(
        hot, model_by_board, "throttled by heat",
        "measure a hot board, export with --include-invalid, or give clock_fraction",
    )  # fmt: skip


def charge_clocks(
    runs: Iterable[Run], model_by_board: Mapping[str, str], low_pct: float, high_pct: float
) -> RecordedClock:
    """The clock of boards whose charge lay within low_pct..high_pct, by board, else by model.

    Raises WhatIfError where none was recorded.
    """
    within = [
        run
        for run in runs
        if run.battery_pct is not None and low_pct <= run.battery_pct <= high_pct
    ]
    return _recorded(
        within, model_by_board, f"with a charge of {low_pct:g} to {high_pct:g} %",
        "measure boards at that charge, or give clock_fraction",
    )  # fmt: skip


def _response(shares: Mapping[tuple[str, object], float]) -> ClockResponse:
    """One cluster's fits: what differs from model to model is shared by its boards."""
    by_board = _means(shares, 0)
    by_model = _means(shares, 1)
    board_sd = max(_sd(by_board.values()), LEAST_SD)
    model_sd = max(_sd(by_model.values()), LEAST_SD)
    # Another network differs from those measured as they do from each other; both means are also
    # only as sure as their numbers make them.
    shared = model_sd**2 * (1 + 1 / len(by_model)) + board_sd**2 / len(by_board)
    return ClockResponse(
        fixed_share=statistics.fmean(by_board.values()),
        shared_sd=shared**0.5,
        board_sd=board_sd,
        fixed_share_by_board=by_board,
        n_models=len(by_model),
        measured=True,
    )


def _means(shares: Mapping[tuple[str, object], float], part: int) -> dict[str, float]:
    grouped: dict[str, list[float]] = {}
    for key, share in shares.items():
        grouped.setdefault(str(key[part]), []).append(share)
    return {name: statistics.fmean(values) for name, values in sorted(grouped.items())}


def _sd(values: Iterable[float]) -> float:
    known = list(values)
    return statistics.stdev(known) if len(known) > 1 else 0.0


def _throttled(run: Run) -> bool:
    return run.throttled is True or "throttled" in run.reasons


def _charge_explains(run: Run, calm: Sequence[Run]) -> bool:
    charges = [other.battery_pct for other in calm if other.battery_pct is not None]
    if run.battery_pct is None:
        return False
    return all(run.battery_pct < charge for charge in charges)


def _loaded_khz(run: Run) -> float | None:
    """The clock under load: the one measured last, for heat comes during a run."""
    return float(run.effective_freq_khz_after) if run.effective_freq_khz_after else clock_khz(run)


def _recorded(
    runs: Sequence[Run], model_by_board: Mapping[str, str], state: str, next_step: str
) -> RecordedClock:
    """By board; boards never seen so take the median of their model's."""
    seen = _medians(runs, _loaded_khz)
    of_model: dict[str, list[float]] = {}
    for board, khz in seen.items():
        if board in model_by_board:
            of_model.setdefault(model_by_board[board], []).append(khz)
    if not seen:
        raise WhatIfError(f"no run {state} is in the dataset. Next: {next_step}")
    spread = [np.log(khz / np.median(of_model[model_by_board[board]]))
              for board, khz in seen.items() if board in model_by_board]  # fmt: skip
    khz_by_board = {
        board: float(np.median(of_model[model]))
        for board, model in model_by_board.items()
        if model in of_model
    }
    return RecordedClock({**khz_by_board, **seen}, max(_sd(spread), LEAST_SD))


def _medians(runs: Iterable[Run], reading: Callable[[Run], float | None]) -> dict[str, float]:
    """board_id → median of what could be read."""
    read: dict[str, list[float]] = {}
    for run in runs:
        khz = reading(run)
        if khz is not None:
            read.setdefault(run.board_id, []).append(khz)
    return {board: statistics.median(values) for board, values in sorted(read.items())}
