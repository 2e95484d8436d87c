"""One virtual board, powered on: QEMU in a process of its own, reached over SSH on loopback.

Input: an Image, a folder for this board's files, a VmSpec. Output: Vm; inventory.yaml in the
folder. Raises RackError naming what is missing, or what the board said last on its console.
QEMU ends with its Vm, and with the process that started it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

import asyncssh
import yaml

from harness.virtual.config import CLIENT_KEY, HOST, INVENTORY
from harness.virtual.errors import RackError
from harness.virtual.spec import USER
from harness.virtual.vm.image import Image

QEMU = "qemu-system-aarch64"
MODEL = "QEMU virt, Cortex-A72 (emulated)"
BOOT_TIMEOUT_S = 180.0
"""Boot takes 6 to 10 s on a free machine; several times that where others compute."""

_END_TIMEOUT_S = 10.0
_PORT_TRIES = 5
_READY = "BOARD-READY"
_FAILED = "BOARD-FAILED"
_PORT_TAKEN = "Could not set up host forwarding rule"


@dataclass(frozen=True)
class VmSpec:
    """A board. cpus: emulated cores, 1..8. memory_mb: of RAM.

    icount_shift: None lets time pass as on this machine; N makes each instruction take 2**N ns,
    so that latencies are exact, whatever else runs here (one core only, N in 0..10).
    physics: parameters of guest/boardsim.c, such as trip_mc; left out, they are as written there.
    setup: a bash script that root runs before sshd starts, as a person prepares a board.
    """

    board_id: str = "vm-arm64"
    cpus: int = 1
    memory_mb: int = 1024
    icount_shift: int | None = None
    physics: Mapping[str, int] = field(default_factory=dict)
    setup: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.cpus <= 8 or self.memory_mb < 256:
            raise ValueError(f"{self.board_id}: cpus {self.cpus}, memory_mb {self.memory_mb}")
        if self.icount_shift is not None and (self.cpus > 1 or not 0 <= self.icount_shift <= 10):
            raise ValueError(f"{self.board_id}: icount_shift needs one cpu and lies in 0..10")


def missing_to_run() -> str | None:
    """What this machine lacks to boot an image; None when it has all."""
    return None if shutil.which(QEMU) else f"{QEMU} (qemu-system-arm)"


class Vm:
    """``with Vm(image, folder, spec) as vm``: booted and reachable inside, gone afterwards."""

    def __init__(self, image: Image, folder: Path, spec: VmSpec | None = None) -> None:
        self.image = image
        self.folder = folder
        self.spec = spec or VmSpec()
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._console: _Console | None = None

    @property
    def inventory(self) -> Path:
        """The board as the harness's inventory; written when it is up."""
        return self.folder / INVENTORY

    @property
    def console(self) -> Path:
        """What the board has written on its serial line."""
        return self.folder / "console.log"

    @property
    def pid(self) -> int | None:
        """QEMU's process; None while the board is off."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Vm:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def up(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Boots the board and returns once its sshd answers. Raises RackError; then it is off."""
        if (missing := missing_to_run()) is not None:
            raise RackError(f"{self.spec.board_id}: missing: {missing}. Next: make system-packages")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fingerprint = self._write_identity()
        try:
            self._boot(timeout_s)
            self._greet(timeout_s)
        except BaseException:
            self.down()
            raise
        self._write_inventory(fingerprint)

    def down(self) -> None:
        """Power off, by process id. Nothing to do is no error."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._console is not None:
            self._console.join()

    def _boot(self, timeout_s: float) -> None:
        for _ in range(_PORT_TRIES):
            self.port = _free_port()
            self._console = self._start()
            said = self._console.wait_for_word(timeout_s)
            if said is not None and _READY in said:
                return
            self.down()
            if not self._console.contains(_PORT_TAKEN):
                fact = said or f"it is not up after {timeout_s:g} s, or ended"
                raise RackError(f"{self.spec.board_id}: {fact}. Next: read {self.console}")
        raise RackError(f"{self.spec.board_id}: no free port on {HOST}. Next: try again")

    def _start(self) -> _Console:
        read_fd, write_fd = os.pipe()
        console = _Console(os.fdopen(read_fd, "rb"), self.console)
        try:
            self._process = subprocess.Popen(
                self._argv(), stdin=subprocess.DEVNULL, stdout=write_fd, stderr=write_fd
            )
        finally:
            os.close(write_fd)
        return console

    def _greet(self, timeout_s: float) -> None:
        """The forwarded port has to answer as well."""
        try:
            with socket.create_connection((HOST, self.port), timeout_s) as connection:
                greeting = connection.recv(4)
        except OSError as error:
            greeting = str(error).encode()
        if greeting != b"SSH-":
            raise RackError(
                f"{self.spec.board_id}: port {self.port} answers {greeting!r}. "
                f"Next: read {self.console}"
            )

    def _argv(self) -> list[str]:
        spec, image = self.spec, self.image
        words = ["console=ttyAMA0", "quiet", "panic=-1", "random.trust_cpu=1"]
        physics = {**_counted_slices(spec.icount_shift), **spec.physics}
        words += [f"boardsim.{name}={value}" for name, value in sorted(physics.items())]
        # setpriv: the kernel ends QEMU when whoever started it is gone.
        argv = ["setpriv", "--pdeathsig", "KILL", QEMU, "-M", "virt,gic-version=2"]
        argv += ["-cpu", "cortex-a72", "-smp", str(spec.cpus), "-m", str(spec.memory_mb)]
        if spec.icount_shift is None:
            argv += ["-accel", "tcg,thread=multi"]
        else:
            argv += ["-accel", "tcg,thread=single", "-rtc", "clock=vm"]
            argv += ["-icount", f"shift={spec.icount_shift},sleep=on"]
        argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd)]
        argv += ["-append", " ".join(words), "-display", "none", "-no-reboot", "-no-user-config"]
        argv += ["-nodefaults", "-serial", "stdio"]
        # snapshot: what the board writes goes to a file that is deleted already.
        argv += ["-drive", f"if=none,id=disk,format=raw,snapshot=on,file={_escaped(image.disk)}"]
        argv += ["-device", "virtio-blk-device,drive=disk", "-device", "virtio-rng-device"]
        forward = f"hostfwd=tcp:{HOST}:{self.port}-:22"
        argv += ["-netdev", f"user,id=net,restrict=on,{forward}"]
        argv += ["-device", "virtio-net-device,netdev=net"]
        for name in ("hostname", "host_key", "authorized_keys", "setup"):
            path = _escaped(self.folder / name)
            argv += ["-fw_cfg", f"name=opt/fleetcut/{name},file={path}"]
        return argv

    def _write_identity(self) -> str:
        """Keys of this board and of whoever may log in; returns the host key's fingerprint."""
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        client_key = asyncssh.generate_private_key("ssh-ed25519")
        _write_private(self.folder / "host_key", host_key.export_private_key("openssh"))
        _write_private(self.folder / CLIENT_KEY, client_key.export_private_key("openssh"))
        _write_private(self.folder / "authorized_keys", client_key.export_public_key("openssh"))
        _write_private(self.folder / "hostname", self.spec.board_id.encode())
        _write_private(self.folder / "setup", f"{self.spec.setup}\n".encode())
        return host_key.get_fingerprint("sha256")

    def _write_inventory(self, fingerprint: str) -> None:
        entry = {
            "board_id": self.spec.board_id,
            "model": MODEL,
            "host": HOST,
            "port": self.port,
            "user": USER,
            "host_key_sha256": fingerprint,
            "key_file": CLIENT_KEY,
            "python": "python3",
            "simulated": True,
        }
        text = yaml.safe_dump({"version": 1, "boards": [entry]}, sort_keys=False)
        self.inventory.write_text("# A virtual machine (simulated).\n" + text, encoding="utf-8")


class _Console:
    """Copies the board's serial line to a file and looks for its word that it is up, or is not."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._path = path
        self._said: str | None = None
        self._decided = threading.Event()
        self._thread = threading.Thread(target=self._copy, args=(stream,), daemon=True)
        self._thread.start()

    def wait_for_word(self, timeout_s: float) -> str | None:
        """The line that says it; None when the line stayed silent or QEMU ended."""
        self._decided.wait(timeout_s)
        return self._said

    def contains(self, text: str) -> bool:
        return text in self._path.read_text(encoding="utf-8", errors="replace")

    def join(self) -> None:
        self._thread.join(_END_TIMEOUT_S)

    def _copy(self, stream: IO[bytes]) -> None:
        with stream, self._path.open("wb", buffering=0) as log:
            for line in stream:
                log.write(line)
                text = line.decode("utf-8", "replace").strip()
                if self._said is None and (_READY in text or _FAILED in text):
                    self._said = text
                    self._decided.set()
        self._decided.set()


def _counted_slices(shift: int | None) -> dict[str, int]:
    """How finely a low clock is dealt out where time is counted: in slices of 10 000 instructions.

    An interrupt of boardsim.c costs 1,250: measured, as what makes the slow-down come out right.
    """
    if shift is None:
        return {}
    return {"slice_us": max(20, 10 << shift), "interrupt_ns": 1250 << shift}


def _free_port() -> int:
    """A port that was free just now; another may take it, so the caller tries again."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _escaped(path: Path) -> str:
    """As QEMU's option lists want it: a comma is written twice."""
    return str(path.absolute()).replace(",", ",,")


def _write_private(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
