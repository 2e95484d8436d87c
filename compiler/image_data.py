"""Pictures from folders, as torchvision's ImageFolder lays them out: part/class/picture.

Input: a folder with train/ and test/. Output: uint8 pictures in memory, which come out batch by
batch as normalised float32; or a DataError that names the folder or file and the next step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compiler.errors import CompilerError
from compiler.vision import torchvision, transforms

Shape = tuple[int, int, int]
SMALL_SIDE = 64
"""Up to this many pixels a picture is augmented as CIFAR's are, above as ImageNet's are."""

_FLAT = 1e-6
"""Below this deviation a channel is constant and is only centred."""


class DataError(CompilerError, ValueError):
    """A data set that cannot be read or does not fit; the message names it and the next step."""


@dataclass(frozen=True)
class Pictures:
    """Pictures held as bytes, a quarter of float32; each access gives (x / 255 - mean) / std.

    stored: (n, C, H, W) uint8. mean, std: (C, 1, 1) float32, of pictures in 0..1.
    """

    stored: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def shape(self) -> torch.Size:
        return self.stored.shape

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Float32: (C, H, W) for one index, (k, C, H, W) for a slice or indices."""
        return (self.stored[index].float() / 255.0 - self.mean) / self.std

    def split(self, size: int) -> Iterator[Tensor]:
        """Batches in order, the last one perhaps smaller, as torch.Tensor.split gives them."""
        return (self[start : start + size] for start in range(0, len(self), size))


@dataclass(frozen=True)
class Folder:
    """One part of a data set. stored: (n, C, H, W) uint8, class by class; labels: (n,) int64."""

    classes: tuple[str, ...]
    stored: Tensor
    labels: Tensor


def read_folder(part: Path, shape: Shape | None) -> Folder:
    """Every picture below part/class/, classes and files in the order of their names.

    shape: (C, H, W) with 1 or 3 channels; pictures of another size are scaled to cover it and cut
    around their centre. None: RGB as they are, all of one size. Hidden files are passed over.
    Raises DataError.
    """
    if shape is not None and shape[0] not in (1, 3):
        raise DataError(
            f"{part}: pictures have 1 or 3 channels, the network takes {shape[0]}. "
            "Next: choose another network"
        )
    classes = _visible(part, "class folders") if part.is_dir() else []
    if not classes:
        raise DataError(
            f"{part}: no such folder, or nothing in it. Next: lay the pictures out as "
            "train/CLASS/FILE and test/CLASS/FILE"
        )
    listed: list[tuple[Path, int]] = []
    for label, folder in enumerate(classes):
        if not folder.is_dir():
            raise DataError(f"{folder}: a file where class folders belong. Next: move it away")
        files = _visible(folder, "pictures")
        if not files:
            raise DataError(
                f"{folder}: a class without pictures. Next: add some, or remove the folder"
            )
        listed.extend((path, label) for path in files)
    first = _decode(listed[0][0], shape)
    stored = np.empty((len(listed), *first.shape), dtype=np.uint8)
    for position, (path, _) in enumerate(listed):
        picture = _decode(path, shape)
        if picture.shape != first.shape:
            raise DataError(
                f"{path}: {_size(picture)} pixels, {listed[0][0]} has {_size(first)}. "
                "Next: bring all pictures to one size"
            )
        stored[position] = picture
    labels = torch.tensor([label for _, label in listed], dtype=torch.int64)
    names = tuple(folder.name for folder in classes)
    return Folder(names, torch.from_numpy(stored).permute(0, 3, 1, 2).contiguous(), labels)


def read_parts(root: Path, shape: Shape | None) -> tuple[Folder, Folder]:
    """(train, test) of one data set: the same classes, the same size. Raises DataError."""
    root = root.expanduser()
    train = read_folder(root / "train", shape)
    test = read_folder(root / "test", shape)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(
            f"{root}: class {odd[0]} is in one of train/ and test/ only. Next: give both the "
            "same class folders"
        )
    if train.stored.shape[1:] != test.stored.shape[1:]:
        raise DataError(
            f"{root}: pictures in train/ are {tuple(train.stored.shape[1:])}, in test/ "
            f"{tuple(test.stored.shape[1:])}. Next: bring all pictures to one size"
        )
    return train, test


def split_off(folder: Folder, fraction: float, seed: int, root: Path) -> tuple[Tensor, Tensor]:
    """(rest, split off): disjoint indices in random order, with a share of every class.

    Of each class one picture at least, and one stays. Raises DataError for a class of one.
    """
    rng = np.random.default_rng(seed)
    off: list[int] = []
    rest: list[int] = []
    for label, name in enumerate(folder.classes):
        members = rng.permutation(np.flatnonzero(folder.labels.numpy() == label)).tolist()
        if len(members) < 2:
            raise DataError(
                f"{root / 'train' / name}: one picture cannot both train and validate. "
                "Next: add pictures"
            )
        count = max(1, round(fraction * len(members)))
        off.extend(members[:count])
        rest.extend(members[count:])
    return torch.from_numpy(rng.permutation(rest)), torch.from_numpy(rng.permutation(off))


def normalisation(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (C, 1, 1) float32, of values in 0..1.

    stored: (n, C, H, W) uint8. Counted in integers, so exact in any order.
    """
    values = torch.arange(256, dtype=torch.float64) / 255.0
    means, deviations = [], []
    for channel in range(stored.shape[1]):
        counts = torch.bincount(stored[:, channel].flatten(), minlength=256).double()
        mean = (counts * values).sum() / counts.sum()
        deviation = ((counts * (values - mean).square()).sum() / counts.sum()).sqrt()
        means.append(mean)
        deviations.append(deviation if deviation > _FLAT else torch.ones_like(deviation))
    return torch.stack(means).float()[:, None, None], torch.stack(deviations).float()[:, None, None]


def augment_pictures(batch: Tensor) -> Tensor:
    """Cut and mirrored, each picture by itself; drawn from torch's global generator.

    batch: (n, C, H, W), normalised, left as it is. Small ones: an eighth of their side padded with
    the mean, a random cut of the old size, and a random flip (1512.03385, section 4.2); large
    ones: a random cut of 8 to 100 % of the area, scaled back (1409.4842, section 6), and a flip.
    """
    if max(batch.shape[2:]) <= SMALL_SIDE:
        cut = _random_cut(batch)
    else:
        rescale = transforms.RandomResizedCrop(tuple(batch.shape[2:]), antialias=True)
        cut = torch.stack([rescale(picture) for picture in batch])
    flipped = torch.rand(len(batch)) < 0.5
    return torch.where(flipped.to(batch.device)[:, None, None, None], cut.flip(3), cut)


def _random_cut(batch: Tensor) -> Tensor:
    n, _, height, width = batch.shape
    margin = max(1, max(height, width) // 8)
    padded = functional.pad(batch, (margin,) * 4)
    top = torch.randint(2 * margin + 1, (n, 1)).to(batch.device)
    left = torch.randint(2 * margin + 1, (n, 1)).to(batch.device)
    rows = (top + torch.arange(height, device=batch.device))[:, :, None]
    columns = (left + torch.arange(width, device=batch.device))[:, None, :]
    which = torch.arange(n, device=batch.device)[:, None, None]
    # Advanced indices around a slice put the channels last.
    return padded[which, :, rows, columns].permute(0, 3, 1, 2)


def _visible(folder: Path, what: str) -> Sequence[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{folder}: {what} cannot be listed ({error.strerror}). Next: allow reading it"
        ) from None


def _decode(path: Path, shape: Shape | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(H, W, C) uint8."""
    try:
        picture = torchvision.datasets.folder.pil_loader(str(path))
        if shape is not None:
            picture = _fit(picture, shape)
    except Exception as error:  # PIL raises whatever its decoder met
        raise DataError(
            f"{path}: not a picture ({type(error).__name__}). Next: remove or replace it"
        ) from error
    pixels: np.ndarray[Any, np.dtype[np.uint8]] = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _fit(picture: Any, shape: Shape) -> Any:
    channels, height, width = shape
    if channels == 1:
        picture = transforms.functional.to_grayscale(picture)
    if picture.size == (width, height):
        return picture
    scale = max(width / picture.size[0], height / picture.size[1])
    size = [max(height, round(picture.size[1] * scale)), max(width, round(picture.size[0] * scale))]
    return transforms.functional.center_crop(
        transforms.functional.resize(picture, size, antialias=True), [height, width]
    )


def _size(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"
