"""Flows in closed form, nonlinear and non-autonomous, on which solvers are measured.

Both have the rate r(t) = 1 + 2 cos 3t, whose integral is R(t) = t + (2/3) sin 3t.

    logistic   dx/dt = r x (1 - x)                        1/x - 1 falls as exp(-R)
    sphere     dx/dt = r (e - (e.x) x) + 2t e cross x     artanh(e.x) grows as R, the longitude as t²
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmkit.errors import ArgumentError


@dataclass(frozen=True)
class Problem:
    """An initial value problem with its answer, on [0, 1].

    Attributes:
        field: `(t, x) -> dx/dt`, with t a float, a 0-d or a `(B,)` tensor.
        x0: the points at t = 0, `(B, *event)`, float64.
        flow: `(t, x0) -> x`, where the points of t = 0 are at time t (a float).
        carry: `(s, t, x) -> x`, where the points x of time s are at time t; for solvers that read an average.
    """

    field: Callable[[Any, Tensor], Tensor]
    x0: Tensor
    flow: Callable[[float, Tensor], Tensor]
    carry: Callable[[Any, Any, Tensor], Tensor] | None = None

    def average(self, s: Any, t: Any, x: Tensor) -> Tensor:
        """The velocity that carries x from s to t in one step; at s = t the field's own."""
        if self.carry is None:
            raise ArgumentError("this problem has no carry, so its average velocity is not known")
        way = _wide(t, x) - _wide(s, x)
        still = way.abs() < 1e-9
        mean = (self.carry(s, t, x) - x) / way.masked_fill(still, 1.0).to(x.dtype)
        return torch.where(still, self.field(s, x), mean)


def _wide(t: Any, x: Tensor) -> Tensor:
    t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t


def _rate(t: Any, x: Tensor) -> Tensor:
    return (1 + 2 * torch.cos(3 * _wide(t, x))).to(x.dtype)


def _integral(t: Any, x: Tensor) -> Tensor:
    t = _wide(t, x)
    return (t + 2 / 3 * torch.sin(3 * t)).to(x.dtype)


def _logistic(t: Any, x: Tensor) -> Tensor:
    return _rate(t, x) * x * (1 - x)


def _logistic_carry(s: Any, t: Any, x: Tensor) -> Tensor:
    return 1 / (1 + (1 / x - 1) * torch.exp(_integral(s, x) - _integral(t, x)))


def _sphere(t: Any, x: Tensor) -> Tensor:
    pole = x.new_tensor([0.0, 0.0, 1.0]).expand_as(x)
    turn = (2 * _wide(t, x)).to(x.dtype) * torch.linalg.cross(pole, x)
    return _rate(t, x) * (pole - x[:, 2:] * x) + turn


def _sphere_carry(s: Any, t: Any, x: Tensor) -> Tensor:
    away = (_integral(t, x) - _integral(s, x)).reshape(-1)
    turn = (_wide(t, x) ** 2 - _wide(s, x) ** 2).reshape(-1).to(x.dtype)
    z = torch.tanh(torch.atanh(x[:, 2]) + away)
    radius, angle = torch.sqrt(1 - z**2), torch.atan2(x[:, 1], x[:, 0]) + turn
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), z], 1)


def logistic() -> Problem:
    """The logistic flow at fifteen points."""
    x0 = torch.linspace(0.05, 1.3, 15, dtype=torch.float64).reshape(5, 3)
    return Problem(_logistic, x0, lambda t, x: _logistic_carry(0.0, t, x), _logistic_carry)


def sphere() -> Problem:
    """The flow on the unit sphere, at five points."""
    z = torch.linspace(-0.8, 0.4, 5, dtype=torch.float64)
    angle = torch.linspace(0.0, 5.0, 5, dtype=torch.float64)
    radius = torch.sqrt(1 - z**2)
    x0 = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle), z], 1)
    return Problem(_sphere, x0, lambda t, x: _sphere_carry(0.0, t, x), _sphere_carry)
