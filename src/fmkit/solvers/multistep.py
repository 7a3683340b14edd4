"""Adams-Bashforth methods of order k: one evaluation a step, from the slopes of the last k grid points.

    x(t + dt) = x + integral over [t, t + dt] of the polynomial through the last k slopes

The weights are computed from the times, so any grid keeps the order. The first k - 1 steps are Runge-Kutta steps of at
least order k - 1, which is what the order of the whole asks for; their first slope is kept, the others cost NFE.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np

from fmkit.solvers.base import Function, State, advance
from fmkit.solvers.fixed_step import FixedStep
from fmkit.solvers.runge_kutta import RK4, Midpoint, Tableau, runge_kutta_step


class AdamsBashforth(FixedStep):
    """The base class of the family. A subclass is its `order` and the tableau it `starts` with."""

    starts: ClassVar[Tableau]

    def init(self, x: State, generator: Any) -> tuple[tuple[float, State], ...]:
        return ()

    def step(self, f: Function, t: float, dt: float, x: State, memory: Any) -> tuple[State, Any]:
        slope = f(t, x)
        past = ((t, slope), *memory)[: self.order]
        if len(past) < self.order:
            return runge_kutta_step(self.starts, f, t, dt, x, slope), past
        weights = _weights(tuple((s - t) / dt for s, _ in past))
        return advance(x, dt, weights, [k for _, k in past]), past


class AB2(AdamsBashforth):
    """Adams-Bashforth of order 2."""

    order, starts = 2, Midpoint.tableau


class AB3(AdamsBashforth):
    """Adams-Bashforth of order 3."""

    order, starts = 3, RK4.tableau


class AB4(AdamsBashforth):
    """Adams-Bashforth of order 4."""

    order, starts = 4, RK4.tableau


@functools.lru_cache(maxsize=1024)
def _weights(nodes: tuple[float, ...]) -> tuple[float, ...]:
    """Weights w with sum_j w_j nodes_j^m = 1/(m+1): exact for polynomials on [0, 1], nodes in units of dt."""
    k = len(nodes)
    vandermonde = np.vander(np.array(nodes), k, increasing=True).T
    return tuple(np.linalg.solve(vandermonde, 1 / np.arange(1, k + 1)).tolist())
