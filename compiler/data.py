"""The pictures that accuracy is measured on: fixed splits of small data sets.

Input: a data set's name ("digits", "cifar10:PATH", "imagefolder:PATH") and a seed. Output:
Splits, whose test part is never shown to training, search or batch-norm recalibration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from compiler.image_data import (
    DataError,
    Pictures,
    Shape,
    augment_pictures,
    normalisation,
    read_parts,
    split_off,
)
from compiler.vision import transforms

TEST_FRACTION = 0.25
VALIDATION_FRACTION = 0.15
FOLDER_VALIDATION_FRACTION = 0.1
"""Of the training part of a folder, which brings its own test part."""
DIGITS_SIDE = 32
CIFAR_CLASSES = 10
CIFAR_SHAPE: Shape = (3, 32, 32)

PictureSet = Tensor | Pictures
"""(n, C, H, W), float32 whenever indexed, sliced or split: a tensor, or bytes made so batchwise."""


@dataclass(frozen=True)
class Splits:
    """One data set in three disjoint, stratified parts.

    *_x: (n, C, H, W) float32, normalised with the training part's mean and deviation; training
    and validation part in random order. *_y: (n,) int64 class labels. name: as given to load,
    which says how to augment.
    """

    name: str
    train_x: PictureSet
    train_y: Tensor
    val_x: PictureSet
    val_y: Tensor
    test_x: PictureSet
    test_y: Tensor


@dataclass(frozen=True)
class DatasetEntry:
    """How one data set is read and augmented.

    pictures() → ((n, C, H, W) float32 in 0..1, (n,) int64). augment(batch) → the same shape,
    drawing from torch's global generator, as torchvision's transforms do.
    """

    pictures: Callable[[], tuple[Tensor, Tensor]]
    augment: Callable[[Tensor], Tensor]


def load(name: str, seed: int, input_shape: Shape | None = None) -> Splits:
    """The named data set, split by the seed.

    input_shape: (C, H, W) of the network that is to see it; folders are scaled and cut to it,
    other sets must have it. None: as the pictures are. Raises DataError.
    """
    kind, path = _kind(name)
    if path is not None:
        return _load_folder(name, kind, path, seed, input_shape)
    x, y = DATASETS[name].pictures()
    _require(name, (x.shape[1], x.shape[2], x.shape[3]), input_shape)
    indices = list(range(len(y)))
    rest, test = train_test_split(
        indices, test_size=TEST_FRACTION, random_state=seed, stratify=y.tolist()
    )
    train, val = train_test_split(
        rest,
        test_size=VALIDATION_FRACTION / (1 - TEST_FRACTION),
        random_state=seed,
        stratify=y[rest].tolist(),
    )
    mean, std = float(x[train].mean()), float(x[train].std())
    x = (x - mean) / std
    return Splits(name, x[train], y[train], x[val], y[val], x[test], y[test])


def augment(name: str, batch: Tensor) -> Tensor:
    """Mildly disturbed pictures for one training step, each picture by itself.

    batch: (n, C, H, W), left as it is. Draws from torch's global generator: the caller seeds it.
    Raises DataError for an unknown name.
    """
    _, path = _kind(name)
    return augment_pictures(batch) if path is not None else DATASETS[name].augment(batch)


def _kind(name: str) -> tuple[str, Path | None]:
    """(kind, folder), the folder None for a set that needs none. Raises DataError."""
    kind, _, path = name.partition(":")
    if kind in FOLDER_KINDS:
        if not path:
            raise DataError(
                f"data set {kind} lies in a folder of yours and is never downloaded. "
                f"Next: write 'dataset: {kind}:PATH'; below PATH are train/CLASS/ and test/CLASS/"
            )
        return kind, Path(path)
    if name not in DATASETS:
        known = sorted(DATASETS) + [f"{kind}:PATH" for kind in FOLDER_KINDS]
        raise DataError(f"no data set {name!r}. Next: choose one of {', '.join(known)}")
    return name, None


def _load_folder(name: str, kind: str, root: Path, seed: int, input_shape: Shape | None) -> Splits:
    """Validation is split off train/; test/ is taken as it is, class by class."""
    if kind == "cifar10":
        _require(name, CIFAR_SHAPE, input_shape)
        # Of another size than 32 x 32 they are no CIFAR-10: read unscaled, then refused.
        input_shape = None
    train, test = read_parts(root, input_shape)
    if kind == "cifar10":
        found = tuple(train.stored.shape[1:])
        if found != CIFAR_SHAPE or len(train.classes) != CIFAR_CLASSES:
            raise DataError(
                f"{root}: {len(train.classes)} classes of {found} are not CIFAR-10. "
                f"Next: write 'dataset: imagefolder:{root}'"
            )
    rest, val = split_off(train, FOLDER_VALIDATION_FRACTION, seed, root)
    train_pixels = train.stored[rest]
    mean, std = normalisation(train_pixels)
    return Splits(
        name,
        Pictures(train_pixels, mean, std),
        train.labels[rest],
        Pictures(train.stored[val], mean, std),
        train.labels[val],
        Pictures(test.stored, mean, std),
        test.labels,
    )


def _require(name: str, shape: Shape, input_shape: Shape | None) -> None:
    if input_shape is not None and shape != input_shape:
        have, want = ("x".join(map(str, s)) for s in (shape, input_shape))
        raise DataError(
            f"data set {name} has pictures of {have}, the network takes {want}. "
            "Next: choose a network for that size, or imagefolder:PATH, which is scaled"
        )


def _digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 enlarged to 32 x 32, grey as RGB."""
    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    size = (DIGITS_SIDE, DIGITS_SIDE)
    large = functional.interpolate(small, size=size, mode="bilinear", align_corners=False)
    return large.expand(-1, 3, -1, -1).contiguous(), torch.tensor(digits.target).long()


def _shift_and_turn(batch: Tensor) -> Tensor:
    fill = float(batch.min())
    disturb = transforms.RandomAffine(
        degrees=8,
        translate=(0.06, 0.06),
        scale=(0.92, 1.08),
        interpolation=transforms.InterpolationMode.BILINEAR,
        fill=fill,
    )
    return torch.stack([disturb(picture) for picture in batch])


FOLDER_KINDS = ("cifar10", "imagefolder")

DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(pictures=_digits, augment=_shift_and_turn),
}
