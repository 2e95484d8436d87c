"""fleetcut nightly: health check, measure, compare with the baseline, confirm, report.

Input: a campaign, a rack, a store. Output: a page, metrics, and the exit status of the worst that
happened (docs/nightly.md); 1 to 3 as for every verb, where the night itself could not be done.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from device_agents.contract import RunSpec
from fleetcut.console import Console
from fleetcut.verbs import report_outcomes, run_work
from harness.bundle import build_bundle
from harness.campaign import Campaign, load_campaign
from harness.errors import SelectionError
from harness.executor import Retries, Work
from harness.inventory import Board, load_inventory
from harness.leases import Leases
from harness.nightly.judging import (
    NIGHTS_MOST,
    Rules,
    Seen,
    blame,
    confirm,
    judge,
    look,
    usual_change,
)
from harness.nightly.metrics import write_metrics
from harness.nightly.night import (
    Night,
    expected_runs,
    night_of,
    refuse_too_few,
    specs_again,
    specs_of,
)
from harness.nightly.outcomes import BoardOutcome, CellOutcome, NightReport
from harness.nightly.page import interval, percent, write_page
from harness.session import AgentSession, Check
from harness.ssh import SshTransport
from harness.store import BaselineCell, Store, StoreAddress, earlier_nights, keep_night
from harness.visit import Visit, visit_again

_CHECKS = Retries(attempts=3)


@dataclass(frozen=True)
class Asked:
    """The arguments. night: None is today's date. baseline: another one than the stored."""

    inventory: Path
    campaign: Path
    store: StoreAddress
    out: Path
    metrics: Path | None
    night: str | None
    baseline: str | None
    rebase: bool
    alpha: float
    min_change: float
    tries: int


def nightly(console: Console, asked: Asked) -> int:
    """One night. Raises HarnessError where it cannot be done at all."""
    _refuse_nonsense(asked)
    started_s = time.time()
    campaign = load_campaign(asked.campaign, load_inventory(asked.inventory))
    now = datetime.datetime.fromtimestamp(started_s, datetime.UTC)
    night = night_of(campaign.campaign_id, asked.night, now)
    expected = expected_runs(campaign)
    needed = refuse_too_few(asked.campaign, expected, asked.alpha)
    store = Store(asked.store)
    try:
        rules = Rules(asked.alpha, asked.min_change, needed, _usual_changes(store, night))
        job = _Job(console, store, campaign, night, rules, asked.tries)
        baselines = _baselines(store, night, asked.baseline, expected)
        cells = job.run(expected, baselines)
        report = NightReport(
            campaign.campaign_id, night.night_id, started_s, time.time(), rules.alpha,
            rules.min_change, rules.pairs_needed, job.boards(), cells,
        )  # fmt: skip
        _keep(store, night, report, rebase=asked.rebase)
        page = write_page(asked.out / night.night_id, report)
        if asked.metrics is not None:
            write_metrics(asked.metrics, report, store.counts())
    finally:
        store.close()
    _print(console, report)
    console.line(f"Page: {page}")
    console.answer({**report.document(), "page": str(page)})
    console.next(_next(report, asked))
    return report.exit_status()


def _refuse_nonsense(asked: Asked) -> None:
    for name, value, most in (
        ("--alpha", asked.alpha, 0.5), ("--min-change", asked.min_change, 10.0)
    ):  # fmt: skip
        if not 0 < value < most:
            raise SelectionError(f"{name} {value:g} is not between 0 and {most:g}. Next: leave it")
    if asked.tries < 1:
        raise SelectionError(f"--tries {asked.tries} measures nothing. Next: write 1 or more")


def _baselines(
    store: Store, night: Night, named: str | None, expected: Mapping[BaselineCell, int]
) -> dict[BaselineCell, str]:
    """Cell → campaign to compare with. A night started again is not compared with itself."""
    if named is None:
        found = store.baselines(night.campaign_id)
        return {cell: of for cell, of in found.items() if of != night.night_id}
    if not store.summaries([named], limit=1):
        raise SelectionError(
            f"--baseline {named!r}: the store has no run of it. Next: fleetcut results"
        )
    return dict.fromkeys(expected, named)


def _usual_changes(store: Store, night: Night) -> dict[BaselineCell, float]:
    """Cell → how much earlier nights differed by themselves, where there are enough of them."""
    earlier = earlier_nights(store, night.campaign_id, night.night_id, NIGHTS_MOST)
    usual = {cell: usual_change(p50s_ns) for cell, p50s_ns in earlier.items()}
    return {cell: change for cell, change in usual.items() if change is not None}


def _keep(store: Store, night: Night, report: NightReport, *, rebase: bool) -> None:
    """New cells become their own baseline; with rebase everything that was measured does."""
    believed = [c for c in report.cells if c.state not in ("missing", "invalid", "dead")]
    store.set_baselines(
        night.campaign_id,
        {
            BaselineCell(cell.board_id, cell.cell): night.night_id
            for cell in believed
            if rebase or cell.state == "new"
        },
        forget=rebase,
    )
    p50s_ns = {BaselineCell(c.board_id, c.cell): c.p50_ns for c in believed if c.p50_ns}
    ended_unix_ns = round(report.ended_unix_s * 1e9)
    keep_night(store, night.campaign_id, night.night_id, p50s_ns, ended_unix_ns)


class _Job:
    """One night's measuring. dead: board_id → why, with what to do."""

    def __init__(
        self,
        console: Console,
        store: Store,
        campaign: Campaign,
        night: Night,
        rules: Rules,
        tries: int,
    ) -> None:
        self._console = console
        self._store = store
        self._campaign = campaign
        self._night = night
        self._rules = rules
        self._tries = tries
        self.dead: dict[str, str] = {}

    def run(
        self, expected: Mapping[BaselineCell, int], baselines: Mapping[BaselineCell, str]
    ) -> tuple[CellOutcome, ...]:
        """Check, measure, compare, and measure again what seems slower."""
        night = self._night
        self._check_health()
        alive = {board.board_id for board in self._alive()}
        self._measure(night.night_id, specs_of(self._campaign, night.night_id, alive))
        seen = self._look(night.night_id, baselines)
        cells = judge(expected, baselines, self.dead, seen, self._rules)
        candidates = [cell for cell in cells if cell.state == "regression"]
        if candidates:
            confirmed = self._confirm(candidates, expected, baselines)
            cells = tuple(confirmed.get((cell.board_id, cell.cell), cell) for cell in cells)
        return blame(cells)

    def boards(self) -> tuple[BoardOutcome, ...]:
        return tuple(
            BoardOutcome(board.board_id, self.dead.get(board.board_id), board.simulated)
            for board in self._campaign.boards
        )

    def _alive(self) -> tuple[Board, ...]:
        return tuple(b for b in self._campaign.boards if b.board_id not in self.dead)

    def _check_health(self) -> None:
        """A board that fails is left out of the night, and quarantined until it passes again."""
        boards = self._campaign.boards
        with self._console.steps(f"check {len(boards)} boards") as step:
            visits = visit_again(
                boards, SshTransport, build_bundle(), AgentSession.check,
                lambda done, board_id: step(done, len(boards), board_id), _CHECKS,
            )  # fmt: skip
        leases = Leases(self._store)
        for found in visits:
            failure = _why_unfit(found)
            leases.judge(found.board_id, healthy=failure is None, fact=failure or "passed")
            if failure is not None:
                self.dead[found.board_id] = failure
                self._console.error(failure)

    def _measure(self, campaign_id: str, specs: Sequence[RunSpec]) -> None:
        work = Work(
            campaign_id,
            self._alive(),
            tuple(specs),
            self._campaign.blobs(),
            self._campaign.model_names(),
        )
        outcomes = run_work(
            self._console, self._store, work, f"measure {campaign_id}", tries=self._tries
        )
        report_outcomes(self._console, outcomes)
        self.dead |= {o.board_id: str(o.failure) for o in outcomes if o.failure is not None}

    def _look(
        self,
        campaign_id: str,
        baselines: Mapping[BaselineCell, str],
        cells: Container[BaselineCell] | None = None,
    ) -> Seen:
        runs = self._store.runs({campaign_id, *baselines.values()})
        return look(runs, campaign_id, baselines, self._rules.alpha, cells)

    def _confirm(
        self,
        candidates: Sequence[CellOutcome],
        expected: Mapping[BaselineCell, int],
        baselines: Mapping[BaselineCell, str],
    ) -> dict[tuple[str, str], CellOutcome]:
        """Candidates by board and cell, after their cells were measured once more."""
        night = self._night
        self._console.line(f"{len(candidates)} cells seem slower: they are measured again")
        wanted = {BaselineCell(c.board_id, c.cell) for c in candidates}
        self._measure(night.again_id, specs_again(self._campaign, night, wanted))
        again = self._look(night.again_id, baselines, wanted)
        judged = confirm(candidates, again, expected, self._rules)
        return {
            (cell.board_id, cell.cell): (
                replace(cell, state="dead", fact="its board died while it was measured again")
                if cell.board_id in self.dead
                else cell
            )
            for cell in judged
        }


def _why_unfit(found: Visit[tuple[Check, ...]]) -> str | None:
    if found.failure is not None:
        return str(found.failure)
    for check in found.answer or ():
        if not check.ok:
            return f"{found.board_id}: {check.name}: {check.fact}. Next: {check.next_step}"
    return None


def _print(console: Console, report: NightReport) -> None:
    news = report.of("regression", "missing", "invalid", "unconfirmed", "dead")
    columns = ("board", "cell", "state", "change", "interval", "again", "count", "note")
    if news:
        console.table(f"{report.night_id}: what to look at", columns, [_line(c) for c in news])
    counts = ", ".join(f"{n} {state}" for state, n in report.counts().items())
    dead = sum(board.failure is not None for board in report.boards)
    console.line(
        f"{report.night_id}: {', '.join(report.outcomes()).replace('_', ' ')} "
        f"({counts}; {dead} of {len(report.boards)} boards dead)"
    )


def _line(cell: CellOutcome) -> Sequence[str]:
    suspect = f"the cause lies with the {cell.suspect}" if cell.suspect else ""
    return (
        cell.board_id + (" (simulated)" if cell.simulated else ""),
        cell.name,
        cell.state,
        percent(cell.change()),
        interval(cell.row),
        percent(cell.again.comparison.change) if cell.again else "–",
        f"{cell.valid}/{cell.runs}",
        cell.fact or suspect,
    )


def _next(report: NightReport, asked: Asked) -> str:
    worst = report.outcomes()[0]
    if worst == "regression":
        return f"see the page; fleetcut nightly {asked.campaign} --rebase once it is meant so"
    if worst == "dead_board":
        return "mend the boards, then the same command again: the night goes on"
    if worst == "calm":
        return "the same command tomorrow"
    return f"fleetcut results --campaign {report.night_id} --invalid"
