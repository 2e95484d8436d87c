"""A bad inventory ends with file, line, what is wrong and what to write instead."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import DocumentError, HarnessError
from harness.inventory import load_inventory
from harness.trust import write_trust

GOOD = """\
# the rack
version: 1
boards:
  - board_id: pi4-01   # on the left
    model: Raspberry Pi 4
    host: 192.0.2.1
    user: pi
    labels: {cooling: fan}
  - board_id: pi4-02
    model: Raspberry Pi 4
    host: 192.0.2.2
    host_key_sha256: null  # not yet
    user: pi
"""
FINGERPRINT = "SHA256:" + "a" * 43


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "inventory.yaml"
    path.write_text(text)
    return path


def test_the_example_at_the_root_is_valid():
    root = Path(__file__).parents[2]
    inventory = load_inventory(root / "inventory.yaml")
    assert [b.model for b in inventory.boards] == ["Raspberry Pi 4 Model B", "Jetson Orin Nano"]


def test_select_by_label_and_id(tmp_path):
    inventory = load_inventory(written(tmp_path, GOOD))
    assert [b.board_id for b in inventory.select(labels={"cooling": "fan"})] == ["pi4-01"]
    assert [b.board_id for b in inventory.select(["pi4-02"])] == ["pi4-02"]
    with pytest.raises(HarnessError, match=r"no board 'pi9'.*use one of pi4-01, pi4-02"):
        inventory.select(["pi9"])
    with pytest.raises(HarnessError, match=r"no board 'a{80}'\. Next"):
        inventory.board("a" * 5000)
    with pytest.raises(HarnessError, match="no board fits"):
        inventory.select(labels={"cooling": "water"})


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("version: 1", "version: 3", 2, "write for example 'version: 1'"),
        ("board_id: pi4-02", "board_id: pi4-01", 3, "stands twice"),
        ("board_id: pi4-01 ", "board_id: ../etc ", 4, "board_id: pi4-01"),
        ("host: 192.0.2.1\n", "host: -oProxyCommand=x\n", 6, "write for example 'host:"),
        ("    host: 192.0.2.1\n", "", 4, "host: is missing"),
        ("user: pi\n    labels", "user: pi\n    password: hunter2\n    labels", 8, "known keys"),
        ("user: pi\n    labels", "user: pi\n    port: 99999\n    labels", 8, "port: 22"),
        ("user: pi\n    labels", "user: pi\n    port: '22'\n    labels", 8, "integer"),
        ("user: pi\n    labels", "user: pi\n    user: pi\n    labels", 8, "stands twice"),
        ("user: pi\n    labels", "user: pi\n    python: 'python3; rm'\n    labels", 8, "python3"),
        ("labels: {cooling: fan}", "labels: {cooling: fan", 9, "mend the YAML"),
    ],
)
def test_names_line_fact_and_what_to_write(tmp_path, old, new, line, said):
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(DocumentError) as caught:
        load_inventory(path)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n", "boards: x\nversion: 1\n", "\x00", "!!python/x 1"])
def test_what_is_no_inventory_at_all(tmp_path, text):
    with pytest.raises(DocumentError):
        load_inventory(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DocumentError, match="cannot be read"):
        load_inventory(tmp_path / "none.yaml")


@given(text=st.text(max_size=300))
def test_any_text_is_refused_or_read_never_a_traceback(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "inventory.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(DocumentError):
        load_inventory(path)


@given(
    key=st.sampled_from(["version", "boards", "board_id", "host", "labels", "port", "key_file"]),
    value=st.sampled_from(["[]", "{}", "null", "-1", "2031-02-30", "!!set {a}", "*x", "'\\0'"]),
)
def test_any_value_in_any_place_is_refused_or_read(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("any") / "inventory.yaml"
    lines = [
        f"{line.split(key)[0]}{key}: {value}" if f"{key}:" in line else line
        for line in GOOD.splitlines()
    ]
    path.write_text("\n".join(lines))
    try:
        boards = load_inventory(path).boards
    except DocumentError as error:
        boards = ()
        message = str(error)
    assert boards or str(path) in message


@pytest.mark.parametrize("board_id", ["pi4-01", "pi4-02"])
def test_trust_changes_one_line_and_keeps_comments(tmp_path, board_id):
    path = written(tmp_path, GOOD)
    write_trust(path, board_id, FINGERPRINT)
    inventory = load_inventory(path)
    assert inventory.board(board_id).host_key_sha256 == FINGERPRINT
    other = ({"pi4-01", "pi4-02"} - {board_id}).pop()
    assert inventory.board(other).host_key_sha256 is None
    text = path.read_text()
    assert "# the rack" in text
    assert "# on the left" in text
    assert [p.name for p in tmp_path.iterdir()] == ["inventory.yaml"]
    write_trust(path, board_id, "SHA256:" + "b" * 43)
    assert load_inventory(path).board(board_id).host_key_sha256 == "SHA256:" + "b" * 43
