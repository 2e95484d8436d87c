"""CIFAR-10 for a benchmark: from a folder or the archive in it, whole or in part.

Input: a folder with train/ and test/, or with one .tar.gz of them. Output: Splits; or what is
missing, in one sentence.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from pathlib import Path

from compiler import data
from compiler.image_data import Pictures


def absent(root: Path, weights: Path) -> str | None:
    """What there is too little of to run at all; None where everything is there."""
    if not (root / "train").is_dir() and len(list(root.glob("*.tar.gz"))) != 1:
        return f"{root}: no train/ and test/ of CIFAR-10, nor one .tar.gz of them"
    if not weights.is_file():
        return f"{weights}: no weights"
    return None


def load(root: Path, work: Path, seed: int, n_train: int | None, n_test: int | None) -> data.Splits:
    """n_train, n_test: how many pictures at most, None for all. work: where archives go."""
    found = data.load(f"cifar10:{_unpacked(root, work)}", seed, data.CIFAR_SHAPE)
    # The test part comes class by class.
    every = slice(None, None, len(found.test_y) // n_test if n_test else None)
    return data.Splits(
        found.name,
        _part(found.train_x, slice(n_train)),
        found.train_y[:n_train],
        _part(found.val_x, slice(None)),
        found.val_y,
        _part(found.test_x, every),
        found.test_y[every],
    )


def _part(pictures: data.PictureSet, part: slice) -> data.PictureSet:
    if isinstance(pictures, Pictures):
        return Pictures(pictures.stored[part], pictures.mean, pictures.std)
    return pictures[part]


def _unpacked(root: Path, work: Path) -> Path:
    """The folder with train/ and test/; an archive that lies there instead is unpacked."""
    if (root / "train").is_dir():
        return root
    (archive,) = root.glob("*.tar.gz")
    digest = hashlib.sha256(str(archive.resolve()).encode()).hexdigest()[:8]
    target = work / f"pictures-{digest}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=work) as partial, tarfile.open(archive) as packed:
            packed.extractall(partial, filter="data")
            Path(partial).rename(target)
            Path(partial).mkdir()
    return target
