"""Designs without a search: two networks taught on simulated boards and asked for others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from compiler import networks
from compiler.amortised.accuracy import AccuracyModel, fit_accuracy
from compiler.amortised.designer import Designer, FallsShortError
from compiler.amortised.device import DeviceFeatures, as_documents, from_document
from compiler.amortised.optimizer import Effort
from compiler.amortised.predictor import KnownDevices, known_devices, pair_ms
from compiler.amortised.shapes import PARTS, ShapeCosts
from compiler.amortised.spread import Spread, simulate
from compiler.amortised.teaching import Budget, teach
from compiler.errors import CompilerError
from compiler.features import physics_features
from compiler.pruning.groups import trace
from compiler.pruning.widths import PruneSpace, Widths
from compiler.sampling import sample_widths

EFFORT = Effort(boards=256, steps=300, batch=64)
SPREAD = Spread()


def device(name: str = "pi4-01", slower: float = 1.0, runtime: str = "ort") -> DeviceFeatures:
    return DeviceFeatures(
        name=name,
        anchor_ms=(4.0 * slower, 3.0 * slower, 2.0 * slower, 5.0 * slower),
        effective_freq_khz=round(1_500_000 / slower),
        cores=4,
        isa=("asimd", "neon"),
        runtime=runtime,
    )


@pytest.fixture(scope="module")
def space() -> PruneSpace:
    network = networks.build("digits_mobilenet", 0).eval()
    name = "digits_mobilenet"
    return trace(network, networks.input_shape(name), name, width_step=4)


@pytest.fixture(scope="module")
def known(space: PruneSpace) -> KnownDevices:
    """Two boards whose shapes cost by their arithmetic and by their traffic."""
    shapes = ShapeCosts(space)
    widths = sample_widths(space, 60, 0)
    x = shapes.exact(torch.tensor(widths)).numpy()
    names = shapes.feature_names
    macs = x[:, [n.endswith(".macs") and "@" not in n for n in names]].sum(axis=1)
    traffic = x[:, [n.endswith(".read_bytes") and "@" not in n for n in names]].sum(axis=1)
    devices = (device("pi4-01"), device("pi4-02", slower=2.0))
    ms = (0.1 + 0.5 * macs + 0.1 * traffic, 0.3 + 0.9 * macs + 0.4 * traffic)
    return known_devices(shapes, devices, (widths, widths), ms)


@pytest.fixture(scope="module")
def accuracy(space: PruneSpace) -> AccuracyModel:
    widths = sample_widths(space, 60, 1)
    kept = np.asarray(widths) / np.asarray(space.dense_widths)
    truth = 0.1 + 0.85 * np.exp(-0.3 * ((1 - kept) ** 2).sum(axis=1))
    return fit_accuracy(space, widths, truth.tolist(), 0.95, 10, seed=0)


@pytest.fixture(scope="module")
def designer(space: PruneSpace, known: KnownDevices, accuracy: AccuracyModel) -> Designer:
    return Designer(space, known, accuracy, SPREAD, {}).train(EFFORT, 0, lambda *_: None)


def test_features_as_tensors_are_those_of_the_surrogates(space: PruneSpace) -> None:
    shapes, widths = ShapeCosts(space), sample_widths(space, 40, 3)
    expected = physics_features(space, widths)
    found = shapes.exact(torch.tensor(widths)) * shapes.scale
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert set(shapes.part_of.tolist()) <= set(range(len(PARTS)))


def test_smooth_features_grow_with_every_width_and_have_gradients(space: PruneSpace) -> None:
    shapes = ShapeCosts(space)
    kept = torch.full((1, len(space.groups)), 0.5, dtype=torch.float64, requires_grad=True)
    shapes.smooth(kept).sum().backward()
    assert kept.grad is not None
    assert (kept.grad > 0).all()


def test_costs_of_measured_boards_are_recovered(space: PruneSpace, known: KnownDevices) -> None:
    shapes, others = ShapeCosts(space), sample_widths(space, 50, 9)
    x = shapes.exact(torch.tensor(others))
    names = shapes.feature_names
    macs = x[:, [n.endswith(".macs") and "@" not in n for n in names]].sum(dim=1)
    traffic = x[:, [n.endswith(".read_bytes") and "@" not in n for n in names]].sum(dim=1)
    truth = 0.3 + 0.9 * macs + 0.4 * traffic
    found = pair_ms(known.costs[1:], x)
    assert float((found / truth - 1).abs().max()) < 0.02


def test_accuracy_never_falls_with_more_width_and_fits_the_judged(
    space: PruneSpace, accuracy: AccuracyModel
) -> None:
    assert accuracy.cv_error < 0.02
    assert accuracy.cv_srcc > 0.95
    kept = torch.rand(50, len(space.groups), dtype=torch.float64)
    wider = kept + (1 - kept) * torch.rand_like(kept)
    assert (accuracy.accuracy(wider) >= accuracy.accuracy(kept)).all()
    whole = torch.ones(1, len(space.groups), dtype=torch.float64)
    assert float(accuracy.accuracy(whole)) == pytest.approx(0.95)


def test_too_few_judged_shapes_are_refused(space: PruneSpace) -> None:
    widths = sample_widths(space, 5, 0)
    with pytest.raises(CompilerError, match="20 are needed"):
        fit_accuracy(space, widths, [0.9] * 5, 0.95, 10, seed=0)


def test_simulated_boards_are_the_same_for_a_seed_and_show_gains_in_anchors(
    known: KnownDevices,
) -> None:
    vectors, costs = simulate(known, SPREAD, 64, seed=5)
    again, _ = simulate(known, SPREAD, 64, seed=5)
    assert torch.equal(vectors, again)
    assert (costs >= 0).all()
    # Boards with slower anchors take longer for the dense shape.
    dense = costs.sum(dim=1)
    assert np.corrcoef(vectors[:, :4].mean(dim=1), dense.log())[0, 1] > 0.9


def test_unseen_boards_get_designs_near_the_best_of_many(
    space: PruneSpace, known: KnownDevices, designer: Designer
) -> None:
    """Of simulated boards from another seed; against the best of 4,000 random legal shapes."""
    vectors, costs = simulate(known, SPREAD, 8, seed=77)
    shapes = ShapeCosts(space)
    pool = np.array(sample_widths(space, 4000, 5))
    accuracies = designer.accuracy_of(pool)
    floor = 0.8
    for number in range(8):
        board = replace(
            device(f"simulated-{number}"),
            anchor_ms=tuple(vectors[number, :4].exp().tolist()),
            effective_freq_khz=round(float(vectors[number, 4].exp())),
        )
        design = designer.fastest(board, floor)
        space.check(design.widths)
        assert design.accuracy >= floor
        of = costs[number : number + 1]
        truth = float(pair_ms(of, shapes.exact(torch.tensor([design.widths]))))
        best = float(pair_ms(of, shapes.exact(torch.tensor(pool[accuracies >= floor]))).min())
        assert truth <= 1.1 * best


def test_a_latency_target_is_kept_and_more_time_is_never_worse(designer: Designer) -> None:
    board = device("pi4-03", slower=1.3)
    dense_ms = designer.fastest(board, 0.5).dense_ms
    designs = [designer.most_accurate(board, share * dense_ms) for share in (0.4, 0.6, 0.8)]
    for design, share in zip(designs, (0.4, 0.6, 0.8), strict=True):
        assert design.predicted_ms <= share * dense_ms
    assert designs[0].accuracy <= designs[1].accuracy <= designs[2].accuracy


def test_what_falls_short_says_so(designer: Designer) -> None:
    board = device()
    with pytest.raises(FallsShortError, match=r"pi4-01: no design keeps an accuracy of 0.9999"):
        designer.fastest(board, 0.9999)
    with pytest.raises(FallsShortError, match="the fastest takes"):
        designer.most_accurate(board, 1e-3)
    with pytest.raises(FallsShortError, match="spreads from the boards"):
        designer.fastest(device(slower=1000.0), 0.8)
    with pytest.raises(FallsShortError, match="no board that runs tflite"):
        designer.fastest(device(runtime="tflite"), 0.8)
    with pytest.raises(FallsShortError, match="apart"):
        designer.fastest(board, 0.8, lambda widths: 2 * designer.predict_ms(board, widths))


def test_a_surrogate_of_the_board_itself_has_the_last_word(designer: Designer) -> None:
    board = device()
    tenth_more = designer.fastest(
        board, 0.8, lambda widths: 1.1 * designer.predict_ms(board, widths)
    )
    alone = designer.fastest(board, 0.8)
    assert tenth_more.widths == alone.widths
    assert tenth_more.predicted_ms == pytest.approx(1.1 * alone.predicted_ms)


def test_saved_and_loaded_it_gives_the_same_designs(designer: Designer, tmp_path: Path) -> None:
    designer.save(tmp_path)
    again = Designer.load(tmp_path)
    for board in (device(), device(slower=1.7)):
        assert again.fastest(board, 0.8) == designer.fastest(board, 0.8)
    (tmp_path / "designer.json").write_text("{}")
    with pytest.raises(CompilerError, match=r"designer\.json: is not a designer"):
        Designer.load(tmp_path)


def test_the_same_seed_trains_the_same_designer(
    space: PruneSpace, known: KnownDevices, accuracy: AccuracyModel, designer: Designer
) -> None:
    again = Designer(space, known, accuracy, SPREAD, {}).train(EFFORT, 0, lambda *_: None)
    assert again.fastest(device(), 0.8) == designer.fastest(device(), 0.8)


def test_most_of_the_budget_is_judged_where_the_designs_will_lie(
    space: PruneSpace, known: KnownDevices, accuracy: AccuracyModel
) -> None:
    """Each shape deviates from the model in its own way: designs must not go by the model alone."""
    dense = torch.tensor(space.dense_widths, dtype=torch.float64)
    asked: list[Widths] = []

    def proxy(widths: Widths) -> float:
        asked.append(widths)
        kept = torch.tensor([widths], dtype=torch.float64) / dense
        deviation = np.random.default_rng(list(widths)).normal(0, 0.01)
        return float(np.clip(float(accuracy.accuracy(kept)) + deviation, 0, 1))

    budget = Budget(n_judged=60, max_drop=0.15, n_classes=10)
    designer = teach(space, known, proxy, budget, EFFORT, 0, lambda *_: None)
    assert len(asked) == len(set(asked)) == len(designer.judged) <= 60
    floor = proxy(space.dense_widths) - 0.15
    near = [widths for widths in asked[20:60] if abs(designer.judged[widths] - floor) < 0.05]
    assert len(near) > 20
    for slower in (1.0, 1.5, 2.0):
        design = designer.fastest(device(slower=slower), floor)
        assert proxy(design.widths) >= floor - 0.02


def test_devices_are_plain_data() -> None:
    board = device()
    assert from_document(as_documents([board])[0]) == board
    with pytest.raises(ValueError, match="not a device"):
        from_document({"name": "x"})
    with pytest.raises(ValueError, match="runtime 'abacus'"):
        device(runtime="abacus")
