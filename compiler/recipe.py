"""recipe.yaml: what is compiled, for which targets, within which bounds.

Input: plain data from YAML. Output: Recipe, frozen, with a hash that names everything made by it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compiler.targets.board_file import (
    CPU_PATTERN,
    LIBC_PATTERN,
    NAME_PATTERN,
    PRECISIONS,
    RUNTIME_OF_KIND,
    Kind,
    Precision,
    Runtime,
    TargetFileError,
    kinds_of,
    load_board,
)
from device_agents.contract import Target

LEAST_TRAINING_SHAPES = 10
"""Below it a surrogate cannot be cross-validated."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Training(_Part):
    """How a network is trained. learning_rate is the peak of a one-cycle schedule.

    epochs: 0 leaves a dense network's starting weights as they are, where a file gives them.
    checkpoint_epochs: between two checkpoints, from which a killed training goes on. precision:
    auto is fp32 on a CPU, mixed on a GPU; bf16 is mixed on a CPU too, where it has such units.
    """

    epochs: int = Field(default=12, ge=0, examples=[12])
    batch_size: int = Field(default=64, ge=2, examples=[64])
    learning_rate: float = Field(default=0.01, gt=0, examples=[0.01])
    checkpoint_epochs: int = Field(default=1, ge=1, examples=[1])
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", examples=["auto"])


class Measuring(_Part):
    """What is measured where.

    anchor_repeats: runs of each anchor on each board, sample_repeats of each shape on a
    representative; of two the faster counts, from three on their median. samples: width vectors
    measured for each network on each representative; held_out of them judge the surrogate and
    never train it.
    samples_max, max_seconds, ci_fraction: when the timed loop of a run ends.
    board_minutes: of timed inferences on all boards together, after which no more elites are
    measured; none for any. Anchors, ladders and samples are always measured whole.
    """

    anchor_repeats: int = Field(default=3, ge=1, examples=[3])
    sample_repeats: int = Field(default=2, ge=1, examples=[2])
    samples: int = Field(default=40, ge=8, examples=[40])
    held_out: int = Field(default=8, ge=2, examples=[8])
    samples_max: int = Field(default=1000, ge=10, examples=[1000])
    max_seconds: float = Field(default=1.0, gt=0, examples=[1.0])
    ci_fraction: float = Field(default=0.005, gt=0, lt=1, examples=[0.005])
    timeout_s: float = Field(default=60.0, gt=0, examples=[60.0])
    board_minutes: float | None = Field(default=None, gt=0, examples=[30.0])

    @field_validator("held_out")
    @classmethod
    def _leaves_enough_to_learn_from(cls, held_out: int, info: ValidationInfo) -> int:
        samples = info.data.get("samples")
        if samples is not None and samples - held_out < LEAST_TRAINING_SHAPES:
            raise ValueError(
                f"{samples} samples less {held_out} held out leave fewer than "
                f"{LEAST_TRAINING_SHAPES} shapes to learn from"
            )
        return held_out


class Search(_Part):
    """Bounds of the pruning search; fractions of the held-out set, 0.01 is one point.

    max_accuracy_drop bounds the finished network, proxy_accuracy_drop the search's quick proxy,
    which is judged before fine-tuning and so loses more. rounds of search, cut and fine-tuning:
    the proxy's drop is shared among them, every other number here and all fine-tuning epochs are
    each round's own; the last round that keeps max_accuracy_drop is taken.
    remeasure: how often the best shapes found so far, elites of each network, are measured on the
    representatives and learned from before the last search; 0 trusts the surrogates alone, and no
    more follow once the favourites measure within 3 % of their predictions.
    objective: the fleet's mean latency, its 95th percentile over the boards, or the share of boards
    within slo_ms. slo_ms: network → ms of one inference; needed for slo, else it is only reported.
    """

    population: int = Field(default=5, ge=2, examples=[5])
    generations: int = Field(default=60, ge=1, examples=[60])
    max_accuracy_drop: float = Field(default=0.01, ge=0, lt=1, examples=[0.01])
    max_accuracy_evaluations: int = Field(default=120, ge=1, examples=[120])
    proxy_accuracy_drop: float = Field(default=0.25, ge=0, lt=1, examples=[0.25])
    rounds: int = Field(default=1, ge=1, examples=[1])
    remeasure: int = Field(default=1, ge=0, examples=[1])
    elites: int = Field(default=4, ge=1, examples=[4])
    objective: Literal["mean", "p95", "slo"] = Field(default="mean", examples=["mean"])
    slo_ms: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, examples=["{digits_resnet: 20.0}"]
    )


class Switchable(_Part):
    """Of mode switchable. ratios: shares of each group's channels that go, from 0 on, ascending.

    freq_khz: clocks at which the representatives measure every sub-network; two at least, for a
    law of latency over the clock, and the highest sets the target. target_ms: network → latency to
    hold; without it that of the widest sub-network at the highest clock. training: of all
    sub-networks together, after the dense network's own.
    """

    ratios: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        default=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        strict=False,
        min_length=2,
        examples=["[0.0, 0.25, 0.5]"],
    )
    freq_khz: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(), strict=False, examples=["[600000, 1000000, 1500000]"]
    )
    target_ms: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict, examples=["{digits_resnet: 20.0}"]
    )
    training: Training = Field(
        default=Training(epochs=10, learning_rate=0.005), examples=["{epochs: 10}"]
    )

    @field_validator("training")
    @classmethod
    def _trains(cls, training: Training) -> Training:
        if training.epochs == 0:
            raise ValueError("sub-networks need one epoch together at least")
        return training


class Amortised(_Part):
    """Of mode amortised. boards: simulated around the measured ones, from which the designer's two
    networks learn; steps: of gradient descent, for each of the two.
    """

    boards: int = Field(default=4096, ge=16, examples=[4096])
    steps: int = Field(default=3000, ge=10, examples=[3000])


class RecipeTarget(_Part):
    """The binaries to make of every network for one kind of board.

    target: a packaged board or a file (compiler.targets.board_file), whose keys stand where this
    entry has none, and whose every form is made unless kind or precision choose. Without it the
    board is spelled out. kind: "all" is every form whose runtime the board has. runtimes: the
    runtimes there are, with their oldest versions; none given is any.
    """

    target: str | None = Field(default=None, examples=["raspberry-pi-4-64"])
    kind: Kind | Literal["all"] = Field(examples=["onnx"])
    precision: Precision | Literal["all"] = Field(default="fp32", examples=["int8"])
    name: str = Field(pattern=NAME_PATTERN, examples=["pi4-64"])
    machine: str = Field(examples=["aarch64"])
    cpu: str = Field(default="", pattern=CPU_PATTERN, examples=["cortex-a72"])
    libc: str = Field(default="", pattern=LIBC_PATTERN, examples=["glibc 2.31"])
    os: Literal["linux"] = Field(default="linux", examples=["linux"])
    threads: int = Field(default=1, ge=1, examples=[1])
    runtimes: dict[Runtime, str] = Field(default_factory=dict, examples=["{ort: 1.19.2}"])

    @model_validator(mode="before")
    @classmethod
    def _stands_on_its_board(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("target"), str):
            return data
        try:
            board = load_board(data["target"])
        except TargetFileError as error:
            raise ValueError(str(error)) from None
        facts = board.model_dump(exclude={"version"})
        return {"kind": "all", "precision": "all", **facts, **data}

    @model_validator(mode="after")
    def _has_the_runtime(self) -> RecipeTarget:
        if self.kind != "all" and self.runtimes and RUNTIME_OF_KIND[self.kind] not in self.runtimes:
            raise ValueError(
                f"{self.name} has no {RUNTIME_OF_KIND[self.kind]}, which {self.kind} needs; its "
                f"runtimes are {', '.join(sorted(self.runtimes))}"
            )
        return self

    def forms(self) -> tuple[tuple[Kind, Target], ...]:
        """Each binary asked for: its kind and what it is built for, fp32 before int8."""
        kinds = kinds_of(self.machine, self.runtimes) if self.kind == "all" else (self.kind,)
        precisions = PRECISIONS if self.precision == "all" else (self.precision,)
        return tuple(
            (kind, self._target(RUNTIME_OF_KIND[kind], precision))
            for precision in precisions
            for kind in kinds
        )

    def _target(self, runtime: Runtime, precision: Precision) -> Target:
        return Target(
            name=self.name,
            machine=self.machine,
            os=self.os,
            runtime=runtime,
            precision=precision,
            threads=self.threads,
            cpu=self.cpu,
            libc=self.libc,
            runtime_version=self.runtimes.get(runtime, ""),
        )


Mode = Literal["mean", "switchable", "amortised"]


class Recipe(_Part):
    """Everything that decides what comes out, besides the measurements.

    mode: how a network's shape is found. mean: a search for the whole fleet (arXiv 2501.15240).
    switchable: one weight set at several widths, of which the board runs the one that holds its
    latency at the present clock (arXiv 2212.05122); ``search`` is not used.
    amortised: by networks taught from the same measurements, which answer for further boards in
    milliseconds (arXiv 2009.00278); a search where they fall short.
    dataset: digits, cifar10:PATH or imagefolder:PATH. weights: network → file of starting weights
    (safetensors, or a torch file of plain tensors). Paths are relative to where fleetcut runs.
    width_step: legal widths are its multiples; without it they are learned from ladders of widths
    that the representatives measure. min_width_fraction: of a group's dense width.
    """

    version: Literal[1] = Field(examples=[1])
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$", examples=["lab"])
    mode: Mode = Field(default="mean", examples=["mean"])
    dataset: str = Field(default="digits", examples=["digits"])
    networks: tuple[str, ...] = Field(min_length=1, strict=False, examples=["[digits_resnet]"])
    weights: dict[str, str] = Field(
        default_factory=dict, examples=["{resnet56: weights/resnet56.safetensors}"]
    )
    seed: int = Field(default=0, ge=0, examples=[0])
    runtime: Literal["ort", "tflite"] = Field(default="ort", examples=["ort"])
    threads: int = Field(default=1, ge=1, examples=[1])
    width_step: int | None = Field(default=None, ge=1, examples=[8])
    min_width_fraction: float = Field(default=0.125, gt=0, le=1, examples=[0.125])
    training: Training = Field(default=Training(), examples=["{epochs: 12}"])
    fine_tuning: Training = Field(
        default=Training(epochs=10, learning_rate=0.005), examples=["{epochs: 10}"]
    )
    measuring: Measuring = Field(default=Measuring(), examples=["{samples: 40}"])
    search: Search = Field(default=Search(), examples=["{generations: 20}"])
    switchable: Switchable = Field(
        default=Switchable(),
        validate_default=True,
        examples=["{freq_khz: [600000, 1500000]}"],
    )
    amortised: Amortised = Field(default=Amortised(), examples=["{steps: 3000}"])
    targets: tuple[RecipeTarget, ...] = Field(
        min_length=1, strict=False, examples=["[{kind: onnx, name: pi4-64, machine: aarch64}]"]
    )

    @field_validator("targets")
    @classmethod
    def _lets_int8_compete(cls, targets: tuple[RecipeTarget, ...]) -> tuple[RecipeTarget, ...]:
        forms = [target for asked in targets for _, target in asked.forms()]
        machines = {target.machine for target in forms if target.precision == "fp32"}
        for target in forms:
            if target.precision == "int8" and target.machine not in machines:
                raise ValueError(
                    f"int8 for {target.name} ships where it is faster than fp32, of which no "
                    f"target for {target.machine} is asked; precision: all asks for both"
                )
        return targets

    @field_validator("weights")
    @classmethod
    def _start_networks_of_this_recipe(
        cls, weights: dict[str, str], info: ValidationInfo
    ) -> dict[str, str]:
        networks = info.data.get("networks")
        for name in weights:
            if networks is not None and name not in networks:
                raise ValueError(f"weights for {name}, which is not among the networks")
        return weights

    @field_validator("training")
    @classmethod
    def _trains_what_has_no_weights(cls, training: Training, info: ValidationInfo) -> Training:
        bare = set(info.data.get("networks", ())) - set(info.data.get("weights", ()))
        if training.epochs == 0 and bare:
            raise ValueError(f"0 epochs leave {sorted(bare)[0]} with random weights")
        return training

    @field_validator("fine_tuning")
    @classmethod
    def _fine_tunes(cls, fine_tuning: Training) -> Training:
        if fine_tuning.epochs == 0:
            raise ValueError("a cut network needs one epoch at least")
        return fine_tuning

    @field_validator("switchable")
    @classmethod
    def _knows_its_clocks(cls, switchable: Switchable, info: ValidationInfo) -> Switchable:
        for name in switchable.target_ms:
            if name not in info.data.get("networks", (name,)):
                raise ValueError(f"target_ms of {name}, which is not among the networks")
        if info.data.get("mode") == "switchable":
            if len(set(switchable.freq_khz)) < 2:
                raise ValueError("mode switchable needs two clocks at least in freq_khz")
            if info.data.get("runtime") != "ort":
                raise ValueError("mode switchable needs runtime: ort")
        return switchable

    @field_validator("search")
    @classmethod
    def _knows_every_slo(cls, search: Search, info: ValidationInfo) -> Search:
        networks = info.data.get("networks")
        if networks is None:
            return search
        for name in search.slo_ms:
            if name not in networks:
                raise ValueError(f"slo_ms of {name}, which is not among the networks")
        for name in networks:
            if search.objective == "slo" and name not in search.slo_ms:
                raise ValueError(f"objective slo needs slo_ms of {name}")
        return search

    def forms(self) -> tuple[tuple[Kind, Target], ...]:
        """Each binary that is made of every network, in the order of the targets."""
        return tuple(form for target in self.targets for form in target.forms())

    def sha256(self) -> str:
        """Hash of the content, independent of the file's layout."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()
