"""Widths straight from a board's features and a latency target: a network instead of a search.

Input: a trained PairPredictor, frozen, and an AccuracyModel. Output: WidthOptimizer, trained
through both: for any board and target in their range the widths of the best accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compiler.amortised.accuracy import AccuracyModel
from compiler.amortised.device import N_FEATURES
from compiler.amortised.predictor import KnownDevices, PairPredictor, pair_ms
from compiler.amortised.shapes import ShapeCosts
from compiler.amortised.spread import Spread, simulate

HIDDEN = 128
MOST_EXPONENT = 4.0
"""Logarithm of the largest exponent, and of the inverse of the least."""
PENALTY = 400.0
"""What the square of an exceeded target, as a logarithm, costs against the accuracy's exponent:
a design 5 % above its target pays as much as one whose accuracy has fallen by 1/e."""

Watch = Callable[[int, int, float], None]
"""Called with steps done, of how many, and the loss."""


@dataclass(frozen=True)
class Effort:
    """How long both networks are trained. boards: simulated ones to learn from."""

    boards: int = 4096
    steps: int = 3000
    batch: int = 256
    learning_rate: float = 3e-3


class WidthOptimizer(nn.Module):
    """(device, target) → kept fractions, (n, n_groups): ``least + (1 - least) · t^e``.

    t is where the target lies between the latencies of the smallest shape, 0, and the dense one, 1,
    on a logarithmic axis; a network tells each group's exponent e > 0 from the device and t. So
    both ends are right from the start, and every group grows with the target.
    """

    least_kept: Tensor

    def __init__(self, shapes: ShapeCosts) -> None:
        super().__init__()
        self.register_buffer("least_kept", shapes.least_kept)
        last = nn.Linear(HIDDEN, len(shapes.least_kept))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            *(nn.Linear(N_FEATURES + 1, HIDDEN), nn.SiLU()),
            *(nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), last),
        ).double()

    def forward(self, standardised: Tensor, t: Tensor) -> Tensor:
        """standardised: (n, N_FEATURES), PairPredictor.standardised. t: (n,), 0..1."""
        asked = torch.cat([standardised, t[:, None]], dim=1)
        exponent = torch.exp(MOST_EXPONENT * torch.tanh(self.net(asked) / MOST_EXPONENT))
        grown = t.clamp(min=1e-6)[:, None] ** exponent
        return self.least_kept + (1 - self.least_kept) * grown


@dataclass(frozen=True)
class Lessons:
    """What both networks are taught from. watch: told of every step of either."""

    shapes: ShapeCosts
    known: KnownDevices
    spread: Spread
    effort: Effort
    seed: int
    watch: Watch

    def boards(self, seed: int) -> tuple[Tensor, Tensor]:
        """Simulated boards and behind them the measured ones: vectors and costs."""
        vectors, costs = simulate(self.known, self.spread, self.effort.boards, seed)
        measured = torch.stack([torch.tensor(device.vector()) for device in self.known.devices])
        return torch.cat([vectors, measured]), torch.cat([costs, self.known.costs])


def train_predictor(predictor: PairPredictor, lessons: Lessons) -> None:
    """Teaches the predictor simulated boards and, in every batch, the measured ones.

    Loss: Huber's, of the logarithm of latency, on shapes drawn anew in each step.
    """
    shapes, effort = lessons.shapes, lessons.effort
    generator = torch.Generator().manual_seed(lessons.seed)
    boards, costs = lessons.boards(lessons.seed)
    predictor.standardise(boards)
    n_measured = len(lessons.known.devices)
    optimiser, schedule = _descent(predictor, effort)
    for step in range(effort.steps):
        rows = torch.randint(len(boards), (effort.batch,), generator=generator)
        rows[:n_measured] = torch.arange(len(boards) - n_measured, len(boards))
        features = shapes.smooth(_random_kept(shapes, effort.batch, generator))
        truth = torch.log(pair_ms(costs[rows], features))
        found = torch.log(predictor(boards[rows], features))
        loss = nn.functional.huber_loss(found, truth, delta=0.05)
        _step(loss, optimiser, schedule)
        lessons.watch(step + 1, effort.steps, float(loss.detach()))
    predictor.eval().requires_grad_(False)


def train_optimizer(
    optimizer: WidthOptimizer, predictor: PairPredictor, accuracy: AccuracyModel, lessons: Lessons
) -> None:
    """Through the frozen predictor: the accuracy's loss plus PENALTY · (excess of the target)²."""
    shapes, effort = lessons.shapes, lessons.effort
    generator = torch.Generator().manual_seed(lessons.seed + 1)
    boards, _ = lessons.boards(lessons.seed + 1)
    costs, standardised = predictor.device_costs(boards), predictor.standardised(boards)
    least, dense = _ends_ms(shapes, costs)
    optimiser, schedule = _descent(optimizer, effort)
    for step in range(effort.steps):
        rows = torch.randint(len(boards), (effort.batch,), generator=generator)
        t = torch.rand(effort.batch, generator=generator, dtype=torch.float64)
        target_ms = least[rows] * (dense[rows] / least[rows]) ** t
        kept = optimizer(standardised[rows], t)
        ms = pair_ms(costs[rows], shapes.smooth(kept))
        excess = torch.relu(torch.log(ms / target_ms))
        loss = (accuracy.log_loss(kept) + PENALTY * excess.square()).mean()
        _step(loss, optimiser, schedule)
        lessons.watch(step + 1, effort.steps, float(loss.detach()))
    optimizer.eval().requires_grad_(False)


def _ends_ms(shapes: ShapeCosts, costs: Tensor) -> tuple[Tensor, Tensor]:
    """Latency of the smallest and of the dense shape, (n,) each, in ms."""
    ends = shapes.smooth(torch.stack([shapes.least_kept, torch.ones_like(shapes.least_kept)]))
    return pair_ms(costs, ends[:1]), pair_ms(costs, ends[1:])


def _random_kept(shapes: ShapeCosts, n: int, generator: torch.Generator) -> Tensor:
    """Half with one level for all groups and a deviation of each, half each group on its own."""
    own = torch.rand(n, len(shapes.least_kept), generator=generator, dtype=torch.float64)
    level = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    level[n // 2 :] = 0.5
    width = torch.full((n, 1), 0.6, dtype=torch.float64)
    width[n // 2 :] = 1.0
    part = (level + (own - 0.5) * width).clamp(0, 1)
    return shapes.least_kept + (1 - shapes.least_kept) * part


def _descent(
    network: nn.Module, effort: Effort
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.Adam(network.parameters(), lr=effort.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=effort.learning_rate, total_steps=effort.steps
    )
    return optimiser, schedule


def _step(
    loss: Tensor,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
