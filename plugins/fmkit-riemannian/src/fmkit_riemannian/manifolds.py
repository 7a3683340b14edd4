"""Manifolds: what geodesic paths, sources, fields and solvers need to know of a space.

    geodesic   gamma(s), gamma(0) = x, gamma'(0) = u;  exp_x(u) = gamma(1),  log_x(y) the shortest u with exp_x(u) = y
    sphere     gamma(s) = cos(s r) x + sin(s r) u/r,  r = |u|:  unit vectors of R^d, in their ambient coordinates
    torus      gamma(s) = x + s u  (mod 2 pi):  angles in [0, 2 pi), one for each coordinate

A tangent vector has the shape of its point. The last axis of an event carries the sphere; axes before it make a product
of spheres. Every axis of an event is an angle on the torus.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fmkit.errors import ArgumentError, SolverError
from fmkit.parts import Part
from fmkit.shapes import check_finite, time_dtype, widen

TURN = 2 * math.pi
TOLERANCE = 1e-4  # how far off the manifold a point is forgiven, as rounding
REACH = 3.0  # normal coordinates on the sphere end at pi


class Manifold(Part):
    """The base class of every manifold. Points are `(B, *event)`."""

    group: ClassVar[str] = "fmkit.manifolds"

    @property
    @abc.abstractmethod
    def flat(self) -> bool:
        """Whether the divergence in the coordinates of a point is the rate of the log-density."""

    @abc.abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """The point of the manifold that x means, rounding taken away."""

    @abc.abstractmethod
    def check(self, x: Tensor, name: str = "x") -> Tensor:
        """`nearest(x)`, if x lies on the manifold up to 1e-4 (looked at on the CPU only).

        Raises:
            ArgumentError: naming the first row that does not.
        """

    @abc.abstractmethod
    def geodesic(self, x: Tensor, u: Tensor, s: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """gamma(s) and gamma'(s) of the geodesic from x with velocity u; s is one number, or `(B,)`."""

    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        """The point that the geodesic from x with velocity u reaches at s = 1."""
        return self.geodesic(x, u)[0]

    @abc.abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest u with exp_x(u) = y; one of them, always the same, where there are several."""

    @abc.abstractmethod
    def pull(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """The velocity in normal coordinates, (d exp_x)_u^-1 w, of the tangential part of w at exp_x(u).

        Raises:
            SolverError: if u is so long that normal coordinates at x do not reach there.
        """

    @abc.abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """x as a point of a Euclidean space, where a network can look at it: smooth, and one to one."""

    @abc.abstractmethod
    def tangent(self, x: Tensor, w: Tensor) -> Tensor:
        """The tangent vector at x nearest to w, a vector of the Euclidean space at `embed(x)`."""

    @abc.abstractmethod
    def uniform(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Points of `shape` (B, *event), uniform in the manifold's own measure."""

    @abc.abstractmethod
    def log_volume(self, event_shape: Sequence[int]) -> float:
        """The logarithm of the manifold's area, for events of that shape."""


class Sphere(Manifold):
    """The unit sphere S^(d-1) in R^d, d >= 2, in ambient coordinates: events (..., d)."""

    @property
    def flat(self) -> bool:
        return False

    def nearest(self, x: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def check(self, x: Tensor, name: str = "x") -> Tensor:
        _check_dimension(x.shape[1:])
        if x.device.type == "cpu":
            norms = torch.linalg.vector_norm(check_finite(x, name), dim=-1).reshape(len(x), -1)
            off = (norms - 1).abs() > TOLERANCE
            if off.any():
                row, factor = off.nonzero()[0].tolist()
                raise ArgumentError(
                    f"{name} has {int(off.any(1).sum())} rows off the unit sphere, the first, row {row}, of norm "
                    f"{norms[row, factor].item():.6g}; expected 1: normalise it"
                )
        return self.nearest(x)

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        s, r = _widen(s, x), torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        # sin(s r)/r is s sinc(s r): finite, and differentiable, at u = 0.
        y = torch.cos(s * r) * x + s * torch.sinc(s * r / math.pi) * u
        return self.nearest(y), torch.cos(s * r) * u - r * torch.sin(s * r) * x

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        near, far = y - x, y + x
        angle = 2 * torch.atan2(*(torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (near, far)))
        # y = +-x + d with d small is how the direction survives rounding near x, and near the point opposite.
        d = torch.where(_dot(x, y) >= 0, near, far)
        direction = d - _dot(x, d) * x
        lost = _norm(direction) <= 8 * torch.finfo(x.dtype).eps * _norm(d)
        # Opposite points: every direction is shortest; the axis most nearly tangent makes the same choice always.
        axis = torch.zeros_like(x).scatter_(-1, x.abs().argmin(-1, keepdim=True), 1.0)
        direction = self.nearest(torch.where(lost, self.tangent(x, axis), direction))
        return angle * self.nearest(self.tangent(x, direction))

    def pull(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        r = _norm(u)
        if bool((r > REACH).any()):
            raise SolverError(
                f"a step spans {r.max().item():.3g} radians of the sphere, expected at most {REACH:g} to combine its "
                "stages; use more steps, or geodesic-euler"
            )
        y, _ = self.geodesic(x, u)
        away = r > torch.finfo(x.dtype).tiny
        before = torch.where(away, u / torch.where(away, r, 1), 0)  # the geodesic's direction at x ...
        after = torch.cos(r) * before - torch.sin(r) * x * away  # ... and at exp_x(u)
        w = self.tangent(y, w)
        along = _dot(w, after)
        # Across the geodesic exp_x shrinks lengths by sin(r)/r, along it lengths are kept (Gauss's lemma).
        return along * before + (w - along * after) / torch.sinc(r / math.pi)

    def embed(self, x: Tensor) -> Tensor:
        return x

    def tangent(self, x: Tensor, w: Tensor) -> Tensor:
        return w - _dot(w, x) * x

    def uniform(self, shape, *, generator=None, dtype=None, device=None) -> Tensor:
        _check_dimension(shape[1:])
        return self.nearest(torch.randn(tuple(shape), generator=generator, dtype=dtype, device=device))

    def log_volume(self, event_shape: Sequence[int]) -> float:
        _check_dimension(event_shape)
        *factors, d = event_shape
        return math.prod(factors) * (math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2))


class Torus(Manifold):
    """The flat torus: every coordinate an angle in [0, 2 pi), in radians.

    Its coordinates are flat, so the divergence in them is the rate of the log-density; but only a field that is
    periodic in every coordinate (as `TangentField` is) has a flow on the torus, and a density there.
    """

    @property
    def flat(self) -> bool:
        return True

    def nearest(self, x: Tensor) -> Tensor:
        y = torch.remainder(x, TURN)
        return torch.where(y < TURN, y, 0)  # a tiny negative angle rounds up to 2 pi

    def check(self, x: Tensor, name: str = "x") -> Tensor:
        if x.device.type == "cpu":
            low, high = (v.item() for v in torch.aminmax(check_finite(x, name)))
            if low < -TOLERANCE or high > TURN + TOLERANCE:
                raise ArgumentError(
                    f"{name} ranges over [{low:.6g}, {high:.6g}], expected angles in [0, 2 pi) radians; "
                    "wrap them with Torus().nearest"
                )
        return self.nearest(x)

    def geodesic(self, x: Tensor, u: Tensor, s: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        return self.nearest(x + _widen(s, x) * u), u

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.remainder(y - x + math.pi, TURN) - math.pi

    def pull(self, x: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return w

    def embed(self, x: Tensor) -> Tensor:
        """A circle for each angle: `(B, ..., d)` to `(B, ..., 2d)`, cosines first."""
        return torch.cat([x.cos(), x.sin()], dim=-1)

    def tangent(self, x: Tensor, w: Tensor) -> Tensor:
        horizontal, vertical = w.chunk(2, dim=-1)
        return x.cos() * vertical - x.sin() * horizontal

    def uniform(self, shape, *, generator=None, dtype=None, device=None) -> Tensor:
        return self.nearest(torch.rand(tuple(shape), generator=generator, dtype=dtype, device=device) * TURN)

    def log_volume(self, event_shape: Sequence[int]) -> float:
        return math.prod(event_shape) * math.log(TURN)


def _check_dimension(event_shape: Sequence[int]) -> None:
    if len(event_shape) < 1 or event_shape[-1] < 2:
        raise ArgumentError(f"events have shape {tuple(event_shape)}, expected (..., d) with d >= 2 on a sphere in R^d")


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True)


def _widen(s: Tensor | float, x: Tensor) -> Tensor:
    return widen(torch.as_tensor(s, dtype=time_dtype(x.device), device=x.device), x)
