"""Training, distillation, accuracy and batch-norm recalibration.

Input: a network, Splits and TrainSettings. Output: the same network with other weights, and
what came of it; the same seed, machine and thread count give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler import data

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each epoch with (epochs done, epochs in all, figures)."""

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TrainSettings:
    """How to train. lr: peak of the one-cycle schedule. batch: pictures a step."""

    epochs: int = 5
    lr: float = 0.005
    batch: int = 32
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2 or self.lr <= 0 or self.weight_decay < 0:
            raise ValueError(f"epochs ≥ 1, batch ≥ 2, lr > 0, weight_decay ≥ 0 are needed: {self}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing lies in [0, 1): {self.label_smoothing}")


@dataclass(frozen=True)
class Distillation:
    """Weight of the teacher's opinion. temperature: softens both; alpha: its share, 0..1."""

    temperature: float = 4.0
    alpha: float = 0.7

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.alpha <= 1:
            raise ValueError(f"temperature > 0 and alpha in 0..1 are needed: {self}")


@dataclass(frozen=True)
class TrainResult:
    """train_loss: mean over the last epoch. val_accuracy: a fraction, on the validation part."""

    train_loss: float
    val_accuracy: float
    epochs: int


def train(
    network: nn.Module,
    splits: data.Splits,
    settings: TrainSettings,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains in place with cross-entropy and leaves the network in eval mode.

    AdamW with decoupled weight decay under a one-cycle schedule (Smith & Topin, 1708.07120).
    Raises ValueError for fewer training pictures than one batch and for a loss that is not finite.
    """

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(network(x), y, label_smoothing=settings.label_smoothing)

    return _optimise(network, splits, settings, loss_of, progress)


def distil(
    student: nn.Module,
    teacher: nn.Module,
    splits: data.Splits,
    settings: TrainSettings,
    distillation: Distillation,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains the student in place towards labels and the teacher's softened opinion.

    Loss (Hinton et al., 1503.02531): (1 - alpha) · CE + alpha · T² · KL(teacher_T ‖ student_T).
    The teacher is only read, in eval mode. Raises as train does.
    """
    temperature, alpha = distillation.temperature, distillation.alpha
    teacher_was_training = teacher.training
    teacher.eval()

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            opinion = functional.log_softmax(teacher(x) / temperature, dim=1)
        logits = student(x)
        answer = functional.log_softmax(logits / temperature, dim=1)
        soft = functional.kl_div(answer, opinion, reduction="batchmean", log_target=True)
        hard = functional.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
        return (1 - alpha) * hard + alpha * temperature**2 * soft

    try:
        return _optimise(student, splits, settings, loss_of, progress)
    finally:
        teacher.train(teacher_was_training)


def evaluate(network: nn.Module, x: data.PictureSet, y: Tensor) -> float:
    """Accuracy, a fraction, in eval mode; the network's mode is put back.

    x: (n, C, H, W), y: (n,). Raises ValueError when there is nothing to judge.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"accuracy needs as many labels as pictures, and one: {len(x)}, {len(y)}")
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            hits = sum(
                int((network(part).argmax(dim=1) == labels).sum())
                for part, labels in zip(
                    x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True
                )
            )
    finally:
        network.train(was_training)
    return hits / len(x)


def recalibrate_batch_norm(network: nn.Module, x: Tensor) -> None:
    """Replaces batch norm's running mean and variance by those of x; weights stay.

    x: (n, C, H, W), n ≥ 2, of the training part: what surgery leaves behind are the dense
    network's statistics. Each layer's are averaged over equal batches (momentum None), the
    cheap proxy for fine-tuning of EagleEye (2007.02491, section 3.3).
    """
    if len(x) < 2:
        raise ValueError(f"batch-norm statistics need two pictures at least, not {len(x)}")
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = network.training
    network.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for part in x.tensor_split(-(-len(x) // EVALUATION_BATCH)):
                network(part)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(was_training)


def _optimise(
    network: nn.Module,
    splits: data.Splits,
    settings: TrainSettings,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    progress: Progress | None,
) -> TrainResult:
    steps = len(splits.train_x) // settings.batch
    if steps == 0:
        raise ValueError(f"{len(splits.train_x)} pictures do not fill a batch of {settings.batch}")
    _lay_out(network, torch.channels_last)
    optimiser = torch.optim.AdamW(
        _parameter_groups(network, settings.weight_decay), lr=settings.lr, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=settings.lr, total_steps=steps * settings.epochs
    )
    loss = val_accuracy = 0.0
    with _seeded(settings.seed):
        for epoch in range(1, settings.epochs + 1):
            network.train()
            total = 0.0
            for x, y in _batches(splits, settings):
                optimiser.zero_grad()
                batch_loss = loss_of(x, y)
                batch_loss.backward()
                optimiser.step()
                schedule.step()
                total += float(batch_loss.detach())
            loss = total / steps
            if not loss < float("inf"):
                raise ValueError(f"the loss is {loss} in epoch {epoch}. Next: a smaller lr")
            val_accuracy = evaluate(network, splits.val_x, splits.val_y)
            if progress is not None:
                figures = {"train_loss": loss, "val_accuracy": val_accuracy}
                progress(epoch, settings.epochs, figures)
    _lay_out(network, torch.contiguous_format)
    network.eval()
    return TrainResult(loss, val_accuracy, settings.epochs)


def _batches(splits: data.Splits, settings: TrainSettings) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order; the last, incomplete batch is left out."""
    order = torch.randperm(len(splits.train_x))
    for start in range(0, len(order) - settings.batch + 1, settings.batch):
        chosen = order[start : start + settings.batch]
        x = splits.train_x[chosen]
        if settings.augment:
            x = data.augment(splits.name, x)
        yield x.contiguous(memory_format=torch.channels_last), splits.train_y[chosen]


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights decay, biases and batch norm's affine terms do not."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _lay_out(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Convolution weights in that order; on CPUs channels last trains about a quarter faster."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generator of torch, seeded inside and as it was outside.

    torchvision's transforms and dropout draw from the global generator and take no other.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
