"""Negatively correlated search: a few searches at once, each kept away from where the others look.

Input: feasible points of the unit cube and their fitness, then the fitness of what ask() gives.
Output: trials, and which of them are worth a costly check. It knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class NegativelyCorrelatedSearch:
    """Ask and tell (Tang, Yang, Yao, "Negatively correlated search", IEEE JSAC 2016, NCS-C).

    Each individual searches by itself with a Gaussian around it; a trial replaces its parent when
    it is better, or far from where the others search: ``fitness < λ · diversity`` with both
    normalised between parent and trial and λ ~ N(1, 0.1·(1 - t/T)). Lower fitness is better.

    x: (population, n_dims), values in 0..1, feasible; fitness: (population,), finite. generations:
    T, over which λ grows certain. sigma: first step size. epoch: generations between changes of
    the step size by step_factor, up where more than a fifth of the trials were accepted.
    """

    def __init__(
        self,
        x: FloatArray,
        fitness: FloatArray,
        rng: np.random.Generator,
        *,
        generations: int,
        sigma: float = 0.2,
        epoch: int = 5,
        step_factor: float = 0.8,
    ) -> None:
        self.x = x.copy()
        self.fitness = fitness.copy()
        self.generation = 0
        self._rng = rng
        self._generations = generations
        self._epoch = epoch
        self._step_factor = step_factor
        self._sigma = np.full(len(x), sigma)
        self._successes = np.zeros(len(x), dtype=np.int64)

    @property
    def state(self) -> dict[str, Any]:
        """Plain data: all that changes, but the generator, which is its owner's."""
        return {
            "x": self.x.tolist(),
            "fitness": self.fitness.tolist(),
            "generation": self.generation,
            "sigma": self._sigma.tolist(),
            "successes": self._successes.tolist(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """As it was when state was taken."""
        self.x = np.array(state["x"], dtype=np.float64)
        self.fitness = np.array(state["fitness"], dtype=np.float64)
        self.generation = int(state["generation"])
        self._sigma = np.array(state["sigma"], dtype=np.float64)
        self._successes = np.array(state["successes"], dtype=np.int64)

    def ask(self) -> FloatArray:
        """One trial an individual, (population, n_dims): x + sigma·N(0, 1), clipped to 0..1."""
        step = self._rng.standard_normal(self.x.shape) * self._sigma[:, None]
        return np.asarray(np.clip(self.x + step, 0, 1))

    def worth(self, trials: FloatArray, fitness: FloatArray) -> BoolArray:
        """Which trials would replace their parent if they are feasible, (population,).

        Only of these the costly question of accuracy need be asked. trials: as asked, perhaps
        repaired. fitness: (population,); inf is never worth it.
        """
        progress = self.generation / self._generations
        weight = self._rng.normal(1, 0.1 * (1 - progress), len(self.x))
        usable = np.isfinite(fitness)
        lowest = min(self.fitness.min(), fitness.min())
        ours = self.fitness - lowest
        theirs = np.where(usable, fitness - lowest, 0)
        far, own_far = self._diversity(trials), self._diversity(self.x)
        # f'/(f + f') < λ·d'/(d + d'), without dividing by zero.
        accepted = theirs * (own_far + far) < weight * far * (ours + theirs)
        return np.asarray(usable & accepted)

    def tell(self, trials: FloatArray, fitness: FloatArray, accepted: BoolArray) -> None:
        """Replace the parents of accepted trials (population,); adapt sigma at an epoch's end."""
        self.x[accepted] = trials[accepted]
        self.fitness[accepted] = fitness[accepted]
        self._successes += accepted
        self.generation += 1
        if self.generation % self._epoch == 0:
            fifth = self._epoch / 5
            self._sigma[self._successes > fifth] /= self._step_factor
            self._sigma[self._successes < fifth] *= self._step_factor
            # Smaller steps change no legal width, larger ones are clipped.
            self._sigma = np.clip(self._sigma, 0.01, 0.5)
            self._successes[:] = 0

    def _diversity(self, points: FloatArray) -> FloatArray:
        """Smallest Bhattacharyya distance of each point's Gaussian to the other individuals'.

        For N(a, s²I) and N(b, t²I): |a - b|²/(4(s² + t²)) + n/2 · ln((s² + t²)/(2·s·t)).
        """
        squares = ((points[:, None, :] - self.x[None, :, :]) ** 2).sum(axis=2)
        variance = self._sigma[:, None] ** 2 + self._sigma[None, :] ** 2
        product = 2 * self._sigma[:, None] * self._sigma[None, :]
        distance = squares / (4 * variance) + points.shape[1] / 2 * np.log(variance / product)
        np.fill_diagonal(distance, np.inf)
        return np.asarray(distance.min(axis=1))
