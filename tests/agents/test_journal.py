import errno
import json
import os

import pytest

from device_agents.journal import Journal, Reader, parse_line, read


def write(path, *events: str) -> None:
    journal = Journal(path)
    for event in events:
        journal.append(event, run_id=event) if event == "record" else journal.append(event)
    journal.close()


def test_seq_ascends_from_one_over_reopening(tmp_path):
    path = tmp_path / "journal.jsonl"
    write(path, "session", "run_started")
    write(path, "session", "finished")
    assert [entry["seq"] for entry, _ in read(path)] == [1, 2, 3, 4]
    assert [entry["event"] for entry, _ in read(path, 2)] == ["session", "finished"]


@pytest.mark.parametrize(
    "tail",
    [
        b'{"seq": 3, "event": "rec',
        b"\0\0\0\0",
        b'{"seq": 3, "event": "record"}',  # whole but for its newline: it does not count
        b'\0\0\n{"seq": 4, "event": "finished"}\n',
        b'{"seq": 7, "event": "finished"}\n',
        b"[]\n",
        b'{"seq": true, "event": "finished"}\n',
        b"\xff\xfe\n",
    ],
)
def test_a_cut_tail_is_dropped(tmp_path, tail):
    path = tmp_path / "journal.jsonl"
    write(path, "session", "run_started")
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    journal = Journal(path)
    assert path.read_bytes() == whole
    assert journal.append("finished") == 3
    journal.close()
    assert [entry["seq"] for entry, _ in read(path)] == [1, 2, 3]


def test_every_cut_leaves_whole_entries(tmp_path):
    path = tmp_path / "journal.jsonl"
    write(path, "session", "run_started", "record")
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        journal = Journal(path)
        assert len(journal.entries) == sum(end <= size for end in ends)
        journal.close()


def test_done_names_the_runs_with_a_record(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("run_started", run_id="a")
    journal.append("record", run_id="a", record={"latency_ns": [1] * 1000})
    journal.append("run_started", run_id="b")
    assert journal.done() == ["a"]
    journal.close()
    journal = Journal(path)
    assert journal.done() == ["a"]
    assert "record" not in journal.entries[1]  # its payload is not kept in memory
    journal.close()


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("session")
    whole = path.read_bytes()
    real = os.write

    def half(fd, data):
        monkeypatch.setattr(os, "write", full)
        return real(fd, data[:5])

    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        journal.append("finished")
    assert path.read_bytes() == whole
    monkeypatch.setattr(os, "write", real)
    assert journal.append("finished") == 2
    journal.close()
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [1, 2]


def test_each_entry_is_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    journal = Journal(tmp_path / "journal.jsonl")
    assert len(flushed) == 1  # the folder
    journal.append("session")
    journal.append("finished")
    assert len(flushed) == 3
    journal.close()


def test_nan_is_refused_before_it_is_written(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        journal.append("record", record={"max_abs_err": float("nan")})
    assert (tmp_path / "journal.jsonl").read_bytes() == b""
    journal.close()


def test_a_reader_follows(tmp_path):
    path = tmp_path / "journal.jsonl"
    reader = Reader(path, after_seq=1)
    assert list(reader.new()) == []
    journal = Journal(path)
    journal.append("session")
    assert list(reader.new()) == []
    assert reader.last_event == "session"
    journal.append("run_started")
    assert [entry["seq"] for entry, _ in reader.new()] == [2]
    with path.open("ab") as stream:
        stream.write(b'{"seq":3,"event":')
    assert list(reader.new()) == []
    with path.open("ab") as stream:
        stream.write(b'"finished"}\n')
    assert [line for _, line in reader.new()] == [b'{"seq":3,"event":"finished"}\n']
    journal.close()


def test_parse_line_refuses_what_is_no_entry():
    assert parse_line(b'{"seq": 0, "event": "x"}\n') is None
    assert parse_line(b'{"seq": 1}\n') is None
    assert parse_line(b"[" * 100_000 + b"\n") is None


def test_reboots_are_counted_for_the_run_that_they_ended(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    for boot_id in ("one", "one", "two", "three"):
        journal.append("session", boot_id=boot_id)
        journal.append("run_started", run_id="a")
    journal.append("record", run_id="a")
    journal.append("session", boot_id="four")  # nothing ran when this boot came
    journal.append("run_started", run_id="b")
    journal.append("session", boot_id=None)  # nobody can tell
    # Killed on the first boot, and begun again there: no reboot.
    assert journal.reboots() == {"a": 2}
    journal.close()
    assert Journal(tmp_path / "journal.jsonl").reboots() == {"a": 2}
