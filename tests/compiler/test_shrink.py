"""Rounds of search, cut and fine-tuning on an invented fleet: one plan, bounded, resumable."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from compiler import data, fine_tuning, training, weights
from compiler.errors import CompilerError
from compiler.fine_tuning import Dense
from compiler.fleet import FleetFigures
from compiler.pruning.groups import trace
from compiler.pruning.objectives import MEAN_GIVEN
from compiler.pruning.surgery import slice_network
from compiler.recipe import Recipe, RecipeTarget, Search, Training
from compiler.shrink import shrink


class Fleet:
    """Latency that grows with every width."""

    measured = {}  # noqa: RUF012

    def latency(self):
        return lambda widths: (
            0.1 + np.asarray(widths).sum(axis=1) / 100,
            np.zeros(len(widths)),
        )

    def objective(self, name, slo_ms):
        return MEAN_GIVEN

    def by_cluster_ms(self, widths):
        return {"all": 0.1 + sum(widths) / 100}

    def mean_ms(self, widths):
        return self.by_cluster_ms(widths)["all"]

    def figures(self, widths, slo_ms):
        return FleetFigures(self.mean_ms(widths), self.mean_ms(widths), None)


def network():
    def block(i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            block(3, 16),
            block(16, 32),
            block(32, 32),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )


@pytest.fixture(scope="module")
def splits():
    whole = data.load("digits", seed=0)
    return dataclasses.replace(whole, train_x=whole.train_x[:512], train_y=whole.train_y[:512])


@pytest.fixture(scope="module")
def dense(splits):
    trained = network()
    training.train(trained, splits, training.TrainSettings(epochs=4, lr=0.03, augment=False))
    space = trace(trained, (3, 32, 32), "tiny", width_step=4, min_fraction=0.125)
    accuracy = training.evaluate(trained, splits.val_x, splits.val_y)
    return Dense(trained, space, accuracy)


def recipe(rounds=2, max_drop=0.3, epochs=1, lr=0.01, proxy_drop=0.6):
    return Recipe(
        version=1,
        name="t",
        networks=("digits_resnet",),
        fine_tuning=Training(epochs=epochs, learning_rate=lr),
        search=Search(
            population=2,
            generations=2,
            rounds=rounds,
            max_accuracy_drop=max_drop,
            proxy_accuracy_drop=proxy_drop,
        ),
        targets=(RecipeTarget(kind="onnx", name="here", machine="x86_64"),),
    )


def silent(*_step):
    pass


def identity(shrunk):
    return shrunk.plan.to_json(), weights.sha256(shrunk.network.state_dict()), shrunk.facts


@pytest.fixture(scope="module")
def unbroken(dense, splits, tmp_path_factory):
    titles = []

    def note(title, *_rest):
        if title not in titles:
            titles.append(title)

    folder = tmp_path_factory.mktemp("unbroken")
    return shrink(dense, Fleet(), splits, recipe(), note, folder), titles


def test_the_rounds_plan_is_a_cut_of_the_dense_network(dense, splits, unbroken):
    shrunk, _ = unbroken
    rounds = shrunk.facts["rounds"]
    assert [r["round"] for r in rounds] == [1, 2]
    assert all(r["val_accuracy"] >= dense.val_accuracy - 0.3 for r in rounds)
    assert rounds[1]["macs"] < rounds[0]["macs"] < dense.space.macs(dense.space.dense_widths)
    assert shrunk.facts["predicted_fleet_ms"] == rounds[1]["predicted_fleet_ms"]
    assert shrunk.val_accuracy == rounds[1]["val_accuracy"]
    cut = slice_network(dense.network, dense.space, shrunk.plan)
    cut.load_state_dict(shrunk.network.state_dict())
    with torch.inference_mode():
        expected = shrunk.network(splits.val_x[:32])
        assert torch.equal(cut.eval()(splits.val_x[:32]), expected)


@pytest.mark.parametrize("stage", ["search", "fine-tune"])
@pytest.mark.parametrize("number", [1, 2])
def test_killed_in_any_round_it_ends_in_the_same_plan_and_weights(
    dense, splits, unbroken, tmp_path, stage, number
):
    class Killed(BaseException):
        pass

    deadly = f"{stage} tiny (round {number} of 2)"
    later = unbroken[1][unbroken[1].index(deadly) :]

    def kill(title, *_rest):
        if title == deadly:
            raise Killed

    def only_the_rest(title, *_rest):
        assert title in later

    with pytest.raises(Killed):
        shrink(dense, Fleet(), splits, recipe(), kill, tmp_path)
    again = shrink(dense, Fleet(), splits, recipe(), only_the_rest, tmp_path)
    assert identity(again) == identity(unbroken[0])


def test_killed_in_a_search_it_goes_on_from_the_shapes_at_which_it_began(dense, splits, tmp_path):
    """Measured shapes whose accuracy is paid for: after the kill the dense one is among them."""

    class Killed(BaseException):
        pass

    class Measured(Fleet):
        measured = {dense.space.dense_widths: {"all": 1.0}}  # noqa: RUF012

    told = []

    def kill_at(deadly):
        def observe(title, done, total, last):
            told.append(f"{title}: {done} of {total}, {last}")
            if title.startswith(deadly):
                raise Killed

        return observe

    for deadly in ("search", "fine-tune"):
        with pytest.raises(Killed):
            shrink(dense, Measured(), splits, recipe(), kill_at(deadly), tmp_path)
    assert [line.split(":")[1][:2] for line in told] == [" 1", " 2", " 1"]
    assert not any("anew" in line for line in told)


def test_the_last_round_that_keeps_the_accuracy_is_taken(
    dense, splits, unbroken, tmp_path, monkeypatch
):
    def spoilt_in_round_2(student, *rest):
        training.distil(student, *rest)
        if "round-2" in str(rest[-1].path):
            nn.init.zeros_(student[-1].weight)

    monkeypatch.setattr(fine_tuning, "distil", spoilt_in_round_2)
    titles = []
    shrunk = shrink(
        dense, Fleet(), splits, recipe(), lambda title, *_: titles.append(title), tmp_path
    )
    tuned = [title for title in titles if title.startswith("fine-tune")]
    assert tuned[-1] == "fine-tune tiny (round 2 of 2, attempt 3)"
    assert shrunk.facts["rounds"] == unbroken[0].facts["rounds"][:1]
    assert shrunk.val_accuracy == shrunk.facts["rounds"][0]["val_accuracy"]
    assert shrunk.plan.widths(dense.space) > unbroken[0].plan.widths(dense.space)


def test_a_bound_that_no_shape_keeps_is_an_error_after_three_attempts(dense, splits, tmp_path):
    titles = []
    strict = recipe(rounds=1, max_drop=0.0, lr=1e-9, proxy_drop=0.9)
    with pytest.raises(CompilerError, match=r"after 3 searches.*Next:"):
        shrink(dense, Fleet(), splits, strict, lambda title, *_: titles.append(title), tmp_path)
    assert titles[-1] == "fine-tune tiny (attempt 3)"
