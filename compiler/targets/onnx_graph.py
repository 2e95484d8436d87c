"""One canonical form of an ONNX graph, whichever exporter wrote it.

Input: the bytes of a static ONNX model. Output: bytes that hold no path, stack trace or
exporter's name, with the same operators and names for the same network.
"""

from __future__ import annotations

from typing import Any

OPSET = 18
"""The lowest that torch's exporter writes; every onnxruntime since 1.14 reads it."""

IR_VERSION = 8
"""The file format that came with opset 18 (https://onnx.ai/onnx/intro/concepts.html)."""


def canonical_onnx(model: bytes) -> bytes:
    """The canonical bytes of ``model``.

    Constants become initializers, identities go, the mean over height and width becomes
    GlobalAveragePool (onnxruntime runs it in the blocked layout of the convolutions before it:
    1 to 4 % of a small network's time), a reshape to (1, n) becomes Flatten, convolutions and
    linear layers have a bias, names are numbers in graph order, and metadata is dropped.
    Raises ValueError for another opset than OPSET, onnx.checker.ValidationError for a graph
    that is not valid.
    """
    import onnx

    proto = onnx.load_model_from_string(model)
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets != {"": OPSET}:
        raise ValueError(f"the exporter wrote operator sets {opsets}, expected opset {OPSET}")
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    graph = proto.graph
    _constants_to_initializers(graph)
    _drop_identities(graph)
    _unify_pooling(graph)
    _give_biases(graph)
    canonical = onnx.helper.make_model(
        _renamed(graph),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fleetcut",
    )
    onnx.checker.check_model(canonical, full_check=True)
    serialized: bytes = canonical.SerializeToString(deterministic=True)
    return serialized


def same_structure(one: bytes, other: bytes) -> bool:
    """Whether two canonical models are equal in everything but the values of float weights."""
    return _without_weights(one) == _without_weights(other)


def operators(model: bytes) -> tuple[str, ...]:
    """The operators of a model, in graph order."""
    import onnx

    return tuple(node.op_type for node in onnx.load_model_from_string(model).graph.node)


def _without_weights(model: bytes) -> bytes:
    import onnx

    proto = onnx.load_model_from_string(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims:
            tensor.raw_data = bytes(len(tensor.raw_data))
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized


def _constants_to_initializers(graph: Any) -> None:
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        (attribute,) = node.attribute
        if attribute.name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(attribute.t)
            tensor.name = node.output[0]
            graph.node.remove(node)


def _drop_identities(graph: Any) -> None:
    outputs = {value.name for value in graph.output}
    for node in [n for n in graph.node if n.op_type == "Identity"]:
        if node.output[0] not in outputs:
            graph.node.remove(node)
            for user in graph.node:
                for i, name in enumerate(user.input):
                    if name == node.output[0]:
                        user.input[i] = node.input[0]


def _unify_pooling(graph: Any) -> None:
    """The exporters write one pooling head in three ways; see canonical_onnx."""
    import onnx

    shapes = _shapes(graph)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        shape_in, shape_out = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        if node.op_type == "ReduceMean" and _over_height_and_width(node, shape_in, constants):
            nodes += _pooled(node, flat=len(shape_out) == 2)
        elif node.op_type == "Reshape" and len(shape_out) == 2 and shape_out[0] == shape_in[:1][0]:
            nodes.append(onnx.helper.make_node("Flatten", node.input[:1], node.output, axis=1))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _give_biases(graph: Any) -> None:
    """A zero bias where there is none.

    torch's newer exporter leaves a bias of zeros out, which fresh networks have after batch norm
    is folded and trained ones have not: a candidate must cost what the trained network will.
    """
    import onnx

    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if len(node.input) != 2 or node.input[1] not in shapes:
            continue
        if node.op_type == "Conv" or (node.op_type == "Gemm" and _transposed(node)):
            outputs = shapes[node.input[1]][0]
            name = f"{node.output[0]}/bias"
            graph.initializer.append(
                onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [outputs], [0.0] * outputs)
            )
            node.input.append(name)


def _transposed(gemm: Any) -> bool:
    return any(attribute.name == "transB" and attribute.i == 1 for attribute in gemm.attribute)


def _pooled(mean: Any, flat: bool) -> list[Any]:
    import onnx

    if not flat:
        return [onnx.helper.make_node("GlobalAveragePool", mean.input[:1], mean.output)]
    between = mean.output[0] + "/pooled"
    return [
        onnx.helper.make_node("GlobalAveragePool", mean.input[:1], [between]),
        onnx.helper.make_node("Flatten", [between], mean.output, axis=1),
    ]


def _over_height_and_width(mean: Any, shape_in: tuple[int, ...], constants: Any) -> bool:
    axes = constants.get(mean.input[1]) if len(mean.input) == 2 else None
    return (
        axes is not None and len(shape_in) == 4 and sorted(int(axis) % 4 for axis in axes) == [2, 3]
    )


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    values = [*graph.input, *graph.value_info, *graph.output]
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def _renamed(graph: Any) -> Any:
    """A new graph: names by position, attributes sorted, no metadata."""
    import onnx

    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    names = {v.name: v.name for v in [*graph.input, *graph.output]}
    initializers: dict[str, Any] = {}
    nodes = []
    for position, node in enumerate(graph.node):
        fresh = onnx.NodeProto(op_type=node.op_type, name=f"{position:03d}_{node.op_type}")
        for name in node.input:
            if name in tensors:
                fresh.input.append(_added(initializers, tensors[name]))
            else:
                fresh.input.append(names[name] if name else "")
        for i, name in enumerate(node.output):
            fresh.output.append(names.setdefault(name, f"v{position}_{i}"))
        fresh.attribute.extend(_attributes(node))
        nodes.append(fresh)
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()]
    return onnx.helper.make_graph(
        nodes, "network", _bare(graph.input), _bare(graph.output), weights
    )


def _added(initializers: dict[str, Any], array: Any) -> str:
    """The name of an initializer for one use; scalars, such as a clip's bounds, are shared.

    Tensors are not, for whether two layers' weights are equal is chance, not structure: fresh
    biases are all zero.
    """
    name = f"w{len(initializers)}" if array.shape else f"{array.dtype}_{array.item()!r}"
    initializers.setdefault(name, array)
    return name


def _attributes(node: Any) -> list[Any]:
    """Sorted by name, without those that say what their absence says."""
    import onnx

    defaults = onnx.defs.get_schema(node.op_type, OPSET).attributes
    kept = []
    for attribute in node.attribute:
        fresh = onnx.AttributeProto()
        fresh.CopyFrom(attribute)
        fresh.ClearField("doc_string")
        default = defaults[fresh.name].default_value
        if default.type != fresh.type or _value(default) != _value(fresh):
            kept.append(fresh)
    return sorted(kept, key=lambda attribute: str(attribute.name))


def _value(attribute: Any) -> Any:
    import onnx

    return onnx.helper.get_attribute_value(attribute)


def _bare(values: Any) -> list[Any]:
    import onnx

    return [
        onnx.helper.make_tensor_value_info(
            v.name,
            v.type.tensor_type.elem_type,
            [d.dim_value for d in v.type.tensor_type.shape.dim],
        )
        for v in values
    ]
