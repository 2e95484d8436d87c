"""Which channels stay: the large ones, by every layer that makes or reads them."""

import pytest
import torch
from torch import nn

from compiler import networks
from compiler.pruning import groups, importance


@pytest.fixture
def traced():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(),
        nn.Linear(144, 2),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    return network, groups.trace(network, (3, 8, 8), "net", width_step=1)


def test_equal_channels_score_alike_and_the_first_stay(traced):
    network, space = traced
    scores = importance.magnitude(network, space)
    assert [len(s) for s in scores] == [8, 4]
    assert all(score == pytest.approx(1.0) for group in scores for score in group)
    assert importance.keep(space, scores, (3, 2)) == (("0", (0, 1, 2)), ("3", (0, 1)))


@pytest.mark.parametrize("norm", [1.0, 2.0])
@pytest.mark.parametrize(
    "raise_channel",
    [
        lambda network: network[0].weight[5],
        lambda network: network[1].weight[5:6],
        lambda network: network[3].weight[:, 5],
    ],
    ids=["its own filter", "batch norm", "the layer that reads it"],
)
def test_every_coupled_layer_counts(traced, norm, raise_channel):
    network, space = traced
    with torch.no_grad():
        raise_channel(network).mul_(3.0)
    scores = importance.magnitude(network, space, norm)
    assert max(range(8), key=lambda c: scores[0][c]) == 5
    assert importance.keep(space, scores, (1, 1))[0] == ("0", (5,))


def test_a_dead_channel_is_not_ranked_up_by_its_tiny_variance(traced):
    network, space = traced
    network[1].running_var[2] = 1e-12
    scores = importance.magnitude(network, space)
    assert scores[0][2] == pytest.approx(1.0)


def test_activation_counts_what_channels_hand_on(traced):
    network, space = traced
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network[1].bias[3] = -1e3  # ReLU silences channel 3
        network[1].bias[6] = 1e3  # channel 6 is loud
        network[3].weight[:, 5] = 0.0  # nobody reads channel 5
        network[3].bias[2] = 1e5
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    scores = importance.activation(network, space, x)
    assert network.training
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert scores[0][3] == scores[0][5] == 0.0
    assert importance.keep(space, scores, (1, 1)) == (("0", (6,)), ("3", (2,)))
    assert [len(s) for s in scores] == [8, 4]


def test_smaller_widths_keep_subsets():
    name = "digits_mobilenet"
    network = networks.build(name, seed=3)
    space = groups.trace(network, networks.input_shape(name), name)
    scores = importance.magnitude(network, space)
    narrow = importance.keep(space, scores, tuple(w[0] for w in space.widths_by_group))
    wide = importance.keep(space, scores, tuple(w[len(w) // 2] for w in space.widths_by_group))
    for (name_a, few), (name_b, many) in zip(narrow, wide, strict=True):
        assert name_a == name_b
        assert set(few) < set(many)
        assert list(few) == sorted(few)


def test_a_dead_layer_scores_zero_not_nan(traced):
    network, space = traced
    with torch.no_grad():
        network[0].weight.zero_()
    assert all(0.0 <= s < 10.0 for s in importance.magnitude(network, space)[0])


def test_what_does_not_fit_is_refused(traced):
    network, space = traced
    scores = importance.magnitude(network, space)
    with pytest.raises(ValueError, match="norms 1 and 2"):
        importance.magnitude(network, space, norm=3.0)
    with pytest.raises(ValueError, match="is not one of"):
        importance.keep(space, scores, (0, 1))
    with pytest.raises(ValueError, match="do not fit the groups"):
        importance.keep(space, scores[:1], (1, 1))
