"""A network as an ExecuTorch program whose operators are XNNPACK's, in float32 or int8.

Input: a network in eval mode, one example (1, C, H, W), and samples for int8. Output: the .pte file
and the operators in it that XNNPACK did not take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.targets.built import Floats

if TYPE_CHECKING:
    from torch import Tensor, nn


def lower(
    network: nn.Module, example: Tensor, samples: Floats | None
) -> tuple[bytes, tuple[str, ...]]:
    """samples: (n, C, H, W) for int8, None for float32. Raises whatever the exporter raises."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(network, (example,)).run_decompositions(
        {torch.ops.aten.mean.dim: _mean_that_keeps_dimensions}
    )
    if samples is not None:
        exported = torch.export.export(_int8(exported.module(), samples), (example,))
    program = to_edge_transform_and_lower(
        exported, partitioner=[XnnpackPartitioner()]
    ).to_executorch()
    (plan,) = program.executorch_program.execution_plan
    return bytes(program.buffer), tuple(operator.name for operator in plan.operators)


def _int8(graph: Any, samples: Floats) -> Any:
    """The graph with its ranges fixed: weights signed and per channel, activations signed.

    Static, from the smallest and largest activation of the samples (XNNPACKQuantizer's default
    observers), symmetric for weights.
    """
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for sample in torch.from_numpy(samples).split(1):
            prepared(sample)
    return convert_pt2e(prepared)


def _mean_that_keeps_dimensions(
    x: Tensor, dim: list[int] | None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """XNNPACK takes the mean over height and width only with keepdim=True."""
    if keepdim or dtype is not None or x.ndim != 4 or sorted(d % 4 for d in dim or ()) != [2, 3]:
        return NotImplemented
    return x.mean(dim, keepdim=True).flatten(1)
