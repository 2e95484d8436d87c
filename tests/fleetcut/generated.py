"""Bad input for the tests beside it: what is good with things changed, and anything at all.

Not a test: test_bad_*.py import it.
"""

import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

QUICK, SLOW = 400, 3000


def cases(count: int):
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


HOSTILE = st.one_of(
    st.sampled_from(
        [
            None, True, -1, 0, 2**63, 10**400, -(10**30), float("nan"), float("inf"), 1e308, "",
            "\0", "a\0b", "../../../etc/passwd", "/etc/passwd", "~nobody-here/x", "~", "..", ".",
            "$(touch escaped)", "`touch escaped`", "; touch escaped", "-oProxyCommand=x",
            "a" * 5000, "\u202e\ufeff\U0001f600", "ñ", "NaN", "1e999", "2001-01-01", "yes", [], {},
            [[]], [None], {"": ""}, {"a": {"b": {"c": []}}}, b"\xff\xfe",
        ]
    ),
    st.integers(), st.floats(), st.text(max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=12,
    ),
)  # fmt: skip


def places(document, at=()):
    """Every place in nested data, the whole included."""
    yield at
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*at, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from places(value, (*at, index))


def changed(document, at, change):
    """A copy in which ``change`` was done to the container and key of a place."""
    copied = json.loads(json.dumps(document))
    if not at:
        return change([copied], 0)[0]
    inner = copied
    for key in at[:-1]:
        inner = inner[key]
    change(inner, at[-1])
    return copied


@st.composite
def mutants(draw, good):
    """``good`` with one to three things replaced, removed, renamed or added."""
    document = good
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(list(places(document))))
        hostile = draw(HOSTILE)
        kind = draw(st.sampled_from(["replace", "remove", "rename", "add"]))

        def change(container, key, hostile=hostile, kind=kind):
            if kind == "remove" and isinstance(container, dict | list) and len(container) > 1:
                del container[key]
            elif kind == "rename" and isinstance(container, dict):
                container[str(hostile)[:60]] = container.pop(key)
            elif kind == "add" and isinstance(container[key], dict):
                container[key][str(hostile)[:60]] = hostile
            else:
                container[key] = hostile
            return container

        try:
            document = changed(document, at, change)
        except (TypeError, ValueError):  # bytes and the like, which only YAML can hold
            return hostile
    return document


def in_one_line(error: Exception | str, *names: str) -> None:
    """The message is one line of a bearable length, names what is meant, and says what to do."""
    text = str(error)
    assert "\n" not in text.strip(), text
    assert len(text) < 3000, text[:200]
    assert "Next:" in text, text
    assert any(name in text for name in names), text
    assert "Traceback" not in text


def journal_lines(document) -> bytes:
    lines = document if isinstance(document, list) else [document]
    return b"".join(json.dumps(line, default=repr).encode() + b"\n" for line in lines)
