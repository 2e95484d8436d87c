"""A small switchable network with a bank of its own at each width, as training leaves it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compiler.pruning import importance
from compiler.pruning.groups import trace
from compiler.switchable.network import SwitchableNetwork, best_first, nested_widths
from device_agents.contract.switching import ClockLaw, Policy

SHAPE = (3, 24, 24)
RATIOS = (0.0, 0.4, 0.75)
TOP_KHZ = 2_000_000
POLICY = Policy(2.0, tuple(ClockLaw(0.0, 2.0 * TOP_KHZ / 2**p, 0.0) for p in range(len(RATIOS))))
CPUFREQ = "sys/devices/system/cpu/cpufreq/policy0"


class Mixed(nn.Module):
    """Plain, depthwise and residual convolutions, ReLU6, a linear layer that reads positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 40, 3, 2, 1), nn.BatchNorm2d(40), nn.ReLU())
        self.depth = nn.Sequential(
            nn.Conv2d(40, 40, 3, padding=1, groups=40, bias=False), nn.BatchNorm2d(40), nn.ReLU6(),
            nn.Conv2d(40, 48, 1, bias=False), nn.BatchNorm2d(48),
        )  # fmt: skip
        self.inner = nn.Sequential(
            nn.Conv2d(48, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48),
        )  # fmt: skip
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(48 * 9, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depth(self.stem(x))
        answer: torch.Tensor = self.head(torch.relu(y + self.inner(y)))
        return answer


def switchable_network() -> SwitchableNetwork:
    torch.manual_seed(0)
    return with_banks(Mixed().eval(), SHAPE, RATIOS)


def with_banks(
    plain: nn.Module, shape: tuple[int, int, int], ratios: tuple[float, ...]
) -> SwitchableNetwork:
    """Every bank with statistics of its own."""
    space = trace(plain, shape, "sample", width_step=4)
    ordered = best_first(plain, space, importance.magnitude(plain, space))
    network = SwitchableNetwork(ordered, space, nested_widths(space, ratios)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.3, 0.3)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network


class Clock:
    """What cpufreq says below a root of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        (folder / CPUFREQ).mkdir(parents=True)
        self(TOP_KHZ)

    def __call__(self, khz: int) -> None:
        """By rename: a reader sees the old number or the new one."""
        written = self.root / CPUFREQ / "written"
        written.write_text(f"{khz}\n")
        written.rename(self.root / CPUFREQ / "scaling_cur_freq")
