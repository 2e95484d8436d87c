"""The folder that no bad input may leave."""

import pytest


@pytest.fixture
def confined(tmp_path, monkeypatch):
    """The folder of a case; beside it and in the current folder nothing may appear."""
    folder = tmp_path / "work"
    elsewhere = tmp_path / "elsewhere"
    for made in (folder, elsewhere):
        made.mkdir()
    monkeypatch.chdir(elsewhere)
    yield folder
    assert list(elsewhere.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "work"]
