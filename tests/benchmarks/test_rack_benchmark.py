"""The rack's benchmark on two boards: every contender brings back what it was sent for."""

from pathlib import Path

import pytest

from benchmarks import rack_boards
from benchmarks.rack_contenders import CONTENDERS, Job, missing


@pytest.fixture(scope="module")
def rack(tmp_path_factory):
    with rack_boards.running(tmp_path_factory.mktemp("rack"), 2, sshd=False) as running:
        yield running


@pytest.fixture(scope="module")
def model(rack) -> Path:
    return rack_boards.build_model(rack.folder)


@pytest.mark.parametrize(
    "name", ["fleetcut", "parallel-ssh", pytest.param("ansible-core", marks=pytest.mark.slow)]
)
def test_a_job_comes_back_whole(rack, model, tmp_path, name):
    if name in missing():
        pytest.skip(missing()[name])
    campaign = rack_boards.write_campaign(tmp_path, "two", model, runs=2, run_s=0.05)
    specs = rack_boards.specs_by_board(campaign, rack.inventory)
    rack.forget()
    taken = CONTENDERS[name](Job(rack, campaign, model, specs, tmp_path))
    assert taken.records == 4
    assert taken.wall_s > 0
    assert taken.rss_mib > 1


def test_a_board_that_is_alone_is_timed(rack, model, tmp_path):
    campaign = rack_boards.write_campaign(tmp_path, "alone", model, runs=1, run_s=0.2)
    specs = rack_boards.specs_by_board(campaign, rack.inventory)["vb-01"]
    assert rack_boards.pure_s(rack.boards[0], model, "alone", specs) >= 0.2


def test_boards_forget_what_they_were_sent(rack):
    rack.forget()
    assert list(rack.folder.glob("rack/boards/*/home/*")) == []
