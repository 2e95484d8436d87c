"""The published schemas say what the code reads and writes."""

import json

import pytest

from device_agents.contract import Manifest, Target, canonical_json
from device_agents.contract.artifacts import ArtifactFile, BoardProof, Release
from device_agents.contract.codec import encode
from device_agents.contract.schema import PUBLISHED, json_schema, path_of, text_of
from device_agents.contract.signatures import Statement

PYTHON = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def misfits(schema: dict, value: object, path: str = "$") -> list[str]:
    """What of a value does not fit, by the part of JSON Schema that the published ones use."""
    if "const" in schema:
        return [] if value == schema["const"] else [path]
    if "anyOf" in schema:
        return [] if any(not misfits(s, value, path) for s in schema["anyOf"]) else [path]
    if schema["type"] == "object":
        if not isinstance(value, dict):
            return [path]
        found = [f"{path}.{key}" for key in schema["required"] if key not in value]
        for key, inner in value.items():
            if key not in schema["properties"]:
                found.append(f"{path}.{key}")
            else:
                found += misfits(schema["properties"][key], inner, f"{path}.{key}")
        return found
    if schema["type"] == "array":
        if not isinstance(value, list):
            return [path]
        items = schema.get("prefixItems") or [schema["items"]] * len(value)
        if len(items) != len(value):
            return [path]
        pairs = enumerate(zip(items, value, strict=True))
        return [m for i, (s, v) in pairs for m in misfits(s, v, f"{path}[{i}]")]
    return [] if fits(schema["type"], value) else [path]


def fits(kind: str, value: object) -> bool:
    if isinstance(value, bool) or kind == "boolean":
        return isinstance(value, bool) and kind == "boolean"
    return isinstance(value, PYTHON[kind])


MANIFEST = Manifest(
    "net", "onnx", Target("board", "any", "any", "ort", cpu="cortex-a72"), "m", "m", "m", (1, 3),
    (1,), (ArtifactFile("m", "0" * 64, 1),), 1e-4, 0.5, 0.9, (("0", 1.5),), "0" * 64, "0" * 64,
    "0" * 64, "0" * 64, 3, (("tool", "1.0"),), (("0", 1.0, 2.0),), "ort",
)  # fmt: skip
PROOF = BoardProof("pi", None, "r", True, 1.5, None, 0.25, False, throttled=False)
DOCUMENTS = [
    (Manifest, canonical_json(MANIFEST)),
    (Release, encode(Release("0" * 64, "partial", (PROOF,), ("1",)))),
    (Statement, encode(Statement("net", "0" * 64, 7, "2030-01-01T00:00:00+00:00"))),
]


@pytest.mark.parametrize("cls", PUBLISHED)
def test_what_is_published_is_what_the_code_says(cls):
    found = path_of(cls).read_text(encoding="utf-8")
    assert found == text_of(cls), "Next: python -m device_agents.contract.schema"


@pytest.mark.parametrize(("cls", "text"), DOCUMENTS)
def test_what_is_written_fits_and_what_does_not_is_found(cls, text):
    document = json.loads(text)
    assert misfits(json_schema(cls), document) == []
    assert misfits(json_schema(cls), {**document, "more": 1}) == ["$.more"]
    key = next(iter(document))
    assert misfits(json_schema(cls), {k: v for k, v in document.items() if k != key})
    wrong = {**document, key: ["wrong"]}
    assert misfits(json_schema(cls), wrong)
