"""Where a killed training goes on: all that decides its next step, in one file.

Input: a training between two epochs. Output: a safetensors file (weights, optimiser, generators)
whose header holds the rest as JSON; or the same training as it was. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from compiler import weights
from compiler.data import PictureSet, Splits

STATE = "training"
"""The header's entry that holds the JSON."""
NETWORK, OPTIMISER, GENERATOR = "network/", "optimiser/", "generator/"
"""What the names of tensors begin with."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a training leaves its state. The caller removes the file once the stage is done.

    every: epochs between two writes, at least 1; the last epoch is always written.
    note: told in one line why a file that was found is not used.
    """

    path: Path
    every: int = 1
    note: Callable[[str], None] = lambda _text: None

    def due(self, epoch: int, epochs: int) -> bool:
        return epoch % self.every == 0 or epoch == epochs


@dataclass(frozen=True)
class Run:
    """The moving parts of one training."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those the optimiser moves, in its order."""
        return [p for group in self.optimiser.param_groups for p in group["params"]]


@dataclass(frozen=True)
class Epoch:
    """An epoch that is behind. number: from 1; figures: what it came to."""

    number: int
    figures: Mapping[str, float]


def identity(splits: Splits, *parts: Any) -> str:
    """Hash of all that a training depends on; each part is plain data.

    Two trainings of one identity are the same training. The torch version counts: its kernels do.
    """
    document = json.dumps([torch.__version__, _fingerprint(splits), *parts], sort_keys=True)
    return hashlib.sha256(document.encode("utf-8")).hexdigest()


def save(path: Path, run: Run, identity: str, epoch: Epoch) -> None:
    """Writes the state whole or not at all; weights and moments as they are, to the bit."""
    tensors = {NETWORK + name: tensor for name, tensor in run.network.state_dict().items()}
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for group in run.optimiser.param_groups
    ]
    for position, parameter in enumerate(run.parameters):
        for name, tensor in run.optimiser.state[parameter].items():
            tensors[f"{OPTIMISER}{position}/{name}"] = tensor
    for device, state in _generators(run.network).items():
        tensors[GENERATOR + device] = state
    document = {
        "identity": identity,
        "epoch": asdict(epoch),
        "groups": groups,
        "schedule": run.schedule.state_dict(),
        "scaler": run.scaler.state_dict(),
    }
    plain = {name: t.detach().to("cpu").contiguous().clone() for name, t in tensors.items()}
    content = safetensors.torch.save(plain, metadata={STATE: json.dumps(document)})
    weights.write_whole(path, content)


def restore(checkpoint: Checkpoint, run: Run, identity: str) -> Epoch | None:
    """Brings the run to where the file left it; None, and the run untouched, without a fit one.

    Sets torch's generators too. A file of another identity is noted and left to be overwritten.
    """
    try:
        with safetensors.safe_open(checkpoint.path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            document = json.loads((file.metadata() or {})[STATE])
    except FileNotFoundError:
        return None
    except (OSError, safetensors.SafetensorError, ValueError, KeyError):
        checkpoint.note(f"{checkpoint.path.name} is damaged: training starts anew")
        return None
    if document.get("identity") != identity:
        checkpoint.note(
            f"{checkpoint.path.name} is of other settings, data or weights: training starts anew"
        )
        return None
    run.network.load_state_dict(_below(NETWORK, tensors))
    _restore_optimiser(run, document["groups"], _below(OPTIMISER, tensors))
    run.schedule.load_state_dict(document["schedule"])
    run.scaler.load_state_dict(document["scaler"])
    _set_generators(_below(GENERATOR, tensors))
    return Epoch(document["epoch"]["number"], document["epoch"]["figures"])


def _restore_optimiser(
    run: Run, groups: list[dict[str, Any]], tensors: Mapping[str, Tensor]
) -> None:
    for group, stored in zip(run.optimiser.param_groups, groups, strict=True):
        group.update(stored)
        group["betas"] = tuple(stored["betas"])  # JSON has no tuples
    for position, parameter in enumerate(run.parameters):
        for name, tensor in _below(f"{position}/", tensors).items():
            # The fused step walks weights and moments alike: a moment needs its weight's layout.
            like = parameter if tensor.ndim else tensor
            place = torch.empty_like(like, device=parameter.device)
            run.optimiser.state[parameter][name] = place.copy_(tensor)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _generators(network: nn.Module) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if any(parameter.is_cuda for parameter in network.parameters()):
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generators(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _fingerprint(splits: Splits) -> str:
    """Hash of every picture and label that training sees."""
    digest = hashlib.sha256(splits.name.encode("utf-8"))
    for pictures in (splits.train_x, splits.val_x):
        for tensor in _stored(pictures):
            digest.update(tensor.contiguous().numpy().data)
    for labels in (splits.train_y, splits.val_y):
        digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()


def _stored(pictures: PictureSet) -> tuple[Tensor, ...]:
    if isinstance(pictures, Tensor):
        return (pictures,)
    return pictures.stored, pictures.mean, pictures.std
