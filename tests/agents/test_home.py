import hashlib

import pytest

from device_agents.errors import AgentError
from device_agents.home import Home


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    made.create()
    return made


DATA = b"model"
SHA = hashlib.sha256(DATA).hexdigest()


def test_an_upload_is_adopted_by_its_hash(home):
    (home.incoming / "up").write_bytes(DATA)
    assert home.present([SHA]) == ([], [SHA])
    home.adopt("up", SHA)
    assert home.blob(SHA).read_bytes() == DATA
    assert home.present([SHA]) == ([SHA], [])
    assert list(home.incoming.iterdir()) == []
    home.adopt("up", SHA)  # the first answer was lost


def test_a_cut_upload_is_removed(home):
    (home.incoming / "up").write_bytes(DATA[:3])
    with pytest.raises(AgentError, match="has hash"):
        home.adopt("up", SHA)
    assert list(home.incoming.iterdir()) == []
    assert list(home.blobs.iterdir()) == []
    with pytest.raises(AgentError, match="is not there"):
        home.adopt("up", SHA)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/passwd", ".x", "a\0", "a\n"])
def test_no_name_leads_out_of_the_home(home, name):
    with pytest.raises(AgentError):
        home.session(name)
    with pytest.raises(AgentError):
        home.adopt(name, SHA)


@pytest.mark.parametrize(
    "text", ["", SHA[:-1], SHA + "0", SHA.upper(), "../" + SHA[3:], SHA + "\n"]
)
def test_only_a_sha256_names_a_blob(home, text):
    with pytest.raises(AgentError, match="is not a SHA-256"):
        home.blob(text)
    with pytest.raises(AgentError):
        home.present([text])


def test_a_home_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AgentError, match="cannot be made"):
        Home(tmp_path / "file").create()
