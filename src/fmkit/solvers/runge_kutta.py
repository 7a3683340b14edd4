"""Explicit Runge-Kutta methods: one class, and a tableau for each method.

k_i = f(t + c_i dt, x + dt sum_j a_ij k_j),   x(t + dt) = x + dt sum_i b_i k_i
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from fmkit.solvers.base import Function, State, advance
from fmkit.solvers.fixed_step import FixedStep


class Tableau(NamedTuple):
    """A Butcher tableau: nodes c, matrix a (row by row, below the diagonal), weights b."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


class RungeKutta(FixedStep):
    """The base class of explicit Runge-Kutta methods. A subclass is its `tableau` and its `order`."""

    tableau: ClassVar[Tableau]

    def step(self, f: Function, t: float, dt: float, x: State, memory: Any) -> tuple[State, Any]:
        return runge_kutta_step(self.tableau, f, t, dt, x), memory


def runge_kutta_step(tableau: Tableau, f: Function, t: float, dt: float, x: State, slope: State | None = None) -> State:
    """One step; `slope` is f(t, x) where the caller has it already."""
    slopes = [f(t, x) if slope is None else slope]
    for c, row in zip(tableau.c[1:], tableau.a[1:], strict=True):
        slopes.append(f(t + c * dt, advance(x, dt, row, slopes)))
    return advance(x, dt, tableau.b, slopes)


class Euler(RungeKutta):
    """Euler's method: order 1, one evaluation a step."""

    order = 1
    tableau = Tableau((0.0,), ((),), (1.0,))


class Midpoint(RungeKutta):
    """The explicit midpoint method: order 2, two evaluations a step."""

    order = 2
    tableau = Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0))


class Heun(RungeKutta):
    """Heun's method, the explicit trapezoid: order 2, two evaluations a step."""

    order = 2
    tableau = Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5))


class RK3(RungeKutta):
    """Ralston's method of order 3, the steps of Bogacki and Shampine's pair: three evaluations a step."""

    order = 3
    tableau = Tableau((0.0, 0.5, 0.75), ((), (0.5,), (0.0, 0.75)), (2 / 9, 1 / 3, 4 / 9))


class RK4(RungeKutta):
    """The classical Runge-Kutta method: order 4, four evaluations a step (torchdiffeq's `rk4` is the 3/8 rule)."""

    order = 4
    tableau = Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
