"""Wheels on a board: whole or not at all, nowhere but in their folder, and nothing of them runs."""

import hashlib
import io
import json
import stat
import sys
import zipfile
from pathlib import Path

import pytest

from device_agents import wheels
from device_agents.errors import AgentError
from device_agents.home import Home
from device_agents.locks import acquire
from device_agents.provisioned import activate, machine


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path / "home")
    made.create()
    return made


def wheel(files: dict[str, bytes], name: str = "tiny", version: str = "1.0") -> bytes:
    buffer = io.BytesIO()
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def push(home: Home, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    home.blob(sha256).write_bytes(data)
    return sha256


def plan(home: Home, modules=("tiny",), **given: bytes) -> str:
    document = {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "machine": machine(),
        "wheels": {
            f"{name}-1.0-py3-none-any.whl": push(home, data) for name, data in given.items()
        },
        "modules": list(modules),
    }
    return push(home, json.dumps(document).encode())


def link(home: Home) -> Path:
    return home.path / "site" / f"{sys.implementation.cache_tag}-{machine()}"


def site(home: Home) -> set[str]:
    folder = home.path / "site"
    return {str(p.relative_to(folder)) for p in folder.rglob("*")} if folder.is_dir() else set()


def test_what_was_unpacked_is_found_by_the_agent(home, agent, monkeypatch):
    done = wheels.provision(home, plan(home, tiny=wheel({"tiny/__init__.py": b"X = 3\n"})))
    assert done == [("tiny", "1.0")]
    monkeypatch.setattr(sys, "path", [*sys.path])
    activate(home)
    activate(home)
    assert sys.path.count(str(link(home))) == 1
    import tiny

    assert tiny.X == 3
    del sys.modules["tiny"]
    packages = wheels.describe(home)["packages"]
    assert ("tiny", "1.0") not in packages
    assert any(name == "pytest" for name, _ in packages)


def test_the_agent_knows_a_runtime_that_was_provisioned(home, agent):
    runtime = wheel({"onnxruntime/__init__.py": b""}, "onnxruntime", "99.0")
    wheels.provision(home, plan(home, ["onnxruntime"], onnxruntime=runtime))
    agent.home = home.path
    (answer,) = agent.run("probe").lines
    assert ["onnxruntime", "99.0"] in answer["body"]["runtime_versions"]


def test_another_plan_takes_the_place_of_the_first(home):
    first = plan(home, tiny=wheel({"tiny.py": b"X = 1\n"}))
    wheels.provision(home, first)
    second = plan(home, tiny=wheel({"tiny.py": b"X = 2\n"}))
    wheels.provision(home, second)
    assert (link(home) / "tiny.py").read_bytes() == b"X = 2\n"
    assert [path.name for path in (home.path / "site" / "sets").iterdir()] == [second]
    wheels.provision(home, second)
    assert (link(home) / "tiny.py").read_bytes() == b"X = 2\n"


def test_data_goes_where_it_belongs_and_scripts_nowhere(home):
    files = {
        "tiny.py": b"",
        "tiny-1.0.data/purelib/extra.py": b"",
        "tiny-1.0.data/platlib/tiny_lib/lib.so": b"\x7fELF",
        "tiny-1.0.data/scripts/tiny": b"#!python\n",
        "tiny-1.0.data/data/share/doc": b"",
    }
    wheels.provision(home, plan(home, tiny=wheel(files)))
    found = {str(p.relative_to(link(home))) for p in link(home).rglob("*") if p.is_file()}
    assert {"tiny.py", "extra.py", "tiny_lib/lib.so"} <= found
    assert not any("scripts" in name or "share" in name for name in found)


@pytest.mark.parametrize(
    "path",
    ["../escaped", "/tmp/escaped-by-a-wheel", "a/../../escaped", "tiny-1.0.data/purelib/../../../x",
     "a\\..\\b"],
)  # fmt: skip
def test_a_wheel_that_leads_out_of_its_folder_is_refused_whole(home, path):
    with pytest.raises(AgentError, match="see where it comes from"):
        wheels.provision(home, plan(home, tiny=wheel({"tiny.py": b"", path: b"x"})))
    assert site(home) <= {"sets"}
    assert not (home.path.parent / "escaped").exists()
    assert not Path("/tmp/escaped-by-a-wheel").exists()


def test_a_symbolic_link_in_a_wheel_is_refused(home):
    data = io.BytesIO(wheel({"tiny.py": b""}))
    with zipfile.ZipFile(data, "a") as archive:
        info = zipfile.ZipInfo("out")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc")
    with pytest.raises(AgentError, match="holds 'out'"):
        wheels.provision(home, plan(home, tiny=data.getvalue()))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"raise ImportError('libfoo.so.1: cannot open')\n", "tiny does not import: .*libfoo"),
        (b"import os, signal; os.kill(os.getpid(), signal.SIGILL)\n", "exit status -4"),
    ],
)
def test_what_does_not_import_is_not_switched_to(home, source, said):
    wheels.provision(home, plan(home, tiny=wheel({"tiny.py": b"X = 1\n"})))
    with pytest.raises(AgentError, match=said):
        wheels.provision(home, plan(home, tiny=wheel({"tiny.py": source})))
    assert (link(home) / "tiny.py").read_bytes() == b"X = 1\n"


def test_a_blob_that_is_damaged_or_no_wheel_is_refused(home):
    asked = plan(home, tiny=b"this is no zip")
    with pytest.raises(AgentError, match="is no wheel"):
        wheels.provision(home, asked)
    asked = plan(home, tiny=wheel({"tiny.py": b""}))
    document = json.loads(home.blob(asked).read_bytes())
    home.blob(next(iter(document["wheels"].values()))).write_bytes(b"other")
    with pytest.raises(AgentError, match="is not on the board"):
        wheels.provision(home, asked)


def test_a_wheel_whose_compressed_bytes_make_no_sense_is_refused(home):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny.py", b"X = 1\n" * 500)
    data = bytearray(buffer.getvalue())
    at = data.index(b"tiny.py") + len("tiny.py")
    data[at : at + 8] = b"\xff" * 8
    with pytest.raises(AgentError, match="is no wheel"):
        wheels.provision(home, plan(home, tiny=bytes(data)))


@pytest.mark.parametrize(
    "change",
    [{"python": "2.7"}, {"machine": "vax"}, {"wheels": 3}, {"wheels": {"../x.whl": "0" * 64}},
     {"modules": ["os; import x"]}, {"modules": "tiny"}, {"wheels": {"a.whl": "../../x"}}],
)  # fmt: skip
def test_a_plan_that_does_not_fit_is_refused(home, change):
    document = json.loads(home.blob(plan(home, tiny=wheel({"tiny.py": b""}))).read_bytes())
    asked = push(home, json.dumps({**document, **change}).encode())
    with pytest.raises(AgentError, match="Next:"):
        wheels.provision(home, asked)
    assert site(home) <= {"sets"}


def test_nothing_is_changed_while_a_session_runs(home):
    asked = plan(home, tiny=wheel({"tiny.py": b""}))
    lock = acquire(home.board_lock)
    try:
        with pytest.raises(AgentError, match="a session is running"):
            wheels.provision(home, asked)
    finally:
        lock.release()
    assert site(home) == set()
