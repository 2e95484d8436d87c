"""fleetcut nightly where no board answers, and what is refused before any is asked."""

import contextlib
import io
import json

import pytest
import yaml

from fleetcut.cli import main
from harness.store import Store


@pytest.fixture
def lab(tmp_path):
    """A rack of two boards whose machine refuses connections, and a campaign for it."""
    board = {"model": "x", "host": "127.0.0.1", "port": 1, "user": "lab"}
    board["host_key_sha256"] = "SHA256:" + "A" * 43
    boards = [{"board_id": name, **board} for name in ("pi4-01", "pi4-02")]
    inventory = {"version": 1, "boards": boards}
    (tmp_path / "inventory.yaml").write_text(yaml.safe_dump(inventory))
    (tmp_path / "net.onnx").write_bytes(b"never loaded")
    campaign = {
        "version": 1,
        "campaign_id": "nightly",
        "models": [{"name": "net", "path": "net.onnx"}],
        "runtimes": ["ort"],
        "repeats": 10,
    }
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(campaign))
    return tmp_path


def argv(lab, *more):
    store, out = lab / "lab.db", lab / "pages"
    given = ["nightly", str(lab / "campaign.yaml"), "--inventory", str(lab / "inventory.yaml")]
    return [*given, "--store", str(store), "--out", str(out), "--night", "n1", *more]


def test_a_rack_that_is_gone_is_dead_boards_and_nothing_else(lab):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(argv(lab, "--json", "--metrics", str(lab / "m.prom")))
    answer = json.loads(out.getvalue())
    assert (status, answer["outcomes"]) == (11, ["dead_board"])
    assert {cell["state"] for cell in answer["cells"]} == {"dead"}
    assert all("Next:" in board["failure"] for board in answer["boards"])
    assert 'fleetcut_board_up{board="pi4-01",campaign="nightly"} 0.0' in (
        (lab / "m.prom").read_text()
    )
    store = Store(lab / "lab.db")
    assert store.baselines("nightly") == {}
    store.close()
    assert json.loads((lab / "pages" / "nightly.n1" / "report.json").read_text()) == {
        key: value for key, value in answer.items() if key != "page"
    }


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        ({"repeats": 5}, [], "repeats: 5 can never show a regression in one of 2 cells"),
        ({}, ["--alpha", "0.7"], "--alpha 0.7 is not between"),
        ({}, ["--min-change", "0"], "--min-change 0 is not between"),
        ({}, ["--tries", "0"], "--tries 0 measures nothing"),
        ({}, ["--baseline", "monday"], "--baseline 'monday': the store has no run of it"),
        ({}, ["--night", "../../etc"], "is no name of at most"),
        ({"campaign_id": "n" * 64}, [], "shorten campaign_id"),
        ({"models": [{"name": "gone", "path": "gone.onnx"}]}, [], "cannot be read (No such file"),
    ],
)
def test_what_cannot_be_a_night_is_one_line_and_asks_no_board(lab, capsys, change, more, said):
    path = lab / "campaign.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    assert main(argv(lab, *more)) == 2
    err = capsys.readouterr().err
    errors = [line for line in err.splitlines() if line.startswith("fleetcut:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Next:" in errors[0]
    assert not (lab / "pages").exists()
