"""Multistep methods: one evaluation a step, and the slopes of the steps before (Hairer, Norsett & Wanner, III.1).

Adams-Bashforth of order k predicts from the last k slopes:

    x(t + dt) = x + integral over [t, t + dt] of the polynomial through them

Adams-Bashforth-Moulton of order k predicts with k - 1 of them; once the next slope is known, the step is taken again
from where it began, through that slope and the k - 1 before it. Nothing is evaluated at the better point, so this too
costs one evaluation a step (mode PEC), and the last point stays as predicted.

Weights are computed from the times, so any grid keeps the order. Where evaluations are few the start must not waste
them. Adams-Bashforth asks for steps of order k - 1 only: the first max(1, k - 2) are Runge-Kutta steps of that order,
whose first slope is kept and whose others cost NFE; the next take as many slopes as there are. A correction makes an
Euler step one of order 2, as the start of ABM3 must be; for ABM4 the first step is also cut, at 2/steps of its length,
which brings its error down to order 4.

    NFE = steps (ABM3),   NFE = steps + 1 (AB2, AB3, ABM4),   NFE = steps + 4 (AB4)
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np

from fmkit.solvers.base import Function, State, advance
from fmkit.solvers.fixed_step import FixedStep
from fmkit.solvers.runge_kutta import RK3, Midpoint, Tableau, runge_kutta_step

# Of the nodes, so that equal steps, which rounding makes unequal, find their weights again.
DIGITS = 13


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
        return _through(past, t, dt, x), past


class AB2(AdamsBashforth):
    """Adams-Bashforth of order 2: one evaluation a step, and one more in the first."""

    order, starts = 2, Midpoint.tableau


class AB3(AdamsBashforth):
    """Adams-Bashforth of order 3: one evaluation a step, and one more in the first; for 5 to 20 evaluations."""

    order, starts = 3, Midpoint.tableau


class AB4(AdamsBashforth):
    """Adams-Bashforth of order 4: one evaluation a step, and two more in the first two; for 50 evaluations."""

    order, starts = 4, RK3.tableau


class AdamsBashforthMoulton(FixedStep):
    """The base class of predictor-corrector methods. A subclass is its `order` k, and whether its first step is cut.

    The memory is the time and the point that the last step began at, and the slopes since, newest first.
    """

    cut: ClassVar[bool] = False

    def step(self, f: Function, t: float, dt: float, x: State, memory: Any) -> tuple[State, Any]:
        if memory is None and self.cut:
            part = dt * min(0.5, 2 / self.steps)
            x, memory = self._step(f, t, part, x, memory)
            t, dt = t + part, dt - part
        return self._step(f, t, dt, x, memory)

    def _step(self, f: Function, t: float, dt: float, x: State, memory: Any) -> tuple[State, Any]:
        past: tuple[tuple[float, State], ...] = ((t, f(t, x)),)
        if memory is not None:
            began, start, before = memory
            past += before
            x = _through(past, began, t - began, start)
        past = past[: self.order - 1]
        return _through(past, t, dt, x), (t, x, past)


class ABM3(AdamsBashforthMoulton):
    """Adams-Bashforth-Moulton of order 3: one evaluation a step and no other; for 5 to 10."""

    order = 3


class ABM4(AdamsBashforthMoulton):
    """Adams-Bashforth-Moulton of order 4: one evaluation a step, one more in the first; for 20 to 50."""

    order, cut = 4, True


def _through(past: tuple[tuple[float, State], ...], t: float, dt: float, x: State) -> State:
    """x plus the integral over [t, t + dt] of the polynomial through these slopes."""
    weights = _weights(tuple(round((s - t) / dt, DIGITS) for s, _ in past))
    return advance(x, dt, weights, [k for _, k in past])


@functools.lru_cache(maxsize=1024)
def _weights(nodes: tuple[float, ...]) -> tuple[float, ...]:
    """Weights w with sum_j w_j nodes_j^m = 1/(m+1): exact for polynomials on [0, 1], nodes in units of dt."""
    k = len(nodes)
    vandermonde = np.vander(np.array(nodes), k, increasing=True).T
    return tuple(np.linalg.solve(vandermonde, 1 / np.arange(1, k + 1)).tolist())
