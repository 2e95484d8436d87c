import os

import pytest

from device_agents.sysfs import KeptOpen, Root, call_patiently


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


def test_a_file_that_is_kept_open_is_read_anew(tree):
    tree.put({"temp": "45000\n"})
    kept = KeptOpen(tree.root)
    assert kept.read_int("temp") == 45000
    (tree.path / "temp").write_text("46000\n")
    assert kept.read_int("temp") == 46000
    # The virtual rack shows a new value by putting another file in its place.
    tree.put({"next": "47000\n"})
    os.replace(tree.path / "next", tree.path / "temp")
    assert kept.read_int("temp") == 47000
    (tree.path / "temp").unlink()
    assert kept.read_int("temp") is None
    tree.put({"temp": "48000\n"})
    assert kept.read_int("temp") == 48000
    kept.close()
    assert kept.read_int("temp") == 48000
    kept.close()


def test_a_kernels_own_file_that_is_kept_open_is_read_anew():
    kept = KeptOpen(Root("/"))
    first, second = (kept.read_text("proc/self/schedstat") for _ in range(2))
    kept.close()
    assert first is not None
    assert second is not None
    assert [len(text.split()) for text in (first, second)] == [3, 3]
    assert int(second.split()[0]) >= int(first.split()[0])


def test_what_is_kept_open_and_unreadable_is_none(tree):
    tree.unreadable("eagain")
    kept = KeptOpen(tree.root)
    assert [kept.read_text("eagain") for _ in range(2)] == [None, None]
    assert kept.read_text("missing") is None
    kept.close()


def test_a_read_that_does_not_return_is_given_up(tree):
    tree.put({"a": "1", "c": "3"})
    for name in ("b", "d"):
        os.mkfifo(tree.path / name)  # opening it waits for a writer
    root = tree.root

    def call():
        return [root.read_int(name) for name in "abcd"]

    assert call_patiently(root, call, stall_s=0.02) == [1, None, 3, None]
    assert root.given_up == {"b", "d"}
    assert KeptOpen(root).read_int("b") is None
    assert call() == [1, None, 3, None]
