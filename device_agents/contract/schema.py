"""What JSON of a contract type looks like, as a JSON Schema for readers in other languages.

Input: a dataclass of the contract. Output: its schema (2020-12). The published ones lie in
schemas/ beside this file: python -m device_agents.contract.schema writes them anew.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, Type, Union, get_type_hints

from device_agents.contract.artifacts import Manifest, Release
from device_agents.contract.codec import SCHEMA_VERSION
from device_agents.contract.signatures import Statement

FOLDER = Path(__file__).parent / "schemas"

PLAIN = (Manifest,)
"""Written as they are; all other types in the envelope of ``encode``."""

PUBLISHED = (Manifest, Release, Statement)

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema(cls: Type[Any]) -> Dict[str, Any]:
    """The schema of a document of ``cls``; its docstring is the description."""
    body = _object(cls)
    if cls not in PLAIN:
        body = {
            "type": "object",
            "properties": {
                "schema": {"const": SCHEMA_VERSION},
                "type": {"const": cls.__name__},
                "body": body,
            },
            "required": ["body", "schema", "type"],
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": cls.__name__,
        **body,
    }


def _object(cls: Type[Any]) -> Dict[str, Any]:
    hints = get_type_hints(cls)
    fields = dataclasses.fields(cls)
    return {
        "description": " ".join((cls.__doc__ or "").split()),
        "type": "object",
        "properties": {f.name: _of(hints[f.name]) for f in fields},
        "required": sorted(
            f.name
            for f in fields
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ),
        "additionalProperties": False,
    }


def _of(hint: Any) -> Dict[str, Any]:
    origin = getattr(hint, "__origin__", None)
    if origin is Union:
        (inner,) = [arg for arg in hint.__args__ if arg is not type(None)]
        return {"anyOf": [_of(inner), {"type": "null"}]}
    if origin is tuple:
        if hint.__args__[1:] == (Ellipsis,):
            return {"type": "array", "items": _of(hint.__args__[0])}
        items = [_of(arg) for arg in hint.__args__]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _object(hint)
    return {"type": _SCALARS[hint]}


def text_of(cls: Type[Any]) -> str:
    """The published file's content."""
    return json.dumps(json_schema(cls), indent=2) + "\n"


def path_of(cls: Type[Any]) -> Path:
    return FOLDER / f"{cls.__name__.lower()}.schema.json"


def main() -> None:
    """Write every published schema."""
    FOLDER.mkdir(exist_ok=True)
    for cls in PUBLISHED:
        path_of(cls).write_text(text_of(cls), encoding="utf-8")


if __name__ == "__main__":
    main()
