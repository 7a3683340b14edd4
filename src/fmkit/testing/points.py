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


def _pair(draw: Callable[..., Tensor], *event: int) -> SamplePair:
    """Two independent batches of what `draw` makes of standard normal numbers `(n, *event)`."""

    def pair(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x0, x1 = (draw(z) for z in torch.randn(2, n, *event, generator=generator, dtype=torch.float64))
        return x0, x1

    return pair


def _unit(z: Tensor) -> Tensor:
    return z / z.norm(dim=1, keepdim=True)


def _angles(z: Tensor) -> Tensor:
    return 2 * math.pi * torch.special.ndtr(z)


def _rotations(z: Tensor) -> Tensor:
    q, r = torch.linalg.qr(z)
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    return torch.cat([q[..., :-1], q[..., -1:] * torch.linalg.det(q)[:, None, None]], 2)


def _hyperboloid(z: Tensor) -> Tensor:
    return torch.cat([torch.sqrt(1 + z.square().sum(1, keepdim=True)), z], 1)


def _positive(z: Tensor) -> Tensor:
    return z @ z.mT + torch.eye(z.shape[-1], dtype=z.dtype)


def _same(z: Tensor) -> Tensor:
    return z


normal_pair = _pair(_same, 3)
sphere_pair = _pair(_unit, 3)
torus_pair = _pair(_angles, 3)
# Tried in this order: points of space, of the sphere, of a torus; then what a path may insist on.
CANDIDATES: tuple[SamplePair, ...] = (
    normal_pair,
    sphere_pair,
    torus_pair,
    _pair(torch.special.ndtr, 3),  # the unit cube
    _pair(lambda z: torch.softmax(z, 1), 3),  # the simplex
    _pair(_hyperboloid, 2),
    _pair(_same),  # numbers
    _pair(_same, 2),
    _pair(_unit, 2),  # the circle
    _pair(_rotations, 3, 3),
    _pair(_rotations, 2, 2),
    _pair(_positive, 2, 2),
    _pair(_same, 2, 2),  # matrices
    _pair(_same, 1, 4, 4),  # images, of any size or of those in use
    _pair(_same, 3, 8, 8),
    _pair(_same, 1, 8, 8),
    _pair(_same, 1, 28, 28),
    _pair(_same, 3, 32, 32),
)


@dataclass(frozen=True)
class Trial:
    """A path, and pairs of points that are valid on it; `dtype` is float64 unless the path takes float32 only."""

    path: ProbabilityPath
    pair: SamplePair
    refusal: str = ""
    dtype: torch.dtype = torch.float64

    @staticmethod
    @preserved()
    def of(path: ProbabilityPath, sample_pair: SamplePair | None = None) -> Trial:
        """With the points given, or else the first of the kit's on which it is finite and ends at the data."""
        if not isinstance(path, ProbabilityPath):
            raise ArgumentError(f"got a {type(path).__name__}, expected a ProbabilityPath")
        if sample_pair is not None:
            return Trial(path, sample_pair)
        said, first = "", None
        for dtype in (torch.float64, torch.float32):
            for pair in CANDIDATES if path.euclidean else CANDIDATES[1:]:
                trial = Trial(path, pair, dtype=dtype)
                try:
                    works = trial._works()
                except ArgumentError as error:
                    said = said or str(error)
                    continue
                except Exception:  # the laws will tell
                    first = first or trial
                    continue
                if works and trial._fits():
                    return trial
                first = first or (trial if works else None)
            if first is not None:
                return first
        return Trial(path, normal_pair, f"it refuses the kit's points ({said}); hand it a sample_pair")

    def _works(self) -> bool:
        return bool(torch.isfinite(self.at(self.middle, *self.points(4))).all())

    def fails(self) -> bool:
        """Whether it raises in the middle of its interval too."""
        try:
            self.at(self.middle, *self.points(4))
        except Exception:
            return True
        return False

    def _fits(self) -> bool:
        x0, x1 = self.points(16)
        try:
            left, way = self.at(self.path.interval[1], x0, x1) - x1, x0 - x1
        except Exception:  # the laws will tell
            return False
        return bool(left.abs().mean() <= 0.5 * way.abs().mean())

    @property
    def middle(self) -> float:
        return sum(self.path.interval) / 2

    def points(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        if self.refusal:
            raise NotChecked(self.refusal)
        x0, x1 = self.pair(n, seeded(seed))
        return x0.to(self.dtype), x1.to(self.dtype)

    def rows(self, n: int) -> int:
        """n, or as many rows of larger events as a million numbers hold, but no fewer than 64."""
        return max(min(n, 64), min(n, 2**20 // self.points(1)[0].numel()))

    def times(self, n: int, margin: float = 0.02, seed: int = 10) -> Tensor:
        """Times inside the interval, in order and one in each n-th of it, a margin away from its ends."""
        low, high = self.path.interval
        u = (torch.arange(n, dtype=torch.float64) + torch.rand(n, generator=seeded(seed), dtype=torch.float64)) / n
        return low + (high - low) * (margin + (1 - 2 * margin) * u)

    def near_ends(self, n: int) -> tuple[Tensor, Tensor]:
        """Times ever nearer to both ends, n to each, and how near: 2e-2 down to 1e-5 of the interval."""
        low, high = self.path.interval
        away = (high - low) * torch.logspace(math.log10(2e-2), -5, n, dtype=torch.float64)
        return torch.cat([low + away, high - away]), torch.cat([away, away])

    def sample(self, t: Any, x0: Tensor, x1: Tensor, seed: int = 20) -> PathSample:
        return self.path.sample(t, x0, x1, generator=seeded(seed))

    def at(self, t: Any, x0: Tensor, x1: Tensor, seed: int = 20) -> Tensor:
        return self.sample(t, x0, x1, seed).x

    def velocity(self, point: PathSample) -> Tensor:
        if point.velocity is None:
            raise NotChecked("the path's state has no velocity")
        return point.velocity
