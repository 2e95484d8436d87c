"""ResNets for 32 x 32 pictures, in the layout of the published CIFAR-10 weights.

Input: a depth of 6 n + 2. Output: He et al.'s network (1512.03385, section 4.2), whose
parameter-free shortcuts (option A) are written as 1 x 1 convolutions, so that they can be pruned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64)
CLASSES = 10


class PaddedShortcut(nn.Conv2d):
    """Every second pixel, with as many zero channels before the old ones as after them.

    Option A as a strided 1 x 1 convolution of zeros and ones: the same function, 0.2 % more
    multiply-adds in ResNet56. As padding, it would tie channel i of one stage to channel i + 8
    or i + 16 of the next, and the three trunks could be cut only as one. As a convolution, each
    stage's trunk is a group of its own, and fine-tuning may learn what a cut took away.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1, stride=2, bias=False)
        self.whole = (c_out, c_in, 1, 1)

    def reset_parameters(self) -> None:
        """The padding; torch's own constructor calls this too."""
        with torch.no_grad():
            self.weight.copy_(_padding(self.out_channels, self.in_channels))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Published weights lack this entry and mean the padding; cut ones must bring their own."""
        if tuple(self.weight.shape) == self.whole:
            padding = _padding(self.out_channels, self.in_channels)
            state_dict.setdefault(f"{prefix}weight", padding)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _padding(c_out: int, c_in: int) -> Tensor:
    """(c_out, c_in, 1, 1): row c_in // 2 + i takes channel i, as akamaster's planes // 4 does."""
    weight = torch.zeros(c_out, c_in, 1, 1)
    channels = torch.arange(c_in)
    weight[channels + (c_out - c_in) // 2, channels] = 1.0
    return weight


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Identity() if c_in == c_out else PaddedShortcut(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        inside = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inside)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Input (n, 3, 32, 32), output (n, 10). blocks: of each of the three stages.

    Its names are those of github.com/akamaster/pytorch_resnet_cifar10, whose weights it loads.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks)
        self.linear = nn.Linear(WIDTHS[2], CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not isinstance(module, PaddedShortcut):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        # keepdim keeps ExecuTorch's large kernel library out of the executable.
        return self.linear(torch.flatten(x.mean([2, 3], keepdim=True), 1))


def _stage(c_in: int, c_out: int, blocks: int) -> nn.Sequential:
    first = CifarBlock(c_in, c_out, 1 if c_in == c_out else 2)
    return nn.Sequential(first, *(CifarBlock(c_out, c_out, 1) for _ in range(blocks - 1)))


def cifar_resnet(depth: int) -> CifarResNet:
    """depth: 20, 32, 44, 56, …: 6 n + 2. Raises ValueError for another."""
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"a CIFAR ResNet has 6 n + 2 layers, not {depth}")
    return CifarResNet((depth - 2) // 6)
