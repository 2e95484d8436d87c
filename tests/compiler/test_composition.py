"""Cuts of cuts, numbered as one cut of the dense network."""

import pytest
import torch

from compiler import networks
from compiler.pruning.composition import composed, everything, narrowed, relative
from compiler.pruning.groups import trace
from compiler.pruning.surgery import slice_channels


def test_a_narrowed_space_means_the_same_by_its_widths(mobile_space):
    middle = tuple(max(8, w // 2) for w in mobile_space.dense_widths)
    small = tuple(max(8, w // 4) for w in mobile_space.dense_widths)
    space = narrowed(mobile_space, middle)
    assert space.dense_widths == middle
    assert space.macs(small) == mobile_space.macs(small)
    assert space.macs(middle) == mobile_space.macs(middle)
    assert space.check(small) == small
    assert narrowed(space, small) == narrowed(mobile_space, small)
    assert narrowed(mobile_space, mobile_space.dense_widths) == mobile_space
    with pytest.raises(ValueError, match="not one of"):
        space.check(mobile_space.dense_widths)
    with pytest.raises(ValueError, match="not one of"):
        narrowed(mobile_space, [1] * len(middle))


def test_composition_and_its_inverse():
    outer = {"a": (1, 4, 7, 9), "b": (0, 2)}
    inner = {"a": (0, 3), "b": (1,)}
    assert composed(outer, inner) == {"a": (1, 9), "b": (2,)}
    assert relative(outer, composed(outer, inner)) == inner
    with pytest.raises(KeyError):
        relative(outer, {"a": (2,)})


@pytest.mark.parametrize("name", ["digits_mobilenet", "digits_resnet"])
def test_two_cuts_are_the_composed_one(name):
    network = networks.build(name, seed=0).eval()
    space = trace(network, networks.input_shape(name), name, width_step=8, min_fraction=0.125)
    generator = torch.Generator().manual_seed(0)

    def drawn(space):
        return {
            group.name: tuple(
                sorted(torch.randperm(group.channels, generator=generator)[:width].tolist())
            )
            for group, width in zip(
                space.groups,
                (legal[len(legal) // 2] for legal in space.widths_by_group),
                strict=True,
            )
        }

    assert slice_channels(network, space.groups, everything(space)).state_dict().keys() == (
        network.state_dict().keys()
    )
    first = drawn(space)
    once = slice_channels(network, space.groups, first)
    smaller = narrowed(space, [len(k) for k in first.values()])
    second = drawn(smaller)
    twice = slice_channels(once, smaller.groups, second).state_dict()
    direct = slice_channels(network, space.groups, composed(first, second)).state_dict()
    assert direct.keys() == twice.keys()
    assert all(torch.equal(direct[key], twice[key]) for key in direct)
