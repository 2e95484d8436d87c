"""The networks that can be pruned, by name or by a user's import path.

Input: a name ("digits_resnet") or "module:factory", and a seed. Output: a torch module with
seeded weights, and its input's shape; adding a network is one entry in NETWORKS.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from compiler.cifar_resnet import cifar_resnet
from compiler.errors import CompilerError
from compiler.vision import torchvision

Shape = tuple[int, int, int]
"""Channels, height, width of one input."""


class UnknownNetworkError(CompilerError, ValueError):
    """A name that leads to no network; the message says what to write instead."""


class FactoryError(CompilerError):
    """A user's factory that makes no network."""


@dataclass(frozen=True)
class NetworkEntry:
    """factory() → a module with random weights. input_shape: of one picture, without the batch.

    classes: the width of its output; None for a user's own, known once it runs.
    """

    factory: Callable[[], nn.Module]
    input_shape: Shape
    classes: int | None = None


def build(name: str, seed: int) -> nn.Module:
    """The named network in eval mode; weights depend on the seed alone.

    torch's global generator is as it was afterwards. Raises UnknownNetworkError, and FactoryError
    when a user's factory fails or returns something other than a module.
    """
    factory = _entry(name).factory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = factory()
        except Exception as error:
            raise FactoryError(
                f"network {name}: the factory raised {type(error).__name__}: {error}. "
                "Next: call it by itself; it takes no arguments"
            ) from error
    if not isinstance(network, nn.Module):
        raise FactoryError(
            f"network {name}: the factory returned {type(network).__name__}. "
            "Next: return a torch.nn.Module"
        )
    return network.eval()


def input_shape(name: str) -> Shape:
    """(C, H, W) of one input of the named network. Raises UnknownNetworkError."""
    return _entry(name).input_shape


def _entry(name: str) -> NetworkEntry:
    if name in NETWORKS:
        return NETWORKS[name]
    if ":" not in name:
        raise UnknownNetworkError(
            f"no network {name!r}. Next: choose one of {', '.join(sorted(NETWORKS))}, or "
            "name your own as module:factory"
        )
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownNetworkError(
            f"network {name}: {error}. Next: check the path, and that PYTHONPATH leads to it"
        ) from error
    return _users_entry(name, factory)


def _users_entry(name: str, factory: Callable[[], nn.Module]) -> NetworkEntry:
    shape = getattr(factory, "input_shape", None)
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if not callable(factory) or len(sizes) != 3 or not all(type(s) is int for s in sizes):
        raise UnknownNetworkError(
            f"network {name}: expected a class or function without arguments that carries "
            "input_shape = (channels, height, width). Next: add that attribute"
        )
    return NetworkEntry(factory, (sizes[0], sizes[1], sizes[2]))


class ConvBlock(nn.Sequential):
    """Convolution with "same" padding, batch norm, and ReLU unless told otherwise."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out)
        if relu:
            self.relu = nn.ReLU()


class SeparableBlock(nn.Sequential):
    """A depthwise 3 x 3 convolution, then a pointwise one (MobileNetV1, 1704.04861, table 1)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = ConvBlock(c_in, c_in, 3, stride, groups=c_in)
        self.pointwise = ConvBlock(c_in, c_out, 1)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (ResNet, 1512.03385, figure 2, option B)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = ConvBlock(c_in, c_out, 3, stride)
        self.second = ConvBlock(c_out, c_out, 3, relu=False)
        same_shape = stride == 1 and c_in == c_out
        self.shortcut = (
            nn.Identity() if same_shape else ConvBlock(c_in, c_out, 1, stride, relu=False)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


class Classifier(nn.Module):
    """Stem, blocks, global mean, and one linear layer. Input (n, 3, H, W), output (n, classes)."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module], width: int, classes: int):
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(self.stem(x))
        # keepdim keeps ExecuTorch's large kernel library out of the executable.
        return self.head(torch.flatten(features.mean([2, 3], keepdim=True), 1))


def _initialise(network: nn.Module) -> None:
    """He's normal initialisation (1502.01852, equation 10) for convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def digits_mobilenet() -> nn.Module:
    """MobileNetV1-style, 63 M multiply-adds at 3 x 32 x 32; most of them in 512-wide layers."""
    # (output channels, stride)
    plan = ((64, 1), (128, 1), (256, 1), (512, 2), (512, 1), (512, 1), (1024, 2))
    blocks, width = [], 32
    for channels, stride in plan:
        blocks.append(SeparableBlock(width, channels, stride))
        width = channels
    return Classifier(ConvBlock(3, 32, 3, stride=2), blocks, width, classes=10)


def digits_resnet() -> nn.Module:
    """ResNet-style, three stages of basic blocks, 67 M multiply-adds at 3 x 32 x 32."""
    # (output channels, blocks, stride of the first)
    plan = ((64, 1, 1), (128, 1, 2), (256, 2, 2))
    blocks, width = [], 64
    for channels, count, first_stride in plan:
        for position in range(count):
            stride = first_stride if position == 0 else 1
            blocks.append(ResidualBlock(width, channels, stride))
            width = channels
    return Classifier(ConvBlock(3, 64, 3, stride=2), blocks, width, classes=10)


def mobilenet_v1() -> nn.Module:
    """MobileNetV1 at full width (1704.04861, table 1), 569 M multiply-adds at 3 x 224 x 224."""
    # (output channels, stride)
    plan = (
        ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2))
        + ((512, 1),) * 5
        + ((1024, 2), (1024, 1))
    )
    blocks, width = [], 32
    for channels, stride in plan:
        blocks.append(SeparableBlock(width, channels, stride))
        width = channels
    return Classifier(ConvBlock(3, 32, 3, stride=2), blocks, width, classes=IMAGENET_CLASSES)


def _published(architecture: str) -> nn.Module:
    """torchvision's, with random weights; its published files load as starting weights."""
    network: nn.Module = getattr(torchvision.models, architecture)(weights=None)
    return network


IMAGENET_CLASSES = 1000

_CIFAR: Shape = (3, 32, 32)
_IMAGENET: Shape = (3, 224, 224)

NETWORKS: dict[str, NetworkEntry] = {
    "digits_mobilenet": NetworkEntry(digits_mobilenet, _CIFAR, 10),
    "digits_resnet": NetworkEntry(digits_resnet, _CIFAR, 10),
    "efficientnet_b0": NetworkEntry(
        partial(_published, "efficientnet_b0"), _IMAGENET, IMAGENET_CLASSES
    ),
    "mobilenet_v1": NetworkEntry(mobilenet_v1, _IMAGENET, IMAGENET_CLASSES),
    "mobilenet_v2": NetworkEntry(partial(_published, "mobilenet_v2"), _IMAGENET, IMAGENET_CLASSES),
    "resnet20": NetworkEntry(partial(cifar_resnet, 20), _CIFAR, 10),
    "resnet50": NetworkEntry(partial(_published, "resnet50"), _IMAGENET, IMAGENET_CLASSES),
    "resnet56": NetworkEntry(partial(cifar_resnet, 56), _CIFAR, 10),
    "vgg16": NetworkEntry(partial(_published, "vgg16_bn"), _IMAGENET, IMAGENET_CLASSES),
}
