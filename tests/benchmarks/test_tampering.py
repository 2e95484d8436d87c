"""One case of each kind of tampering and cut; all hundred: python -m benchmarks.tampering."""

import shutil

import pytest

from benchmarks.tampering import bars, run_case, seeded
from benchmarks.tampering_cases import CASES
from benchmarks.tampering_world import open_world
from harness.virtual import rack
from harness.virtual.spec import uniform_rack

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="missing: ssh-keygen")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tampering")
    rack.up(folder / "rack", uniform_rack(1))
    yield open_world(folder / "world", folder / "rack")
    rack.down(folder / "rack")


def test_there_are_a_hundred_cases():
    assert sum(case.times for case in CASES) == 100
    assert len(list(seeded(0))) == 100


@pytest.mark.parametrize(
    ("case", "rng"), list(seeded(1, quick=True)), ids=lambda value: getattr(value, "kind", "")
)
def test_it_is_refused_or_recovered_and_leaves_a_whole_version(world, case, rng):
    row = run_case(world, case, rng)
    assert row["outcome"] == case.expected, row
    assert row["whole"]
    assert all(bar.holds for bar in bars([row], 1))
