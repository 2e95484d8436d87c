"""Signed artifacts over real SSH: taken, refused, rolled out by shares, stopped, put back."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.tampering_artifacts import NAME, make_artifact, make_key, signed, write_signers
from device_agents.contract import canonical_json
from fleetcut.cli import main
from harness.bundle import build_bundle
from harness.deploy import deploy, load_artifact, roll_back
from harness.errors import StableBoardError
from harness.inventory import load_inventory
from harness.session import AgentSession
from harness.signing import sign_signers
from harness.ssh import SshTransport
from harness.virtual import rack
from harness.virtual.spec import uniform_rack

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="missing: ssh-keygen")


class Lab:
    """A rack of four boards, two signers that it may know, and their artifacts."""

    def __init__(self, folder: Path, boards: Path) -> None:
        self.folder = folder
        self.boards = boards
        self.ann, self.eve = make_key(folder / "keys", "ann"), make_key(folder / "keys", "eve")
        self.signers = write_signers(folder / "allowed_signers", self.ann)
        text = (boards / "inventory.yaml").read_text()
        text = text.replace("id_ed25519", str(boards / "id_ed25519"))
        self.inventory = folder / "inventory.yaml"
        self.inventory.write_text(f"allowed_signers: {self.signers}\n{text}")

    def artifact(self, version: int, serial: int | None = None):
        made = make_artifact(self.folder / "out", version)
        return signed(made, self.ann, serial or version)

    def command(self, verb: str, *args: object) -> int:
        rest = ["--inventory", str(self.inventory)]
        if verb == "deploy":
            rest += ["--rollouts", str(self.folder / "rollouts")]
        if verb in ("deploy", "verify", "rollback"):
            rest += ["--store", str(self.folder / "lab.db")]
        return main([verb, *map(str, args), *rest])

    def home(self, board_id: str) -> Path:
        return self.boards / "boards" / board_id / "home" / ".fleetcut"

    def runs(self, board_id: str) -> str | None:
        link = self.home(board_id) / "deployed" / NAME
        return link.readlink().name if link.is_symlink() else None


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    rack.up(folder, uniform_rack(4))
    yield folder
    rack.down(folder)


@pytest.fixture
def lab(boards, tmp_path):
    made = Lab(tmp_path, boards)
    yield made
    for board in load_inventory(made.inventory).boards:
        for what in ("deployed", "artifacts", "serials", "blobs"):
            shutil.rmtree(made.home(board.board_id) / what, ignore_errors=True)
        (made.home(board.board_id) / "allowed_signers").unlink(missing_ok=True)


@pytest.fixture
def agent(lab):
    board = load_inventory(lab.inventory).boards[0]
    transport = SshTransport(board)
    session = AgentSession(board, transport, build_bundle())
    session.push_agent()
    yield session
    transport.close()


def test_a_signed_artifact_is_checked_here_and_there(lab, agent, capsys):
    artifact = lab.artifact(1)
    assert lab.command("deploy", artifact.folder, "--board", "vb-01") == 0
    out = capsys.readouterr()
    assert "signed by ann" in out.out
    assert "WARNING" not in out.err
    (done,) = deploy(agent, [artifact], lab.signers)
    assert (done.signer, done.note) == ("ann", "")


def test_without_signers_it_goes_but_is_said_loudly(lab, capsys):
    text = lab.inventory.read_text()
    lab.inventory.write_text(text[text.index("\n") + 1 :])
    artifact = make_artifact(lab.folder / "out", 1)
    assert lab.command("deploy", artifact.folder, "--board", "vb-01") == 0
    assert "WARNING: tiny-onnx: unsigned" in capsys.readouterr().err


def test_what_is_not_signed_or_by_another_is_refused_before_any_board_is_asked(lab, capsys):
    artifact = make_artifact(lab.folder / "out", 1)
    assert lab.command("deploy", artifact.folder) == 1
    assert "is not signed. Next: fleetcut sign" in capsys.readouterr().err
    signed(artifact, lab.eve, 1)
    assert lab.command("deploy", artifact.folder) == 1
    assert "signer is not among allowed_signers" in capsys.readouterr().err
    assert lab.runs("vb-01") is None


def test_sign_is_a_verb(lab, capsys):
    artifact = make_artifact(lab.folder / "out", 1)
    key = ["--key", lab.ann]
    assert main(["sign", str(artifact.folder), *map(str, key), "--name", NAME, "--json"]) == 0
    (first,) = json.loads(capsys.readouterr().out)
    assert (first["name"], first["sha256"]) == (NAME, artifact.artifact_id)
    assert main(["sign", str(artifact.folder), *map(str, key), "--name", NAME, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["serial"] > first["serial"]
    assert lab.command("deploy", artifact.folder, "--board", "vb-01") == 0
    assert main(["sign", str(artifact.folder), "--key", str(lab.folder / "none")]) == 1
    assert "does not exist. Next: ssh-keygen" in capsys.readouterr().err
    assert main(["sign"]) == 2


def test_a_key_in_an_ssh_agent_signs_too(lab, monkeypatch):
    said = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    words = dict(w.split("=", 1) for w in said.replace(";", "\n").splitlines() if "=" in w)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", words["SSH_AUTH_SOCK"])
        subprocess.run(["ssh-add", "-q", lab.ann], check=True)
        public = lab.ann.with_suffix(".pub")
        lab.ann.unlink()
        artifact = make_artifact(lab.folder / "out", 1)
        assert main(["sign", str(artifact.folder), "--key", str(public), "--name", NAME]) == 0
        assert lab.command("deploy", artifact.folder, "--board", "vb-01") == 0
    finally:
        subprocess.run(["kill", words["SSH_AGENT_PID"]], check=True)


def test_a_board_keeps_to_its_signers_whatever_the_workstation_says(lab, agent):
    deploy(agent, [lab.artifact(1)], lab.signers)
    theirs = signed(make_artifact(lab.folder / "theirs", 2), lab.eve, 2)
    with pytest.raises(StableBoardError, match="signer is not among"):
        deploy(agent, [theirs])
    with pytest.raises(StableBoardError, match="other signers are pinned here"):
        deploy(agent, [theirs], write_signers(lab.folder / "evil", lab.eve))
    # One of the signers may let another in.
    both = write_signers(lab.folder / "both", lab.ann, lab.eve)
    sign_signers(both, lab.ann, None)
    (done,) = deploy(agent, [theirs], both)
    assert done.signer == "eve"


def test_a_downgrade_is_refused_and_rollback_is_the_way_back(lab, agent, capsys):
    first, second = lab.artifact(1), lab.artifact(2)
    deploy(agent, [first], lab.signers)
    deploy(agent, [second], lab.signers)
    assert lab.command("deploy", first.folder, "--board", "vb-01") == 3
    assert "that is a downgrade. Next: fleetcut rollback" in capsys.readouterr().err
    assert lab.runs("vb-01") == second.artifact_id
    assert lab.command("rollback", NAME, "--board", "vb-01") == 0
    assert f"runs {first.artifact_id[:12]} again" in capsys.readouterr().out
    assert lab.runs("vb-01") == first.artifact_id
    assert roll_back(agent, NAME, second.artifact_id) == first.artifact_id
    assert lab.command("rollback", "nothing", "--board", "vb-01") == 3
    assert "has nothing called nothing" in capsys.readouterr().out


def bad_copy(lab, version: int):
    """An artifact that is whole and signed, but whose golden output no board gives."""
    good = make_artifact(lab.folder / "bad", version)
    golden = good.folder / good.manifest.golden_output
    data = bytes(golden.stat().st_size)
    golden.write_bytes(data)
    import hashlib

    digest = hashlib.sha256(data).hexdigest()
    files = tuple(
        replace(f, sha256=digest) if f.name == golden.name else f for f in good.manifest.files
    )
    manifest = canonical_json(replace(good.manifest, files=files))
    (good.folder / "manifest.json").write_bytes(manifest)
    folder = good.folder.rename(good.folder.with_name(hashlib.sha256(manifest).hexdigest()))
    return signed(load_artifact(folder), lab.ann, version)


def rollout_of(lab) -> dict:
    (path,) = (lab.folder / "rollouts").iterdir()
    return json.loads(path.read_text())


def test_a_canary_first_then_the_rest_each_proven(lab, capsys):
    artifact = lab.artifact(1)
    argv = ("deploy", artifact.folder, "--canary", "5%", "--stages", "50%,100%")
    assert lab.command(*argv, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert [len(stage["board_ids"]) for stage in answer["stages"]] == [1, 1, 2]
    assert answer["state"] == "done"
    assert {lab.runs(f"vb-0{i}") for i in (1, 2, 3, 4)} == {artifact.artifact_id}
    release = json.loads((artifact.folder / "release.json").read_text())["body"]
    assert len(release["proofs"]) == 4
    assert all(p["passed"] and p["measured_lower_ms"] for p in release["proofs"])
    # No cluster is known here, so none is proven.
    assert (release["state"], release["unproven_clusters"]) == ("partial", ["0"])
    assert lab.command(*argv) == 0
    assert "verify" not in capsys.readouterr().err


def test_a_failed_proof_stops_it_at_the_canary_and_puts_that_back(lab, capsys):
    good, bad = lab.artifact(1), bad_copy(lab, 2)
    assert lab.command("deploy", good.folder) == 0
    assert lab.command("deploy", bad.folder, "--canary", "25%", "--roll-back") == 1
    out = capsys.readouterr()
    assert "deviates" in out.err
    assert "stopped: rolled back" in out.out
    assert {lab.runs(f"vb-0{i}") for i in (1, 2, 3, 4)} == {good.artifact_id}
    assert json.loads((bad.folder / "release.json").read_text())["body"]["state"] == "refused"
    assert lab.command("deploy", bad.folder) == 1
    assert "was refused" in capsys.readouterr().err


def test_a_board_that_is_gone_stops_it_unless_it_may_and_the_same_command_goes_on(lab, capsys):
    artifact = lab.artifact(1)
    text = lab.inventory.read_text()
    gone = load_inventory(lab.inventory).board("vb-03")
    broken = text.replace(gone.host_key_sha256, "SHA256:" + "A" * 43)
    lab.inventory.write_text(broken)
    argv = ("deploy", artifact.folder, "--canary", "25%")
    assert lab.command(*argv) == 3
    assert "host key changed" in capsys.readouterr().err
    states = [stage["state"] for stage in rollout_of(lab)["stages"]]
    assert states[-1] == "failed"
    lab.inventory.write_text(text)
    assert lab.command(*argv) == 0
    assert {lab.runs(f"vb-0{i}") for i in (1, 2, 3, 4)} == {artifact.artifact_id}
    second = lab.artifact(2)
    lab.inventory.write_text(broken)
    assert lab.command("deploy", second.folder, "--stages", "100%", "--may-fail", "1") == 3
    assert [lab.runs(f"vb-0{i}") for i in (1, 2, 3, 4)].count(second.artifact_id) == 3


@pytest.mark.parametrize("shares", ["0%", "101%", "50%,25%", "x", "5%,"])
def test_shares_that_make_no_sense(lab, capsys, shares):
    assert lab.command("deploy", lab.artifact(1).folder, "--stages", shares) == 1
    assert "Next: write" in capsys.readouterr().err
