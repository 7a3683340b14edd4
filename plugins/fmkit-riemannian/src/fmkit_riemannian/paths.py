"""Geodesic paths (Chen & Lipman, arXiv 2302.03660, Sec. 3.2): the conditional path runs along the shortest way.

    x_t = exp_x0(kappa(t) log_x0(x1)),   dx_t/dt = kappa'(t) gamma'(kappa(t)),   kappa(0) = 0, kappa(1) = 1

with gamma the geodesic from x0 to x1: its speed is kappa'(t) times the distance. (The paper starts it at x1 and lets
its kappa fall from 1 to 0; the curve is the same.)
"""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from fmkit.errors import CombinationError
from fmkit.fields import MLP
from fmkit.paths import AffinePath, CondOT, PathSample, ProbabilityPath
from fmkit.shapes import check_points, widen
from fmkit.sources import Gaussian, Source
from fmkit_riemannian.manifolds import Manifold


class GeodesicPath(ProbabilityPath):
    """x_t on the shortest geodesic from x0 to x1.

    Points opposite each other have many; one is chosen, always the same.

    Args:
        manifold: where x0 and x1 lie; `sample` refuses points that do not.
        schedule: kappa is its alpha(t): constant speed (`CondOT`) by default.

    Raises:
        CombinationError: if the schedule does not run from 0 to 1, or has noise of its own.

    >>> import math, torch
    >>> from fmkit_riemannian import Torus
    >>> point = GeodesicPath(Torus()).sample(0.5, torch.tensor([[0.1]]), torch.tensor([[2 * math.pi - 0.3]]))
    >>> round(point.x.item() - 2 * math.pi, 4), round(point.velocity.item(), 4)
    (-0.1, -0.4)
    """

    def __init__(self, manifold: Manifold, schedule: AffinePath | None = None) -> None:
        super().__init__()
        self.manifold = manifold
        self.schedule = CondOT() if schedule is None else schedule
        ends = self.schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
        if self.schedule.has_latent or not torch.allclose(ends, ends.new_tensor([0.0, 1.0]), atol=1e-9):
            raise CombinationError(
                f"{type(self.schedule).__name__} cannot be the schedule of a geodesic: expected alpha(0) = 0, "
                f"alpha(1) = 1 and no noise, got {ends[0]:.3g} and {ends[1]:.3g}"
            )

    @property
    def euclidean(self) -> bool:
        return self.manifold.flat

    @property
    def interval(self) -> tuple[float, float]:
        return self.schedule.interval

    def check(self, source: Source, network: torch.nn.Module) -> None:
        if isinstance(source, Gaussian):
            raise CombinationError(
                f"a Gaussian source is off the {type(self.manifold).__name__.lower()}; use ManifoldUniform "
                "(manifold-uniform)"
            )
        if self.manifold.flat and isinstance(network, MLP):
            raise CombinationError(
                "an MLP is not periodic in the angles of the torus, so its flow would tear at the seam and its density "
                "be wrong; wrap it in TangentField (tangent)"
            )

    def sample(
        self, t: Tensor | Real, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None
    ) -> PathSample:
        t, x0, x1 = check_points(t, x0, x1, self.interval)
        x0, x1 = self.manifold.check(x0, "x0"), self.manifold.check(x1, "x1")
        kappa, rate = self.schedule.coefficients(t).alpha, self.schedule.rates(t).alpha
        x, tangent = self.manifold.geodesic(x0, self.manifold.log(x0, x1), kappa)
        return PathSample(t, x, x0, x1, widen(rate, x) * tangent)
