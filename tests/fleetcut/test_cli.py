"""The command: help with examples, errors in one line, exit statuses, JSON on stdout alone."""

import io
import json
import platform
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from compiler.recipe import RecipeTarget
from compiler.targets.board_file import KINDS
from fleetcut.cli import main
from harness.inventory import load_inventory
from harness.virtual import rack
from harness.virtual.spec import uniform_rack

VERBS = ["demo", "rack", "check", "trust", "probe", "plan", "measure", "results", "export"]
VERBS += ["nightly", "boards", "reserve", "release", "drain", "quarantine"]
VERBS += [
    "compare",
    "compile",
    "toolchains",
    "whatif",
    "transfer",
    "sign",
    "deploy",
    "verify",
    "rollback",
    "engine",
    "report",
]


@pytest.fixture(scope="module")
def racks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    rack.up(folder, uniform_rack(1))
    yield folder
    rack.down(folder)


@pytest.fixture
def inventory(racks, tmp_path):
    """A copy of the rack's inventory that a test may change."""
    text = (racks / "inventory.yaml").read_text().replace("id_ed25519", str(racks / "id_ed25519"))
    path = tmp_path / "inventory.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"Example: fleetcut {verb}" in capsys.readouterr().out


def test_unknown_verbs_are_usage_errors(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["frobnicate"])
    assert caught.value.code == 2
    assert "frobnicate" in capsys.readouterr().err


def test_a_bad_inventory_is_a_usage_error_in_one_line(tmp_path, capsys):
    path = tmp_path / "inventory.yaml"
    path.write_text("version: 1\nboards:\n  - board_id: a\n    modell: x\n")
    assert main(["check", "--inventory", str(path)]) == 2
    out = capsys.readouterr()
    assert f"{path}:" in out.err
    assert "Traceback" not in out.err
    assert len(out.err.strip().splitlines()) == 1


def test_check_says_what_works_and_ends_with_the_next_command(inventory, capsys):
    assert main(["check", "--inventory", str(inventory)]) == 0
    out = capsys.readouterr().out
    assert "onnxruntime" in out
    assert "Next: fleetcut measure" in out


def test_check_as_json_is_nothing_but_json_on_stdout(inventory, capsys):
    assert main(["check", "--json", "--inventory", str(inventory)]) == 0
    (board,) = json.loads(capsys.readouterr().out)
    assert board["reachable"] is True
    assert all(check["ok"] for check in board["checks"])


def test_a_board_that_cannot_be_reached_is_status_3(inventory, capsys):
    inventory.write_text(inventory.read_text().replace("id_ed25519", "none"))
    assert main(["check", "--inventory", str(inventory)]) == 3
    assert "FAILED" in capsys.readouterr().out


def test_what_is_no_ssh_server_is_one_line_and_no_traceback(inventory):
    def greet(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            client.sendall(b"220 mail.example ESMTP\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        known = load_inventory(inventory).boards[0].port
        port = server.getsockname()[1]
        inventory.write_text(inventory.read_text().replace(str(known), str(port)))
        thread = threading.Thread(target=greet, args=(server,))
        thread.start()
        done = subprocess.run(
            [sys.executable, "-m", "fleetcut", "trust", "vb-01", "--inventory", inventory],
            capture_output=True,
            text=True,
        )
        thread.join()
    assert done.returncode == 3
    assert "no SSH at 127.0.0.1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_probed_board_becomes_a_target_that_a_recipe_may_name(inventory, tmp_path, capsys):
    path = tmp_path / "lab-board.yaml"
    asked = ["probe", "--target", str(path), "--inventory", str(inventory)]
    assert main(asked) == 0
    capsys.readouterr()
    target = RecipeTarget(target=str(path))
    assert (target.name, target.machine) == ("lab-board", platform.machine())
    assert {kind for kind, _ in target.forms()} == set(KINDS)
    assert main(asked) == 2
    assert "File exists" in capsys.readouterr().err


def test_probe_says_simulated(inventory, capsys):
    assert main(["probe", "--json", "--inventory", str(inventory)]) == 0
    (profile,) = json.loads(capsys.readouterr().out).values()
    assert profile["simulated"] is True


def test_trust_shows_the_key_and_writes_it_only_when_told(inventory, capsys, monkeypatch):
    known = load_inventory(inventory).boards[0].host_key_sha256
    inventory.write_text(inventory.read_text().replace(known, "null"))
    assert main(["check", "--inventory", str(inventory)]) == 3
    assert "fleetcut trust vb-01" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["trust", "vb-01", "--inventory", str(inventory)]) == 1
    assert known in capsys.readouterr().out
    assert known not in inventory.read_text()
    assert main(["trust", "vb-01", "--yes", "--inventory", str(inventory)]) == 0
    assert known in inventory.read_text()
    assert main(["check", "--inventory", str(inventory)]) == 0


def test_measure_results_export_on_the_way(inventory, tmp_path, capsys, monkeypatch):
    from compiler.anchors import write_anchors

    monkeypatch.chdir(tmp_path)
    write_anchors(tmp_path / "models", 0)
    campaign = tmp_path / "campaign.yaml"
    campaign.write_text(
        "version: 1\ncampaign_id: cli\nmodels: [{name: memory, path: models/anchor-memory.onnx}]\n"
        "runtimes: [ort]\nstopping: {warmup_min: 1, samples_min: 5, samples_max: 5}\n"
    )
    common = ["--inventory", str(inventory), "--store", "lab.db"]
    assert main(["measure", str(campaign), *common, "--json", "--tries", "3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["boards"][0]["stored"] >= 1
    assert main(["measure", str(campaign), *common, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["boards"][0]["stored"] == 0
    assert main(["results", "--store", "lab.db"]) == 0
    assert "(simulated)" in capsys.readouterr().out
    assert main(["export", "--store", "lab.db", "--include-invalid", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["simulated"] is True
    assert Path("dataset/runs.parquet").exists()


def test_export_of_nothing_is_status_1_and_says_what_to_do(tmp_path, capsys):
    assert main(["export", "--store", str(tmp_path / "none.db"), "--out", str(tmp_path / "d")]) == 1
    assert "Next: fleetcut results" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["deploy", "verify"])
def test_what_is_no_artifact_is_named(verb, inventory, tmp_path, capsys):
    assert main([verb, str(tmp_path / "none"), "--inventory", str(inventory)]) == 1
    assert "none/manifest.json" in capsys.readouterr().err


def test_a_recipe_with_a_mistake_says_where(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nname: x\nnetworks: [digits_resnet]\nsearhc: {}\ntargets: []\n")
    assert main(["compile", str(recipe)]) == 2
    assert f"{recipe}:" in capsys.readouterr().err


def test_help_does_not_load_the_frameworks():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fleetcut", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "pandas", "scipy.stats", "sklearn", "matplotlib", "onnx"}
