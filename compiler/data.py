"""The pictures that accuracy is measured on: fixed splits of small data sets.

Input: a data set's name and a seed. Output: Splits, float32 pictures (n, C, H, W) and labels,
of which the test part is never shown to training, search or batch-norm recalibration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

from compiler.vision import transforms

TEST_FRACTION = 0.25
VALIDATION_FRACTION = 0.15
DIGITS_SIDE = 32


@dataclass(frozen=True)
class Splits:
    """One data set in three disjoint, stratified parts.

    *_x: (n, C, H, W) float32, normalised with the training part's mean and deviation.
    *_y: (n,) int64 class labels. name: the key of DATASETS that says how to augment.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class DatasetEntry:
    """How one data set is read and augmented.

    pictures() → ((n, C, H, W) float32 in 0..1, (n,) int64). augment(batch) → the same shape,
    drawing from torch's global generator, as torchvision's transforms do.
    """

    pictures: Callable[[], tuple[Tensor, Tensor]]
    augment: Callable[[Tensor], Tensor]


def load(name: str, seed: int) -> Splits:
    """The named data set, split by the seed. Raises ValueError for an unknown name."""
    x, y = _entry(name).pictures()
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
    Raises ValueError for an unknown name.
    """
    return _entry(name).augment(batch)


def _entry(name: str) -> DatasetEntry:
    if name not in DATASETS:
        raise ValueError(f"no data set {name!r}. Next: choose one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


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


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(pictures=_digits, augment=_shift_and_turn),
}
