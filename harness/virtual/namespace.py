"""A board whose processes see its files at the absolute paths: private namespaces around sshd.

Input: a VirtualBoardSpec and the rack's folder. Output: NamespaceBoard, and the command that
starts its OpenSSH server as the first process of a mount, PID and host name namespace of its own.
Needs root. Raises RackError where this machine cannot do that.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from harness.virtual.board import VirtualBoard
from harness.virtual.cgroup import BoardCgroup, rack_cgroup
from harness.virtual.clock import PAGE_ENV
from harness.virtual.errors import RackError
from harness.virtual.procfiles import ProcFiles
from harness.virtual.spec import USER, VirtualBoardSpec
from harness.virtual.watch import OpenWatch

_PROGRAMS = ("sshd", "setpriv", "unshare", "mount")
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KEPT_OF_ETC = ("ld.so.cache", "ld.so.conf", "nsswitch.conf", "localtime", "alternatives", "hosts")
_PRIVILEGE_SEPARATION = "/run/sshd"

_SSHD_CONFIG = """\
Port {port}
ListenAddress {host}
HostKey "{folder}/host_key"
AuthorizedKeysFile "{folder}/authorized_keys"
PidFile "{folder}/ready"
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowUsers {user}
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
SetEnv {environment}
"""

_LAUNCH = """\
#!/bin/sh
# The board's first process outside: whoever started it, and is to end it, is $1.
set -e
[ "$PPID" = "$1" ]
echo 0 > {procs}
exec unshare --mount --uts --pid --fork --kill-child --mount-proc --propagation private \\
  /bin/sh {folder}/init
"""

_INIT = """\
#!/bin/sh
# The board's first process inside.
set -e
printf %s {name} > /proc/sys/kernel/hostname
mount --all --fstab {folder}/fstab
mkdir -p {separation}
exec {sshd} -D -e -f {folder}/sshd_config
"""


class NamespaceBoard(VirtualBoard):
    """A board that is powered on; what runs on it finds its files below /."""

    def __init__(self, spec: VirtualBoardSpec, rack: Path, python: str, library: Path) -> None:
        self.cgroup = BoardCgroup(rack_cgroup(rack) / spec.board_id)
        self.cgroup.create()
        self._booted_s = 0.0
        self._booted_unix_s = 0
        self._booted_cpu_s = (0.0, 0.0)
        folder = rack / "boards" / spec.board_id
        self.proc = ProcFiles(folder / "proc", spec.cores)
        super().__init__(spec, rack, python, library)

    @property
    def folder(self) -> Path:
        return self.paths.folder

    def boot(self) -> None:
        self._booted_s, self._booted_unix_s = time.monotonic(), int(time.time())
        self._booted_cpu_s = self.cgroup.cpu_s()
        super().boot()
        self.show_stat()
        self.proc.add_load(0.0, 1e9)
        self._write_etc()

    def tick(self, dt_s: float) -> None:
        super().tick(dt_s)
        self.show_stat()
        self.proc.add_load(self.state.utilisation, dt_s)

    def busy_s(self) -> float:
        """As the preloaded library knows, and what it does not know as the kernel counts it."""
        return self._page.busy_s + max(0.0, sum(self.cgroup.cpu_s()) - self._page.cpu_s)

    def show_stat(self) -> None:
        """/proc/stat as of now: the CPU time that the kernel has charged to the board."""
        user_s, system_s = (
            now_s - booted_s
            for now_s, booted_s in zip(self.cgroup.cpu_s(), self._booted_cpu_s, strict=True)
        )
        uptime_s = time.monotonic() - self._booted_s
        self.proc.show_stat(user_s, system_s, uptime_s, self._booted_unix_s)

    def watch_stat(self, watch: OpenWatch) -> None:
        """Whoever opens /proc/stat on the board reads it as of now, not as of the last tick."""
        watch.add(self.proc.stat, self.show_stat)

    def environment(self) -> Mapping[str, str]:
        """What sshd gives a command beyond what a login has of itself."""
        own = super().environment()
        kept = {name: own[name] for name in ("LANG", "LD_PRELOAD", PAGE_ENV)}
        return {**kept, "PATH": f"{self.paths.programs}:{_SEARCH}"}

    def launch_command(self) -> list[str]:
        """Starts sshd as a child of this process, with which it ends; its own pid stays."""
        launch = [str(_program("setpriv")), "--pdeathsig", "KILL", "--", "/bin/sh"]
        return [*launch, str(self.folder / "launch"), str(os.getpid())]

    def launch_environment(self) -> Mapping[str, str]:
        """Of sshd itself: its page names it as this board's, but does not slow it."""
        return {"PATH": _SEARCH, "LANG": "C.UTF-8", PAGE_ENV: str(self.paths.clock_page)}

    def write_launch_files(self, host: str, port: int, client_key: bytes) -> None:
        """Everything that ``launch_command`` reads. client_key: the one that may log in."""
        folder, quoted = self.folder, shlex.quote(str(self.folder))
        environment = " ".join(f'"{name}={text}"' for name, text in self.environment().items())
        texts = {
            "sshd_config": _SSHD_CONFIG.format(
                port=port, host=host, folder=folder, user=USER, environment=environment
            ),
            "launch": _LAUNCH.format(procs=shlex.quote(str(self.cgroup.procs)), folder=quoted),
            "init": _INIT.format(
                name=shlex.quote(self.spec.board_id),
                folder=quoted,
                separation=_PRIVILEGE_SEPARATION,
                sshd=_program("sshd"),
            ),
            "fstab": "".join(_fstab_line(source, target) for source, target in self._binds())
            + "tmpfs /run tmpfs mode=755 0 0\n",
            "authorized_keys": client_key.decode(),
        }
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")

    def _binds(self) -> list[tuple[Path, str]]:
        """(the board's, where it is shown). What /proc lacks on this kernel cannot be shown."""
        shown = [(self.paths.root / "sys", "/sys"), (self.folder / "etc", "/etc")]
        shown += [(self.proc.stat, "/proc/stat"), (self.proc.loadavg, "/proc/loadavg")]
        for name in ("cpuinfo", "meminfo", "sys/kernel/random/boot_id"):
            if Path("/proc", name).exists():
                shown.append((self.paths.root / "proc" / name, f"/proc/{name}"))
        return shown

    def _write_etc(self) -> None:
        """An /etc of the board's own: its names and its user, and what the loader needs."""
        etc = self.folder / "etc"
        shutil.rmtree(etc, ignore_errors=True)
        shutil.copytree(self.paths.root / "etc", etc)
        for name in _KEPT_OF_ETC:
            source = Path("/etc", name)
            if source.is_dir():
                shutil.copytree(source, etc / name, symlinks=True)
            elif source.exists():
                shutil.copy(source, etc / name)
        users = ["root:*:0:0:root:/root:/bin/sh", f"{USER}:*:0:0::{self.paths.home}:/bin/sh"]
        with contextlib.suppress(KeyError):
            sshd = pwd.getpwnam("sshd")
            users.append(f"sshd:*:{sshd.pw_uid}:{sshd.pw_gid}::{sshd.pw_dir}:/usr/sbin/nologin")
        (etc / "passwd").write_text("\n".join(users) + "\n", encoding="utf-8")
        (etc / "group").write_text("root:x:0:\n", encoding="utf-8")


def require_namespaces() -> None:
    """Raises RackError, which says what is missing, where no board of this kind can run."""
    if os.geteuid() != 0:
        raise RackError(
            "boards with an sshd of their own need root, to mount their files over /sys and /proc. "
            "Next: run this with sudo, or leave --sshd out"
        )
    for name in _PROGRAMS:
        _program(name)
    tried = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    script = "mount -t tmpfs none /run && mount --bind /run /sys"
    done = subprocess.run(
        [*tried, "sh", "-c", script],
        capture_output=True,
        check=False,
        env={"PATH": _SEARCH},
    )
    if done.returncode != 0:
        reason = done.stderr.decode("utf-8", "replace").strip()[-200:]
        raise RackError(
            f"no private namespaces can be made here ({reason}). "
            "Next: in a container, start it privileged; or leave --sshd out"
        )
    probe = BoardCgroup(rack_cgroup(Path("/")))
    try:
        probe.create()
        probe.remove()
        OpenWatch().close()
    except OSError as error:
        raise RackError(f"no cgroups or no fanotify: {error}. Next: leave --sshd out") from None


def _program(name: str) -> str:
    path = shutil.which(name, path=_SEARCH)
    if path is None:
        raise RackError(
            f"{name} is not installed, which boards with an sshd of their own need. "
            "Next: apt-get install openssh-server util-linux, or leave --sshd out"
        )
    return path


def _fstab_line(source: Path, target: str) -> str:
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in str(source))
    return f"{escaped} {target} none bind 0 0\n"
