"""What keeps boards fit: a runtime for those without internet, and room on their disks.

Input: an inventory and board ids as plain values. Output: an exit status; a Console says the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fleetcut.console import Console
from fleetcut.verbs import BOARDS_FAILED, DONE
from harness.bundle import build_bundle
from harness.errors import SelectionError, StableBoardError
from harness.inventory import Board, load_inventory
from harness.provision import RUNTIMES, Provisioned, choose, install, platform_of
from harness.session import AgentSession, Room
from harness.ssh import SshTransport
from harness.visit import Visit, visit
from harness.wheelhouse import Platform, Wheelhouse, WheelhouseError, default_cache, resolve

_PLATFORM_EXAMPLE = "3.9-armv7l-2.31"


@dataclass(frozen=True)
class Wanted:
    """Which packages. runtimes: of RUNTIMES; requirements, as pip takes them, in their stead."""

    runtimes: tuple[str, ...] = tuple(RUNTIMES)
    requirements: tuple[str, ...] = ()
    refresh: bool = False

    def wheels(self, platform: Platform) -> Wheelhouse:
        """Raises WheelhouseError."""
        cache = default_cache()
        if self.requirements:
            return resolve(platform, self.requirements, cache, refresh=self.refresh)
        return choose(platform, self.runtimes, cache, refresh=self.refresh)


def provision(
    console: Console, inventory_path: Path, board_ids: Sequence[str] | None, wanted: Wanted
) -> int:
    """Give every board a runtime that fits it; what is there already is not sent again."""
    boards = load_inventory(inventory_path).select(board_ids)

    def give(agent: AgentSession) -> Provisioned:
        platform = platform_of(agent)
        try:
            wheels = wanted.wheels(platform)
        except WheelhouseError as error:
            fact, _, next_step = str(error).partition(". Next: ")
            raise StableBoardError(agent.board.board_id, fact, next_step) from None
        return install(agent, wheels)

    with console.steps(f"provision {len(boards)} boards"):
        visits = visit(boards, SshTransport, build_bundle(), give)
    rows = [
        (v.board_id, str(v.answer.platform), _listed(v.answer.packages), str(v.answer.uploads))
        for v in visits
        if v.answer is not None
    ]
    console.table("Provisioned", ("board", "for", "packages", "files sent"), rows)
    console.answer(
        [
            {
                "board_id": v.board_id,
                "failure": str(v.failure) if v.failure else None,
                "packages": dict(v.answer.packages) if v.answer else {},
                "uploads": v.answer.uploads if v.answer else 0,
            }
            for v in visits
        ]
    )
    return _end(console, visits, "fleetcut check")


def resolve_only(console: Console, text: str, has: Sequence[str], wanted: Wanted) -> int:
    """Find the wheels of a platform and keep them, without any board."""
    platform = replace(_platform(text), packages=tuple(map(_package, has)))
    with console.steps(f"wheels for {platform}"):
        wheels = wanted.wheels(platform)
    rows = [(wheel.name, wheel.version, wheel.path.name) for wheel in wheels.wheels]
    console.table(f"Wheels for {platform}", ("package", "version", "file"), rows)
    console.line(f"{wheels.size_bytes() / 1e6:.1f} MB in {wheels.wheels[0].path.parent}")
    console.answer({"platform": str(platform), "packages": wheels.versions()})
    console.next("fleetcut provision BOARD")
    return DONE


def _package(text: str) -> tuple[str, str]:
    name, equals, version = text.partition("==")
    if not (name and equals and version):
        raise SelectionError(
            f"--has {text[:60]!r} is no package. Next: write NAME==VERSION, as numpy==1.24.2"
        )
    return name, version


def _platform(text: str) -> Platform:
    python, _, rest = text.partition("-")
    machine, _, glibc = rest.partition("-")
    numbers = [part.split(".") for part in (python, glibc)]
    if not machine.isidentifier() or not all(
        len(pair) == 2 and all(part.isdecimal() for part in pair) for pair in numbers
    ):
        raise SelectionError(
            f"--for {text[:60]!r} is no platform. Next: write PYTHON-MACHINE-GLIBC, "
            f"for example {_PLATFORM_EXAMPLE}"
        )
    return Platform(python, machine, glibc)


def clean(
    console: Console, inventory_path: Path, board_ids: Sequence[str] | None, to_mib: int | None
) -> int:
    """Remove what boards hold beyond their quota, or beyond ``to_mib``; never what is needed."""
    boards = load_inventory(inventory_path).select(board_ids)
    by_id: dict[str, Board] = {board.board_id: board for board in boards}

    def tidy(agent: AgentSession) -> Room:
        quota_mib = by_id[agent.board.board_id].cache_mib if to_mib is None else to_mib
        return agent.clean(quota_mib << 20, used=to_mib is not None)

    with console.steps(f"clean {len(boards)} boards"):
        visits = visit(boards, SshTransport, build_bundle(), tidy)
    rows = []
    for v in visits:
        if v.answer is not None:
            room = v.answer
            sizes = (room.freed_bytes, room.blobs_bytes, room.free_bytes)
            waiting = ", ".join(name[:12] for name in room.sessions) or "none"
            rows.append((v.board_id, *(f"{size / 1e6:.1f} MB" for size in sizes), waiting))
    columns = ("board", "freed", "models left", "disk free", "sessions with results there")
    console.table("Cleaned", columns, rows)
    console.answer(
        [
            {
                "board_id": v.board_id,
                "failure": str(v.failure) if v.failure else None,
                **(asdict(v.answer) if v.answer else {}),
            }
            for v in visits
        ]
    )
    return _end(console, visits, "fleetcut measure campaign.yaml")


def _listed(packages: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))


def _end(console: Console, visits: Sequence[Visit[Any]], next_step: str) -> int:
    failures = [v.failure for v in visits if v.failure is not None]
    for failure in failures:
        console.error(str(failure))
    console.next("mend the boards above, then the same command again" if failures else next_step)
    return BOARDS_FAILED if failures else DONE
