"""One weight set at several widths: sub-networks are real slices of it, and clocks choose them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from compiler import data, networks, training
from compiler.pruning import importance
from compiler.pruning.groups import trace
from compiler.pruning.widths import PruneSpace
from compiler.switchable.network import SwitchableNetwork, best_first, nested_widths
from compiler.switchable.policy import (
    Policy,
    coefficient_of_variation,
    fit_clock_law,
    learn_policy,
)
from compiler.training import TrainSettings

RATIOS = (0.0, 0.25, 0.5, 0.75)


def traced(name: str) -> tuple[nn.Module, PruneSpace]:
    network = networks.build(name, 0).eval()
    return network, trace(network, networks.input_shape(name), name, width_step=1)


@pytest.fixture(scope="module", params=["digits_resnet", "digits_mobilenet"])
def sorted_network(request: pytest.FixtureRequest) -> tuple[nn.Module, PruneSpace]:
    network, space = traced(request.param)
    return best_first(network, space, importance.magnitude(network, space)), space


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet"])
def test_sorting_channels_changes_no_answer_and_puts_the_best_first(name: str) -> None:
    network, space = traced(name)
    scores = importance.magnitude(network, space)
    ordered = best_first(network, space, scores)
    x = torch.randn(4, *space.input_shape)
    with torch.inference_mode():
        assert torch.allclose(ordered(x), network(x), atol=1e-5)
    for group in importance.magnitude(ordered, space):
        assert list(group) == sorted(group, reverse=True)


def test_widths_are_nested_legal_and_differ(sorted_network: tuple[nn.Module, PruneSpace]) -> None:
    _, space = sorted_network
    found = nested_widths(space, RATIOS)
    assert found[0] == space.dense_widths
    for wider, narrower in pairwise(found):
        assert all(w >= n for w, n in zip(wider, narrower, strict=True))
        assert space.macs(narrower) < space.macs(wider)
    with pytest.raises(ValueError, match="one before"):
        nested_widths(space, (0.5, 0.5001))
    with pytest.raises(ValueError, match="ascend"):
        nested_widths(space, (0.5, 0.25))


def test_each_sub_network_answers_as_the_slice_it_is(
    sorted_network: tuple[nn.Module, PruneSpace],
) -> None:
    network, space = sorted_network
    switchable = SwitchableNetwork(network, space, nested_widths(space, RATIOS)).eval()
    x = torch.randn(3, *space.input_shape)
    with torch.inference_mode():
        assert torch.allclose(switchable(x), network(x), atol=1e-5)
        for position, widths in enumerate(switchable.widths):
            alone = switchable.sub_network(position)
            assert torch.allclose(alone(x), switchable.answer(x, position), atol=1e-6)
            # As narrow as it says: it computes less, it does not mask.
            sizes = [m.weight.shape[0] for m in alone.modules() if isinstance(m, nn.Conv2d)]
            assert max(sizes) <= max(max(widths), 16)


def test_weights_are_stored_once_and_only_batch_norm_for_each_width(
    sorted_network: tuple[nn.Module, PruneSpace],
) -> None:
    network, space = sorted_network
    switchable = SwitchableNetwork(network, space, nested_widths(space, RATIOS))
    stored = sum(v.numel() for v in switchable.state_dict().values())
    alone = sum(v.numel() for v in network.state_dict().values())
    apart = sum(
        sum(v.numel() for v in switchable.sub_network(p).state_dict().values())
        for p in range(len(RATIOS))
    )
    assert alone < stored < 1.25 * alone < apart


def test_training_together_teaches_every_width() -> None:
    splits = data.load("digits", 0)
    few = replace(splits, train_x=splits.train_x[:640], train_y=splits.train_y[:640])
    settings = TrainSettings(epochs=3, batch=32, lr=0.01, augment=False, seed=0)
    torch.manual_seed(0)
    shape = (1, *splits.train_x.shape[1:])
    network = nn.Sequential(
        nn.Conv2d(shape[1], 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(288, 10),
    )  # fmt: skip
    space = trace(network.eval(), shape[1:], "tiny", width_step=1)
    training.train(network, few, settings)
    scores = importance.activation(network, space, few.train_x[:256])
    widths = nested_widths(space, (0.0, 0.5, 0.75))
    switchable = SwitchableNetwork(best_first(network, space, scores), space, widths)

    def accuracies() -> list[float]:
        return [
            training.evaluate(switchable.sub_network(position), splits.val_x, splits.val_y)
            for position in range(len(widths))
        ]

    before = accuracies()
    training.train_together(switchable, few, replace(settings, epochs=3))
    after = accuracies()
    assert after[0] > 0.7
    assert after[1] > before[1] + 0.2
    assert after[2] > before[2] + 0.2


def test_a_law_of_the_clock_is_found_again() -> None:
    khz = [600_000.0, 800_000.0, 1_000_000.0, 1_500_000.0]
    law = fit_clock_law(khz, [0.2 + 900_000 / f for f in khz])
    assert law.a_ms == pytest.approx(0.2)
    assert law.b_ms_khz == pytest.approx(900_000)
    assert law.fit_mape < 1e-9
    # Where the memory's clock falls with the core's, latency grows faster than 1/f.
    steeper = fit_clock_law(khz, [900_000 / f - 0.2 for f in khz])
    assert steeper.a_ms == pytest.approx(-0.2)
    steepest = fit_clock_law(khz, [(800_000 / f) ** 4 for f in khz])
    assert steepest.latency_ms(3_000_000) >= 0
    with pytest.raises(ValueError, match="two clocks"):
        fit_clock_law([600_000.0, 600_000.0], [1.0, 1.1])


def policy() -> Policy:
    """Four sub-networks whose work halves from one to the next."""
    khz = (500_000.0, 1_000_000.0, 2_000_000.0)
    return learn_policy({p: {f: 2.0 / 2**p * 2_000_000 / f for f in khz} for p in range(4)})


def test_the_clock_chooses_the_sub_network_whose_latency_is_nearest_the_target() -> None:
    found = policy()
    assert found.target_ms == pytest.approx(2.0)
    assert [found.choose(f) for f in (2_000_000, 1_000_000, 500_000, 250_000)] == [0, 1, 2, 3]
    held = [found.laws[found.choose(f)].latency_ms(f) for f in (2e6, 1e6, 5e5, 2.5e5)]
    assert coefficient_of_variation(held) == pytest.approx(0.0, abs=1e-9)
    assert found.covers(250_000, 0.1)
    assert not found.covers(100_000, 0.1)


def test_a_clock_that_wavers_about_a_border_switches_nothing() -> None:
    found = policy()
    border = next(f for f in range(2_000_000, 1_000_000, -1000) if found.choose(f) == 1)
    present = found.choose(border + 1000)
    for khz in (border, border + 1000, border - 1000, border):
        assert found.choose(khz, present) == present
    assert found.choose(1_000_000, present) == 1


def test_a_policy_survives_its_own_file_and_refuses_others() -> None:
    found = policy()
    assert Policy.from_json(found.to_json()) == found
    with pytest.raises(ValueError, match="version"):
        Policy.from_json('{"version": 2}')
    with pytest.raises(ValueError, match="not a policy"):
        Policy.from_json('{"version": 1}')
