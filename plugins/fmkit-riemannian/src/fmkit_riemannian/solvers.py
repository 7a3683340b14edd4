"""Geodesic Runge-Kutta methods: each step is a classical one in normal coordinates, so no step leaves the manifold.

In a step from x the solution is exp_x(u(t)), u in the tangent space at x, and

    du/dt = (d exp_x)_u^-1 v(t, exp_x(u)),   u = 0 at the beginning,   x <- exp_x(u) at the end

is an ordinary equation in a flat space: every tableau keeps its order (Munthe-Kaas, 1998, with exp of the manifold in
the place of exp of a Lie group). Euler's method becomes x <- exp_x(dt v(t, x)), a step along a geodesic.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fmkit.solvers import RK4, Euler, FixedStep, Midpoint, Tableau, TimeGrid
from fmkit.solvers.base import Function, State, point_of
from fmkit.solvers.runge_kutta import runge_kutta_step
from fmkit_riemannian.manifolds import Manifold


class GeodesicRungeKutta(FixedStep):
    """The base class of the family. A subclass is its `tableau` and its `order`.

    Integrates the tangential part of the field; integrals beside the point are integrated as they are.

    Args:
        manifold: where the point lives.
        steps: number of steps, >= 1.
        grid: where they lie; equal steps by default.

    Raises:
        ArgumentError: if steps is not a positive integer; from `solve`, if x0 is off the manifold.
        SolverError: from `solve`, if a step of more than one stage spans more than 3 radians of the sphere.
    """

    tableau: ClassVar[Tableau]

    def __init__(self, manifold: Manifold, steps: int = 100, grid: TimeGrid | None = None) -> None:
        super().__init__(steps, grid)
        self.manifold = manifold

    def init(self, x: State, generator: torch.Generator | None) -> None:
        self.manifold.check(point_of(x), "x0")

    def step(self, f: Function, t: float, dt: float, x: State, memory: Any) -> tuple[State, Any]:
        point, *integrals = x if isinstance(x, tuple) else (x,)

        def in_coordinates(s: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            u, *rest = state
            y = self.manifold.exp(point, u)
            slope, *rates = f(s, (y, *rest)) if isinstance(x, tuple) else (f(s, y),)
            return (self.manifold.pull(point, u, slope), *rates)

        u, *integrals = runge_kutta_step(self.tableau, in_coordinates, t, dt, (torch.zeros_like(point), *integrals))
        end = self.manifold.exp(point, u)
        return ((end, *integrals) if isinstance(x, tuple) else end), memory


class GeodesicEuler(GeodesicRungeKutta):
    """Steps along geodesics: order 1, one evaluation a step."""

    order, tableau = 1, Euler.tableau


class GeodesicMidpoint(GeodesicRungeKutta):
    """The midpoint method in normal coordinates: order 2, two evaluations a step."""

    order, tableau = 2, Midpoint.tableau


class GeodesicRK4(GeodesicRungeKutta):
    """The classical Runge-Kutta method in normal coordinates: order 4, four evaluations a step."""

    order, tableau = 4, RK4.tableau
