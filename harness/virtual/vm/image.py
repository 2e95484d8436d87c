"""The virtual board's kernel, initrd and disk, from Debian's packages; no foreign code is run.

Input: Debian 12's apt sources of this machine, pip's configured index, the files in guest/.
Output: Image, in the cache, built once for each content of this recipe. Raises RackError.
Packages are only extracted, and what their maintainer scripts would have set up stands in
guest_tree.py. Run as `python -m harness.virtual.vm.image`, or `make vm-image`.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from harness.virtual.errors import RackError
from harness.virtual.vm import guest_tree

SUITE = "bookworm"
"""Its kernel's interfaces are those that boardsim.c is written for; its Python is 3.11."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
KERNEL = "linux-image-arm64"
CROSS = "aarch64-linux-gnu-"
PACKAGES = (
    "base-files", "base-passwd", "bash", "busybox-static", "coreutils", "dash", "debianutils",
    "findutils", "gawk", "grep", "gzip", "hostname", "iproute2", "kmod", "libc-bin", "libgomp1",
    "libstdc++6", "login", "mount", "ncurses-base", "openssh-server", "openssh-sftp-server",
    "passwd", "procps", "python3", "python3-minimal", "sed", "sudo", "tar", "util-linux", KERNEL,
)  # fmt: skip
WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")
PLATFORMS = ("2014", "_2_17", "_2_26", "_2_27", "_2_28", "_2_31", "_2_34", "_2_35")
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "depmod": "kmod",
    "make": "make",
    f"{CROSS}gcc-12": "gcc-aarch64-linux-gnu",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
}
DISK_MB = 1200

# The kernel's headers of the very kernel that was extracted; $1 is the tree.
_HEADERS_HOOK = (
    'release=$(ls "$1/lib/modules") && cd "$FLEETCUT_HEADERS" && '
    'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq -o APT::Sandbox::User=root download '
    '"linux-headers-$release" "linux-headers-${release%-arm64}-common"'
)


@dataclass(frozen=True)
class Image:
    """A bootable board. All VMs share these files and write to none of them."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd.gz"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"


def cache_folder() -> Path:
    """Where images are kept: below XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fleetcut" / "vm"


def image_key() -> str:
    """Names the content of an image: the recipe, the guest's files and the wheels' versions."""
    digest = hashlib.sha256()
    for name, data in sorted(_recipe_files().items()):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    digest.update(" ".join(_wheel_requirements()).encode())
    return digest.hexdigest()[:16]


def cached_image() -> Image | None:
    """The image of this very recipe, if it was built before."""
    image = Image(cache_folder() / image_key())
    return image if image.folder.is_dir() else None


def missing_to_build() -> tuple[str, ...]:
    """What this machine lacks to build an image, in words; empty when it can be tried."""
    missing = [f"{tool} ({package})" for tool, package in TOOLS.items() if not _find(tool)]
    if os.geteuid() != 0:
        missing.append("root")
    if not KEYRING.exists():
        missing.append(f"{KEYRING} (debian-archive-keyring)")
    if not missing and not _mirrors():
        missing.append(f"apt lists of Debian's {SUITE} (apt-get update)")
    return tuple(missing)


def build_image() -> Image:
    """The image from the cache, built first if it is not there: a minute or two, some 400 MB.

    Raises RackError naming what is missing, or the step that failed and its last words.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building it: then it is there
        image = cached_image()
        if image is not None:
            return image
        if missing := missing_to_build():
            raise RackError(
                f"the arm64 image cannot be built here, missing: {', '.join(missing)}. "
                "Next: as root on Debian 12, make system-packages vm-image"
            )
        work = Path(tempfile.mkdtemp(prefix=".building-", dir=cache))
        try:
            _build(work)
            (work / "out").rename(cache / image_key())
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Image(cache / image_key())


def _build(work: Path) -> None:
    work.chmod(0o755)
    image, root, headers = Image(work / "out"), work / "root", work / "headers"
    for folder in (image.folder, headers):
        folder.mkdir()
    guest = {name: data for name, data in _recipe_files().items() if name.startswith("guest/")}
    _extract(root, headers)
    release = guest_tree.kernel_release(root)
    shutil.copyfile(root / f"boot/vmlinuz-{release}", image.kernel)
    module = _cross_build(work / "module", headers, release, guest)
    guest_tree.set_up(root, guest["guest/board-init.sh"])
    guest_tree.trim(root, release)
    guest_tree.add_module(root, release, module)
    _run("depmod", ["depmod", "-b", str(root), release])
    _install_wheels(root)
    _pack_initrd(work / "initrd", root, release, guest["guest/initrd-init.sh"], image.initrd)
    argv = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root), str(image.disk)]
    _run("the disk", [*argv, f"{DISK_MB}M"])


def _extract(root: Path, headers: Path) -> None:
    argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--architectures=arm64"]
    argv += [f"--include={','.join(PACKAGES)}", f"--extract-hook={_HEADERS_HOOK}"]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{n}/*" for n in ("man", "doc", "locale", "i18n")]
    _run("extracting Debian's packages", [*argv, SUITE, str(root), *_mirrors()],
         {"FLEETCUT_HEADERS": str(headers)})  # fmt: skip


def _mirrors() -> tuple[str, ...]:
    """Lines of sources.list for SUITE, from the sources that this machine's apt has lists of."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]
    done = subprocess.run(
        [*argv, "ShortDesc: Packages", "Origin: Debian"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {tuple(line.split()) for line in done.stdout.splitlines()}
    return tuple(
        f"deb [arch=arm64 signed-by={KEYRING}] {uri} {suite} {component}"
        for uri, suite, component in sorted(entry for entry in found if len(entry) == 3)
        if suite == SUITE or suite.startswith(f"{SUITE}-")
    )


def _cross_build(folder: Path, headers: Path, release: str, guest: Mapping[str, bytes]) -> bytes:
    """boardsim.ko: the arm64 kernel's headers, with the build programs of this machine's own."""
    folder.mkdir()
    tree = folder / "tree"
    for package in sorted(headers.glob("*.deb")):
        _run("the kernel's headers", ["dpkg-deb", "-x", str(package), str(tree)])
    version = ".".join(release.split(".")[:2])
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download"]
    _run("the kernel's build programs", [*download, f"linux-kbuild-{version}"], cwd=folder)
    (programs,) = folder.glob("*.deb")
    _run("the kernel's build programs", ["dpkg-deb", "-x", str(programs), str(tree)])
    arch_tree = tree / f"usr/src/linux-headers-{release}"
    makefile = arch_tree / "Makefile"
    # Debian writes where the common headers are installed; these are not installed.
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{tree}/usr/src/"))
    source = folder / "source"
    source.mkdir()
    for name in ("boardsim.c", "Kbuild"):
        (source / name).write_bytes(guest[f"guest/{name}"])
    argv = ["make", "-s", "-C", str(arch_tree), f"M={source}", "ARCH=arm64"]
    _run("the kernel module", [*argv, f"CROSS_COMPILE={CROSS}", "modules"])
    return (source / "boardsim.ko").read_bytes()


def _install_wheels(root: Path) -> None:
    target = root / "usr/local/lib/python3.11/dist-packages"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target"]
    argv += [str(target), "--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
    argv += [f"--platform=manylinux{tag}_aarch64" for tag in PLATFORMS]
    _run("the board's wheels", [*argv, *_wheel_requirements()])
    # Byte code, which an emulated CPU would take minutes to make; 3.11's is the same everywhere.
    library = root / "usr/lib/python3.11"
    argv = [sys.executable, "-m", "compileall", "-q", "-s", str(root), "-p", "/"]
    subprocess.run([*argv, str(library), str(target)], capture_output=True, check=False)


def _wheel_requirements() -> tuple[str, ...]:
    """The runtimes in the versions that this environment has: both ends are pinned alike."""
    return tuple(f"{name}=={importlib.metadata.version(name)}" for name in WHEELS)


def _pack_initrd(folder: Path, root: Path, release: str, init: bytes, out: Path) -> None:
    guest_tree.lay_out_initrd(folder, root, release, init)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
    done = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], cwd=folder,
        input="\n".join(names).encode(), stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RackError("the arm64 image: packing the initrd failed. Next: read above")
    out.write_bytes(gzip.compress(done.stdout, 1, mtime=0))


def _recipe_files() -> dict[str, bytes]:
    """Everything that decides an image's content: the guest's files and the code that builds."""
    here = resources.files("harness.virtual.vm")
    files = {name: here.joinpath(name).read_bytes() for name in ("image.py", "guest_tree.py")}
    for entry in here.joinpath("guest").iterdir():
        if entry.name.endswith((".c", ".sh")) or entry.name == "Kbuild":
            files[f"guest/{entry.name}"] = entry.read_bytes()
    return files


def _find(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _run(
    step: str, argv: Sequence[str], environment: Mapping[str, str] = {}, cwd: Path | None = None
) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        [*argv], cwd=cwd, env={**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", **environment},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode:
        words = " | ".join(done.stdout.decode(errors="replace").strip().splitlines()[-6:])
        raise RackError(
            f"the arm64 image: {step} failed ({argv[0]} ended with {done.returncode}): "
            f"{words[-600:]}. Next: see whether apt-get update and pip work on this machine"
        )


def main() -> int:
    """Build it and say where it is."""
    try:
        print(build_image().folder)
    except RackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
