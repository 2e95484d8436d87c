"""What the fleet's policy is made of: laws of each representative, weighted by its cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from compiler.dataset import Run, Runs
from compiler.errors import CompilerError
from compiler.proposals import Proposal
from compiler.recipe import Recipe, RecipeTarget, Switchable
from compiler.switchable.stage import _builds, learn

KHZ = (500_000, 1_000_000, 2_000_000)
PROPOSAL = Proposal(
    "clocks",
    "c",
    Path("clocks/campaign.yaml"),
    {f"{p}" * 64: {"name": f"net-{p}", "network": "resnet20", "position": p} for p in range(2)},
)
CLUSTERS = SimpleNamespace(
    representatives_={"A": "fast", "B": "slow"}, weights_={"A": 0.75, "B": 0.25}
)
SLOWER = {"fast": 1.0, "slow": 2.0}


def recipe(**switchable) -> Recipe:
    return Recipe(
        version=1,
        name="t",
        mode="switchable",
        networks=("resnet20",),
        switchable=Switchable(ratios=(0.0, 0.5), freq_khz=KHZ, **switchable),
        targets=(RecipeTarget(kind="onnx", name="here", machine="x86_64"),),
    )


def runs(left_out=lambda board, position, khz: False) -> Runs:
    """latency = 1 ms + 2000 MHz·ms / clock of the widest, a quarter of it of the other."""
    found = []
    for board, factor in SLOWER.items():
        for position in range(2):
            for khz in KHZ:
                ms = factor * (1 + 2e6 / khz) / 4**position
                found.append(
                    Run(
                        run_id=f"{board}{position}{khz}", campaign_id="c", board_id=board,
                        model_sha256=f"{position}" * 64, model_name=f"net-{position}",
                        runtime="ort", precision="fp32", threads=1, repeat=0,
                        valid=not left_out(board, position, khz), reasons=(), p50_ms=ms,
                        latency_ms=(ms,), temp_c_before=None, temp_c_max=None, freq_khz=khz + 8,
                        effective_freq_khz=None, governor=None, throttled=None, board_model=None,
                        cores=None, runtime_version=None, simulated=True,
                    )
                )  # fmt: skip
    return Runs(tuple(found), "made up", "0" * 64)


def test_the_fleet_s_policy_is_the_clusters_mean_and_its_target_the_widest_at_the_top() -> None:
    learned = learn(PROPOSAL, runs(), "resnet20", CLUSTERS, recipe())
    mean = 0.75 * 1 + 0.25 * 2
    assert learned.policy.target_ms == pytest.approx(2 * mean, rel=1e-3)
    assert learned.policy.laws[0].latency_ms(KHZ[0]) == pytest.approx(5 * mean, rel=1e-3)
    assert learned.policy.laws[1].latency_ms(KHZ[0]) == pytest.approx(5 * mean / 4, rel=1e-3)
    assert dict(learned.widest_ms_by_cluster) == pytest.approx({"A": 2.0, "B": 4.0}, rel=1e-3)
    assert [learned.policy.choose(khz) for khz in KHZ] == [1, 0, 0]
    asked = learn(PROPOSAL, runs(), "resnet20", CLUSTERS, recipe(target_ms={"resnet20": 9.0}))
    assert asked.policy.target_ms == 9.0


def test_runs_that_do_not_count_are_done_without_while_two_clocks_are_left() -> None:
    whole = learn(PROPOSAL, runs(), "resnet20", CLUSTERS, recipe()).policy
    few = runs(lambda board, position, khz: board == "slow" and khz == max(KHZ))
    found = learn(PROPOSAL, few, "resnet20", CLUSTERS, recipe()).policy
    assert found.target_ms == pytest.approx(whole.target_ms, rel=1e-3)
    none = runs(lambda board, position, khz: position == 1 and khz != max(KHZ))
    with pytest.raises(CompilerError, match=r"resnet20: fast tells no law.*clocks/campaign.yaml"):
        learn(PROPOSAL, none, "resnet20", CLUSTERS, recipe())


def board(**facts) -> RecipeTarget:
    return RecipeTarget(**{"name": "b", "machine": "aarch64", "kind": "all", **facts})


@pytest.mark.parametrize(
    ("target", "runtimes"),
    [
        (board(kind="onnx"), ["switchable"]),
        (board(kind="executable"), ["executable"]),
        (board(), ["switchable"]),
        (board(runtimes={"ort": "1.19.2", "executable": ""}), ["switchable", "executable"]),
        (board(machine="armv7l", runtimes={"tflite": "2.14.0", "executable": ""}), ["executable"]),
        (board(runtimes={"tflite": "2.14.0"}), []),
    ],
)
def test_each_board_gets_the_forms_whose_runtime_it_has(target, runtimes) -> None:
    notes: list[str] = []
    asked = recipe().model_copy(update={"targets": (target,)})
    assert [made.runtime for made, _ in _builds(asked, notes)] == runtimes
    assert bool(notes) == (not runtimes)
