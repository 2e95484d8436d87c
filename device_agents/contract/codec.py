"""JSON lines to contract types and back, with a schema version that can be upgraded.

Input: a frozen dataclass, or a line of JSON. Output: the other. Raises CodecError, which names
the path inside the document, the fact, and never a value longer than 80 characters.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from typing import Any, Callable, Dict, Mapping, Tuple, Type, TypeVar, Union, get_type_hints

from device_agents.contract.canonical import canonical_json

SCHEMA_VERSION = 1

UPGRADES: Mapping[int, Callable[[Dict[str, Any]], Dict[str, Any]]] = {}
"""Version n → the function that turns a document of version n into one of version n + 1."""

T = TypeVar("T")


class CodecError(ValueError):
    """A document that does not fit its type. ``path`` is dotted, from the document's root."""

    def __init__(self, path: str, fact: str) -> None:
        self.path = path
        self.fact = fact
        super().__init__(f"{path}: {fact}")


def encode(value: Any) -> str:
    """One JSON line (without newline) that names its type and schema version."""
    document = {"schema": SCHEMA_VERSION, "type": type(value).__name__, "body": value}
    return canonical_json(document).decode("utf-8")


def decode(cls: Type[T], line: Union[str, bytes]) -> T:
    """The value that ``encode`` wrote, upgraded to this schema version. Raises CodecError."""
    return decode_object(cls, parse_object(line))


def decode_object(cls: Type[T], document: Any) -> T:
    """The same of what JSON made of it already. Raises CodecError."""
    if not isinstance(document, dict):
        raise CodecError("$", f"is {_show(document)}, expected an object")
    found = document.get("type")
    if found != cls.__name__:
        raise CodecError("type", f"is {_show(found)}, expected {cls.__name__!r}")
    version = document.get("schema")
    if not isinstance(version, int) or isinstance(version, bool):
        raise CodecError("schema", f"is {_show(version)}, expected an integer")
    if version > SCHEMA_VERSION:
        raise CodecError(
            "schema",
            f"is {version}, newer than {SCHEMA_VERSION}. Next: update fleetcut on this side",
        )
    while version < SCHEMA_VERSION:
        if version not in UPGRADES:
            raise CodecError("schema", f"is {version}, which no upgrade starts from")
        document = UPGRADES[version](document)
        version += 1
    return from_plain(cls, document.get("body"), "body")


def parse_object(line: Union[str, bytes]) -> Dict[str, Any]:
    """A JSON object from text. Raises CodecError for anything else."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CodecError("$", f"is not JSON ({str(error)[:80]})") from None
    if not isinstance(document, dict):
        raise CodecError("$", f"is {_show(document)}, expected an object")
    return document


def from_plain(cls: Type[T], data: Any, path: str = "$") -> T:
    """A contract dataclass from plain JSON data; unknown and missing keys are errors."""
    if not isinstance(data, dict):
        raise CodecError(path, f"is {_show(data)}, expected an object")
    hints = _hints(cls)  # type: ignore[arg-type]
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    names = {f.name for f in fields}
    for key in data:
        if key not in names:
            raise CodecError(f"{path}.{key}"[:120], f"is not a field of {cls.__name__}")
    values: Dict[str, Any] = {}
    for f in fields:
        if f.name in data:
            values[f.name] = _convert(hints[f.name], data[f.name], f"{path}.{f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise CodecError(f"{path}.{f.name}", f"is missing from {cls.__name__}")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise CodecError(path, str(error)) from None


@functools.lru_cache(maxsize=None)
def _hints(cls: Type[Any]) -> Dict[str, Any]:
    """Resolving annotations anew took nearly nine tenths of the time of a record with 30 states."""
    return get_type_hints(cls)


def _convert(hint: Any, data: Any, path: str) -> Any:
    origin = getattr(hint, "__origin__", None)
    if origin is Union:
        if data is None:
            return None
        (inner,) = [arg for arg in hint.__args__ if arg is not type(None)]
        return _convert(inner, data, path)
    if origin is tuple:
        return _convert_tuple(hint.__args__, data, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, data, path)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(data)
        except ValueError:
            raise CodecError(path, f"is {_show(data)}, not a {hint.__name__}") from None
    return _convert_scalar(hint, data, path)


_EXACT = frozenset({int, str, bool})


def _convert_tuple(args: Tuple[Any, ...], data: Any, path: str) -> Tuple[Any, ...]:
    if not isinstance(data, list):
        raise CodecError(path, f"is {_show(data)}, expected a list")
    if len(args) == 2 and args[1] is Ellipsis:
        if args[0] in _EXACT and all(type(item) is args[0] for item in data):
            return tuple(data)  # a record's latencies
        return tuple(_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(data))
    if len(args) != len(data):
        raise CodecError(path, f"has {len(data)} items, expected {len(args)}")
    return tuple(_convert(a, item, f"{path}[{i}]") for i, (a, item) in enumerate(zip(args, data)))


def _convert_scalar(hint: Any, data: Any, path: str) -> Any:
    if hint is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if hint is int and isinstance(data, int) and not isinstance(data, bool):
        return data
    if hint in (str, bool) and isinstance(data, hint):
        return data
    raise CodecError(path, f"is {_show(data)}, expected {getattr(hint, '__name__', hint)}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
