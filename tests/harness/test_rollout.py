"""Who comes when, where it stops, and how the same call goes on; what proofs earn."""

from dataclasses import replace

import pytest

from benchmarks.tampering_artifacts import make_artifact
from device_agents.contract import BoardProof, Condition, MeasurementRecord, RunSpec, Verdict
from device_agents.contract.conditions import Reason
from harness import rollout as rolling
from harness.deploy import (
    ArtifactFolderError,
    LocalArtifact,
    fits,
    load_artifact,
    require_names_apart,
)
from harness.inventory import Board
from harness.rollout import RolloutError, Steps, parse_shares, plan, resumed, run
from harness.verify import (
    foreign_clusters,
    one_of_each_cluster,
    proof_of,
    release_of,
    write_release,
)


def board(number: int, model: str = "Pi 4") -> Board:
    return Board(f"b{number:03}", model, "h", 22, "u", None, None, "python3", None, False, (), 512)


FLEET = [board(i, "Pi 4" if i % 10 else "Pi 5") for i in range(100)]
IDS = ["a" * 64]


def test_stages_are_shares_of_the_fleet_and_depend_on_ids_alone():
    rollout = plan(IDS, FLEET, (0.05, 0.25, 1.0), {})
    assert [len(stage.board_ids) for stage in rollout.stages] == [5, 20, 75]
    everyone = [b for stage in rollout.stages for b in stage.board_ids]
    assert sorted(everyone) == [b.board_id for b in FLEET]
    assert plan(IDS, FLEET[::-1], (0.05, 0.25, 1.0), {}) == rollout
    assert plan(["b" * 64], FLEET, (0.05, 0.25, 1.0), {}).rollout_id != rollout.rollout_id


def test_canaries_are_of_every_cluster_or_model():
    rollout = plan(IDS, FLEET, (0.01, 1.0), {})
    models = {b.board_id: b.model for b in FLEET}
    assert sorted(models[b] for b in rollout.stages[0].board_ids) == ["Pi 4", "Pi 5"]
    clusters = {b.board_id: str(i % 7) for i, b in enumerate(FLEET)}
    rollout = plan(IDS, FLEET, (0.01, 1.0), clusters)
    assert {clusters[b] for b in rollout.stages[0].board_ids} == set("0123456")


def test_a_part_of_the_fleet_and_one_board():
    assert [len(s.board_ids) for s in plan(IDS, FLEET, (0.1,), {}).stages] == [10]
    assert [len(s.board_ids) for s in plan(IDS, FLEET[1:2], (0.05, 1.0), {}).stages] == [1]


def test_shares():
    assert parse_shares("5%, 0.25,100%") == (0.05, 0.25, 1.0)
    for text in ("", "0", "-5%", "5%,5%", "nan", "101%", "5%,,6%"):
        with pytest.raises(RolloutError, match="Next: write"):
            parse_shares(text)


class Fleet:
    """Answers of boards, as a rollout asks for them. bad, gone: whose proof or visit fails."""

    def __init__(self) -> None:
        self.bad: set[str] = set()
        self.gone: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.attempts: list[str] = []
        self.put_back: list[str] = []
        self.asked_before = 0
        self.die_at: str | None = None

    def steps(self, *, roll_back: bool = False) -> Steps:
        def deploy(boards):
            self._note("deploy", boards)
            return {b.board_id: "is gone" for b in boards if b.board_id in self.gone}

        def prove(boards, name):
            self._note("prove", boards)
            self.attempts.append(name)
            return [
                (IDS[0], BoardProof(b.board_id, None, "r", b.board_id not in self.bad, 1.0, None,
                                    0.0, False, "bad" if b.board_id in self.bad else None))
                for b in boards
            ]  # fmt: skip

        def before(boards):
            self.asked_before += len(boards)
            return [(b.board_id, "net", "b" * 64) for b in boards]

        def back(boards, ran):
            assert {b for b, _, _ in ran} == {b.board_id for b in boards}
            self.put_back += [b.board_id for b in boards]
            return {}

        return Steps(before, deploy, prove, back if roll_back else None, lambda rollout: None)

    def _note(self, what: str, boards) -> None:
        if self.die_at == what:
            raise KeyboardInterrupt
        self.asked.append((what, len(boards)))


@pytest.fixture
def state(tmp_path):
    return tmp_path / "rollouts" / "state.json"


def going(state, fleet, shares=(0.05, 0.25, 1.0), **kwargs):
    planned = plan(IDS, FLEET, shares, {})
    return run(resumed(planned, state), FLEET, fleet.steps(**kwargs), state)


def test_every_stage_is_proven_before_the_next(state):
    fleet = Fleet()
    done = going(state, fleet)
    assert done.state == rolling.DONE
    both = [(what, n) for n in (5, 20, 75) for what in ("deploy", "prove")]
    assert fleet.asked == both
    assert going(state, fleet) == done
    assert fleet.asked == both
    assert len(done.proofs_of(IDS[0])) == 100


@pytest.mark.parametrize("die_at", ["deploy", "prove"])
def test_killed_it_goes_on_under_the_same_attempt(state, die_at):
    fleet = Fleet()
    fleet.die_at = die_at
    with pytest.raises(KeyboardInterrupt):
        going(state, fleet)
    fleet.die_at = None
    assert going(state, fleet).state == rolling.DONE
    assert fleet.attempts[0].endswith("-0-1")


def test_a_failed_proof_stops_it_and_a_second_try_is_another_attempt(state):
    fleet = Fleet()
    planned = plan(IDS, FLEET, (0.05, 0.25, 1.0), {})
    fleet.bad = {planned.stages[1].board_ids[3]}
    stopped = going(state, fleet, roll_back=True)
    assert [s.state for s in stopped.stages] == ["done", "rolled back", "pending"]
    assert stopped.stages[1].failures == ((planned.stages[1].board_ids[3], "bad"),)
    assert sorted(fleet.put_back) == sorted(planned.stages[1].board_ids)
    fleet.bad = set()
    assert going(state, fleet).state == rolling.DONE
    assert fleet.attempts[-2].endswith("-1-2")


def test_what_boards_ran_before_is_known_also_after_a_kill(state):
    fleet = Fleet()
    first = plan(IDS, FLEET, (0.05, 1.0), {}).stages[0].board_ids
    fleet.bad, fleet.die_at = set(first), "prove"
    with pytest.raises(KeyboardInterrupt):
        going(state, fleet, (0.05, 1.0), roll_back=True)
    fleet.die_at = None
    stopped = going(state, fleet, (0.05, 1.0), roll_back=True)
    assert stopped.state == rolling.ROLLED_BACK
    assert fleet.asked_before == len(first)
    assert sorted(fleet.put_back) == sorted(first)


def test_boards_that_are_gone_may_be_so_many_but_not_all(state):
    fleet = Fleet()
    planned = plan(IDS, FLEET, (0.05, 1.0), {})
    fleet.gone = set(planned.stages[0].board_ids[:2])
    assert run(planned, FLEET, fleet.steps(), state, may_fail=1).state == rolling.FAILED
    assert run(planned, FLEET, fleet.steps(), state, may_fail=2).state == rolling.DONE
    fleet.gone = set(planned.stages[0].board_ids)
    assert run(planned, FLEET, fleet.steps(), state, may_fail=99).state == rolling.FAILED


def test_a_file_that_is_none_is_said(state):
    state.parent.mkdir()
    state.write_text("{}")
    with pytest.raises(RolloutError, match="Next: remove it"):
        going(state, Fleet())


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    made = make_artifact(tmp_path_factory.mktemp("made"), 1, ("0", "1"))
    intervals = (("0", 0.8, 1.2), ("1", 1.6, 2.4))
    manifest = replace(
        made.manifest, predicted_interval_ms_by_cluster=intervals, predicted_runtime="ort"
    )
    return replace(made, manifest=manifest)


def record(ms: float, *reasons: Reason) -> MeasurementRecord:
    spec = RunSpec("c", "b000", "0" * 64, "ort", condition=Condition())
    return MeasurementRecord(
        spec, "0" * 64, "0" * 64, None, False, 0, latency_ns=(int(ms * 1e6),) * 50,
        max_abs_err=0.0, verdict=Verdict(not reasons, reasons),
    )  # fmt: skip


def proof(artifact: LocalArtifact, ms: float, *reasons: Reason, cluster: str | None = "0"):
    return proof_of(artifact, board(0), cluster, "r", record(ms, *reasons), None)


def test_latency_is_judged_by_the_predicted_interval_with_slack(artifact):
    assert proof(artifact, 0.1).passed
    assert proof(artifact, 1.49).passed
    slow = proof(artifact, 1.51)
    assert slow.reason == (
        "takes 1.51 ms, predicted for cluster 0 are 0.8 to 1.2, 25% more are allowed"
    )
    assert (slow.measured_lower_ms, slow.predicted_upper_ms) == (1.51, 1.2)
    assert proof(artifact, 1.51, cluster="1").passed
    assert proof(artifact, 99.0, cluster=None).passed


def test_of_another_runtime_nothing_was_predicted(artifact):
    manifest = replace(artifact.manifest, predicted_runtime="tflite")
    assert proof(replace(artifact, manifest=manifest), 99.0).passed


def test_a_throttled_run_proves_nothing(artifact):
    hot = proof(artifact, 1.0, Reason.THROTTLED)
    assert (hot.passed, hot.throttled, hot.reason) == (False, True, "invalid: throttled")
    assert proof(artifact, 1.0).throttled is False


def test_a_release_needs_a_board_of_every_cluster(artifact):
    good, other, bad = (
        proof(artifact, 1.0),
        proof(artifact, 1.0, cluster="1"),
        proof(artifact, 9.0, cluster="1"),
    )
    assert release_of(artifact, [good, other]).state == "released"
    partial = release_of(artifact, [good])
    assert (partial.state, partial.unproven_clusters) == ("partial", ("1",))
    assert release_of(artifact, [good, other, bad]).state == "refused"
    assert release_of(artifact, []).state == "refused"


def test_what_is_built_for_another_machine_is_neither_proven_there_nor_missed(artifact):
    def built_for(machine: str) -> LocalArtifact:
        target = replace(artifact.manifest.target, machine=machine)
        return replace(artifact, manifest=replace(artifact.manifest, target=target))

    assert fits(built_for("any"), "x86_64")
    assert fits(built_for("aarch64"), "aarch64")
    assert fits(built_for("armv7l"), "aarch64")
    assert not fits(built_for("aarch64"), "x86_64")
    assert not fits(built_for("aarch64"), "armv7l")
    assert fits(built_for("aarch64"), None)
    fleet = [board(0), board(1)]
    clusters = {"b000": "0", "b001": "1"}
    machines = {"b000": "aarch64", "b001": "x86_64"}
    elsewhere = foreign_clusters(built_for("aarch64"), fleet, clusters, machines)
    assert elsewhere == {"1"}
    assert release_of(artifact, [proof(artifact, 1.0)], elsewhere).state == "released"
    require_names_apart([built_for("aarch64"), built_for("x86_64")])
    with pytest.raises(ArtifactFolderError, match="both called"):
        require_names_apart([built_for("aarch64"), built_for("any")])


def test_one_board_of_each_cluster_its_representative_if_it_can(artifact):
    fleet = [board(i) for i in range(6)]
    clusters = {b.board_id: str(i // 3) for i, b in enumerate(fleet)}
    chosen = one_of_each_cluster(fleet, clusters, {"0": "b002", "1": "elsewhere"})
    assert [b.board_id for b in chosen] == ["b002", "b003"]
    assert one_of_each_cluster(fleet, {}, {}) == tuple(fleet)


def test_a_release_is_no_part_of_the_artifact_and_names_must_differ(tmp_path):
    one, other = (make_artifact(tmp_path, version) for version in (1, 2))
    write_release(one, release_of(one, []))
    assert load_artifact(one.folder).artifact_id == one.artifact_id
    with pytest.raises(ArtifactFolderError, match="are both called 'tiny-onnx'"):
        require_names_apart([one, other])
