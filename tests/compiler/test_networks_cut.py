"""Every named network: as large as published, coupled soundly, counted right, cut right."""

import random

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compiler import networks
from compiler.pruning import groups, surgery
from compiler.pruning.widths import PruneSpace

LARGEST_SIDE = 64
"""Coupling does not depend on the resolution; the time that a test takes does."""

PUBLISHED_MILLION_MACS = {
    "efficientnet_b0": 390,  # 1905.11946, table 2
    "mobilenet_v1": 569,  # 1704.04861, table 4
    "mobilenet_v2": 300,  # 1801.04381, table 4
    "resnet20": 41,  # akamaster/pytorch_resnet_cifar10, as is the next but one
    "resnet50": 4090,  # torchvision's table of weights, as is vgg16
    "resnet56": 126,
    "vgg16": 15470,
}


def counted_macs(network, shape):
    """By torch's own counter, which knows nothing of prune spaces; on meta nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.to("meta")(torch.zeros(1, *shape, device="meta"))
    return counter.get_total_flops() // 2


@pytest.fixture(scope="module", params=sorted(networks.NETWORKS))
def dense(request):
    """(network, space), batch norm with neither 0 nor 1, which would hide errors."""
    network = networks.build(request.param, seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0.0, 0.3, generator=generator)
    channels, *sides = networks.input_shape(request.param)
    shape = (channels, *(min(side, LARGEST_SIDE) for side in sides))
    return network, groups.trace(network, shape, request.param)


def drawn(space, seed):
    """Legal widths, and for each group that many channels, both at random."""
    generator = random.Random(seed)
    widths = tuple(generator.choice(legal) for legal in space.widths_by_group)
    kept = {
        group.name: sorted(generator.sample(range(group.channels), width))
        for group, width in zip(space.groups, widths, strict=True)
    }
    return widths, kept


def test_every_network_has_its_published_figure():
    others = {name for name in networks.NETWORKS if name.startswith("digits_")}
    assert set(networks.NETWORKS) - others == set(PUBLISHED_MILLION_MACS)


@pytest.mark.parametrize("name", sorted(PUBLISHED_MILLION_MACS))
def test_the_multiply_adds_are_those_published(name):
    with torch.device("meta"):
        network = networks.NETWORKS[name].factory().eval()
    found = counted_macs(network, networks.input_shape(name))
    assert found / 1e6 == pytest.approx(PUBLISHED_MILLION_MACS[name], rel=0.015)


def test_masked_equals_sliced_and_the_space_counts_what_is_left(dense):
    network, space = dense
    widths, kept = drawn(space, seed=1)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *space.input_shape, generator=generator)
    assert surgery.deviation(network, space.groups, kept, x) < 1e-12
    with torch.inference_mode():
        whole, masked = network(x), surgery.mask_channels(network, space.groups, kept)(x)
    assert float((whole - masked).abs().max()) > 1e-3 * float(whole.abs().max())
    sliced = surgery.slice_channels(network, space.groups, kept)
    assert space.macs(widths) == counted_macs(sliced, space.input_shape)


def test_the_space_covers_every_layer_and_round_trips(dense):
    network, space = dense
    assert PruneSpace.from_json(space.to_json()) == space
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(space.layers) == len(weighted)
    fixed = [layer.name for layer in space.layers if layer.out_group is None]
    assert fixed == [space.layers[-1].name]
    assert space.macs(space.dense_widths) == counted_macs(
        networks.NETWORKS[space.network].factory().eval(), space.input_shape
    )
