"""Signatures, serials and rollbacks on the board, with OpenSSH's own ssh-keygen."""

import hashlib
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from device_agents import deployments
from device_agents.checks import run_checks
from device_agents.contract import ArtifactFile, Manifest, Target, canonical_json, encode
from device_agents.contract.signatures import (
    ARTIFACT,
    RELEASE,
    SIGNERS,
    SIGNERS_NAME,
    SignatureError,
    Statement,
    signer_of,
)
from device_agents.errors import AgentError
from device_agents.home import Home
from device_agents.install import install
from device_agents.sysfs import Root
from device_agents.trust import ROOTS_SIGNERS, Proof, pin, seen

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="missing: ssh-keygen")


class Lab:
    """One board's home, signers with keys of their own, and what they make."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.home = Home(folder / "home")
        self.home.create()
        self.root = Root(folder / "root")

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.home.blob(sha256).write_bytes(data)
        return sha256

    def key(self, who: str):
        path = self.folder / who
        if not path.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", who, "-f", path], check=True
            )
        return path

    def signers(self, *who: str) -> bytes:
        public = [self.key(w).with_suffix(".pub").read_text().split()[:2] for w in who]
        return "".join(f"{w} {' '.join(p)}\n" for w, p in zip(who, public, strict=True)).encode()

    def sign(self, who: str, data: bytes, namespace: str) -> bytes:
        argv = ["ssh-keygen", "-q", "-Y", "sign", "-f", self.key(who), "-n", namespace]
        return subprocess.run(argv, input=data, capture_output=True, check=True).stdout

    def artifact(self, version: str) -> str:
        data = f"program {version}".encode()
        tensor = b"\0\0\0\0"
        files = tuple(
            ArtifactFile(name, self.put(content), len(content))
            for name, content in (("model", data), ("in", tensor), ("out", tensor))
        )
        manifest = Manifest(
            "net", "onnx", Target("board", "any", "any", "ort"), "model", "in", "out", (1,), (1,),
            files, 1e-4, 0.0, 0.9, (), "0" * 64, "0" * 64, "0" * 64, "0" * 64, 0, (),
        )  # fmt: skip
        return self.put(canonical_json(manifest))

    def proof(self, artifact_id: str, serial: int, who: str = "ann", name: str = "net") -> Proof:
        statement = encode(Statement(name, artifact_id, serial, "2030-01-01T00:00:00Z")).encode()
        manifest = self.home.blob(artifact_id)
        if not manifest.exists():
            manifest = self.home.artifact(artifact_id) / "manifest.json"
        return Proof(
            self.put(self.sign(who, manifest.read_bytes(), ARTIFACT)),
            self.put(statement),
            self.put(self.sign(who, statement, RELEASE)),
        )

    def install(self, artifact_id: str, proof: Proof | None = None, name: str = "net"):
        return install(self.home, self.root, artifact_id, name, proof)

    def pin(self, *who: str) -> str:
        return pin(self.home, self.root, self.put(self.signers(*who)), None)

    def runs(self) -> str:
        return (self.home.deployed / "net" / "model").read_text()


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture
def strict(lab):
    """A board that knows ann and bob, and runs what ann signed as serial 10."""
    lab.pin("ann", "bob")
    first = lab.artifact("1")
    lab.install(first, lab.proof(first, 10))
    return lab


def refusal(lab, artifact_id, proof=None, name="net") -> str:
    before = deployments.deployed(lab.home, name)
    with pytest.raises(AgentError) as caught:
        lab.install(artifact_id, proof, name)
    assert deployments.deployed(lab.home, name) == before
    return str(caught.value)


def test_a_signed_artifact_is_taken_and_its_signer_named(strict):
    second = strict.artifact("2")
    done = strict.install(second, strict.proof(second, 11, "bob"))
    assert (done.signer, done.note) == ("bob", "")
    assert strict.runs() == "program 2"
    assert seen(strict.home, "net").serial == 11


def test_the_documents_of_an_install_are_not_kept(strict):
    second = strict.artifact("2")
    before = {p.name for p in strict.home.blobs.iterdir()}
    strict.install(second, strict.proof(second, 11))
    assert {p.name for p in strict.home.blobs.iterdir()} <= before


def test_unsigned_is_refused_where_signers_are_known(strict):
    assert "is not signed" in refusal(strict, strict.artifact("2"))


def test_a_board_that_knows_no_signers_says_so(lab):
    first = lab.artifact("1")
    assert "unsigned" in lab.install(first).note
    done = lab.install(first, lab.proof(first, 1))
    assert (done.signer, "no signers" in done.note) == (None, True)
    assert seen(lab.home, "net") is None


def test_an_unknown_signer_is_refused(strict):
    second = strict.artifact("2")
    assert "signer is not among" in refusal(strict, second, strict.proof(second, 11, "eve"))


def test_a_manifest_signed_by_somebody_else_is_refused(strict):
    second = strict.artifact("2")
    good, bad = strict.proof(second, 11), strict.proof(second, 11, "eve")
    mixed = Proof(bad.manifest_signature, good.statement, good.statement_signature)
    assert "signer is not among" in refusal(strict, second, mixed)


def test_a_signature_made_for_another_purpose_is_refused(strict):
    second = strict.artifact("2")
    proof = strict.proof(second, 11)
    said = strict.home.blob(proof.statement).read_bytes()
    other = strict.put(strict.sign("ann", said, "git"))
    forged = replace(proof, statement_signature=other)
    assert "does not fit" in refusal(strict, second, forged)


def test_a_statement_on_another_artifact_or_name_is_refused(strict):
    second, third = strict.artifact("2"), strict.artifact("3")
    assert "its statement is on" in refusal(strict, third, strict.proof(second, 11))
    assert "its statement is on" in refusal(strict, second, strict.proof(second, 11), "other")


@pytest.mark.parametrize(("old", "new"), [(b'"serial":11', b'"serial":99'), (b'"net"', b'"nat"')])
def test_a_changed_statement_is_refused(strict, old, new):
    second = strict.artifact("2")
    proof = strict.proof(second, 11)
    said = strict.home.blob(proof.statement).read_bytes()
    assert old in said
    forged = replace(proof, statement=strict.put(said.replace(old, new)))
    assert "does not fit" in refusal(strict, second, forged)


def test_a_downgrade_is_refused_and_staying_is_none(strict):
    first = deployments.deployed(strict.home, "net").current
    old = strict.proof(first, 10)
    second = strict.artifact("2")
    strict.install(second, strict.proof(second, 20))
    assert "downgrade" in refusal(strict, first, old)
    other = strict.artifact("3")
    assert "downgrade" in refusal(strict, other, strict.proof(other, 20))
    again = strict.install(second, strict.proof(second, 20))
    assert again.previous == second
    # The way back is to sign it anew: somebody who may sign wants it now.
    strict.artifact("1")
    strict.install(first, strict.proof(first, 21))
    assert strict.runs() == "program 1"


def test_a_serial_that_cannot_be_read_lets_nothing_in(strict):
    (strict.home.serials / "net.json").write_bytes(b"\0\0")
    second = strict.artifact("2")
    assert "cannot be read" in refusal(strict, second, strict.proof(second, 11))


def test_rollback_goes_back_once_and_forth_again(strict):
    first = deployments.deployed(strict.home, "net").current
    second = strict.artifact("2")
    proof = strict.proof(second, 11)
    strict.install(second, proof)
    back = deployments.rollback(strict.home, "net", second)
    assert (back.current, back.previous) == (first, second)
    assert deployments.rollback(strict.home, "net", second) == back
    assert strict.runs() == "program 1"
    # What an installed version needs is signed, but not pushed, again.
    strict.install(second, strict.proof(second, 11))
    assert strict.runs() == "program 2"


def test_after_a_rollback_what_runs_may_be_installed_again(strict):
    first = deployments.deployed(strict.home, "net").current
    second = strict.artifact("2")
    strict.install(second, strict.proof(second, 11))
    deployments.rollback(strict.home, "net", second)
    strict.install(first, strict.proof(first, 10))
    assert strict.runs() == "program 1"
    assert seen(strict.home, "net").serial == 11


def test_there_is_nothing_before_the_first_version(strict):
    first = deployments.deployed(strict.home, "net").current
    with pytest.raises(AgentError, match="no version before"):
        deployments.rollback(strict.home, "net", first)


def test_a_damaged_version_before_is_not_gone_back_to(strict):
    first = deployments.deployed(strict.home, "net").current
    second = strict.artifact("2")
    strict.install(second, strict.proof(second, 11))
    (strict.home.artifact(first) / "model").write_bytes(b"progrXm 1")
    with pytest.raises(AgentError, match="is damaged"):
        deployments.rollback(strict.home, "net", second)
    assert strict.runs() == "program 2"


def test_signers_are_pinned_once_and_changed_by_one_of_them(lab):
    assert lab.pin("ann") == "pinned"
    assert lab.pin("ann") == "pinned"
    with pytest.raises(AgentError, match="other signers are pinned"):
        lab.pin("eve")

    def vouched(who: str, serial: int, signers: bytes) -> Proof:
        sha256 = hashlib.sha256(signers).hexdigest()
        said = encode(Statement(SIGNERS_NAME, sha256, serial, "now")).encode()
        signature = lab.put(lab.sign(who, said, SIGNERS))
        return Proof(signature, lab.put(said), signature)

    both, bob = lab.signers("ann", "bob"), lab.signers("bob")
    with pytest.raises(AgentError, match="signer is not among"):
        pin(lab.home, lab.root, lab.put(both), vouched("eve", 1, both))
    pin(lab.home, lab.root, lab.put(both), vouched("ann", 1, both))
    pin(lab.home, lab.root, lab.put(bob), vouched("bob", 2, bob))
    with pytest.raises(AgentError, match="downgrade"):
        pin(lab.home, lab.root, lab.put(both), vouched("bob", 1, both))
    assert lab.home.signers.read_bytes() == bob


def test_roots_signers_stand_above_the_pinned_ones(lab):
    lab.pin("eve")
    path = lab.root.path / ROOTS_SIGNERS
    path.parent.mkdir(parents=True)
    path.write_bytes(lab.signers("ann"))
    assert lab.pin("bob") == "root"
    first = lab.artifact("1")
    assert "signer is not among" in refusal(lab, first, lab.proof(first, 1, "eve"))
    assert lab.install(first, lab.proof(first, 1)).signer == "ann"


def test_without_ssh_keygen_pinned_signers_are_said_to_be_unchecked_and_roots_refuse(
    strict, monkeypatch
):
    second = strict.artifact("2")
    proof = strict.proof(second, 11)
    first = deployments.deployed(strict.home, "net").current
    older = strict.proof(first, 10)
    monkeypatch.setenv("PATH", "/nonexistent")
    done = strict.install(second, proof)
    assert done.signer is None
    assert "not checked here: ssh-keygen cannot be run" in done.note
    # What does not need ssh-keygen holds all the same.
    assert "downgrade" in refusal(strict, first, older)
    path = strict.root.path / ROOTS_SIGNERS
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert "install OpenSSH" in refusal(strict, first, older)


def test_signatures_that_are_none(lab):
    path = lab.folder / "signers"
    path.write_bytes(lab.signers("ann"))
    good = lab.sign("ann", b"data", ARTIFACT)
    assert signer_of(b"data", good, path, ARTIFACT) == "ann"
    for bad in (b"", good[:40], good[:-40], bytes(1 << 17), good.replace(b"A", b"B", 3)):
        with pytest.raises(SignatureError):
            signer_of(b"data", bad, path, ARTIFACT)
    with pytest.raises(SignatureError):
        signer_of(b"dat", good, path, ARTIFACT)


def test_what_no_name_leads_to_goes_with_its_blobs_and_what_a_cut_left(strict):
    home = strict.home
    for serial, version in ((11, "2"), (12, "3")):
        artifact_id = strict.artifact(version)
        (home.deployed / ".net.999").symlink_to("../artifacts/" + "0" * 64)
        (home.artifacts / ".staging-0").mkdir()
        strict.install(artifact_id, strict.proof(artifact_id, serial))
    assert sorted(os.listdir(home.deployed)) == ["net", "net.previous"]
    assert len(os.listdir(home.artifacts)) == 2
    blobs = {p.read_bytes() for p in home.blobs.iterdir()}
    assert b"program 1" not in blobs
    # The golden tensors belong to all three.
    assert {b"program 2", b"program 3", b"\0\0\0\0"} <= blobs


def test_a_blob_that_a_session_asks_for_stays(strict):
    home = strict.home
    sha256 = hashlib.sha256(b"program 1").hexdigest()
    session = home.session("s")
    session.mkdir()
    (session / "specs.jsonl").write_text(f'{{"model_sha256": "{sha256}"}}\n')
    for serial, version in ((11, "2"), (12, "3")):
        artifact_id = strict.artifact(version)
        strict.install(artifact_id, strict.proof(artifact_id, serial))
    assert home.blob(sha256).is_file()


def test_everything_is_on_the_disk_before_a_name_leads_to_it(strict, monkeypatch):
    """In the order of the calls: no link is made before what it leads to is flushed."""
    second = strict.artifact("2")
    proof = strict.proof(second, 11)
    calls: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def fsync(fd):
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        sync(fd)

    def renamed(old, new):
        calls.append(("rename", str(new)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", renamed)
    strict.install(second, proof)
    home = strict.home
    switched = calls.index(("rename", str(home.deployed / "net")))
    placed = calls.index(("rename", str(home.artifact(second))))
    kept = calls.index(("rename", str(home.serials / "net.json")))
    assert placed < kept < switched
    flushed = {path.rsplit("/", 1)[-1] for what, path in calls[:placed] if what == "fsync"}
    assert {"model", "in", "out"} <= flushed
    assert ("fsync", str(home.artifacts)) in calls[placed:switched]
    assert ("fsync", str(home.serials)) in calls[kept:switched]
    assert calls[switched + 1] == ("fsync", str(home.deployed))


def test_check_says_whether_signatures_are_asked_for_and_can_be_checked(lab, monkeypatch):
    def said():
        (found,) = [c for c in run_checks(lab.home, lab.root) if c.name == "signatures"]
        return found

    assert said().fact.startswith("any artifact is taken")
    lab.pin("ann")
    assert said().ok
    assert f"asked for, by {lab.home.signers}" in said().fact
    monkeypatch.setenv("PATH", "/nonexistent")
    assert said().ok
    assert said().next_step == "install openssh-client"
    path = lab.root.path / ROOTS_SIGNERS
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert not said().ok
