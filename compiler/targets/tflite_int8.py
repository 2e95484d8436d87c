"""A TFLite model in full int8, its input and output left in float32.

Input: the bytes of a float model with one signature, and real samples in its layout. Output: bytes
of the int8 model, which runtimes since TensorFlow 2.13 read.
"""

from __future__ import annotations

from compiler.targets.built import Floats
from compiler.targets.tflite_flatbuffer import repacked


def int8_tflite(model: bytes, samples: Floats) -> bytes:
    """Weights int8 per channel, activations int8 per tensor, ranges from the samples.

    samples: (n, H, W, C). It is ai-edge-quantizer's static_wi8_ai8 but for the two ends: a
    quantise and a dequantise operator take the place of integers at the door, so that all forms of
    a network are asked and answer alike.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.recipe_manager import RecipeManager

    recipe = RecipeManager()
    recipe.add_static_config(
        regex=".*",
        operation_name=TFLOperationName.ALL_SUPPORTED,
        activation_num_bits=8,
        weight_num_bits=8,
    )
    for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
        recipe.add_quantization_config(
            regex=".*", operation_name=end, algorithm_key=AlgorithmName.NO_QUANTIZE
        )
    work = quantizer.Quantizer(model, recipe.get_quantization_recipe())
    signature, name = _signature(model)
    ranges = work.calibrate({signature: [{name: x[None]} for x in samples]}, num_threads=1)
    done = work.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return repacked(bytes(done.quantized_model))


def _signature(model: bytes) -> tuple[str, str]:
    """The signature's name, and its one input's."""
    from ai_edge_litert.interpreter import Interpreter

    ((signature, ends),) = Interpreter(model_content=model).get_signature_list().items()
    (name,) = ends["inputs"]
    return signature, name
