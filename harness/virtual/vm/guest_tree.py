"""What maintainer scripts would have set up in an extracted Debian tree, and what is left out.

Input: the tree that mmdebstrap extracted. Output: the same tree, fit to boot by board-init.sh.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from harness.virtual.errors import RackError
from harness.virtual.spec import USER

_UID = 1000
_FOR_DISK = ("virtio_mmio", "virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
"""In order; ext4 asks for its checksum by name, so modules.dep does not know of it."""

# Modules of hardware that the board does not have, half of the image.
_UNUSED_MODULES = (
    "sound", "drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/net/wireless",
    "drivers/net/ethernet", "drivers/scsi", "drivers/staging", "drivers/isdn", "drivers/target",
    "drivers/iio", "drivers/mtd", "drivers/usb", "drivers/hid", "drivers/input", "net/bluetooth",
    "net/wireless", "net/mac80211", "net/batman-adv", "fs/ocfs2", "fs/gfs2", "fs/xfs", "fs/btrfs",
    "fs/jfs", "fs/nfs", "fs/nfsd", "fs/smb", "fs/ceph", "fs/f2fs", "fs/ntfs3", "fs/nilfs2",
)  # fmt: skip

_SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
UseDNS no
PasswordAuthentication no
PermitRootLogin no
Subsystem sftp internal-sftp
"""


def kernel_release(root: Path) -> str:
    """Such as "6.1.0-37-arm64". Raises RackError unless the tree holds one kernel."""
    releases = sorted(p.name for p in (root / "lib/modules").iterdir())
    if len(releases) != 1:
        raise RackError(f"the arm64 image holds kernels {releases}. Next: report this as a bug")
    return releases[0]


def set_up(root: Path, init: bytes) -> None:
    """Users, sshd, sudo's PAM, names, links, and the first process."""
    for name in ("passwd", "group"):
        shutil.copyfile(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
    with (root / "etc/passwd").open("a") as passwd:
        passwd.write("sshd:*:101:65534::/run/sshd:/usr/sbin/nologin\n")
        passwd.write(f"{USER}:*:{_UID}:{_UID}::/home/{USER}:/bin/bash\n")
    with (root / "etc/group").open("a") as group:
        group.write(f"{USER}:x:{_UID}:\n")
    _write(root / "etc/ssh/sshd_config", _SSHD_CONFIG)
    for service in ("sudo", "other"):
        _write(root / f"etc/pam.d/{service}", "auth required pam_permit.so\n"
               "account required pam_permit.so\nsession required pam_permit.so\n")  # fmt: skip
    # systemd's way of saying it (machine-info(5)); the agent's profile says it with it.
    _write(root / "etc/machine-info", "DEPLOYMENT=simulated\n")
    _write(root / "sbin/board-init", init.decode(), mode=0o755)
    for link, target in {"usr/bin/awk": "gawk", "usr/bin/sh": "dash"}.items():
        (root / link).unlink(missing_ok=True)
        (root / link).symlink_to(target)
    home = root / f"home/{USER}"
    for folder in (home, root / "run/sshd", root / "var/log", root / "etc/sudoers.d"):
        folder.mkdir(parents=True, exist_ok=True)
    os.chown(home, _UID, _UID)


def trim(root: Path, release: str) -> None:
    """Remove modules of hardware that is not there, archives, documentation and foreign caches."""
    for name in _UNUSED_MODULES:
        shutil.rmtree(root / "lib/modules" / release / "kernel" / name, ignore_errors=True)
    for folder in ("boot", "var/cache/apt", "var/lib/apt", "usr/share/doc", "usr/share/locale"):
        shutil.rmtree(root / folder, ignore_errors=True)
    (root / "boot").mkdir()


def add_module(root: Path, release: str, module: bytes) -> None:
    extra = root / "lib/modules" / release / "extra"
    extra.mkdir()
    (extra / "boardsim.ko").write_bytes(module)


def lay_out_initrd(folder: Path, root: Path, release: str, init: bytes) -> None:
    """Static busybox, /init, and the modules of the disk, numbered in the order of loading."""
    for name in ("bin", "dev", "proc", "new", "modules"):
        (folder / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", folder / "bin/busybox")
    _write(folder / "init", init.decode(), mode=0o755)
    for number, path in enumerate(_load_order(root, release)):
        shutil.copyfile(path, folder / f"modules/{number:02}-{path.name}")


def _load_order(root: Path, release: str) -> list[Path]:
    """Module files that _FOR_DISK need, each once, dependencies first (kernel's modules.dep)."""
    base = root / "lib/modules" / release
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, _, listed = line.partition(":")
        needs[_module_name(path)] = (path, listed.split())
    builtin = {_module_name(n) for n in (base / "modules.builtin").read_text().split()}
    found: list[Path] = []
    for name in _FOR_DISK:
        if name in builtin:
            continue
        last, dependencies = needs[name]
        # modules.dep lists the nearest dependency first; insmod wants the farthest first.
        for entry in (*reversed(dependencies), last):
            if base / entry not in found:
                found.append(base / entry)
    return found


def _module_name(path: str) -> str:
    return re.sub(r"\.ko.*$", "", path.rsplit("/", 1)[-1]).replace("-", "_")


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
