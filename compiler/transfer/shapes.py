"""What a compilation's work folder knows of the models it proposed: their shapes and files.

Input: a WorkFolder and model names. Output: Shapes: features, work and files, one row a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.features import physics_features, total_macs
from compiler.loading import load_space
from compiler.targets.candidates import SUFFIX
from compiler.transfer.rank import TransferError
from compiler.work import WorkFolder, read_json

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Shapes:
    """x: (n, n_features), as features.physics_features. macs: (n,). files: (n,).

    facts: (n,), what the proposal wrote down of each.
    """

    x: FloatArray
    macs: FloatArray
    files: tuple[Path, ...]
    facts: tuple[dict[str, Any], ...]


def read_shapes(work: WorkFolder, models: Sequence[str]) -> Shapes:
    """Of models that one of the folder's proposals names, all of one network.

    Raises TransferError for one that no proposal has widths of, or for several networks.
    """
    suffix = SUFFIX[work.recipe.runtime]
    known: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted((work.root / "proposals").glob("*/models.json")):
        for facts in read_json(path)["models"].values():
            if "widths" in facts:
                # Proposals of transfers name the same models again: the first one stays.
                known.setdefault(facts["name"], (path.parent / f"{facts['name']}{suffix}", facts))
    unknown = [model for model in models if model not in known]
    if unknown:
        raise TransferError(
            f"{work.root}: no proposal has the widths of {unknown[0]}. "
            "Next: name models it sampled, such as --models 'NETWORK-*'; or leave --work out"
        )
    networks = sorted({known[model][1]["network"] for model in models})
    if len(networks) > 1:
        raise TransferError(
            f"{work.root}: models of {', '.join(networks)}. Next: --models '{networks[0]}-*'"
        )
    space = load_space(work, networks[0])
    widths = np.array([known[model][1]["widths"] for model in models], dtype=np.int64)
    return Shapes(
        physics_features(space, widths),
        total_macs(space, widths),
        tuple(known[model][0] for model in models),
        tuple(known[model][1] for model in models),
    )
