"""YAML that people write, checked, with the line of what is wrong.

Input: a path and the pydantic model it must fit. Output: the model.
Raises DocumentError: file, line, what is wrong, what to write instead.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from harness.errors import DocumentError

M = TypeVar("M", bound=BaseModel)
Location = tuple[int | str, ...]

MAX_BYTES = 16 * 1024 * 1024
MAX_VALUES = 1_000_000


def read_document(path: Path, model: type[M]) -> M:
    """The document at ``path`` as ``model``. Raises DocumentError for the first thing wrong."""
    return read_either(path, lambda _: model)


def read_either(path: Path, model_of: Callable[[Any], type[M]]) -> M:
    """``read_document`` where the data themselves say which of several models they must fit.

    A union of models would do too, but its errors speak of every one of them.
    """
    root, data = _parsed(path)
    lines = dict(_lines(root, ()))
    for location, key in _duplicate_keys(root, ()):
        raise DocumentError(
            path, lines.get(location), f"key {key!r} stands twice", "Keep one of the two"
        )
    model = model_of(data)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = first["loc"]
        raise DocumentError(
            path,
            _nearest_line(lines, location),
            f"{dotted(location)}: {_fact(first)}",
            _instead(model, location, str(first["type"])),
        ) from None


def _parsed(path: Path) -> tuple[yaml.Node, Any]:
    """The file as nodes, which know their lines, and as data. Parsed once: it is slow."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_BYTES:
            raise DocumentError(path, None, f"is {size_bytes} bytes", "Keep it below 16 MiB")
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise DocumentError(
            path, None, f"cannot be read ({error.strerror})", "Give the path of a readable file"
        ) from None
    except UnicodeDecodeError:
        raise DocumentError(path, None, "is not UTF-8 text", "Save it as UTF-8 YAML") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        fact = getattr(error, "problem", None) or "is not YAML"
        raise DocumentError(
            path, mark.line + 1 if mark else None, str(fact), "Mend the YAML at this line"
        ) from None
    if node is None:
        raise DocumentError(path, 1, "is empty", "Start from the example in the documentation")
    _expanded(path, node, {})
    return node, _constructed(path, node)


def _expanded(path: Path, node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values the node is once every alias stands for what it names.

    Ten lines of aliases of aliases are billions: https://en.wikipedia.org/wiki/Billion_laughs_attack
    """
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            line = node.start_mark.line + 1
            raise DocumentError(path, line, "an anchor holds itself", "Write the values out")
        return sizes[id(node)]
    sizes[id(node)] = 0
    count = 1
    if isinstance(node, yaml.MappingNode):
        count += sum(_expanded(path, part, sizes) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_expanded(path, item, sizes) for item in node.value)
    if count > MAX_VALUES:
        raise DocumentError(
            path,
            node.start_mark.line + 1,
            f"holds more than {MAX_VALUES} values once its aliases are followed",
            "Write fewer",
        )
    sizes[id(node)] = count
    return count


def _constructed(path: Path, node: yaml.Node) -> Any:
    """The data: tags and dates that are none fail here, not later."""
    try:
        return yaml.SafeLoader("").construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        fact = getattr(error, "problem", None) or "holds a value that YAML cannot build"
        raise DocumentError(
            path, mark.line + 1 if mark else None, str(fact), "Write plain text and numbers"
        ) from None


def _lines(node: yaml.Node, at: Location) -> Iterator[tuple[Location, int]]:
    yield at, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            yield here, key.start_mark.line + 1
            yield from ((loc, n) for loc, n in _lines(value, here) if loc != here)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lines(item, (*at, index))


def _duplicate_keys(node: yaml.Node, at: Location) -> Iterator[tuple[Location, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                yield (*at, name), name
            seen.add(name)
            yield from _duplicate_keys(value, (*at, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicate_keys(item, (*at, index))


def _nearest_line(lines: dict[Location, int], location: Location) -> int | None:
    """The line of the location, or of the closest parent that the file has."""
    for length in range(len(location), -1, -1):
        if location[:length] in lines:
            return lines[location[:length]]
    return None


def dotted(location: Location) -> str:
    """Where in a document, in one line: ``boards[0].host``."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if part.isprintable() else repr(part)  # a key may hold a line break
            text += f".{key}" if text else key
    return text or "the document"


def _fact(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "is not a key known here"
    if error["type"] == "missing":
        return "is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "model_type":
        message = "must be keys with values"
    if error["type"] == "value_error":
        return message
    value = repr(error.get("input"))
    shown = value if len(value) <= 60 else value[:57] + "..."
    return f"{message[:1].lower()}{message[1:]} (found {shown})"


def _instead(model: type[BaseModel], location: Location, kind: str) -> str:
    """What to write: the field's own example, or the keys that are known at that place."""
    owner, field_name = _owner(model, location)
    if owner is None:
        return "See the example in the documentation"
    if kind == "extra_forbidden" or field_name not in owner.model_fields:
        return f"Known keys are: {', '.join(sorted(owner.model_fields))}"
    field = owner.model_fields[field_name]
    if field.examples:
        return f"Write for example '{field_name}: {field.examples[0]}'"
    return str(field.description or "See the example in the documentation")


def _owner(model: type[BaseModel], location: Location) -> tuple[type[BaseModel] | None, str]:
    """The innermost model on the way to ``location`` and the field of it that is meant."""
    owner: type[BaseModel] | None = model
    name = ""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            break
        owner, name = current, part
        field = current.model_fields.get(part)
        current = _inner_model(field.annotation) if field is not None else None
    return owner, name


def _inner_model(annotation: Any) -> Any:
    """The pydantic model inside list[...], tuple[...] or Optional[...], else the annotation."""
    for arg in typing.get_args(annotation):
        inner = _inner_model(arg)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return annotation
