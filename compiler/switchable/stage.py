"""Compiling for stable latency: one weight set, its policy from measured clocks, one file a target.

Input: dense networks and clusters in the work folder, and what boards measured. Output: a Proposal
of sub-networks to measure at each clock, then Compiled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler import weights
from compiler.artifacts import Provenance, write_artifact
from compiler.clusters import DeviceClusters
from compiler.data import Splits
from compiler.dataset import Runs, lower_median
from compiler.emit import Compiled, compiled
from compiler.errors import CompilerError
from compiler.fine_tuning import Dense, Observe, train_settings, watched
from compiler.loading import load_dense, load_splits, measured, slug
from compiler.proposals import Proposal, ProposedModel, has_proposal, load_proposal, propose
from compiler.pruning.importance import activation
from compiler.recipe import Recipe
from compiler.shrink import SCORING_PICTURES
from compiler.switchable.artifact import KIND, build_switchable
from compiler.switchable.executable import build_switchable_executable
from compiler.switchable.network import SwitchableNetwork, best_first, nested_widths
from compiler.switchable.policy import ClockLaw, Policy, fit_clock_law
from compiler.targets.built import BuiltModel, TargetError
from compiler.targets.candidates import candidate
from compiler.training import evaluate, train_together
from compiler.work import WorkFolder, read_json, write_json
from device_agents.contract import Target

if TYPE_CHECKING:
    from torch import Tensor

STAGE = "clocks"


@dataclass(frozen=True)
class Learned:
    """What the measured clocks say of one network.

    widest_ms_by_cluster: of the widest sub-network at the highest clock, by each one's law.
    """

    policy: Policy
    widest_ms_by_cluster: tuple[tuple[str, float], ...]


def compile_switchable(
    work: WorkFolder,
    recipe: Recipe,
    dataset: Path | None,
    before: Sequence[Proposal],
    clusters: DeviceClusters,
    observe: Observe,
) -> Proposal | Compiled:
    """From dense networks and clusters to the end. Raises CompilerError."""
    proposal = _propose_clocks(work, recipe, clusters, observe)
    runs = measured(dataset, proposal)
    if runs is None:
        return proposal
    artifacts: list[dict[str, Any]] = []
    notes: list[str] = []
    finals: list[ProposedModel] = []
    for name in recipe.networks:
        network, splits = _trained(work, recipe, name, observe)
        learned = learn(proposal, runs, name, clusters, recipe)
        _write_facts(work, recipe, name, network, splits, learned.policy)
        example = splits.test_x[:1]
        dense = load_dense(work, recipe, name).network
        facts = {"network": name, "role": "dense"}
        finals.append(ProposedModel(f"{slug(name)}-dense", candidate("ort", dense, example), facts))
        portable: bytes | None = None
        for target, build in _builds(recipe, notes):
            folder = work.root / "targets" / f"{slug(name)}-{target.name}-{target.runtime}"
            observe("emit", len(artifacts), len(recipe.networks) * len(recipe.targets), name)
            try:
                built = build(network, learned.policy, example, folder, target)
            except TargetError as error:
                notes.append(str(error))
                continue
            data = built.files[0].path.read_bytes()
            portable = data if built.kind == KIND else portable
            provenance = _provenance(work, recipe, name, learned, data, runs)
            artifact = write_artifact(work.artifacts, built, provenance)
            artifacts.append(
                {
                    "artifact_id": artifact.artifact_id,
                    "network": name,
                    "target": asdict(artifact.manifest.target),
                }
            )
        if portable is not None:  # the same for every target
            facts = {"network": name, "role": KIND}
            finals.append(ProposedModel(f"{slug(name)}-{KIND}", portable, facts, KIND))
    final = propose(
        work,
        recipe,
        "final",
        finals,
        boards=None,
        repeats=recipe.measuring.sample_repeats,
        freq_khz=recipe.switchable.freq_khz,
    )
    write_json(
        work.compiled,
        {
            "name": recipe.name,
            "mode": recipe.mode,
            "seed": recipe.seed,
            "recipe_sha256": recipe.sha256(),
            "dataset_sha256": runs.source_sha256,
            "networks": list(recipe.networks),
            "campaign_ids": [p.campaign_id for p in (*before, proposal, final)],
            "artifacts": artifacts,
            "notes": list(dict.fromkeys(notes)),
        },
    )
    return compiled(work)


def learn(
    proposal: Proposal, runs: Runs, name: str, clusters: DeviceClusters, recipe: Recipe
) -> Learned:
    """One policy for the fleet: each representative's laws, weighted by its cluster's boards.

    A board slower by one factor everywhere chooses the same, so that one policy serves boards of
    one kind. Raises CompilerError where a sub-network has valid runs at fewer than two clocks.
    """
    clocks = recipe.switchable.freq_khz
    by_cluster: dict[str, list[ClockLaw]] = {}
    for label, board in clusters.representatives_.items():
        latencies = _latencies(proposal, runs, name, board, clocks)
        try:
            by_cluster[label] = [
                fit_clock_law(list(of_clock), list(of_clock.values())) for of_clock in latencies
            ]
        except ValueError as error:
            raise CompilerError(
                f"{name}: {board} tells no law of its clock ({error}). Next: fleetcut measure "
                f"{proposal.campaign_path} --tries 3"
            ) from None
    total = sum(clusters.weights_[label] for label in by_cluster)
    share = {label: clusters.weights_[label] / total for label in by_cluster}
    laws = tuple(
        ClockLaw(
            sum(share[label] * law.a_ms for label, law in zip(by_cluster, of_one, strict=True)),
            sum(share[label] * law.b_ms_khz for label, law in zip(by_cluster, of_one, strict=True)),
            sum(share[label] * law.fit_mape for label, law in zip(by_cluster, of_one, strict=True)),
        )
        for of_one in zip(*by_cluster.values(), strict=True)
    )
    top = max(clocks)
    target_ms = recipe.switchable.target_ms.get(name, laws[0].latency_ms(top))
    widest = tuple(sorted((label, of[0].latency_ms(top)) for label, of in by_cluster.items()))
    return Learned(Policy(target_ms, laws), widest)


def _latencies(
    proposal: Proposal, runs: Runs, name: str, board: str, clocks: Sequence[int]
) -> list[dict[float, float]]:
    """Of one board, for each sub-network clock in kHz → ms: the lower median of its valid runs."""
    positions = {
        digest: int(facts["position"])
        for digest, facts in proposal.facts_by_model.items()
        if facts["network"] == name
    }
    found: list[dict[float, list[float]]] = [{} for _ in positions]
    for run in runs.runs:
        position = positions.get(run.model_sha256)
        if position is None or run.board_id != board or not run.valid or run.freq_khz is None:
            continue
        clock = float(_nearest(clocks, run.freq_khz))
        found[position].setdefault(clock, []).append(run.p50_ms)
    return [{khz: lower_median(ms) for khz, ms in sorted(of.items())} for of in found]


def _nearest(clocks: Sequence[int], seen_khz: int) -> int:
    """A board may report a few kHz beside the operating point that was asked for."""
    return min(clocks, key=lambda khz: abs(khz - seen_khz))


def _propose_clocks(
    work: WorkFolder, recipe: Recipe, clusters: DeviceClusters, observe: Observe
) -> Proposal:
    if has_proposal(work, STAGE):
        return load_proposal(work, STAGE)
    models = []
    for name in recipe.networks:
        network, splits = _trained(work, recipe, name, observe)
        for position, widths in enumerate(network.widths):
            model = candidate("ort", network.sub_network(position), splits.test_x[:1])
            facts = {"network": name, "position": position, "widths": widths}
            models.append(ProposedModel(f"{slug(name)}-{position}", model, facts, "ort"))
    return propose(
        work,
        recipe,
        STAGE,
        models,
        boards=list(clusters.representatives_.values()),
        repeats=recipe.measuring.sample_repeats,
        freq_khz=recipe.switchable.freq_khz,
    )


def _trained(
    work: WorkFolder, recipe: Recipe, name: str, observe: Observe
) -> tuple[SwitchableNetwork, Splits]:
    """Trained, or read from the work folder; a training cut short goes on."""
    splits = load_splits(recipe, name)
    dense = load_dense(work, recipe, name)
    network = _cut(dense, splits, recipe)
    stored = work.switchable_weights(name)
    if not stored.exists():
        checkpoint = work.resume(name) / "switchable.safetensors"
        asked = recipe.switchable.training
        train_together(
            network,
            splits,
            train_settings(asked, recipe.seed),
            *watched(asked, observe, f"train {name} at every width", checkpoint),
        )
        weights.save(network.state_dict(), stored)
        checkpoint.unlink(missing_ok=True)
    network.load_state_dict(weights.load(stored))
    return network.eval(), splits


def _cut(dense: Dense, splits: Splits, recipe: Recipe) -> SwitchableNetwork:
    scores = activation(dense.network, dense.space, splits.train_x[:SCORING_PICTURES])
    try:
        widths = nested_widths(dense.space, recipe.switchable.ratios)
    except ValueError as error:
        raise CompilerError(
            f"{dense.space.network}: {error}. Next: fewer switchable.ratios, or a smaller "
            "width_step"
        ) from None
    return SwitchableNetwork(best_first(dense.network, dense.space, scores), dense.space, widths)


def _write_facts(
    work: WorkFolder,
    recipe: Recipe,
    name: str,
    network: SwitchableNetwork,
    splits: Splits,
    policy: Policy,
) -> None:
    """For the reader: how accurate and how fast each sub-network is."""
    write_json(
        work.switchable_facts(name),
        {
            "ratios": list(recipe.switchable.ratios),
            "widths": [list(widths) for widths in network.widths],
            "accuracies": [
                evaluate(network.sub_network(position), splits.test_x, splits.test_y)
                for position in range(len(network.widths))
            ],
            "policy": policy.to_plain(),
        },
    )


Build = Callable[[SwitchableNetwork, Policy, "Tensor", Path, Target], BuiltModel]


def _builds(recipe: Recipe, notes: list[str]) -> Iterator[tuple[Target, Build]]:
    """Each target with what makes its form: the file for onnxruntime, a native program, or both."""
    for target in recipe.targets:
        wanted: dict[str, Build] = {}
        if target.kind != "executable" and (not target.runtimes or "ort" in target.runtimes):
            wanted[KIND] = build_switchable
        if target.kind == "executable" or (
            target.kind == "all" and "executable" in target.runtimes
        ):
            wanted["executable"] = build_switchable_executable
        if not wanted:
            notes.append(
                f"{target.name}: switchable networks need ort or executable, and it has neither"
            )
        for runtime, build in wanted.items():
            yield (
                Target(
                    name=target.name,
                    machine=target.machine,
                    os=target.os,
                    runtime=runtime,
                    threads=target.threads,
                    cpu=target.cpu,
                    libc=target.libc,
                    runtime_version=target.runtimes.get("ort", "") if runtime == KIND else "",
                ),
                build,
            )


def _provenance(
    work: WorkFolder, recipe: Recipe, name: str, learned: Learned, data: bytes, runs: Runs
) -> Provenance:
    """plan_sha256: of the file, which holds widths, masks by order of channels, and policy."""
    return Provenance(
        network=name,
        accuracy=read_json(work.switchable_facts(name))["accuracies"][0],
        predicted_ms_by_cluster=learned.widest_ms_by_cluster,
        plan_sha256=hashlib.sha256(data).hexdigest(),
        parent_sha256=read_json(work.dense_facts(name))["weights_sha256"],
        dataset_sha256=runs.source_sha256,
        recipe_sha256=recipe.sha256(),
        seed=recipe.seed,
        predicted_runtime="ort",
    )
