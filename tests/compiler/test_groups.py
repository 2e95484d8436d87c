"""Coupled channels: found right, counted right, refused by name where unsafe."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from compiler import networks
from compiler.errors import CompilerError
from compiler.pruning import groups, operators
from compiler.pruning.widths import Member, PruneSpace
from compiler.vision import torchvision

SHAPE = (3, 16, 16)


def conv(c_in, c_out, kernel=3, **options):
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options)


class Net(nn.Module):
    """Stem of 8 channels, a body of one's own, the mean and a head for 8 channels."""

    def __init__(self, body=None, **parts):
        super().__init__()
        self.stem = conv(3, 8)
        self.body = body
        for name, part in parts.items():
            setattr(self, name, part)
        self.head = nn.Linear(8, 4)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        return self.head(self.features(x).mean([2, 3]))


@pytest.mark.parametrize("name", ["digits_mobilenet", "digits_resnet", "resnet20"])
def test_a_space_leaves_its_network_alone_and_round_trips(name):
    network = networks.build(name, seed=0)
    space = groups.trace(network, networks.input_shape(name), name)
    assert PruneSpace.from_json(space.to_json()) == space
    assert space == groups.trace(network.train(), networks.input_shape(name), name)
    assert network.training
    assert space.network == name
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_residual_stages_are_one_group_and_blocks_insides_their_own():
    name = "digits_resnet"
    space = groups.trace(networks.build(name, 0), networks.input_shape(name), name)
    assert [(g.name, g.channels) for g in space.groups] == [
        ("stem.conv", 64),
        ("blocks.0.first.conv", 64),
        ("blocks.1.first.conv", 128),
        ("blocks.1.second.conv", 128),
        ("blocks.2.first.conv", 256),
        ("blocks.2.second.conv", 256),
        ("blocks.3.first.conv", 256),
    ]
    last = space.groups[space.index("blocks.2.second.conv")]
    assert Member("blocks.2.shortcut.norm", 0) in last.members
    assert Member("blocks.3.second.conv", 0) in last.members
    assert Member("head", 1) in last.members


def test_depthwise_layers_ride_with_their_input():
    name = "digits_mobilenet"
    space = groups.trace(networks.build(name, 0), networks.input_shape(name), name)
    assert len(space.groups) == 8
    assert space.groups[0].members == (
        Member("stem.conv", 0),
        Member("stem.norm", 0),
        Member("blocks.0.depthwise.conv", 0),
        Member("blocks.0.depthwise.norm", 0),
        Member("blocks.0.pointwise.conv", 1),
    )
    layer = space.layers[1]
    assert (layer.kind, layer.in_group, layer.out_group) == ("depthwise", "stem.conv", "stem.conv")
    assert (layer.in_positions, layer.out_positions, layer.kernel_area) == (256, 256, 9)
    assert (space.layers[0].in_group, space.layers[-1].out_group) == (None, None)
    assert (space.layers[-1].kind, space.layers[-1].out_channels) == ("linear", 10)


def test_a_flatten_repeats_each_channel():
    network = nn.Sequential(
        conv(3, 8), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(128, 16), nn.Linear(16, 4)
    )
    space = groups.trace(network, SHAPE, "flat", width_step=2)
    assert [g.name for g in space.groups] == ["0", "4"]
    assert space.groups[0].members == (Member("0", 0), Member("4", 1, 16))
    hidden = space.layers[1]
    assert (hidden.in_channels, hidden.in_repeat, hidden.out_group) == (8, 16, "4")
    assert space.macs((8, 16)) == 3 * 8 * 9 * 256 + 128 * 16 + 16 * 4
    assert space.macs((2, 6)) == 3 * 2 * 9 * 256 + 32 * 6 + 6 * 4


@pytest.mark.parametrize(
    ("channels", "step", "fraction", "legal"),
    [
        (64, 8, 0.125, (8, 16, 24, 32, 40, 48, 56, 64)),
        (64, 16, 0.5, (32, 48, 64)),
        (100, 8, 0.9, (96, 100)),
        (20, 8, 0.125, (8, 16, 20)),
        (4, 8, 0.125, (4,)),
        (1000, 8, 0.99, (992, 1000)),
        (6, 1, 0.5, (3, 4, 5, 6)),
    ],
)
def test_legal_widths(channels, step, fraction, legal):
    assert groups.legal_widths(channels, step, fraction) == legal


@pytest.mark.parametrize(("step", "fraction"), [(0, 0.5), (8, 0.0), (8, 1.5)])
def test_senseless_limits(step, fraction):
    with pytest.raises(ValueError, match="width_step"):
        groups.trace(Net(conv(8, 8)), SHAPE, "net", step, fraction)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "squeeze_excite"]
)
def test_published_networks_trace(name):
    if name == "squeeze_excite":
        network = Net(torchvision.ops.SqueezeExcitation(8, 4))
    else:
        network = getattr(torchvision.models, name)(weights=None)
    space = groups.trace(network, (3, 32, 32), name)
    assert len(space.layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules())


class Unsafe:
    """Networks that torch-pruning would cut wrongly, or not at all, without a word."""

    class Concat(Net):
        def features(self, x):
            return torch.cat([self.body(x), x], dim=1).narrow(1, 0, 8)

    class Attention(Net):
        """One channel of weights over all others: element-wise to torch-pruning."""

        def features(self, x):
            return x * torch.sigmoid(self.body(x))

    class Shuffle(Net):
        def features(self, x):
            n, c, h, w = x.shape
            return self.body(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))

    class ChannelMean(Net):
        def features(self, x):
            return self.body(x - x.mean(1, keepdim=True))

    class Functional(Net):
        def __init__(self):
            super().__init__(nn.Identity())
            self.weight = nn.Parameter(torch.randn(8, 8, 1, 1))

        def features(self, x):
            return functional.conv2d(x, self.weight)

    class Reused(Net):
        def features(self, x):
            return self.body(functional.relu(self.body(x)))

    class Tied(Net):
        def __init__(self):
            super().__init__(conv(8, 8), more=conv(8, 8))
            self.more.weight = self.body.weight

        def features(self, x):
            return self.more(self.body(x))

    class GlobalMean(Net):
        def features(self, x):
            return self.body(x - x.mean())

    class Squeezed(Net):
        def features(self, x):
            return self.body(x.mean([2, 3], keepdim=True).squeeze()[..., None, None])

    class Gram(Net):
        def features(self, x):
            vectors = self.body(x).mean([2, 3])
            return (vectors.mm(vectors.t()).mm(vectors) + vectors)[..., None, None]

    class Softmax(Net):
        def features(self, x):
            return self.body(x.softmax(dim=1))

    class TwoOutputs(Net):
        def forward(self, x):
            return super().forward(x), x

    class BatchMixer(Net):
        """Folds the batch away: a batch of one would hide it."""

        def features(self, x):
            return self.body(x.view(1, -1, *x.shape[2:])[:, :8])


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (Unsafe.Concat(conv(8, 8)), r"cat\.default"),
        (Unsafe.Attention(conv(8, 1)), r"mul\.Tensor\(2x8x16x16, 2x1x16x16\)"),
        (Unsafe.Shuffle(conv(8, 8)), r"view\.default"),
        (Unsafe.ChannelMean(conv(8, 8)), r"mean\.dim"),
        (Unsafe.Functional(), "Functional with parameter weight"),
        (Unsafe.Reused(conv(8, 8)), "convolution called outside a module or more than once"),
        (Unsafe.Tied(), r"weights shared by body\.weight and more\.weight"),
        (Unsafe.GlobalMean(conv(8, 8)), r"mean\.default\(2x8x16x16\)"),
        (Unsafe.Squeezed(conv(8, 8)), r"squeeze\.default\(2x8x1x1\)"),
        (Unsafe.Gram(conv(8, 8)), "cannot prune through"),
        (Unsafe.Softmax(conv(8, 8)), r"_softmax\.default"),
        (Unsafe.TwoOutputs(conv(8, 8)), "an output that is not one"),
        (Unsafe.BatchMixer(conv(8, 8)), r"view\.default"),
        (Net(conv(8, 8, groups=2)), r"grouped convolution body \(groups=2\)"),
        (Net(nn.ConvTranspose2d(8, 8, 3, padding=1)), "ConvTranspose2d with parameter body"),
        (Net(nn.PReLU(8)), "PReLU with parameter body"),
        (Net(nn.GroupNorm(2, 8)), "GroupNorm with parameter body"),
        (Net(nn.LocalResponseNorm(2)), "cannot prune through"),
        (Net(conv(8, 8, padding_mode="reflect")), "reflection_pad2d"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_unknown_operators_are_named(network, named):
    with pytest.raises(operators.UnsupportedOpError, match=named) as caught:
        groups.trace(network, SHAPE, "my-net")
    assert caught.value.network == "my-net"
    assert str(caught.value).startswith("my-net: ")


def test_a_network_that_does_not_run_is_an_error_of_the_compiler():
    with pytest.raises(operators.TraceError, match=r"t: does not run on 2x3x8x8 pictures: Runtime"):
        groups.trace(nn.Sequential(nn.Conv2d(4, 8, 3)), (3, 8, 8), "t")
    assert issubclass(operators.TraceError, CompilerError)


def test_a_frozen_parameter_is_named():
    network = Net(conv(8, 8))
    network.body.bias.requires_grad_(False)
    with pytest.raises(groups.FrozenParameterError, match=r"my-net: parameter body\.bias is froz"):
        groups.trace(network, SHAPE, "my-net")


def test_a_layer_that_never_runs_is_named():
    with pytest.raises(groups.UncoveredLayerError, match="layer unused never runs"):
        groups.trace(Net(conv(8, 8), unused=conv(8, 8)), SHAPE, "my-net")


def test_a_layer_out_of_the_graphs_sight_is_named():
    class Hidden(Net):
        def features(self, x):
            with torch.no_grad():
                hidden = self.extra(x)
            return self.body(x) + hidden

    with pytest.raises(groups.UncoveredLayerError, match="no gradient reaches layer extra"):
        groups.trace(Hidden(conv(8, 8), extra=conv(8, 8)), SHAPE, "my-net")


def test_channels_tied_to_the_input_are_refused():
    class AddsInput(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(3, 3), conv(3, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            return self.head(self.second(self.first(x) + x).mean([2, 3]))

    with pytest.raises(operators.TraceError, match="does not run when cut"):
        groups.trace(AddsInput(), SHAPE, "my-net")


def test_a_shape_written_into_the_code_is_refused():
    class Fixed(Net):
        def features(self, x):
            return self.body(x).view(x.shape[0], 8, 16, 16)

    with pytest.raises(operators.TraceError, match="does not run when cut"):
        groups.trace(Fixed(conv(8, 8)), SHAPE, "my-net")


def test_an_activation_that_keeps_zero_channels_alive_is_refused():
    network = Net(nn.Sequential(nn.Sigmoid(), conv(8, 8)))
    with pytest.raises(operators.TraceError, match="cut and masked outputs differ"):
        groups.trace(network, SHAPE, "my-net")


def test_output_channels_stay_fixed_without_a_linear_layer():
    class FullyConvolutional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(3, 8), conv(8, 4)
            self.shortcut = conv(3, 4, kernel=1)

        def forward(self, x):
            both = self.second(self.first(x)) + self.shortcut(x)
            return torch.flatten(functional.adaptive_avg_pool2d(both, 1), 1)

    space = groups.trace(FullyConvolutional(), SHAPE, "fcn", width_step=1)
    assert [g.name for g in space.groups] == ["first"]
    fixed = {layer.name for layer in space.layers if layer.out_group is None}
    assert fixed == {"second", "shortcut"}


def test_layers_follow_execution_not_definition():
    cls = type("Ordered", (Net,), {"features": lambda self, x: self.late(self.early(x))})
    space = groups.trace(cls(None, late=conv(8, 8), early=conv(8, 8)), SHAPE, "net", width_step=2)
    assert [layer.name for layer in space.layers] == ["stem", "early", "late", "head"]
    assert [g.name for g in space.groups] == ["stem", "early", "late"]
    assert all(a.out_group == b.in_group for a, b in itertools.pairwise(space.layers))
