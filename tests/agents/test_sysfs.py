import pytest

from device_agents.sysfs import Root


@pytest.mark.parametrize("text", ["", "\n", "N/A", "1_000", "0x10", "12.5", "1 2", "--1", "½"])
def test_what_is_no_decimal_integer_is_none(tree, text):
    tree.put({"value": text})
    assert tree.root.read_int("value") is None


@pytest.mark.parametrize(("text", "value"), [("0\n", 0), ("-12000\n", -12000), (" 45000 ", 45000)])
def test_integers(tree, text, value):
    tree.put({"value": text})
    assert tree.root.read_int("value") == value


def test_missing_and_unreadable_are_none(tree):
    tree.unreadable("eagain")
    assert tree.root.read_text("eagain") is None
    assert tree.root.read_int("eagain") is None
    assert tree.root.read_text("missing") is None
    assert tree.root.read_text("a\0b") is None


def test_bytes_that_are_no_text_do_not_raise(tree):
    (tree.path / "value").write_bytes(b"\xff\xfe1\n")
    assert tree.root.read_text("value") == "\ufffd\ufffd1"
    assert tree.root.read_int("value") is None


def test_device_tree_strings_lose_their_nul(tree):
    (tree.path / "model").write_bytes(b"Raspberry Pi 4 Model B\0")
    assert tree.root.read_text("model") == "Raspberry Pi 4 Model B"


def test_a_long_file_is_read_whole(tree):
    tree.put({"proc/cpuinfo": "processor : 0\n" * 20000})
    text = tree.root.read_text("proc/cpuinfo")
    assert text is not None
    assert len(text.splitlines()) == 20000


def test_lists_leave_out_what_is_no_integer(tree):
    tree.put({"freqs": "600000 x 1500000 \n"})
    assert tree.root.read_ints("freqs") == (600000, 1500000)
    assert tree.root.read_ints("missing") == ()


def test_glob_is_in_the_kernels_order(tree):
    tree.put({f"thermal_zone{i}/temp": "1" for i in (10, 2, 0)})
    assert tree.root.glob("thermal_zone*") == ["thermal_zone0", "thermal_zone2", "thermal_zone10"]
    assert Root(tree.path / "none").glob("*") == []


def test_a_write_never_makes_a_file(tree):
    with pytest.raises(FileNotFoundError):
        tree.root.write_text("scaling_governor", "performance")
    tree.put({"scaling_governor": "conservative\n"})
    tree.root.write_text("scaling_governor", "ondemand")
    assert tree.read("scaling_governor") == "ondemand"
