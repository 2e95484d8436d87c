"""A hundred ways in which an artifact is tampered with or its deployment cut, each drawn by a seed.

Input: a World and a random generator. Output: CASES; what each does, and what must come of it.
The workstation refuses what is wrong in its folder; the board what a workstation without checks
sends; and whatever is cut leaves the old version or the new one.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tampering_artifacts import NAME, signed
from benchmarks.tampering_faults import FROM_BOARD, TO_BOARD, Proxy
from benchmarks.tampering_world import World
from device_agents.contract import canonical_json
from harness.deploy import LocalArtifact, load_artifact, roll_back
from harness.errors import HarnessError
from harness.inventory import Board
from harness.signing import (
    MANIFEST_SIGNATURE,
    SIGNATURE_FILES,
    STATEMENT,
    STATEMENT_SIGNATURE,
    Signed,
    hash_of,
    sign_artifact,
    signed_artifact,
)

Act = Callable[[World, random.Random], None]

REFUSED, RECOVERED = "refused", "recovered"


@dataclass(frozen=True)
class Case:
    """act: raises HarnessError when it is refused or cut. times: how many of the hundred.

    expected: REFUSED: the board runs the old version still, and somebody said why. RECOVERED: it
    runs the old one or the new one, whole.
    """

    kind: str
    act: Act
    expected: str
    times: int


def _copy(world: World) -> Path:
    folder = world.folder / "tampered" / world.new.artifact_id
    shutil.rmtree(folder.parent, ignore_errors=True)
    shutil.copytree(world.new.folder, folder)
    return folder


def _flip(path: Path, rng: random.Random) -> None:
    """One bit of a file."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def _files(artifact: LocalArtifact) -> list[str]:
    return [entry.name for entry in artifact.manifest.files]


def _signed(artifact: LocalArtifact) -> Signed:
    assert artifact.signed is not None
    return artifact.signed


def _in_folder(change: Callable[[World, random.Random, Path], Path | None]) -> Act:
    """A change of the workstation's copy, which is then deployed as always."""

    def act(world: World, rng: random.Random) -> None:
        folder = _copy(world)
        world.ship(change(world, rng, folder) or folder)

    return act


def _flip_named(*names: str) -> Act:
    def change(world: World, rng: random.Random, folder: Path) -> None:
        _flip(folder / rng.choice(names or _files(world.new)), rng)

    return _in_folder(change)


def _swapped(world: World, rng: random.Random, folder: Path) -> None:
    one, other = (folder / name for name in rng.sample(_files(world.new), 2))
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)


def _added(world: World, rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice(["extra.so", "lib/extra.so", ".hidden", "manifest.json.bak"])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(rng.randbytes(rng.randrange(100)))


def _linked(world: World, rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice(_files(world.new))
    elsewhere = folder.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(rng.choice([elsewhere, Path("../elsewhere")]))


def _truncated(world: World, rng: random.Random, folder: Path) -> None:
    path = folder / rng.choice(_files(world.new))
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def _missing(world: World, rng: random.Random, folder: Path) -> None:
    (folder / rng.choice([*_files(world.new), "manifest.json", *SIGNATURE_FILES])).unlink()


def _unsigned(world: World, rng: random.Random, folder: Path) -> None:
    for name in SIGNATURE_FILES:
        (folder / name).unlink()


def _forged(world: World, rng: random.Random, folder: Path) -> Path:
    """Other weights with the right hashes all the way up, under the signatures that were there."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    entry = rng.choice(manifest["files"])
    _flip(folder / entry["name"], rng)
    entry["sha256"] = hash_of(folder / entry["name"])
    return _renamed(folder, manifest)


def _renamed(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write a manifest and give the folder its name. Returns the folder."""
    data = canonical_json(manifest)
    (folder / "manifest.json").write_bytes(data)
    return folder.rename(folder.with_name(hashlib.sha256(data).hexdigest()))


_ESCAPES = ("../evil", "../../evil", "/tmp/fleetcut-evil", "lib/../../evil", "./evil", "a//evil")  # noqa: S108


def _escaping(world: World, rng: random.Random, folder: Path) -> Path:
    return _renamed(folder, _with_escape(folder, rng))


def _with_escape(folder: Path, rng: random.Random) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    rng.choice(manifest["files"])["name"] = rng.choice(_ESCAPES)
    return manifest


def _by_stranger(world: World, rng: random.Random, folder: Path) -> None:
    signed(load_artifact(folder), world.eve, world.version + rng.randrange(1000))


def _half_by_stranger(world: World, rng: random.Random, folder: Path) -> None:
    """The stranger's signature on one of the two documents."""
    good = {name: (folder / name).read_bytes() for name in SIGNATURE_FILES}
    signed(load_artifact(folder), world.eve, _signed(world.new).statement.serial)
    kept = rng.choice([[MANIFEST_SIGNATURE], [STATEMENT, STATEMENT_SIGNATURE]])
    for name in kept:
        (folder / name).write_bytes(good[name])


def _of_another(world: World, rng: random.Random, folder: Path) -> None:
    """The statement of an earlier version beside this artifact."""
    for name in rng.choice([[STATEMENT, STATEMENT_SIGNATURE], list(SIGNATURE_FILES)]):
        shutil.copyfile(world.old.folder / name, folder / name)


def _replayed(world: World, rng: random.Random) -> None:
    """An older version with all its own signatures, over the way of the workstation or past it."""
    if rng.random() < 0.5:
        world.ship(world.older.folder)
    else:
        world.deploy(world.older)


def _push(world: World, artifact: LocalArtifact) -> tuple[str, str, str]:
    """Everything of an artifact onto the board, nothing checked here. Returns its --signed."""
    with world.agent() as agent:
        agent.push_blobs({**artifact.blobs(), **_signed(artifact).blobs()})
    return _signed(artifact).hashes()


def _install(world: World, artifact_id: str, hashes: tuple[str, ...], name: str = NAME) -> None:
    with world.agent() as agent:
        agent.install(artifact_id, name, hashes)


def _changed_under_way(world: World, rng: random.Random) -> None:
    """The bytes that arrive are not those of the hash that they are announced by."""
    folder = _copy(world)
    # What the board has already, such as the licences of every version, is not sent again.
    sent = [f.name for f in world.new.manifest.files if not world.blob(f.sha256).exists()]
    name = rng.choice(sent)
    _flip(folder / name, rng)
    with world.agent() as agent:
        agent.push_blobs({world.new.manifest.file(name).sha256: folder / name})


def _damaged_on_board(world: World, rng: random.Random) -> None:
    """A bit of a blob flips between the upload and the install."""
    hashes = _push(world, world.new)
    _flip(world.blob(rng.choice([*world.new.blobs(), *hashes])), rng)
    _install(world, world.new.artifact_id, hashes)


def _cut_on_board(world: World, rng: random.Random) -> None:
    """A blob that a power cut left short, as file systems without its data flushed do."""
    hashes = _push(world, world.new)
    path = world.blob(rng.choice([*world.new.blobs(), *hashes]))
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    _install(world, world.new.artifact_id, hashes)


def _stranger_past_the_workstation(world: World, rng: random.Random) -> None:
    theirs = signed(world.other(rng.randrange(1000)), world.eve, world.version + 1000)
    if rng.random() < 0.5:
        _install(world, theirs.artifact_id, _push(world, theirs))
    else:  # bringing along signers that would do
        both = world.folder / "theirs"
        both.write_bytes(world.eve.with_suffix(".pub").read_bytes())
        with world.agent() as agent:
            agent.push_blobs({hash_of(both): both})
            agent.pin_signers(hash_of(both))


def _unsigned_past_the_workstation(world: World, rng: random.Random) -> None:
    _push(world, world.new)
    _install(world, world.new.artifact_id, ())


def _mixed_past_the_workstation(world: World, rng: random.Random) -> None:
    """Documents of two versions, in any mixture but the right one."""
    new, old = _push(world, world.new), _push(world, world.old)
    mixed = tuple(rng.choice(pair) for pair in zip(new, old, strict=True))
    if mixed == new:
        mixed = (old[0], new[1], new[2])
    _install(world, world.new.artifact_id, mixed)


def _other_name(world: World, rng: random.Random) -> None:
    name = rng.choice(["other", "../tiny-onnx", "..", ".hidden", f"{NAME}.previous", "a/b", "-x"])
    _install(world, world.new.artifact_id, _push(world, world.new), name)


def _escape_past_the_workstation(world: World, rng: random.Random) -> None:
    """A manifest that leads out of its folder, properly signed: by whoever has the key."""
    folder = _renamed(_copy(world), _with_escape(world.new.folder, rng))
    sign_artifact(folder, folder.name, NAME, world.ann, world.version + 1)
    vouched = signed_artifact(folder)
    assert vouched is not None
    blobs = {entry.sha256: world.new.folder / entry.name for entry in world.new.manifest.files}
    with world.agent() as agent:
        agent.push_blobs({**blobs, folder.name: folder / "manifest.json", **vouched.blobs()})
        agent.install(folder.name, NAME, vouched.hashes())


def _reset(direction: str) -> Act:
    def act(world: World, rng: random.Random) -> None:
        probe = _deployed_bytes(world, direction)
        with Proxy(world.board.port, direction, rng.randrange(1, probe)) as proxy:
            world.deploy(world.new, world.through(proxy))

    return act


def _deployed_bytes(world: World, direction: str) -> int:
    """How many bytes a whole deployment of a version takes: the last one, sent once more."""
    for sha256 in (*world.old.blobs(), *_signed(world.old).blobs()):
        world.blob(sha256).unlink(missing_ok=True)
    with Proxy(world.board.port, direction, None) as proxy:
        world.deploy(world.old, world.through(proxy))
        passed = proxy.passed
    return passed.to_board if direction == TO_BOARD else passed.from_board


def _killed(begin: str, act_on: Callable[[World, Board], None], share: float = 1.0) -> Act:
    """The agent is killed before a line of ``begin`` or of what it calls, drawn evenly."""

    def act(world: World, rng: random.Random) -> None:
        lines = world.lines_of(begin, lambda board: act_on(world, board))
        _renew(world)
        act_on(world, world.mortal(begin, rng.randrange(1, int(lines * share) + 1)))

    return act


def _renew(world: World) -> None:
    """The counting run deployed the new version: there is another new one now."""
    if world.runs() == world.new.artifact_id:
        world.advance()


def _roll_back(world: World, board: Board) -> None:
    with world.agent(board) as agent:
        roll_back(agent, NAME)


def _killed_rolling_back(world: World, rng: random.Random) -> None:
    lines = world.lines_of("rollback", lambda board: _roll_back(world, board))
    _roll_back(world, world.board)  # and forth again
    _roll_back(world, world.mortal("rollback", rng.randrange(1, lines + 1)))


def _left_behind(world: World, rng: random.Random) -> None:
    """What a cut at the worst moments leaves: half a folder, links and uploads without a use."""
    half = world.home / "artifacts" / f".staging-{world.new.artifact_id[:16]}"
    half.mkdir()
    (half / "model.onnx").write_bytes(rng.randbytes(10))
    shutil.copytree(
        world.home / "artifacts" / world.old.artifact_id,
        world.home / "artifacts" / f".removed-{world.old.artifact_id}-1",
    )
    (world.home / "deployed" / f".{NAME}.1").symlink_to("../artifacts/" + "0" * 64)
    (world.home / "incoming" / "blob-0").write_bytes(rng.randbytes(rng.randrange(1000)))
    short = world.home / "artifacts" / world.new.artifact_id
    short.mkdir()  # and a new version's folder without its files
    world.deploy(world.new)
    for name in ("deployed", "artifacts"):
        left = [p.name for p in (world.home / name).iterdir() if p.name.startswith(".")]
        if left:
            raise HarnessError(f"left behind: {left}")


def _running_version_damaged(world: World, rng: random.Random) -> None:
    """A bit of the running version flips on the disk: deploying it again builds it anew."""
    folder = world.home / "artifacts" / world.old.artifact_id
    _flip(folder / rng.choice(_files(world.old)), rng)
    world.deploy(world.old)


def _kept_version_damaged(world: World, rng: random.Random) -> None:
    """Nobody rolls back to a version that is not whole."""
    folder = world.home / "artifacts" / world.older.artifact_id
    _flip(folder / rng.choice([*_files(world.older), "manifest.json"]), rng)
    _roll_back(world, world.board)


CASES: tuple[Case, ...] = (
    Case("a bit of a file", _flip_named(), REFUSED, 5),
    Case("a bit of the manifest", _flip_named("manifest.json"), REFUSED, 4),
    Case("a bit of the manifest's signature", _flip_named(MANIFEST_SIGNATURE), REFUSED, 3),
    Case("a bit of the statement", _flip_named(STATEMENT), REFUSED, 4),
    Case("a bit of its signature", _flip_named(STATEMENT_SIGNATURE), REFUSED, 3),
    Case("two files swapped", _in_folder(_swapped), REFUSED, 2),
    Case("a file added", _in_folder(_added), REFUSED, 3),
    Case("a link for a file", _in_folder(_linked), REFUSED, 2),
    Case("a file cut short", _in_folder(_truncated), REFUSED, 3),
    Case("a file missing", _in_folder(_missing), REFUSED, 3),
    Case("a path that escapes", _in_folder(_escaping), REFUSED, 3),
    Case("hashes made to fit", _in_folder(_forged), REFUSED, 3),
    Case("signed by a stranger", _in_folder(_by_stranger), REFUSED, 2),
    Case("half signed by a stranger", _in_folder(_half_by_stranger), REFUSED, 2),
    Case("signatures of another version", _in_folder(_of_another), REFUSED, 2),
    Case("signatures removed", _in_folder(_unsigned), REFUSED, 1),
    Case("an older version replayed", _replayed, REFUSED, 4),
    Case("to the board: changed under way", _changed_under_way, REFUSED, 3),
    Case("to the board: by a stranger", _stranger_past_the_workstation, REFUSED, 4),
    Case("to the board: unsigned", _unsigned_past_the_workstation, REFUSED, 1),
    Case("to the board: documents mixed", _mixed_past_the_workstation, REFUSED, 3),
    Case("to the board: another name", _other_name, REFUSED, 3),
    Case("to the board: a path that escapes", _escape_past_the_workstation, REFUSED, 3),
    Case("on the board: a blob damaged", _damaged_on_board, REFUSED, 4),
    Case("on the board: a blob cut short", _cut_on_board, REFUSED, 3),
    Case("on the board: left-overs of cuts", _left_behind, RECOVERED, 2),
    Case("on the board: the running version damaged", _running_version_damaged, RECOVERED, 2),
    Case("on the board: the kept version damaged", _kept_version_damaged, REFUSED, 2),
    Case("reset after bytes to the board", _reset(TO_BOARD), RECOVERED, 6),
    Case("reset after bytes from the board", _reset(FROM_BOARD), RECOVERED, 4),
    Case("agent killed taking a file in", _killed("adopt", World.put_new), RECOVERED, 2),
    Case("agent killed installing", _killed("install", World.put_new), RECOVERED, 7),
    Case("agent killed rolling back", _killed_rolling_back, RECOVERED, 2),
)
