"""Sharing a rack from the command line: who has what, and what measure does about it."""

import json

import pytest

from fleetcut.cli import main
from fleetcut.sharing import span_s
from harness.errors import SelectionError
from harness.leases import Leases
from harness.store import Store

INVENTORY = """
version: 1
boards:
  - {board_id: pi-1, model: a board, host: 127.0.0.1, port: 1, user: nobody, simulated: true}
  - {board_id: pi-2, model: a board, host: 127.0.0.1, port: 1, user: nobody}
"""


@pytest.fixture
def lab(tmp_path):
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    return ["--inventory", str(tmp_path / "inventory.yaml"), "--store", str(tmp_path / "lab.db")]


def listed(lab, capsys) -> dict[str, dict]:
    capsys.readouterr()
    assert main(["boards", "--json", *lab]) == 0
    return {use["board_id"]: use for use in json.loads(capsys.readouterr().out)}


def test_boards_says_who_has_what(lab, tmp_path, capsys):
    store = Store(tmp_path / "lab.db")
    leases = Leases(store)
    leases.acquire("pi-1", "nightly-7")
    leases.saw("pi-1", healthy=True, fact="measured nightly-6")
    leases.judge("pi-2", healthy=False, fact="disk: 3 MiB free")
    store.close()
    uses = listed(lab, capsys)
    assert uses["pi-1"]["purpose"] == "nightly-7"
    assert "@" in uses["pi-1"]["holder"]
    assert uses["pi-1"]["healthy"] is True
    assert uses["pi-1"]["seen_unix_s"] is not None
    assert (uses["pi-2"]["state"], uses["pi-2"]["holder"]) == ("quarantined", None)
    assert main(["boards", *lab]) == 0
    said = capsys.readouterr().out
    assert "pi-1 (simulated)" in said
    assert "quarantined by the health check: disk: 3 MiB free" in said
    assert "Next: fleetcut release pi-2" in said


def test_reserve_drain_quarantine_and_release(lab, capsys):
    assert main(["reserve", "pi-1", "--for", "2h", "--as", "ann", *lab]) == 0
    assert main(["reserve", "pi-1", "--for", "2h", "--as", "bob", *lab]) == 3
    assert "is reserved for ann for 7" in capsys.readouterr().err
    assert main(["drain", "pi-2", "--reason", "moves on Monday", *lab]) == 0
    uses = listed(lab, capsys)
    assert uses["pi-1"]["reserved_for"] == "ann"
    assert (uses["pi-2"]["state"], uses["pi-2"]["state_reason"]) == ("drained", "moves on Monday")
    assert main(["quarantine", "pi-2", "--reason", "fan is broken", *lab]) == 0
    assert listed(lab, capsys)["pi-2"]["state_reason"] == "fan is broken"
    assert main(["release", "pi-1", "pi-2", *lab]) == 0
    uses = listed(lab, capsys)
    assert [(u["state"], u["reserved_for"]) for u in uses.values()] == [("open", None)] * 2


def test_a_board_that_is_quarantined_is_not_asked_and_does_not_delay_the_others(
    lab, tmp_path, capsys
):
    (tmp_path / "net.onnx").write_bytes(b"never sent")
    (tmp_path / "campaign.yaml").write_text(
        "version: 1\ncampaign_id: c\nmodels: [{name: net, path: net.onnx}]\nruntimes: [ort]\n"
        "boards: {ids: [pi-2]}\n"
    )
    main(["quarantine", "pi-2", "--reason", "fan is broken", *lab])
    capsys.readouterr()
    assert main(["measure", "--json", str(tmp_path / "campaign.yaml"), *lab]) == 3
    (board,) = json.loads(capsys.readouterr().out)["boards"]
    assert board["category"] == "infrastructure"
    assert "pi-2: is quarantined by" in board["failure"]
    assert "fan is broken" in board["failure"]


def test_a_lease_can_be_revoked(lab, tmp_path, capsys):
    store = Store(tmp_path / "lab.db")
    Leases(store).acquire("pi-1", "stuck")
    assert main(["release", "pi-1", *lab]) == 0
    assert listed(lab, capsys)["pi-1"]["purpose"] == "stuck"
    assert main(["release", "--revoke", "pi-1", *lab]) == 0
    assert listed(lab, capsys)["pi-1"]["holder"] is None
    store.close()


def test_a_board_that_is_in_no_inventory_is_refused(lab, capsys):
    assert main(["quarantine", "pi-9", "--reason", "x", *lab]) == 1
    assert "no board 'pi-9'" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_spans_of_time(text, seconds):
    assert span_s(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "0h", "-1h", "1w", "1e9s", "infs", "2 h"])
def test_what_is_no_span_of_time(text):
    with pytest.raises(SelectionError):
        span_s(text)
