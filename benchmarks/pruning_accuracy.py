"""ResNet56 on CIFAR-10 at half its multiply-adds: fleetcut's HDAP beside torch-pruning.

    python -m benchmarks.pruning_accuracy [--quick] [--work DIR] [--until STAGE] --json OUT

Input: CIFAR-10 as a folder and published weights. Output: multiply-adds, latency and accuracy of
every network, all fine-tuned alike. A killed run goes on from --work, a training from its last
epoch; a stage whose file is removed there runs again. Exit 77 where data or weights are absent.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks.pruning_accuracy_data import absent, load
from benchmarks.pruning_accuracy_peers import SCOPES, peers
from benchmarks.pruning_accuracy_search import (
    Bounds,
    Elite,
    Proxy,
    elites,
    precision,
    resized,
    surrogate,
)
from benchmarks.pruning_accuracy_timing import interleaved_ms
from benchmarks.result import Bar, finish, parser
from compiler import data, devices, networks, weights
from compiler.checkpoints import Checkpoint
from compiler.errors import CompilerError
from compiler.pruning.groups import trace
from compiler.pruning.widths import PruneSpace
from compiler.sampling import sample_widths
from compiler.training import (
    Distillation,
    TrainSettings,
    distil,
    evaluate,
    recalibrate_batch_norm,
    train,
)
from compiler.work import read_json, write_json

NETWORK = "resnet56"
WIDTH_STEP = 4
SHARED = Path("../shared/data")
SKIPPED = 77
"""The exit status of a test that could not run, as automake has it."""

HALF = 0.5
EQUAL = 0.485
"""A peer counts from here to HALF of the dense multiply-adds: the band of pruning_latency."""
MARGINS = (0.96, 0.92, 0.88)
"""Latency that the search may ask for, of the fastest peer's; the next where measuring refutes
what was predicted."""
CONFIRMED = 0.97
N_ELITES = 8
BATCH = 128
LEARNING_RATE = 1e-3
RECALIBRATION_PICTURES = 1024


@dataclass(frozen=True)
class Effort:
    """How much is done. *_pictures: None for all. dense_epochs: before, epochs: after pruning.

    every_peer: whether all are fine-tuned, or of each scope the one with the best proxy accuracy.
    """

    train_pictures: int | None
    test_pictures: int | None
    dense_epochs: int
    epochs: int
    samples: int
    proxy_pictures: int
    generations: int
    rounds: int
    every_peer: bool = False


QUICK = Effort(1280, 1000, 1, 1, 24, 256, 3, 5)
ON_CPU = Effort(None, None, 2, 4, 100, 1024, 60, 60)
ON_GPU = Effort(None, None, 20, 60, 100, 4096, 200, 60, every_peer=True)


class Run:
    """One run's options and what its stages share; everything on disk lies below folder."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.asked = asked
        self.folder = folder
        self.seed: int = asked.seed
        self.device = devices.chosen()
        self.effort = ON_GPU if self.device.type == "cuda" else ON_CPU
        if asked.quick:
            self.effort = QUICK
        if asked.epochs:
            self.effort = replace(self.effort, dense_epochs=asked.epochs[0], epochs=asked.epochs[1])
        settings = {"seed": self.seed, "device": self.device.type, **asdict(self.effort)}
        owner = folder / "settings.json"
        if not owner.exists():
            write_json(owner, settings)
        elif read_json(owner) != settings:
            raise CompilerError(
                f"{folder}: of a run with other settings. Next: name another --work"
            )

    @cached_property
    def splits(self) -> data.Splits:
        """Cut to the effort."""
        effort = self.effort
        limits = (effort.train_pictures, effort.test_pictures)
        return load(self.asked.data, self.folder, self.seed, *limits)

    @cached_property
    def space(self) -> PruneSpace:
        network = networks.build(NETWORK, self.seed)
        return trace(network, networks.input_shape(NETWORK), NETWORK, width_step=WIDTH_STEP)

    @cached_property
    def dense_macs(self) -> int:
        return self.space.macs(self.space.dense_widths)

    @cached_property
    def proxy(self) -> Proxy:
        pictures = self.effort.proxy_pictures
        return Proxy(self.network("dense"), self.space, self.splits, pictures)

    def path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '').replace(' ', '-')}.json"

    def network(self, name: str) -> nn.Module:
        """One that was saved, on the CPU."""
        network = resized(NETWORK, self.space, read_json(self.path(name))["widths"])
        weights.load_into(network, self.path(name).with_suffix(".safetensors"), name)
        return network

    def keep(self, name: str, network: nn.Module, facts: Mapping[str, Any]) -> None:
        """Weights first: where the facts stand, everything stands."""
        weights.save(network.state_dict(), self.path(name).with_suffix(".safetensors"))
        write_json(self.path(name), dict(facts))

    def fine_tune(self, name: str, network: nn.Module, widths: Sequence[int],
                  epochs: int, teacher: nn.Module | None = None) -> None:  # fmt: skip
        """Train, or distil where there is a teacher; the same for every network. Keeps it."""
        started = time.monotonic()

        def progress(done: int, total: int, figures: Mapping[str, float]) -> None:
            minutes = (time.monotonic() - started) / 60
            say(f"{name}: epoch {done}/{total}, {minutes:.1f} min, {dict(figures)}")

        settings = TrainSettings(
            epochs=epochs, lr=LEARNING_RATE, batch=BATCH, seed=self.seed, precision=precision()
        )
        checkpoint = Checkpoint(self.path(name).with_suffix(".training"), note=say)
        if teacher is None:
            result = train(network, self.splits, settings, progress, checkpoint)
        else:
            recalibrate_batch_norm(network, self.splits.train_x[:RECALIBRATION_PICTURES])
            result = distil(
                network, teacher, self.splits, settings, Distillation(), progress, checkpoint
            )
        network.to(self.device)
        facts = {
            "name": name,
            "widths": list(widths),
            "macs": self.space.macs(widths),
            "epochs": epochs,
            "seconds": time.monotonic() - started,
            "val_accuracy": result.val_accuracy,
            # In float32, as it is deployed.
            "test_accuracy": evaluate(network, self.splits.test_x, self.splits.test_y),
        }
        self.keep(name, network, facts)
        checkpoint.path.unlink()
        say(facts)


def samples(run: Run) -> None:
    """Latencies of sampled shapes on this machine, or those of a file."""
    if run.asked.latency_json is not None:
        document = read_json(run.asked.latency_json)
        for widths in document["widths"]:
            run.space.check(widths)
        write_json(run.path("samples"), {"widths": document["widths"], "ms": document["ms"]})
        return
    shapes = sample_widths(run.space, run.effort.samples, run.seed)
    named = {str(i): resized(NETWORK, run.space, shape) for i, shape in enumerate(shapes)}
    ms = _low_ms(interleaved_ms(named, run.space.input_shape, 6, 6))
    write_json(run.path("samples"), {"widths": shapes, "ms": [ms[name] for name in named]})


def dense(run: Run) -> None:
    """The published weights, made at home in this copy of the data."""
    network = networks.build(NETWORK, run.seed)
    weights.load_into(network, run.asked.weights, NETWORK)
    run.fine_tune("dense", network, run.space.dense_widths, run.effort.dense_epochs)


def dense_long(run: Run) -> None:
    """The dense network under the pruned ones' budget; it teaches them."""
    network = run.network("dense")
    run.fine_tune("dense-long", network, run.space.dense_widths, run.effort.epochs)


def contenders(run: Run) -> None:
    """torch-pruning's cuts, their proxy accuracy, and a first measurement."""
    rows: list[dict[str, Any]] = []
    limits = (EQUAL * run.dense_macs, HALF * run.dense_macs)
    for peer in peers(run.network("dense"), run.space, *limits, quick=run.asked.quick):
        facts = {"name": peer.name, "widths": peer.widths, "macs": peer.macs, "ratio": peer.ratio}
        run.keep(f"cut {peer.name}", peer.network, facts)
        rows.append({**facts, "proxy": run.proxy.of_network(peer.network)})
        say(rows[-1])
    if not rows:
        raise CompilerError("torch-pruning met half of the multiply-adds nowhere")
    named = {row["name"]: resized(NETWORK, run.space, row["widths"]) for row in rows}
    named["dense"] = resized(NETWORK, run.space, run.space.dense_widths)
    ms = _low_ms(interleaved_ms(named, run.space.input_shape, 12, 12))
    write_json(run.path("contenders"), {"rows": rows, "ms": ms})


def search(run: Run) -> None:
    """Ours: the best proxy accuracy among shapes that measure faster than every peer."""
    sampled, met = read_json(run.path("samples")), read_json(run.path("contenders"))
    fastest = min(met["rows"], key=lambda row: met["ms"][row["name"]])
    widths, ms = list(sampled["widths"]), list(sampled["ms"])
    # The two were measured at different times: both are told in dense networks.
    limit_ms = met["ms"][fastest["name"]] / met["ms"]["dense"] * ms[0]
    attempts = []
    for margin in MARGINS:
        fitted, predict = surrogate(run.space, widths, ms, run.seed)
        bounds = Bounds(HALF * run.dense_macs, margin * limit_ms)
        found = elites(
            run.space, predict, run.proxy, bounds, run.effort.generations, run.seed
        )[:N_ELITES]  # fmt: skip
        measured, peer_ms = _remeasured(run, found, fastest["widths"])
        attempts.append({
            "margin": margin, "cv_mape": fitted.cv_mape_, "family": fitted.family_,
            "found": [[e.widths, e.proxy, e.ms / limit_ms, m / peer_ms]
                      for e, m in zip(found, measured, strict=True)],
        })  # fmt: skip
        say(attempts[-1])
        faster = [e for e, m in zip(found, measured, strict=True) if m <= CONFIRMED * peer_ms]
        if faster:
            plan = {"widths": faster[0].widths, "proxy": faster[0].proxy, "attempts": attempts}
            plan["importance"] = run.proxy.importance
            plan["n_accuracy_evaluations"] = run.proxy.n_evaluations
            run.keep("plan", run.proxy.cut(faster[0].widths), plan)
            return
        widths += [list(elite.widths) for elite in found]
        ms += [m / peer_ms * limit_ms for m in measured]
    raise CompilerError(
        f"no shape was both predicted and measured faster than {fastest['name']}. "
        "Next: measure more samples at a quiet moment"
    )


def _remeasured(run: Run, found: Sequence[Elite], peer: Sequence[int]) -> tuple[list[float], float]:
    """Milliseconds of the elites, and of the fastest peer beside them."""
    named = {str(i): resized(NETWORK, run.space, e.widths) for i, e in enumerate(found)}
    named["peer"] = resized(NETWORK, run.space, peer)
    ms = _low_ms(interleaved_ms(named, run.space.input_shape, 12, 12))
    return [ms[str(i)] for i in range(len(found))], ms["peer"]


def tune(run: Run) -> None:
    """Ours and the chosen peers, each taught by the dense network for the same epochs."""
    rivals = chosen(read_json(run.path("contenders"))["rows"], run.effort.every_peer)
    cuts = {"fleetcut": "plan", **{name: f"cut {name}" for name in rivals}}
    teacher = run.network("dense-long")
    for name, cut in cuts.items():
        if not run.path(name).exists():
            widths = read_json(run.path(cut))["widths"]
            run.fine_tune(name, run.network(cut), widths, run.effort.epochs, teacher)
    write_json(run.path("tune"), {"tuned": list(cuts)})


def chosen(rows: Sequence[Mapping[str, Any]], every: bool) -> list[str]:
    """The peers to fine-tune: all, or of each scope the one with the best proxy accuracy."""
    if every:
        return [str(row["name"]) for row in rows]
    by_scope = [[row for row in rows if f" {scope} " in row["name"]] for scope in SCOPES]
    return [str(max(of, key=lambda row: row["proxy"])["name"]) for of in by_scope if of]


def timing(run: Run) -> None:
    """Every network in one loop, at the end."""
    named = {"dense": run.network("dense-long"), "fleetcut": run.network("fleetcut")}
    tuned = read_json(run.path("tune"))["tuned"]
    for row in read_json(run.path("contenders"))["rows"]:
        name = row["name"]
        named[name] = run.network(name if name in tuned else f"cut {name}")
    ms = interleaved_ms(named, run.space.input_shape, run.effort.rounds, 20)
    table = {n: {"median": float(np.median(v)), "p25": float(np.percentile(v, 25)),
                 "p75": float(np.percentile(v, 75))} for n, v in ms.items()}  # fmt: skip
    write_json(run.path("timing"), table)


STAGES: dict[str, tuple[Callable[[Run], None], str]] = {
    "samples": (samples, "samples"),
    "dense": (dense, "dense"),
    "long": (dense_long, "dense-long"),
    "contenders": (contenders, "contenders"),
    "search": (search, "plan"),
    "tune": (tune, "tune"),
    "timing": (timing, "timing"),
}
"""Name → what it does, and the document that says it is done."""


def table(run: Run) -> tuple[list[dict[str, Any]], list[Bar]]:
    """Rows and bars from the stages' documents."""
    met, ms = read_json(run.path("contenders")), read_json(run.path("timing"))
    plan, tuned = read_json(run.path("plan")), read_json(run.path("tune"))["tuned"]
    proxies = {"fleetcut": plan["proxy"], **{r["name"]: r["proxy"] for r in met["rows"]}}
    macs = {row["name"]: row["macs"] for row in met["rows"]}
    rows = []
    for name, taken in ms.items():
        facts = read_json(run.path("dense-long" if name == "dense" else name)) if (
            name == "dense" or name in tuned) else None  # fmt: skip
        rows.append({
            "network": name,
            "macs_share": (facts["macs"] if facts else macs[name]) / run.dense_macs,
            "ms": taken["median"], "ms_p25": taken["p25"], "ms_p75": taken["p75"],
            "proxy": proxies.get(name),
            "test_accuracy": facts["test_accuracy"] if facts else None,
            "epochs": run.effort.dense_epochs + run.effort.epochs if facts else None,
            "train_minutes": facts["seconds"] / 60 if facts else None,
            "seed": run.seed, "device": run.device.type,
        })  # fmt: skip
    before = read_json(run.path("dense"))["test_accuracy"]
    say(f"dense after {run.effort.dense_epochs} epochs alone: {before:.4f}")
    ours = next(row for row in rows if row["network"] == "fleetcut")
    parent = next(row for row in rows if row["network"] == "dense")
    others = [row for row in rows if row["network"] not in ("fleetcut", "dense")]
    best = max(row["test_accuracy"] for row in others if row["test_accuracy"] is not None)
    return rows, [
        Bar("multiply-adds, of dense", ours["macs_share"], "<=", HALF),
        Bar("median ms, against the fastest of torch-pruning", ours["ms"], "<",
            min(row["ms"] for row in others)),
        Bar("accuracy in %, against dense fine-tuned as long less 0.5",
            100 * ours["test_accuracy"], ">=", 100 * parent["test_accuracy"] - 0.5),
        Bar("accuracy in %, against the best of torch-pruning",
            100 * ours["test_accuracy"], ">=", 100 * best),
    ]  # fmt: skip


def _low_ms(ms: Mapping[str, Any]) -> dict[str, float]:
    """The lower quartile: other work on the machine only ever adds time."""
    return {name: float(np.percentile(values, 25)) for name, values in ms.items()}


def say(what: object) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    asking = parser(__doc__)
    asking.add_argument("--data", type=Path, default=SHARED / "cifar10-jpg")
    asking.add_argument(
        "--weights", type=Path, default=SHARED / "resnet-cifar10/resnet56-4bfd9763.th"
    )
    asking.add_argument("--work", type=Path, help="keep and resume every stage here")
    asking.add_argument("--until", choices=STAGES, help="stop after this stage")
    asking.add_argument("--latency-json", type=Path, help='{"widths": [...], "ms": [...]}')
    asking.add_argument("--epochs", type=int, nargs=2, metavar=("DENSE", "AFTER"))
    asking.add_argument("--seed", type=int, default=0)
    return asking.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    asked = options(argv)
    missing = absent(asked.data, asked.weights)
    if missing is not None:
        print(f"pruning_accuracy skipped: {missing}. Next: name them with --data and --weights")
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-") as temporary:
        folder: Path = asked.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            run = Run(asked, folder)
            for name, (stage, document) in STAGES.items():
                if not run.path(document).exists():
                    say(f"stage {name}")
                    stage(run)
                if name == asked.until:
                    return 0
        except CompilerError as error:
            print(f"pruning_accuracy: {error}", file=sys.stderr)
            return 1
        rows, bars = table(run)
        return finish("pruning_accuracy", rows, bars, asked.json)


if __name__ == "__main__":
    sys.exit(main())
