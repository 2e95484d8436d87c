"""torchvision, made to import beside a CPU build of torch.

Input: whatever torchvision the registry ships, usually a CUDA build. Output: `torchvision`, the
only way the compiler reaches that package; its models, transforms and datasets work.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

_DETECTION_OPERATORS = ("nms", "qnms")


def _import_torchvision() -> ModuleType:
    """The torchvision package.

    The CUDA build's C++ library does not load beside CPU torch, so two operator schemas that
    torchvision registers kernels for are missing, and the import stops there. They are defined
    only after that failure: defined up front, they would collide with a build that does load.
    `torchvision.ops.nms` and `torchvision.io` stay unusable.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in _DETECTION_OPERATORS:
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    return importlib.import_module("torchvision")


torchvision = _import_torchvision()
transforms = importlib.import_module("torchvision.transforms")
