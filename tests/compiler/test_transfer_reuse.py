"""The verdict on a proxy, and which of its optimal models survive on the target."""

import numpy as np
import pytest

from compiler.transfer.asked import ask
from compiler.transfer.cells import AXES, Cells
from compiler.transfer.chosen import ChosenTransfer
from compiler.transfer.pool import Pool
from compiler.transfer.rank import TransferError
from compiler.transfer.reuse import VALID_SRCC, drop_dominated, judge, optimal

N = 120


def boards(seed: int = 0):
    """Three boards of one kind, another that ranks models quite otherwise; accuracies that grow
    with the work, so that many models are optimal."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (N, 2))
    costs = {"a": (2, 1), "b": (2.1, 0.9), "c": (1.9, 1.1), "other": (0.3, 3)}
    ms = {name: np.exp(x @ cost + rng.normal(0, 0.01, N)) for name, cost in costs.items()}
    return x, ms, x.sum(axis=1)


def transferred(names, target, n=30, x_known=True):
    x, ms, accuracy = boards()
    pool = Pool(
        np.stack([ms[name] for name in names], axis=1),
        x if x_known else np.empty((N, 0)),
        tuple(names),
    )
    rows = np.random.default_rng(1).permutation(N)[:n]
    return ChosenTransfer().fit(pool, rows, ms[target][rows]), ms[target], accuracy


def true_front(ms, accuracy):
    return set(drop_dominated(accuracy, ms).tolist())


def test_dominated_models_are_dropped():
    assert drop_dominated([1, 2, 3, 2], [10, 5, 7, 8]).tolist() == [1, 2]
    assert drop_dominated([2, 2], [5, 5]).tolist() == [0]
    assert drop_dominated([], []).tolist() == []
    with pytest.raises(ValueError, match="not finite"):
        drop_dominated([1, np.nan], [1, 2])
    with pytest.raises(ValueError, match="accuracies"):
        drop_dominated([1, 2], [1])


def test_a_board_of_the_same_kind_lends_its_optimal_set():
    transfer, ms, accuracy = transferred(["a", "b", "other"], "c", n=60)
    verdict = judge(transfer, "a")
    assert verdict.verdict == "reuse"
    assert verdict.proxy.lower >= VALID_SRCC
    best = optimal(transfer, "a", verdict, accuracy)
    assert best.from_proxy
    of_proxy = true_front(transfer.pool_.proxies_ms[:, 0], accuracy)
    assert set(best.rows.tolist()) | set(best.dropped.tolist()) == of_proxy
    assert len(true_front(ms, accuracy) & set(best.rows.tolist())) >= len(best.rows) / 2


def test_a_board_that_ranks_otherwise_is_adapted_by_itself():
    transfer, ms, accuracy = transferred(["other", "b", "c"], "a")
    verdict = judge(transfer, "other")
    assert verdict.verdict == "adapt"
    assert verdict.proxy.upper < VALID_SRCC <= verdict.left_out.value
    best = optimal(transfer, "other", verdict, accuracy)
    assert not best.from_proxy
    kept, true = set(best.rows.tolist()), true_front(ms, accuracy)
    of_proxy = true_front(transfer.pool_.proxies_ms[:, 0], accuracy)
    assert len(kept & true) > 2 * len(of_proxy & true)


def test_few_measurements_settle_nothing():
    transfer, _, _ = transferred(["a", "b"], "c", n=6)
    verdict = judge(transfer, "a")
    assert verdict.verdict == "measure"
    assert "only 6 models measured" in verdict.reason


def test_when_nothing_predicts_the_target_more_is_to_be_measured():
    x, ms, _ = boards()
    odd = np.exp(np.random.default_rng(3).normal(0, 1, N))
    rows = np.arange(30)
    pool = Pool(np.stack([ms["a"], ms["b"]], axis=1), x, ("a", "b"))
    verdict = judge(ChosenTransfer().fit(pool, rows, odd[rows]), "a")
    assert verdict.verdict == "measure"
    assert "on samples left out" in verdict.reason


def test_what_was_measured_stands_and_the_rest_is_unsettled():
    transfer, ms, accuracy = transferred(["a", "b", "other"], "c", n=60)
    best = optimal(transfer, "a", judge(transfer, "a"), accuracy)
    for row, value, low, high, measured in zip(
        best.rows, best.ms, best.lower_ms, best.upper_ms, best.measured, strict=True
    ):
        assert measured == (row in transfer.rows_)
        if measured:
            assert value == low == high == ms[row]
        else:
            assert low < value < high
    assert not set(best.unsettled.tolist()) & set(transfer.rows_.tolist())
    candidates = set(best.rows.tolist()) | set(best.dropped.tolist())
    assert set(best.unsettled.tolist()) == candidates - set(transfer.rows_.tolist())
    assert (np.diff(best.ms) > 0).all()
    assert (np.diff(accuracy[best.rows]) > 0).all()


def test_what_is_not_optimal_on_the_target_is_dropped():
    transfer, ms, accuracy = transferred(["a", "b", "other"], "c", n=60)
    verdict = judge(transfer, "a")
    before = optimal(transfer, "a", verdict, accuracy)
    # All candidates measured: exactly the target's own optimum among them is kept.
    rows = np.union1d(transfer.rows_, before.unsettled)
    known = ChosenTransfer().fit(transfer.pool_, rows, ms[rows])
    best = optimal(known, "a", judge(known, "a"), accuracy)
    assert best.measured.all()
    assert not len(best.unsettled)
    assert len(best.dropped)
    among = np.union1d(best.rows, best.dropped)
    assert set(best.rows.tolist()) == set(among[drop_dominated(accuracy[among], ms[among])])


def cells_of(ms, known):
    """Cells of boards that measured all models, and of "new", which measured those of ``known``."""

    def cell(board):
        return (board, *("-" for _ in AXES[1:]))

    names = [f"m{i:03d}" for i in range(N)]
    table = {cell(board): dict(zip(names, v, strict=True)) for board, v in ms.items()}
    if known is not None:
        table[cell("new")] = {names[i]: ms["c"][i] for i in known}
    return Cells(table, "here", simulated=False), cell


def test_a_new_board_is_asked_for_probes_then_for_what_may_be_optimal():
    x, ms, accuracy = boards()
    known_boards = {name: ms[name] for name in ("a", "b", "other", "c")}
    cells, cell = cells_of(known_boards, None)
    first = ask(cells, cell("a"), None, x, accuracy)
    assert (first.verdict, first.measured, first.transfer) == ("measure", 0, None)
    assert len(first.names_next) == 10
    cells, cell = cells_of(known_boards, first.ask_next.tolist())
    second = ask(cells, cell("a"), cell("new"), x, accuracy)
    assert second.measured == 10
    assert second.verdict in ("reuse", "adapt")
    assert second.optimal is not None
    assert set(second.names_next) == {second.models[r] for r in second.optimal.unsettled[:10]}
    assert not set(second.names_next) & set(first.names_next)


def test_a_run_that_was_not_valid_costs_neither_the_board_nor_the_model():
    x, ms, _ = boards()
    cells, cell = cells_of(ms, range(20))
    lost = cells.ms_by_cell[cell("b")].pop("m100")
    found = ask(cells, cell("a"), cell("new"), x)
    assert len(found.models) == N
    assert set(found.others) == {"b", "c", "other"}
    pool = found.transfer.pool_
    assert pool.proxies_ms[100, pool.names.index("b")] == pytest.approx(lost, rel=0.1)
    known = np.delete(np.arange(N), 100)
    assert (pool.proxies_ms[known, pool.names.index("b")] == ms["b"][known]).all()


def test_a_board_that_knows_only_some_of_the_models_is_no_proxy():
    x, ms, _ = boards()
    cells, cell = cells_of(ms, range(20))
    for i in range(N // 2):
        del cells.ms_by_cell[cell("b")][f"m{i:03d}"]
    found = ask(cells, cell("a"), cell("new"), x)
    assert set(found.others) == {"c", "other"}


def test_questions_without_sense_are_refused():
    _, ms, _ = boards()
    cells, cell = cells_of(ms, range(20))
    with pytest.raises(TransferError, match="name two"):
        ask(cells, cell("a"), cell("a"))
    with pytest.raises(TransferError, match="0 probes"):
        ask(cells, cell("a"), cell("new"), probes=0)
