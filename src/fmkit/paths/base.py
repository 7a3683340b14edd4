"""A probability path: how a source sample x0 becomes a data sample x1, and what velocity that needs.

Time runs from t = 0 (source) to t = 1 (data). A path answers one question, `sample(t, x0, x1)`: a point x_t of the
conditional path and its velocity d x_t / dt. Regressing a field on that velocity gives the marginal velocity field,
whose flow carries the source to the data (Lipman et al., arXiv 2210.02747, Theorems 1 and 2).
"""

from __future__ import annotations

import abc
from numbers import Real
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fmkit.parts import Part
from fmkit.sources import Source


class PathSample(NamedTuple):
    """A batch of points on a conditional path.

    Attributes:
        t: `(B,)` times, float64.
        x: `(B, *event)` points x_t.
        x0: `(B, *event)` source samples.
        x1: `(B, *event)` data samples.
        velocity: `(B, *event)` d x_t / dt, or None where the state has no velocity (discrete states).
        z: `(B, *event)` the path's own latent noise, or None.
    """

    t: Tensor
    x: Tensor
    x0: Tensor
    x1: Tensor
    velocity: Tensor | None = None
    z: Tensor | None = None


class ProbabilityPath(Part):
    """The base class of every path. A subclass implements `sample`; `AffinePath` does that from two functions.

    Four hooks have defaults: `interval`, `euclidean`, `start` and `check`.
    """

    group: ClassVar[str] = "fmkit.paths"

    @property
    def interval(self) -> tuple[float, float]:
        """The times the path is valid on; nothing in fmkit evaluates it outside."""
        return (0.0, 1.0)

    @property
    def euclidean(self) -> bool:
        """Whether the divergence of the velocity in the coordinates of x is the rate of the log-density.

        A path on a curved manifold says False, and likelihoods are refused.
        """
        return True

    def check(self, source: Source, network: torch.nn.Module) -> None:
        """Refuse, with the reason, a source or a network that has no meaning on this path.

        Raises:
            CombinationError: if there is none: a source off the path's manifold, a network that is not periodic.
        """

    @abc.abstractmethod
    def sample(
        self, t: Tensor | Real, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None
    ) -> PathSample:
        """A point of the conditional path between each x0 and x1, with its velocity.

        Args:
            t: `(B,)` times inside `interval`, or one number for all.
            x0: `(B, *event)` source samples.
            x1: `(B, *event)` data samples, of the same shape and dtype.
            generator: the only randomness there is, for a path with latent noise.

        Raises:
            ArgumentError: if shapes or dtypes differ, a point is not finite, or a time is outside the interval;
                `fmkit.shapes.check_points` makes that check in one line.
        """

    def start(self, source: Source, t0: float | None = None) -> Source:
        """The law the ODE begins with at `t0` (the interval's beginning by default): the source itself.

        A path whose beginning is not its source (VE, latent noise) says so here; log-densities would be off otherwise.
        """
        return source
