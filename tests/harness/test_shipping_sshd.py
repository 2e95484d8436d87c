"""Signatures checked by the ssh-keygen of boards that are OpenSSH servers of their own."""

import pytest

from benchmarks.tampering_artifacts import make_artifact, make_key, signed, write_signers
from harness.bundle import build_bundle
from harness.deploy import deploy
from harness.errors import StableBoardError
from harness.inventory import load_inventory
from harness.session import AgentSession
from harness.ssh import SshTransport
from harness.virtual import namespace, rack
from harness.virtual.errors import RackError
from harness.virtual.spec import uniform_rack


def _missing() -> str:
    try:
        namespace.require_namespaces()
    except RackError as error:
        # A package that is missing fails in CI; a machine that cannot is skipped there too.
        return f"missing: {error}" if "not installed" in str(error) else f"no sshd boards: {error}"
    return ""


MISSING = _missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sshd")
    rack.up(folder, uniform_rack(1), sshd=True)
    (found,) = load_inventory(folder / "inventory.yaml").boards
    yield folder / "boards" / found.board_id, found
    rack.down(folder)


@pytest.fixture
def agent(board):
    transport = SshTransport(board[1])
    session = AgentSession(board[1], transport, build_bundle())
    session.push_agent()
    yield session
    transport.close()


def test_the_board_asks_its_own_ssh_keygen_and_root_has_the_last_word(board, agent, tmp_path):
    folder, _ = board
    ann, eve = (make_key(tmp_path / "keys", who) for who in ("ann", "eve"))
    signers = write_signers(tmp_path / "allowed_signers", ann)
    first = signed(make_artifact(tmp_path, 1), ann, 1)
    (done,) = deploy(agent, [first], signers)
    assert (done.signer, done.note) == ("ann", "")
    assert (folder / "home/.fleetcut/allowed_signers").read_bytes() == signers.read_bytes()
    theirs = signed(make_artifact(tmp_path, 2), eve, 2)
    with pytest.raises(StableBoardError, match="signer is not among"):
        deploy(agent, [theirs])
    roots = folder / "etc/fleetcut/allowed_signers"
    roots.parent.mkdir()
    write_signers(roots, eve)
    (done,) = deploy(agent, [theirs], signers)
    assert done.signer == "eve"
    with pytest.raises(StableBoardError, match="signer is not among"):
        deploy(agent, [signed(make_artifact(tmp_path, 3), ann, 3)], signers)
