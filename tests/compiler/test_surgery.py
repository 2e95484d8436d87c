"""Sliced networks: equal to masked ones, as small as counted, refused where a plan does not fit."""

import dataclasses
import random

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compiler import networks, weights
from compiler.pruning import groups, importance, surgery
from compiler.pruning.widths import PruneSpace, PruningPlan

# One of each pattern in depth; every entry by itself in test_networks_cut.py.
NAMES = ("digits_mobilenet", "digits_resnet", "resnet20")


def used(network):
    """The same network with batch norm as training leaves it: no 0, no 1, no symmetry."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0.0, 0.3, generator=generator)
    return network


@pytest.fixture(scope="module", params=NAMES)
def dense(request):
    network = used(networks.build(request.param, seed=0))
    shape = networks.input_shape(request.param)
    return network, groups.trace(network, shape, request.param)


def plan_for(network, space, widths):
    scores = importance.magnitude(network, space)
    return PruningPlan(
        network=space.network,
        parent_sha256=weights.sha256(network.state_dict()),
        kept_by_group=importance.keep(space, scores, widths),
        predicted_ms_by_cluster=(("0", 1.25),),
        seed=0,
    )


def random_widths(space, seed):
    generator = random.Random(seed)
    return tuple(generator.choice(widths) for widths in space.widths_by_group)


def counted_macs(network, shape):
    """By torch's own counter of what really runs, which knows nothing of prune spaces."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("seed", [0, 1])
def test_masked_equals_sliced(dense, seed):
    network, space = dense
    plan = plan_for(network, space, random_widths(space, seed))
    x = torch.randn(4, *space.input_shape, generator=torch.Generator().manual_seed(seed))
    before = weights.sha256(network.state_dict())
    sliced = surgery.slice_network(network, space, plan)
    masked = surgery.mask_network(network, space, plan)
    with torch.inference_mode():
        whole, small, zeroed = network(x), sliced(x), masked(x)
    assert float((small - zeroed).abs().max()) <= 1e-5 * float(zeroed.abs().max())
    assert float((whole - zeroed).abs().max()) > 1e-3 * float(whole.abs().max())
    assert surgery.deviation(network, space.groups, dict(plan.kept_by_group), x) < 1e-12
    assert weights.sha256(network.state_dict()) == before
    assert not sliced.training


@pytest.mark.parametrize("seed", [2, 3])
def test_the_sliced_network_is_as_small_as_the_space_says(dense, seed):
    network, space = dense
    widths = random_widths(space, seed)
    sliced = surgery.slice_network(network, space, plan_for(network, space, widths))
    assert space.macs(widths) == counted_macs(sliced, space.input_shape)
    assert space.macs(space.dense_widths) == counted_macs(network, space.input_shape)
    modules = dict(sliced.named_modules())
    for layer, c_in, c_out in space.layer_channels(widths):
        module = modules[layer.name]
        if layer.kind == "linear":
            assert (module.in_features, module.out_features) == (c_in * layer.in_repeat, c_out)
        else:
            assert (module.in_channels, module.out_channels) == (c_in, c_out)
            assert module.groups == (c_in if layer.kind == "depthwise" else 1)
            assert module.weight.shape[:2] == (c_out, c_in // module.groups)
    for module in modules.values():
        if isinstance(module, nn.BatchNorm2d):
            assert {len(t) for t in (module.weight, module.running_var)} == {module.num_features}


def test_the_sliced_network_trains_and_can_be_cut_again(dense):
    network, space = dense
    sliced = surgery.slice_network(
        network, space, plan_for(network, space, random_widths(space, 4))
    )
    sliced.train()
    sliced(torch.zeros(2, *space.input_shape)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in sliced.parameters())
    again = groups.trace(sliced, space.input_shape, space.network)
    assert [g.name for g in again.groups] == [g.name for g in space.groups]


def test_a_plan_round_trips_and_cuts_the_same(dense):
    network, space = dense
    plan = plan_for(network, space, random_widths(space, 5))
    read = PruningPlan.from_json(plan.to_json())
    assert read == plan
    first = surgery.slice_network(network, space, plan).state_dict()
    again = surgery.slice_network(network, PruneSpace.from_json(space.to_json()), read).state_dict()
    assert weights.sha256(first) == weights.sha256(again)


def test_the_dense_plan_changes_nothing(dense):
    network, space = dense
    sliced = surgery.slice_network(network, space, plan_for(network, space, space.dense_widths))
    assert weights.sha256(sliced.state_dict()) == weights.sha256(network.state_dict())


@pytest.mark.parametrize("cut", [surgery.slice_network, surgery.mask_network])
def test_plans_that_do_not_fit_are_refused(dense, cut):
    network, space = dense
    plan = plan_for(network, space, random_widths(space, 6))
    (name, kept), *rest = plan.kept_by_group
    wrong = {
        "the plan is for another": {"network": "another"},
        "made for weights 0000": {"parent_sha256": "0" * 64},
        "width 7 is not one of": {"kept_by_group": ((name, kept[:7]), *rest)},
        "plan covers groups": {"kept_by_group": tuple(rest)},
        "must ascend": {"kept_by_group": ((name, kept[::-1]), *rest)},
    }
    for message, change in wrong.items():
        unfit = dataclasses.replace(plan, **change)
        with pytest.raises(surgery.PlanMismatchError, match=message):
            cut(network, space, unfit)
    with pytest.raises(surgery.PlanMismatchError, match="load the weights it names"):
        cut(networks.build(space.network, seed=9), space, plan)


def test_a_space_of_another_network_is_refused(dense):
    network, space = dense
    group = space.groups[0]
    renamed = dataclasses.replace(group.members[0], module="x")
    missing = dataclasses.replace(group, members=(renamed,))
    smaller = dataclasses.replace(group, channels=5)
    with pytest.raises(surgery.PlanMismatchError, match="layer x is missing"):
        surgery.slice_channels(network, [missing], {group.name: [0]})
    with pytest.raises(surgery.PlanMismatchError, match="does not have 5 x 1 entries"):
        surgery.slice_channels(network, [smaller], {group.name: [0]})


def test_materialise_makes_the_widths_it_is_asked_for(dense):
    _, space = dense
    widths = random_widths(space, 7)
    first = surgery.materialise(space.network, space, widths, seed=0)
    assert counted_macs(first, space.input_shape) == space.macs(widths)
    assert not first.training
    again = surgery.materialise(space.network, space, widths, seed=0)
    other = surgery.materialise(space.network, space, widths, seed=1)
    digests = [weights.sha256(n.state_dict()) for n in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(ValueError, match="is not one of"):
        surgery.materialise(space.network, space, (7, *widths[1:]), seed=0)
    with pytest.raises(surgery.PlanMismatchError, match="not of another"):
        surgery.materialise("another", space, widths, seed=0)


def test_slicing_takes_exactly_the_kept_entries():
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()  # fmt: skip
    space = groups.trace(network, (3, 8, 8), "net", width_step=1)
    sliced = surgery.slice_channels(network, space.groups, {"0": [1, 4]})
    assert torch.equal(sliced[0].weight, network[0].weight[[1, 4]])
    assert torch.equal(sliced[0].bias, network[0].bias[[1, 4]])
    assert torch.equal(sliced[1].running_var, network[1].running_var[[1, 4]])
    columns = [4, 5, 6, 7, 16, 17, 18, 19]
    assert torch.equal(sliced[5].weight, network[5].weight[:, columns])
    assert torch.equal(sliced[5].bias, network[5].bias)
