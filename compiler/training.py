"""Training, distillation, accuracy and batch-norm recalibration.

Input: a network on the CPU, Splits and TrainSettings. Output: the same network, there, with other
weights, and what came of it. On a CPU the same seed, machine and thread count give the same bytes,
killed and resumed or not; a GPU's sums come in no fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler import checkpoints, data, devices, weights
from compiler.checkpoints import Checkpoint, Epoch, Run
from compiler.devices import Precision
from compiler.time_left import SECONDS_LEFT, TimeLeft

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after each epoch with (epochs done, epochs in all, figures): train_loss, val_accuracy and
seconds_left. A resumed training tells of no epoch twice."""

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TrainSettings:
    """How to train. lr: peak of the one-cycle schedule. batch: pictures a step.

    precision: of convolutions and products, see devices.autocast_type.
    """

    epochs: int = 5
    lr: float = 0.005
    batch: int = 32
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    augment: bool = True
    seed: int = 0
    precision: Precision = "auto"

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
    checkpoint: Checkpoint | None = None,
) -> TrainResult:
    """Trains in place with cross-entropy and leaves the network in eval mode.

    AdamW with decoupled weight decay under a one-cycle schedule (Smith & Topin, 1708.07120).
    checkpoint: written between epochs; where it holds this very training, that goes on after the
    last epoch written. Raises ValueError for fewer training pictures than one batch and for a
    loss that is not finite, PrecisionError.
    """

    def loss_of(logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)

    return _optimise(network, splits, settings, loss_of, progress, checkpoint, ["train"])


def distil(
    student: nn.Module,
    teacher: nn.Module,
    splits: data.Splits,
    settings: TrainSettings,
    distillation: Distillation,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainResult:
    """Trains the student in place towards labels and the teacher's softened opinion.

    Loss (Hinton et al., 1503.02531): (1 - alpha) · CE + alpha · T² · KL(teacher_T ‖ student_T).
    The teacher is only read, in eval mode. checkpoint and errors: as in train.
    """
    temperature, alpha = distillation.temperature, distillation.alpha
    device = devices.chosen()
    arithmetic = devices.autocast_type(device, settings.precision)

    def loss_of(logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            opinion = functional.log_softmax(_logits(teacher, x, arithmetic) / temperature, dim=1)
        answer = functional.log_softmax(logits / temperature, dim=1)
        soft = functional.kl_div(answer, opinion, reduction="batchmean", log_target=True)
        hard = functional.cross_entropy(logits, y, label_smoothing=settings.label_smoothing)
        return (1 - alpha) * hard + alpha * temperature**2 * soft

    was_training, was_on = teacher.training, devices.of(teacher)
    start = ["distil", asdict(distillation), weights.sha256(teacher.state_dict())]
    teacher.eval().to(device)
    try:
        return _optimise(student, splits, settings, loss_of, progress, checkpoint, start)
    finally:
        teacher.train(was_training).to(was_on)


def train_together(
    network: nn.Module,
    splits: data.Splits,
    settings: TrainSettings,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainResult:
    """Trains networks that share weights in place, the widest by labels, the others by the widest.

    network: in training mode it answers (n_networks, n, classes), the widest first, and in eval
    mode with the widest alone (switchable.SwitchableNetwork). Loss: CE of the widest and, summed
    over the others, KL(widest ‖ other), the widest's answer held fixed (in-place distillation, Yu
    & Huang, 1903.05134, section 3.3). checkpoint and errors: as in train.
    """

    def loss_of(logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
        widest, others = logits[0], logits[1:]
        loss = functional.cross_entropy(widest, y, label_smoothing=settings.label_smoothing)
        opinion = functional.log_softmax(widest.detach(), dim=1)
        for other in others:
            answer = functional.log_softmax(other, dim=1)
            loss = loss + functional.kl_div(answer, opinion, reduction="batchmean", log_target=True)
        return loss

    return _optimise(network, splits, settings, loss_of, progress, checkpoint, ["together"])


def evaluate(network: nn.Module, x: data.PictureSet, y: Tensor) -> float:
    """Accuracy, a fraction, in eval mode; the network's mode is put back.

    x: (n, C, H, W), y: (n,); judged where the network lies. Raises ValueError when there is
    nothing to judge.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"accuracy needs as many labels as pictures, and one: {len(x)}, {len(y)}")
    was_training, device = network.training, devices.of(network)
    network.eval()
    try:
        with torch.inference_mode():
            hits = sum(
                int((network(part.to(device)).argmax(dim=1) == labels.to(device)).sum())
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
    was_training, device = network.training, devices.of(network)
    network.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for part in x.tensor_split(-(-len(x) // EVALUATION_BATCH)):
                network(part.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.train(was_training)


def _optimise(
    network: nn.Module,
    splits: data.Splits,
    settings: TrainSettings,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    progress: Progress | None,
    checkpoint: Checkpoint | None,
    start: Sequence[Any],
) -> TrainResult:
    """Epochs until the last, after those that the checkpoint holds.

    loss_of: (logits, pictures, labels) → the batch's mean loss. start: what tells this training
    from others with the same settings, data and weights.
    """
    steps = len(splits.train_x) // settings.batch
    if steps == 0:
        raise ValueError(f"{len(splits.train_x)} pictures do not fill a batch of {settings.batch}")
    device = devices.chosen()
    arithmetic = devices.autocast_type(device, settings.precision)
    same = ""
    if checkpoint is not None:
        begun = [weights.sha256(network.state_dict()), device.type, str(arithmetic)]
        same = checkpoints.identity(splits, asdict(settings), *begun, *start)
    run = _begin(network, settings, steps, device, arithmetic)
    with _seeded(settings.seed, device):
        found = None if checkpoint is None else checkpoints.restore(checkpoint, run, same)
        last = found or Epoch(0, {})
        left = TimeLeft(settings.epochs, last.number)
        for number in range(last.number + 1, settings.epochs + 1):
            last = _epoch(run, splits, settings, loss_of, arithmetic, number)
            if checkpoint is not None and checkpoint.due(number, settings.epochs):
                checkpoints.save(checkpoint.path, run, same, last)
            if progress is not None:
                figures = {**last.figures, SECONDS_LEFT: left.after(number)}
                progress(number, settings.epochs, figures)
    network.to("cpu")
    _lay_out(network, torch.contiguous_format)
    network.eval()
    return TrainResult(last.figures["train_loss"], last.figures["val_accuracy"], settings.epochs)


def _begin(
    network: nn.Module,
    settings: TrainSettings,
    steps: int,
    device: torch.device,
    arithmetic: torch.dtype | None,
) -> Run:
    """steps: in one epoch."""
    network.to(device)
    _lay_out(network, torch.channels_last)
    optimiser = torch.optim.AdamW(
        _parameter_groups(network, settings.weight_decay), lr=settings.lr, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=settings.lr, total_steps=steps * settings.epochs
    )
    # float16 alone underflows: its gradients are scaled up, and down again before the step.
    scaler = torch.amp.GradScaler(device.type, enabled=arithmetic is torch.float16)
    return Run(network, optimiser, schedule, scaler)


def _epoch(
    run: Run,
    splits: data.Splits,
    settings: TrainSettings,
    loss_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    arithmetic: torch.dtype | None,
    number: int,
) -> Epoch:
    """Trains through every full batch once, then judges.

    Raises ValueError for a loss that is not finite.
    """
    device = devices.of(run.network)
    run.network.train()
    total = torch.zeros((), dtype=torch.float64, device=device)
    steps = 0
    for x, y in _batches(splits, settings):
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        run.optimiser.zero_grad()
        loss = loss_of(_logits(run.network, x, arithmetic), x, y)
        run.scaler.scale(loss).backward()
        run.scaler.step(run.optimiser)
        run.scaler.update()
        run.schedule.step()
        total += loss.detach()
        steps += 1
    mean_loss = float(total) / steps
    if not mean_loss < float("inf"):
        raise ValueError(f"the loss is {mean_loss} in epoch {number}. Next: a smaller lr")
    accuracy = evaluate(run.network, splits.val_x, splits.val_y)
    return Epoch(number, {"train_loss": mean_loss, "val_accuracy": accuracy})


def _logits(network: nn.Module, x: Tensor, arithmetic: torch.dtype | None) -> Tensor:
    """Answers as float32, whatever they were computed in: losses are sums of small differences."""
    with torch.autocast(x.device.type, dtype=arithmetic, enabled=arithmetic is not None):
        logits: Tensor = network(x)
    return logits.float()


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
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The global generators of torch, seeded inside and as they were outside.

    torchvision's transforms and dropout draw from the global generators and take no others.
    """
    with torch.random.fork_rng(
        devices=[torch.cuda.current_device()] if device.type == "cuda" else []
    ):
        torch.manual_seed(seed)
        yield
