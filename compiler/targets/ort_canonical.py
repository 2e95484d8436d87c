"""One form of an .ort file, whatever order onnxruntime's hash table wrote its last part in.

Input: the bytes of an .ort file. Output: bytes that are equal for equal networks.
The file is a flatbuffer (onnxruntime/core/flatbuffers/schema/ort.fbs) of two parts: the model, the
same each time, and the KernelTypeStrResolver, whose entries are written in a random order.
"""

from __future__ import annotations

from typing import Any

ALIGNMENT = 16
"""Bytes; of weights. Positions are aligned counting from a flatbuffer's end."""

IDENTIFIER = b"ORTM"

SESSION_FIELDS = 4
VERSION, MODEL, RESOLVER = 0, 1, 3
"""Slots of table InferenceSession."""


def canonical_ort(data: bytes) -> bytes:
    """The same model and the same resolver, the latter's entries written in their own order."""
    import flatbuffers  # type: ignore[import-untyped]

    root = flatbuffers.table.Table(
        data, flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0)
    )
    model = _child(root, MODEL)
    builder = flatbuffers.Builder(len(data) + 1024)
    builder.Prep(ALIGNMENT, 0)
    # References are relative, and the model was written before what follows it towards the
    # front: from its first byte to the end it is copied as it stands.
    kept = data[_first_byte(model) :]
    builder.CreateByteVector(bytes(-len(kept) % ALIGNMENT) + kept)
    resolver = _copied_resolver(builder, _child(root, RESOLVER))
    builder.StartObject(SESSION_FIELDS)
    builder.PrependUOffsetTRelativeSlot(VERSION, len(data) - _target(root, VERSION), 0)
    builder.PrependUOffsetTRelativeSlot(MODEL, len(data) - model.Pos, 0)
    builder.PrependUOffsetTRelativeSlot(RESOLVER, resolver, 0)
    builder.Finish(builder.EndObject(), IDENTIFIER)
    return bytes(builder.Output())


def _copied_resolver(builder: Any, resolver: Any) -> int:
    """KernelTypeStrResolver { [{ op_id, [{ kernel_type_str, [{ arg_type, index }] }] }] }."""
    operators = []
    for operator in _children(resolver, 0):
        arguments = []
        for argument in _children(operator, 1):
            places = [_copied_place(builder, place) for place in _children(argument, 1)]
            arguments.append(_named(builder, argument, places))
        operators.append(_named(builder, operator, arguments))
    entries = _vector(builder, operators)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, entries, 0)
    return int(builder.EndObject())


def _named(builder: Any, table: Any, children: list[int]) -> int:
    name = builder.CreateString(table.String(table.Pos + table.Offset(_vtable_entry(0))))
    entries = _vector(builder, children)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependUOffsetTRelativeSlot(1, entries, 0)
    return int(builder.EndObject())


def _copied_place(builder: Any, place: Any) -> int:
    from flatbuffers import number_types as types

    kind = place.GetSlot(_vtable_entry(0), 0, types.Int8Flags)
    index = place.GetSlot(_vtable_entry(1), 0, types.Uint32Flags)
    builder.StartObject(2)
    builder.PrependInt8Slot(0, kind, 0)
    builder.PrependUint32Slot(1, index, 0)
    return int(builder.EndObject())


def _vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _first_byte(table: Any) -> int:
    """A table's fields' list (vtable) stands before it, or further back with its like."""
    from flatbuffers import number_types as types

    fields = table.Pos - table.Get(types.SOffsetTFlags, table.Pos)
    return int(min(table.Pos, fields))


def _vtable_entry(slot: int) -> int:
    return 4 + 2 * slot


def _target(table: Any, slot: int) -> int:
    return int(table.Indirect(table.Pos + table.Offset(_vtable_entry(slot))))


def _child(table: Any, slot: int) -> Any:
    import flatbuffers

    return flatbuffers.table.Table(table.Bytes, _target(table, slot))


def _children(table: Any, slot: int) -> list[Any]:
    import flatbuffers

    field = table.Offset(_vtable_entry(slot))
    if not field:
        return []
    start = table.Vector(field)
    return [
        flatbuffers.table.Table(table.Bytes, table.Indirect(start + 4 * i))
        for i in range(table.VectorLen(field))
    ]
