"""A switchable network on simulated boards: compiled from their clocks, proven, switching there."""

from __future__ import annotations

import json
import platform
import sys
from statistics import median

import pytest

from compiler.errors import CompilerError
from compiler.recipe import Measuring, Recipe, RecipeTarget, Switchable, Training
from device_agents.contract import RunSpec, StoppingRule
from device_agents.contract.switching import Policy
from fleetcut import verbs
from fleetcut.console import Console
from fleetcut.pipeline import run
from fleetcut.reporting import assemble
from harness.deploy import load_artifact
from harness.executor import Work
from harness.inventory import load_inventory
from harness.store import Store
from harness.virtual import rack
from harness.virtual.spec import RackSpec, VirtualBoardSpec

CLOCKS_KHZ = (600_000, 1_000_000, 1_500_000)
HOT = "hot"
UNTIL_HOT = StoppingRule(samples_min=100, samples_max=20_000, max_seconds=6.0, min_seconds=6.0)

NETWORK = """
from torch import nn
def tiny():
    def block(i, o, stride):
        return nn.Sequential(
            nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()
        )
    return nn.Sequential(
        block(3, 64, 2), block(64, 96, 1), block(96, 96, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(96, 10),
    )
tiny.input_shape = (3, 32, 32)
"""
NAME = "switchednet:tiny"

RECIPE = Recipe(
    version=1,
    name="sw",
    mode="switchable",
    networks=(NAME,),
    seed=1,
    width_step=16,
    training=Training(epochs=1, batch_size=32, learning_rate=0.005),
    measuring=Measuring(anchor_repeats=2, sample_repeats=1, max_seconds=0.1),
    switchable=Switchable(
        ratios=(0.0, 0.3, 0.5, 0.7),
        freq_khz=CLOCKS_KHZ,
        training=Training(epochs=1, batch_size=32, learning_rate=0.005),
    ),
    targets=(RecipeTarget(kind="onnx", name="rack", machine=platform.machine()),),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One calm board through everything once."""
    folder = tmp_path_factory.mktemp("switchable")
    (folder / "switchednet.py").write_text(NETWORK)
    sys.path.insert(0, str(folder))
    boards = (VirtualBoardSpec("calm", freqs_khz=CLOCKS_KHZ),)
    status = rack.up(folder / "rack", RackSpec(boards=boards, seed=0))
    store = Store(folder / "lab.db")
    try:
        inventory = load_inventory(status.inventory)
        done = run(Console(), RECIPE, inventory, store, folder / "build")
        yield folder, inventory, store, done
    finally:
        sys.path.remove(str(folder))
        store.close()
        rack.down(folder / "rack")


def test_it_is_proven_on_the_board_and_its_facts_are_written(finished) -> None:
    folder, _, _, done = finished
    assert done.refused == ()
    (artifact,) = (load_artifact(path) for path in done.compiled.artifacts)
    assert (artifact.manifest.kind, artifact.manifest.target.runtime) == ("switchable",) * 2
    facts = json.loads((folder / "build" / "switchable" / f"{NAME}.json").read_text())
    assert len(facts["accuracies"]) == len(facts["widths"]) == 4
    policy = Policy.from_plain(facts["policy"])
    assert policy.choose(max(CLOCKS_KHZ)) == 0
    assert policy.choose(min(CLOCKS_KHZ)) > 0


def test_the_report_of_one_shape_says_where_the_facts_are(finished) -> None:
    folder, inventory, store, _ = finished
    with pytest.raises(CompilerError, match=r"Next: read .*switchable/\*\.json"):
        assemble(folder / "build", store, inventory.boards)


def test_at_each_clock_the_board_runs_what_the_policy_says(finished) -> None:
    folder, _, store, done = finished
    facts = json.loads((folder / "build" / "switchable" / f"{NAME}.json").read_text())
    policy = Policy.from_plain(facts["policy"])
    seen = {}
    for stored in store.runs([done.compiled.final.campaign_id]):
        if stored.record.spec.runtime == "switchable":
            khz = stored.record.spec.condition.freq_khz
            seen[khz] = [(s.khz, s.before, s.after) for s in stored.record.switches]
    # The golden check runs the widest; whatever else the clock asks for is switched to after it.
    wanted = {khz: policy.choose(khz, 0) for khz in CLOCKS_KHZ}
    assert seen == {khz: [(khz, 0, after)] if after else [] for khz, after in wanted.items()}


def test_where_the_clock_is_lowest_it_is_faster_than_the_dense_network(finished) -> None:
    """How much steadier it is over the clocks is for benchmarks.switchable, on a calm machine."""
    _, _, store, done = finished
    ns = {}
    for stored in store.runs([done.compiled.final.campaign_id]):
        spec = stored.record.spec
        if spec.condition.freq_khz == min(CLOCKS_KHZ):
            ns[spec.runtime] = median(stored.record.latency_ns)
    assert ns["switchable"] < ns["ort"]


def test_a_board_that_throttles_switches_by_itself(finished, tmp_path) -> None:
    """In the middle of a run, with nobody but the kernel lowering the clock."""
    _, _, _, done = finished
    (artifact,) = (load_artifact(path) for path in done.compiled.artifacts)
    model = artifact.manifest.file(artifact.manifest.model_file)
    board = VirtualBoardSpec(
        HOT,
        freqs_khz=CLOCKS_KHZ,
        thermal_resistance_c_per_w=20.0,
        heat_capacity_j_per_c=0.05,
        core_power_w=8.0,
    )
    status = rack.up(tmp_path / "rack", RackSpec(boards=(board,), seed=0))
    store = Store(tmp_path / "lab.db")
    try:
        inventory = load_inventory(status.inventory)
        spec = RunSpec("c", HOT, model.sha256, "switchable", stopping=UNTIL_HOT)
        blobs = {model.sha256: artifact.folder / model.name}
        work = Work("c", inventory.boards, (spec,), blobs, {})
        (outcome,) = verbs.run_work(Console(json_mode=True), store, work, "heat up", tries=1)
        assert outcome.failure is None
        (record,) = store.records([spec.run_id]).values()
    finally:
        store.close()
        rack.down(tmp_path / "rack")
    assert record.error is None
    narrower = [switch for switch in record.switches if switch.after > switch.before]
    assert narrower
    assert min(switch.khz for switch in narrower) < max(CLOCKS_KHZ)
