"""A case of most kinds of tampering and cut; all hundred: python -m benchmarks.tampering."""

import shutil

import pytest

from benchmarks.tampering import bars, run_case, seeded
from benchmarks.tampering_cases import CASES
from benchmarks.tampering_world import open_world
from harness.virtual import rack
from harness.virtual.spec import uniform_rack

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="missing: ssh-keygen")


LEFT_TO_THE_BENCHMARK = {
    "a bit of its signature",
    "a file cut short",
    "a file missing",
    "half signed by a stranger",
    "signatures of another version",
    "signatures removed",
    "to the board: documents mixed",
    "on the board: a blob cut short",
}
"""What they do is close to what another kind does."""

FAST = [
    (case, rng) for case, rng in seeded(1, quick=True) if case.kind not in LEFT_TO_THE_BENCHMARK
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tampering")
    rack.up(folder / "rack", uniform_rack(1))
    yield open_world(folder / "world", folder / "rack")
    rack.down(folder / "rack")


def test_there_are_a_hundred_cases():
    assert sum(case.times for case in CASES) == 100
    assert len(list(seeded(0))) == 100
    assert len(FAST) == 25
    assert {case.kind for case in CASES} >= LEFT_TO_THE_BENCHMARK


@pytest.mark.parametrize(("case", "rng"), FAST, ids=[case.kind for case, _ in FAST])
def test_it_is_refused_or_recovered_and_leaves_a_whole_version(world, case, rng):
    row = run_case(world, case, rng)
    assert row["outcome"] == case.expected, row
    assert row["whole"]
    assert all(bar.holds for bar in bars([row], 1))
