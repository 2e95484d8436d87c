"""PostgreSQL of Debian's package for tests: a server of one's own on a free port of loopback.

Not a test: fixtures import it. Its folder is new and private, its user is not root, its password
is random, and the kernel ends it with this process.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

TRIES = 3
"""A port that was free may be taken before the server binds it."""


def missing():
    """Why there can be no server; empty where there can."""
    if _programs() is None:
        return "missing: postgresql is not installed"
    if os.geteuid() == 0 and (shutil.which("setpriv") is None or _user() is None):
        return "missing: postgresql does not run as root, and there is no user postgres"
    return ""


@dataclass
class Server:
    """url: of the maintenance database, password included."""

    url: sa.URL

    def new_database(self):
        """The URL of an empty schema: to the store a database, but ten times quicker to make."""
        name = f"lab_{secrets.token_hex(6)}"
        self.run(f"CREATE SCHEMA {name}")
        return self.url.set(query={"options": f"-csearch_path={name}"})

    def run(self, statement):
        engine = sa.create_engine(self.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(statement))
        engine.dispose()


@contextmanager
def server():
    """A Server, gone at the end with all that it holds."""
    folder = Path(tempfile.mkdtemp(prefix="fleetcut-postgres-"))
    try:
        password = secrets.token_hex(12)
        (folder / "password").write_text(password)
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                os.chown(path, _user().pw_uid, _user().pw_gid)
        _init(folder)
        process, port = _start(folder)
        try:
            yield Server(
                sa.URL.create("postgresql+psycopg", "lab", password, "127.0.0.1", port, "postgres")
            )
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing in it is wanted again
            process.wait()
    finally:
        shutil.rmtree(folder)


def _init(folder):
    subprocess.run(
        [
            *_as_user(), _programs() / "initdb", "--pgdata", folder / "data", "--username", "lab",
            "--pwfile", folder / "password", "--auth", "scram-sha-256", "--no-sync",
            "--encoding", "UTF8", "--locale", "C",
        ],
        check=True, capture_output=True, cwd=folder,
    )  # fmt: skip


def _start(folder):
    for _ in range(TRIES):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
            "fsync": "off", "max_connections": 200, "shared_buffers": "16MB", "autovacuum": "off",
        }  # fmt: skip
        process = subprocess.Popen(
            [
                *_as_user(), _programs() / "postgres", "-D", folder / "data",
                *(word for key, value in settings.items() for word in ("-c", f"{key}={value}")),
            ],
            cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = []
        for line in process.stderr:
            said.append(line)
            if "ready to accept connections" in line:
                threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
                return process, port
        process.wait()
    raise RuntimeError(f"postgres did not start: {''.join(said)}")


def _drain(pipe):
    with pipe:
        for _ in pipe:
            pass


def _programs():
    """Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    return found[-1] if found and (found[-1] / "initdb").exists() else None


def _user():
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


def _as_user():
    if os.geteuid() != 0:
        return []
    user = _user()
    ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids, "--pdeathsig=QUIT", "--"]
