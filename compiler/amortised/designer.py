"""The two networks as one thing that is trained once, kept on disk and asked for designs.

Input: a PruneSpace, boards with measured shapes, an AccuracyModel. Output: Designer; from a
board's features and a bound, a Design: legal widths, scored again, or FallsShortError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compiler import weights
from compiler.amortised.accuracy import AccuracyModel
from compiler.amortised.device import DeviceFeatures, as_documents, from_document
from compiler.amortised.optimizer import (
    Effort,
    Lessons,
    Watch,
    WidthOptimizer,
    train_optimizer,
    train_predictor,
)
from compiler.amortised.predictor import KnownDevices, PairPredictor, pair_ms
from compiler.amortised.shapes import ShapeCosts
from compiler.amortised.spread import Spread
from compiler.errors import CompilerError
from compiler.pruning.judge import as_widths
from compiler.pruning.widths import PruneSpace, Widths
from compiler.sampling import decode
from compiler.work import read_json, write_json

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Rescore = Callable[[IntArray], FloatArray]
"""Widths (n, n_groups) → ms (n,): the board's own surrogate, where it has one; inf refuses."""

CANDIDATES = 512
"""Targets that the optimizer is asked for at once; legal widths are rounded, so some are lucky."""
MOST_SPREADS = 4.0
"""Spreads of the simulated boards around their mean within which a device's features are known."""
MOST_DISAGREEMENT = 0.15
"""Of predictor and the board's own surrogate, a fraction, beyond which neither is followed."""


class FallsShortError(CompilerError):
    """No design without a search; the message says why."""


@dataclass(frozen=True)
class Design:
    """Legal widths for one board. predicted_ms: by rescore where given, else by the predictor.

    accuracy: as judged, or else of the AccuracyModel less its usual error; a fraction. dense_ms: of
    the dense shape, from the same source.
    """

    widths: Widths
    predicted_ms: float
    accuracy: float
    dense_ms: float


@dataclass(frozen=True)
class _Scored:
    """Candidates: widths (n, n_groups), ms (n,), accuracy (n,); and the dense shape's ms."""

    widths: IntArray
    ms: FloatArray
    accuracy: FloatArray
    dense_ms: float


class Designer:
    """Answers in milliseconds for any board in the range that it was trained on."""

    def __init__(
        self,
        space: PruneSpace,
        known: KnownDevices,
        accuracy: AccuracyModel,
        spread: Spread,
        judged: Mapping[Widths, float],
    ) -> None:
        """judged: shapes whose accuracy is known; they are candidates for every board."""
        self.space = space
        self.known = known
        self.accuracy = accuracy
        self.spread = spread
        self.judged = dict(judged)
        self._shapes = ShapeCosts(space)
        self._predictor = PairPredictor(known)
        self._optimizer = WidthOptimizer(self._shapes)

    def train(self, effort: Effort, seed: int, watch: Watch) -> Designer:
        """Both networks, from weights drawn by the seed; the predictor first, then frozen."""
        torch.manual_seed(seed)
        self._predictor = PairPredictor(self.known)
        train_predictor(self._predictor, self._lessons(effort, seed, watch))
        return self.learn_accuracy(self.accuracy, self.judged, effort, seed, watch)

    def learn_accuracy(
        self,
        accuracy: AccuracyModel,
        judged: Mapping[Widths, float],
        effort: Effort,
        seed: int,
        watch: Watch,
    ) -> Designer:
        """The optimizer anew, for what is known of accuracy by now; the predictor stays."""
        torch.manual_seed(seed)
        self.accuracy, self.judged = accuracy, dict(judged)
        self._optimizer = WidthOptimizer(self._shapes)
        lessons = self._lessons(effort, seed, watch)
        train_optimizer(self._optimizer, self._predictor, accuracy, lessons)
        return self

    def _lessons(self, effort: Effort, seed: int, watch: Watch) -> Lessons:
        return Lessons(self._shapes, self.known, self.spread, effort, seed, watch)

    def predict_ms(self, device: DeviceFeatures, widths: IntArray) -> FloatArray:
        """The predictor's latency of shapes (n, n_groups) on a board, (n,)."""
        with torch.no_grad():
            costs = self._predictor.device_costs(torch.tensor(device.vector())[None])
            found = pair_ms(costs, self._shapes.exact(torch.tensor(widths)))
        return np.asarray(found.numpy())

    def accuracy_of(self, widths: IntArray) -> FloatArray:
        """Of shapes (n, n_groups), (n,): as judged, or else of the model less its usual error."""
        kept = torch.tensor(widths, dtype=torch.float64) / self._shapes.dense_widths
        found = np.asarray(self.accuracy.accuracy(kept).numpy()) - self.accuracy.cv_error
        for row, shape in enumerate(map(tuple, widths.tolist())):
            found[row] = self.judged.get(shape, found[row])
        return found

    def most_accurate(
        self, device: DeviceFeatures, latency_ms: float, rescore: Rescore | None = None
    ) -> Design:
        """The best accuracy within latency_ms. Raises FallsShortError, as fastest does."""
        found = self._scored_candidates(device, rescore)
        asked = f"{latency_ms:g} ms; the fastest takes {found.ms.min():.4g} ms"
        return self._best(device, found, found.ms <= latency_ms, -found.accuracy, asked)

    def fastest(
        self, device: DeviceFeatures, least_accuracy: float, rescore: Rescore | None = None
    ) -> Design:
        """The lowest latency of at least least_accuracy, a fraction.

        The optimizer's answers are rounded to legal widths and scored again, by rescore where the
        board has a surrogate of its own. Raises FallsShortError where none keeps the bound, the
        board is unlike those that were learned from, or predictor and rescore disagree.
        """
        found = self._scored_candidates(device, rescore)
        asked = f"an accuracy of {least_accuracy:.4f}; the best has {found.accuracy.max():.4f}"
        fits = np.isfinite(found.ms) & (found.accuracy >= least_accuracy)
        return self._best(device, found, fits, found.ms, asked)

    def _best(
        self,
        device: DeviceFeatures,
        found: _Scored,
        fits: NDArray[np.bool_],
        score: FloatArray,
        asked: str,
    ) -> Design:
        if not fits.any():
            raise FallsShortError(f"{device.name}: no design keeps {asked}. Next: search")
        best = int(np.flatnonzero(fits)[np.argmin(score[fits])])
        return Design(
            widths=as_widths(found.widths[best]),
            predicted_ms=float(found.ms[best]),
            accuracy=float(found.accuracy[best]),
            dense_ms=found.dense_ms,
        )

    def _scored_candidates(self, device: DeviceFeatures, rescore: Rescore | None) -> _Scored:
        self._require_known(device)
        known = np.array(list(self.judged), dtype=np.int64).reshape(-1, len(self.space.groups))
        widths = np.unique(np.concatenate([self.candidates(device.vector()), known]), axis=0)
        dense = np.asarray([self.space.dense_widths], dtype=np.int64)
        ms = self._scored(device, np.concatenate([widths, dense]), rescore)
        return _Scored(widths, ms[:-1], self.accuracy_of(widths), float(ms[-1]))

    def _require_known(self, device: DeviceFeatures) -> None:
        with torch.no_grad():
            vector = torch.tensor(device.vector())[None]
            away = self._predictor.standardised(vector)[0].abs().max()
        same = any(known.runtime == device.runtime for known in self.known.devices)
        if not same or float(away) > MOST_SPREADS:
            fact = (
                f"{float(away):.1f} spreads from the boards it was trained on"
                if same
                else f"no board that runs {device.runtime} was among those it was trained on"
            )
            raise FallsShortError(f"{device.name}: {fact}. Next: search")

    def candidates(self, vector: FloatArray) -> IntArray:
        """Legal shapes over the whole range of targets, each once, (n, n_groups), unscored.

        vector: of one device, (N_FEATURES,).
        """
        with torch.no_grad():
            known = self._predictor.standardised(torch.tensor(vector)[None]).expand(CANDIDATES, -1)
            kept = self._optimizer(known, torch.linspace(0, 1, CANDIDATES, dtype=torch.float64))
        return np.asarray(np.unique(decode(self.space, kept.numpy()), axis=0))

    def _scored(
        self, device: DeviceFeatures, widths: IntArray, rescore: Rescore | None
    ) -> FloatArray:
        predicted = self.predict_ms(device, widths)
        if rescore is None:
            return predicted
        ms = rescore(widths)
        usual = np.isfinite(ms)
        apart = float(np.median(np.abs(predicted[usual] / ms[usual] - 1))) if usual.any() else 0.0
        if apart > MOST_DISAGREEMENT:
            raise FallsShortError(
                f"{device.name}: predictor and surrogate are {apart:.0%} apart. Next: search"
            )
        return ms

    def save(self, folder: Path) -> None:
        """FOLDER/designer.json and designer.safetensors; nothing is pickled."""
        state = {f"predictor.{k}": v for k, v in self._predictor.state_dict().items()}
        state |= {f"optimizer.{k}": v for k, v in self._optimizer.state_dict().items()}
        weights.save(state, folder / "designer.safetensors")
        write_json(
            folder / "designer.json",
            {
                "space": json.loads(self.space.to_json()),
                "devices": as_documents(self.known.devices),
                "accuracy": asdict(self.accuracy),
                "spread": asdict(self.spread),
                "judged": [[list(widths), accuracy] for widths, accuracy in self.judged.items()],
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Designer:
        """Raises CompilerError naming the file."""
        path = folder / "designer.json"
        document = read_json(path)
        try:
            space = PruneSpace.from_json(json.dumps(document["space"]))
            devices = tuple(from_document(device) for device in document["devices"])
            accuracy = AccuracyModel(
                **{
                    **document["accuracy"],
                    "loss": tuple(map(tuple, document["accuracy"]["loss"])),
                }
            )
            spread = Spread(**document["spread"])
            judged = {tuple(map(int, w)): float(value) for w, value in document["judged"]}
        except (KeyError, TypeError, ValueError) as error:
            raise CompilerError(
                f"{path}: is not a designer ({error}). Next: fleetcut compile --mode amortised"
            ) from None
        state = weights.load(folder / "designer.safetensors")
        costs = state["predictor.costs"]
        known = KnownDevices(devices, costs, state["predictor.part_of"])
        designer = cls(space, known, accuracy, spread, judged)
        designer._predictor.load_state_dict(_under(state, "predictor."))
        designer._optimizer.load_state_dict(_under(state, "optimizer."))
        designer._predictor.eval().requires_grad_(False)
        designer._optimizer.eval().requires_grad_(False)
        return designer


def _under(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
