"""A path on trial: with times inside its interval, and pairs of points that are valid on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.paths import PathSample, ProbabilityPath
from fmkit.testing.randomness import preserved, seeded
from fmkit.testing.report import NotChecked

SamplePair = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def normal_pair(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Independent standard normal points, `(n, 3)` each."""
    x0, x1 = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    return x0, x1


def sphere_pair(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Independent uniform points of the unit sphere, `(n, 3)` each."""
    x0, x1 = (x / x.norm(dim=1, keepdim=True) for x in normal_pair(n, generator))
    return x0, x1


def torus_pair(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Independent uniform angles in [0, 2 pi), `(n, 3)` each."""
    x0, x1 = 2 * math.pi * torch.rand(2, n, 3, generator=generator, dtype=torch.float64)
    return x0, x1


@dataclass(frozen=True)
class Trial:
    """A path, and pairs of points that are valid on it."""

    path: ProbabilityPath
    pair: SamplePair
    refusal: str = ""

    @staticmethod
    @preserved()
    def of(path: ProbabilityPath, sample_pair: SamplePair | None = None) -> Trial:
        """With the points given, or else the first that the path takes: of space, the unit sphere, or a torus."""
        if not isinstance(path, ProbabilityPath):
            raise ArgumentError(f"got a {type(path).__name__}, expected a ProbabilityPath")
        if sample_pair is not None:
            return Trial(path, sample_pair)
        pairs: list[SamplePair] = (
            [normal_pair, sphere_pair, torus_pair] if path.euclidean else [sphere_pair, torus_pair]
        )
        answers = {pair: Trial(path, pair)._answer() for pair in pairs}
        if all(answers.values()):
            return Trial(path, pairs[0], f"it refuses the kit's points ({answers[pairs[0]]}); hand it a sample_pair")
        return Trial(path, next((pair for pair, said in answers.items() if said is None), pairs[0]))

    def _answer(self) -> str | None:
        """What the path says against its points: a refusal, nothing ("") where it fails otherwise, None if it works."""
        try:
            return None if bool(torch.isfinite(self.at(self.middle, *self.points(4))).all()) else ""
        except ArgumentError as error:
            return str(error)
        except Exception:
            return ""

    @property
    def middle(self) -> float:
        return sum(self.path.interval) / 2

    def points(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        if self.refusal:
            raise NotChecked(self.refusal)
        x0, x1 = self.pair(n, seeded(seed))
        return x0.double(), x1.double()

    def times(self, n: int, margin: float = 0.02, seed: int = 10) -> Tensor:
        """Times inside the interval, in order, a margin away from its ends."""
        low, high = self.path.interval
        u = torch.rand(n, generator=seeded(seed), dtype=torch.float64).sort().values
        return low + (high - low) * (margin + (1 - 2 * margin) * u)

    def sample(self, t: Any, x0: Tensor, x1: Tensor, seed: int = 20) -> PathSample:
        return self.path.sample(t, x0, x1, generator=seeded(seed))

    def at(self, t: Any, x0: Tensor, x1: Tensor, seed: int = 20) -> Tensor:
        return self.sample(t, x0, x1, seed).x

    def velocity(self, point: PathSample) -> Tensor:
        if point.velocity is None:
            raise NotChecked("the path's state has no velocity")
        return point.velocity
