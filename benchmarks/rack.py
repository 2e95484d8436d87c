"""A rack's work beside parallel-ssh and ansible-core, and its cost over the number of boards.

    python -m benchmarks.rack [--quick] --json OUT

Input: nothing; simulated boards are started on loopback, with an sshd each (root) or embedded in
one process. Output: for 64 sshd boards the time that is not spent running on them, for fleetcut
and its peers in one run; and wall, CPU and memory of sweeps over 10, 100 and 1,000 boards.
The boards' model sleeps (rack_model.c): two cores hold 64 boards, and what is left is overhead.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import rack_boards
from benchmarks.rack_contenders import CONTENDERS, Job, Taken, fleetcut, missing, peak_kib
from benchmarks.result import Bar, finish, parser

BOARDS, FEW_BOARDS = 64, 8
ROUNDS = 3
JOB_RUN_S = 1.0
"""Short: a difference between two ways to do the same is seen best where little else is."""

CAMPAIGN_RUNS = 6
CAMPAIGN_RUN_S = 15.0
"""A minute and a half a board, and no longer: 10 % is held against this length."""

MEMORY = Path("/dev/shm")  # noqa: S108 - a new folder in it
"""Boards have disks of their own: on this machine's one disk every flush would wait for others'."""

SWEEPS = (10, 100, 1000)
MANY_SSHD = 128
LINEAR = 1.3
"""Time a board of the largest sweep over that of the one before."""

Row = dict[str, Any]


def side_by_side(folder: Path, rounds: int) -> tuple[list[Row], list[Bar]]:
    """The same short job by every contender in turn."""
    folder.mkdir()
    absent = missing()
    for why in absent.values():
        print(f"skipped: {why}", file=sys.stderr)
    names = [name for name in CONTENDERS if name not in absent]
    overhead_s: dict[str, list[float]] = {name: [] for name in names}
    rows: list[Row] = []
    with rack_boards.running(folder, BOARDS, sshd=True) as rack:
        model = rack_boards.build_model(folder)
        board = rack.boards[0]
        alone = rack_boards.write_campaign(folder, "alone", model, runs=1, run_s=JOB_RUN_S)
        specs = rack_boards.specs_by_board(alone, rack.inventory)[board.board_id]
        pure_s = statistics.median(
            rack_boards.pure_s(board, model, f"alone-{i}", specs) for i in range(3)
        )
        for number in range(rounds):
            # Each takes its turn as first, so that none always finds the boards' files cold.
            for name in names[number % len(names) :] + names[: number % len(names)]:
                before_s = rack.cpu_s()
                taken = _job(folder, rack, model, f"{name}-{number}", name)
                overhead_s[name].append(taken.wall_s - pure_s)
                row = _row(name, BOARDS, 1, pure_s, taken)
                rows.append({**row, "boards_cpu_s": rack.cpu_s() - before_s})
    complete = all(row["records"] == row["runs"] for row in rows)
    bars = [Bar("jobs whose every run came back", float(complete), "==", 1.0)]
    medians = {name: statistics.median(taken) for name, taken in overhead_s.items()}
    peers = [medians[name] for name in names if name != "fleetcut"]
    if not absent:
        bars.append(
            Bar("overhead, best peer ÷ fleetcut", min(peers) / medians["fleetcut"], ">=", 1.5)
        )
    return rows, bars


def _job(folder: Path, rack: rack_boards.Rack, model: Path, label: str, name: str) -> Taken:
    campaign = rack_boards.write_campaign(folder, f"job-{label}", model, runs=1, run_s=JOB_RUN_S)
    rack.forget()
    return CONTENDERS[name](_given(folder / label, rack, campaign, model))


def _given(folder: Path, rack: rack_boards.Rack, campaign: Path, model: Path) -> Job:
    folder.mkdir()
    return Job(rack, campaign, model, rack_boards.specs_by_board(campaign, rack.inventory), folder)


def campaign(folder: Path) -> tuple[list[Row], list[Bar]]:
    """What fleetcut adds where boards have something to do.

    Few boards leave this machine's cores to the controller, as boards with cores of their own do;
    the bar is that of the many, whose agents all start on them.
    """
    folder.mkdir()
    rows = []
    for count in (FEW_BOARDS, BOARDS):
        here = folder / str(count)
        here.mkdir()
        with rack_boards.running(here, count, sshd=True) as rack:
            rows.append(_campaign(here, rack, rack_boards.build_model(here)))
    share = rows[-1]["overhead_s"] / rows[-1]["on_a_board_s"]
    lost = sum(row["runs"] - row["records"] for row in rows)
    return rows, [
        Bar("runs of the campaigns that did not come back", lost, "==", 0.0),
        Bar("overhead of a campaign ÷ time on a board", share, "<=", 0.1),
    ]


def _campaign(folder: Path, rack: rack_boards.Rack, model: Path) -> Row:
    path = rack_boards.write_campaign(
        folder, "ordinary", model, runs=CAMPAIGN_RUNS, run_s=CAMPAIGN_RUN_S
    )
    rack.forget()
    job = _given(folder / "ordinary", rack, path, model)
    board = rack.boards[0]
    # One board alone would take as long as all: a run of it stands for each.
    single = rack_boards.write_campaign(folder, "single", model, runs=1, run_s=CAMPAIGN_RUN_S)
    specs = rack_boards.specs_by_board(single, rack.inventory)[board.board_id]
    pure_s = CAMPAIGN_RUNS * rack_boards.pure_s(board, model, "single", specs)
    rack.forget()
    before_s = rack.cpu_s()
    taken = fleetcut(job)
    row = _row("fleetcut, campaign", len(rack.boards), CAMPAIGN_RUNS, pure_s, taken)
    return {**row, "boards_cpu_s": rack.cpu_s() - before_s}


def _row(name: str, boards: int, runs_each: int, pure_s: float, taken: Taken) -> Row:
    return {
        "who": name,
        "boards": boards,
        "runs": boards * runs_each,
        "on_a_board_s": pure_s,
        "overhead_s": taken.wall_s - pure_s,
        **asdict(taken),
    }


def sweep(folder: Path, count: int, *, sshd: bool) -> Row:
    """One short run on each of ``count`` boards by ``fleetcut measure``."""
    folder.mkdir()
    with rack_boards.running(folder, count, sshd=sshd) as rack:
        model = rack_boards.build_model(folder)
        path = rack_boards.write_campaign(folder, f"sweep-{count}", model, runs=1, run_s=0.1)
        taken = fleetcut(_given(folder / "work", rack, path, model))
        rack_mib = peak_kib(Path(f"/proc/{rack.pid}/status")) / 1024
    return {
        "boards": count,
        "access": "an sshd each" if sshd else "embedded",
        "up_s": rack.started_s,
        "wall_s": taken.wall_s,
        "ms_a_board": taken.wall_s / count * 1e3,
        "cpu_s": taken.cpu_s,
        "rss_mib": taken.rss_mib,
        "rack_rss_mib": rack_mib,
        "failed": count - taken.records,
    }


def sweeps(folder: Path, counts: Sequence[int]) -> tuple[list[Row], list[Bar]]:
    """Embedded boards, more and more of them, and then many with an sshd each."""
    folder.mkdir()
    rows = [sweep(folder / f"embedded-{count}", count, sshd=False) for count in counts]
    before, large = rows[-2:]
    rows.append(sweep(folder / "sshd", MANY_SSHD, sshd=True))
    return rows, [
        Bar("boards that failed in sweeps", sum(row["failed"] for row in rows), "==", 0.0),
        Bar(
            f"time a board, {large['boards']} boards ÷ {before['boards']}",
            large["ms_a_board"] / before["ms_a_board"], "<=", LINEAR,
        ),
    ]  # fmt: skip


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--only", choices=("peers", "campaign", "sweeps"), help="a third of it")
    asked = options.parse_args()
    parts: dict[str, Callable[[Path], tuple[list[Row], list[Bar]]]] = {
        "peers": lambda folder: side_by_side(folder, 1 if asked.quick else ROUNDS),
        "campaign": campaign,
        "sweeps": lambda folder: sweeps(folder, SWEEPS[:-1] if asked.quick else SWEEPS),
    }
    rows: list[Row] = []
    bars: list[Bar] = []
    memory = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-", dir=memory) as name:
        for part, measure in parts.items():
            if asked.only in (None, part):
                part_rows, part_bars = measure(Path(name) / part)
                rows += part_rows
                bars += part_bars
    return finish("rack", rows, bars, asked.json)


if __name__ == "__main__":
    sys.exit(main())
