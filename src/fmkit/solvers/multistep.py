"""Adams-Bashforth methods of order k: one evaluation a step, from the slopes of the last k grid points.

    x(t + dt) = x + integral over [t, t + dt] of the polynomial through the last k slopes

The weights are computed from the times, so any grid keeps the order. The start asks for steps of order k - 1 only, and
where evaluations are few it must not waste them: the first max(1, k - 2) steps are Runge-Kutta steps of that order,
whose first slope is kept and whose others cost NFE; the next take as many slopes as there are.

    NFE = steps + 1 (AB2, AB3),   NFE = steps + 4 (AB4)
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np

from fmkit.solvers.base import Function, State, advance
from fmkit.solvers.fixed_step import FixedStep
from fmkit.solvers.runge_kutta import RK3, Midpoint, Tableau, runge_kutta_step


class AdamsBashforth(FixedStep):
    """The base class of the family. A subclass is its `order` k and the tableau it `starts` with, of order k - 1."""

    starts: ClassVar[Tableau]

    def init(self, x: State, generator: Any) -> tuple[tuple[float, State], ...]:
        return ()

    def step(self, f: Function, t: float, dt: float, x: State, memory: Any) -> tuple[State, Any]:
        slope = f(t, x)
        past = ((t, slope), *memory)[: self.order]
        if len(past) <= max(1, self.order - 2):
            return runge_kutta_step(self.starts, f, t, dt, x, slope), past
        weights = _weights(tuple((s - t) / dt for s, _ in past))
        return advance(x, dt, weights, [k for _, k in past]), past


class AB2(AdamsBashforth):
    """Adams-Bashforth of order 2: one evaluation a step, and one more in the first."""

    order, starts = 2, Midpoint.tableau


class AB3(AdamsBashforth):
    """Adams-Bashforth of order 3: one evaluation a step, and one more in the first; for 5 to 20 evaluations."""

    order, starts = 3, Midpoint.tableau


class AB4(AdamsBashforth):
    """Adams-Bashforth of order 4: one evaluation a step, and two more in the first two; for 50 evaluations."""

    order, starts = 4, RK3.tableau


@functools.lru_cache(maxsize=1024)
def _weights(nodes: tuple[float, ...]) -> tuple[float, ...]:
    """Weights w with sum_j w_j nodes_j^m = 1/(m+1): exact for polynomials on [0, 1], nodes in units of dt."""
    k = len(nodes)
    vandermonde = np.vander(np.array(nodes), k, increasing=True).T
    return tuple(np.linalg.solve(vandermonde, 1 / np.arange(1, k + 1)).tolist())
