"""One byte string for one value: what every hash in fleetcut is taken over.

Input: a dataclass of the contract or plain JSON data. Output: UTF-8 JSON, keys sorted, no spaces.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from typing import Any, Mapping, Tuple, Type

ADDED_LATER: Mapping[str, bool] = {"fleetcut.added_later": True}
"""Metadata of a field that joined its dataclass after values of it were hashed. It is left out
where it holds its default, so that what was written before keeps its hash."""


_PLAIN = frozenset({str, int, bool})


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and enums to dicts, lists and their values, recursively.

    A whole float becomes an integer, so that 60 and 60.0 give one hash. A field that is
    ADDED_LATER and holds its default is left out.
    """
    if value is None or type(value) in _PLAIN:  # most of a record
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: to_plain(getattr(value, name))
            for name, later, default in _fields(type(value))
            if not (later and getattr(value, name) == default)
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@functools.lru_cache(maxsize=None)
def _fields(cls: Type[Any]) -> Tuple[Tuple[str, bool, Any], ...]:
    """Name, whether ADDED_LATER, and default of each."""
    return tuple(
        (f.name, bool(f.metadata.get("fleetcut.added_later")), f.default)
        for f in dataclasses.fields(cls)
    )


def canonical_json(value: Any) -> bytes:
    """The canonical bytes of a value. Raises ValueError for NaN and infinities."""
    return json.dumps(
        to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode("utf-8")
