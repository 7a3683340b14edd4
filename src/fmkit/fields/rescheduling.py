"""A change of schedule after training: a field of one affine path, followed as if it were trained on another.

Points of two affine paths from the same pair (x0, x1) are multiples of each other where the two have the same angle
theta = atan2(alpha, sigma). With n = sqrt(alpha² + sigma²), a bar for the path wanted, and t(r) the trained path's time
of the same angle,

    x̄_r = c(r) x_{t(r)},   c = n̄(r)/n(t(r)),   theta(t(r)) = theta̅(r)
    ū_r(x) = (c'/c) x + c t' u_{t(r)}(x/c),    t' = theta̅'/theta',   c'/c = n̄'/n̄ - t' n'/n

(Karras et al., arXiv 2206.00364; Pokle et al., arXiv 2310.04432). Angles are finite where alpha/sigma is not, so both
ends are. For a Gaussian source and independent coupling or any other: the pairs are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmkit.arguments import shown
from fmkit.errors import CombinationError
from fmkit.fields.base import VectorField, as_field
from fmkit.paths import AffinePath
from fmkit.shapes import batch_time, widen

BISECTIONS = 52  # of an interval of length 1: to the last digit of a float64


class Rescheduled(VectorField):
    """The velocity of `wanted`, made of a field trained on `trained`.

    The ends of the data's and the noise's side are kept where both paths have the angle; where one begins or ends
    earlier (VP begins at alpha = 0.0066), the interval does too.

    Args:
        field: a velocity trained on the path `trained`.
        trained: its path, affine and without latent noise.
        wanted: the path to follow, likewise.

    Raises:
        CombinationError: for a path with latent noise, or whose alpha/sigma does not grow.
    """

    def __init__(self, field: VectorField, trained: AffinePath, wanted: AffinePath) -> None:
        super().__init__()
        self.field, self.trained, self.wanted = as_field(field), trained, wanted
        for path in (trained, wanted):
            if not isinstance(path, AffinePath):
                raise CombinationError(f"{shown(path)} is no affine path: its points are no multiples of another's")
            if path.has_latent:
                raise CombinationError(
                    f"{type(path).__name__} has latent noise: its points are no multiples of another's"
                )
            angles = _angle(path, torch.linspace(*path.interval, 257, dtype=torch.float64))
            if not bool((angles.diff() > 0).all()):
                raise CombinationError(f"alpha/sigma of {type(path).__name__} does not grow with t")
        ends = torch.tensor(self.field.interval, dtype=torch.float64)
        ends = _time_of(wanted, _angle(trained, ends.clamp(*trained.interval)))
        self._interval = float(ends[0]), float(ends[1])

    @property
    def interval(self) -> tuple[float, float]:
        return self._interval

    @property
    def offers(self) -> frozenset[str]:
        return self.field.offers & {"velocity"}

    @property
    def event_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        return self.field.event_shape

    @property
    def euclidean(self) -> bool:
        return self.field.euclidean

    @property
    def drops_rows(self) -> bool:
        return self.field.drops_rows

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        r = batch_time(t, x)
        there = _polar(self.wanted, r)
        s = _time_of(self.trained, there.angle)
        here = _polar(self.trained, s)
        rate = there.d_angle / here.d_angle
        scale = there.norm / here.norm
        growth = there.d_norm / there.norm - rate * here.d_norm / here.norm
        velocity = self.field.velocity(s.clamp(*self.field.interval), x / widen(scale, x), cond)
        return widen(growth, x) * x + widen(scale * rate, x) * velocity

    def scale(self, t: float) -> float:
        """c(t): what a point of the trained path is multiplied by at time t of the path wanted."""
        r = torch.tensor([t], dtype=torch.float64)
        there = _polar(self.wanted, r)
        return (there.norm / _polar(self.trained, _time_of(self.trained, there.angle)).norm).item()


class _Polar(NamedTuple):
    angle: Tensor
    d_angle: Tensor
    norm: Tensor
    d_norm: Tensor


def _angle(path: AffinePath, t: Tensor) -> Tensor:
    at = path.coefficients(t)
    return torch.atan2(at.alpha, at.sigma)


def _polar(path: AffinePath, t: Tensor) -> _Polar:
    # Where the angle stands still (alpha = t² at t = 0) its rate is taken a hair inside, as conversions do.
    t = t.clamp(*path.determined("noise", "velocity"))
    at, rate = path.coefficients(t), path.rates(t)
    norm = torch.hypot(at.alpha, at.sigma)
    d_angle = (rate.alpha * at.sigma - at.alpha * rate.sigma) / norm**2
    return _Polar(
        torch.atan2(at.alpha, at.sigma), d_angle, norm, (at.alpha * rate.alpha + at.sigma * rate.sigma) / norm
    )


def _time_of(path: AffinePath, angle: Tensor) -> Tensor:
    """The times at which the path has these angles, by bisection; the interval's ends beyond them."""
    low, high = (torch.full_like(angle, end) for end in path.interval)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = _angle(path, middle) < angle
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    ends = _angle(path, torch.tensor(path.interval, dtype=angle.dtype, device=angle.device))
    time = torch.where(angle >= ends[1], path.interval[1], (low + high) / 2)
    return torch.where(angle <= ends[0], path.interval[0], time)
