"""What a board forgets, and what it never does: whatever a session may still run."""

import hashlib
import os
import time
from dataclasses import replace

import pytest

from device_agents import cache
from device_agents.contract import GoldenCheck, RunSpec, StoppingRule, encode
from device_agents.home import Home
from device_agents.locks import acquire

KIB = 1024


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    made.create()
    return made


def blob(home, letter: str, *, age_s: float, size_bytes: int = 10 * KIB) -> str:
    data = letter.encode() * size_bytes
    sha256 = hashlib.sha256(data).hexdigest()
    home.blob(sha256).write_bytes(data)
    then_s = time.time() - age_s
    os.utime(home.blob(sha256), (then_s, then_s))
    return sha256


def names(home) -> set[str]:
    return {path.name for path in home.blobs.iterdir()}


def spec(model_sha256: str, **changes) -> RunSpec:
    made = RunSpec(
        campaign_id="c", board_id="b", model_sha256=model_sha256, runtime="ort", precision="fp32",
        threads=1, repeat=0, stopping=StoppingRule(), timeout_s=60.0,
    )  # fmt: skip
    return replace(made, **changes)


def test_the_longest_unused_goes_until_the_quota_is_kept(home):
    old, older, young = (
        blob(home, "a", age_s=8000), blob(home, "b", age_s=9000), blob(home, "c", age_s=7000)
    )  # fmt: skip
    done = cache.make_room(home, quota_bytes=20 * KIB)
    assert names(home) == {old, young}
    assert (done["removed"], done["freed_bytes"], done["blobs_bytes"]) == (1, 10 * KIB, 20 * KIB)
    assert not home.blob(older).exists()


def test_room_is_made_for_what_is_to_come(home):
    blob(home, "a", age_s=8000)
    young = blob(home, "b", age_s=7000)
    cache.make_room(home, quota_bytes=25 * KIB, coming_bytes=10 * KIB)
    assert names(home) == {young}


def test_what_was_asked_for_counts_as_used(home):
    first, second = blob(home, "a", age_s=9000), blob(home, "b", age_s=8000)
    cache.touch(home, [first])
    cache.make_room(home, quota_bytes=10 * KIB)
    assert names(home) == {first}
    assert second not in names(home)


def test_what_a_session_names_stays_whatever_the_quota(home):
    model, golden_in, golden_out, other = (
        blob(home, letter, age_s=90000) for letter in ("a", "b", "c", "d")
    )
    folder = home.session("s")
    folder.mkdir()
    named = spec(model, golden=GoldenCheck(golden_in, golden_out, 1e-5))
    (folder / "specs.jsonl").write_text(encode(named) + "\n")
    done = cache.make_room(home, quota_bytes=0)
    assert names(home) == {model, golden_in, golden_out}
    assert done["sessions"] == ["s"]
    assert not home.blob(other).exists()


def test_what_was_used_a_moment_ago_stays_unless_told_otherwise(home):
    fresh, future = blob(home, "a", age_s=1), blob(home, "b", age_s=-10)
    cache.make_room(home, quota_bytes=0)
    assert names(home) == {fresh, future}
    cache.make_room(home, quota_bytes=0, grace_s=0)
    assert names(home) == set()


def test_a_blob_of_a_clock_that_was_wrong_is_not_kept_for_ever(home):
    blob(home, "a", age_s=-10 * 365 * 86400)
    cache.make_room(home, quota_bytes=0)
    assert names(home) == set()


def test_uploads_that_nobody_goes_on_with_are_removed_and_no_others(home):
    for name, age_s in (("upload-left", 4000), ("upload-now", 5)):
        (home.incoming / name).write_bytes(b"half")
        os.utime(home.incoming / name, (time.time() - age_s,) * 2)
    (home.sessions / ".removed-s-1").mkdir()
    cache.make_room(home, quota_bytes=1 << 30)
    assert [path.name for path in home.incoming.iterdir()] == ["upload-now"]
    assert list(home.sessions.iterdir()) == []


def agents(home) -> list[str]:
    """Five agents, the oldest first, each with something compiled of it."""
    folder = home.path / "agents"
    folder.mkdir()
    made = [f"{i}" * 64 for i in range(5)]
    for age, sha256 in enumerate(reversed(made)):
        for name in (f"{sha256}.pyz", f"{sha256}.cpython-311.zip"):
            (folder / name).write_bytes(b"x")
            os.utime(folder / name, (time.time() - 1000 * (age + 1),) * 2)
    return made


def test_old_agents_go_but_the_own_and_the_last_two(home):
    made = agents(home)
    own = home.path / "agents" / f"{made[0]}.pyz"
    cache.make_room(home, quota_bytes=0, own_agent=str(own))
    left = {path.name[:64] for path in own.parent.iterdir()}
    assert left == {made[0], made[3], made[4]}


def test_no_agent_goes_while_a_worker_lives(home):
    made = agents(home)
    folder = home.session("s")
    folder.mkdir()
    lock = acquire(folder / "worker.lock")
    try:
        own = home.path / "agents" / f"{made[4]}.pyz"
        cache.make_room(home, quota_bytes=0, own_agent=str(own))
    finally:
        lock.release()
    assert len(list(own.parent.iterdir())) == 10


def test_the_verb(agent):
    old = agent.push(b"old")
    os.utime(agent.home / "blobs" / old, (1e9, 1e9))
    answer = agent.run("clean", "--quota-bytes", "0")
    assert answer.status == 0
    assert answer.lines[0]["removed"] == 1
    assert agent.run("clean", "--quota-bytes", "-1").status == 2
