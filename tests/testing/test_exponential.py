"""Solvers with a linear part of their own: exact on none of the kit's fields, right all the same, or wrong.

For dx/dt = A x + N(t, x) with N held fixed over a step (Hochbruck & Ostermann 2010, eq. 2.10),

    x(t + h) = exp(hA) x + h phi_1(hA) N(t, x) = x + h phi_1(hA) f(t, x),   phi_1(z) = (exp(z) - 1)/z
"""

import dataclasses

import pytest
import torch

from fmkit.solvers.base import check_problem
from fmkit.solvers.fixed_step import FixedStep
from fmkit.testing import check_solver


def phi_1(z):
    """By the exponential of a block matrix."""
    d = len(z)
    block = torch.zeros(2 * d, 2 * d, dtype=torch.float64)
    block[:d, :d], block[:d, d:] = z, torch.eye(d)
    return torch.linalg.matrix_exp(block)[:d, d:]


class ExponentialEuler(FixedStep):
    """A is given when it is made; integrals beside the point have no linear part."""

    order = 1

    def __init__(self, linear: list, steps: int = 20) -> None:
        super().__init__(steps)
        self.linear = torch.tensor(linear, dtype=torch.float64)

    def step(self, f, t, dt, x, memory):
        weight, slope = phi_1(dt * self.linear), f(t, x)
        if isinstance(x, tuple):
            point, *rest = (a + dt * b for a, b in zip(x, (slope[0] @ weight.T.to(slope[0]), *slope[1:]), strict=True))
            return (point, *rest), memory
        return x + dt * slope @ weight.T.to(slope), memory


class ExponentialRungeKutta(ExponentialEuler):
    """ETD2RK for a number A (Cox & Matthews 2002): of order 2."""

    order = 2

    def step(self, f, t, dt, x, memory):
        z = dt * self.linear.item()
        one = (torch.tensor(z).double().expm1() / z).item()
        parts = x if isinstance(x, tuple) else (x,)
        slopes = f(t, x) if isinstance(x, tuple) else (f(t, x),)
        first = tuple(a + dt * one * k for a, k in zip(parts, slopes, strict=True))
        again = f(t + dt, first) if isinstance(x, tuple) else (f(t + dt, first[0]),)
        change = [(k - q) - z / dt * (a - b) for k, q, a, b in zip(again, slopes, first, parts, strict=True)]
        last = tuple(a + dt * (one - 1) / z * n for a, n in zip(first, change, strict=True))
        return last if isinstance(x, tuple) else last[0], memory


class Early(ExponentialEuler):
    """It stops before its end, and says it did not."""

    def __init__(self, linear: list, early: float, steps: int = 20) -> None:
        super().__init__(linear, steps)
        self.early = early

    def solve(self, f, x0, times, *, generator=None):
        times = check_problem(f, x0, times, generator)
        end = times[-1] - self.lost(times[-1] - times[0])
        solution = super().solve(f, x0, (*times[:-1], end), generator=generator)
        return dataclasses.replace(solution, times=times)

    def lost(self, way):
        return self.early * way


class EarlyByATime(Early):
    def lost(self, way):
        return self.early * (1 if way > 0 else -1)


MATRIX = [[-1.0, 0.5, 0.0], [0.0, -2.0, 0.3], [0.1, 0.0, -3.0]]
SCALAR = [[-2.0, 0.0, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, -2.0]]


@pytest.mark.parametrize(
    "solver",
    [
        ExponentialEuler(MATRIX),
        ExponentialEuler(SCALAR),
        ExponentialRungeKutta([[-2.0]]),
        ExponentialRungeKutta([[1.5]]),
    ],
)
def test_a_right_one_keeps_every_law(solver):
    report = check_solver(solver)
    assert report.failed == ()
    assert {"solver.end", "solver.order", "solver.reversible", "solver.between"} <= {f.id for f in report.passed}


@pytest.mark.parametrize("linear", [MATRIX, SCALAR])
@pytest.mark.parametrize(
    "wrong", [lambda a: Early(a, 1 / 20), lambda a: Early(a, 1e-4), lambda a: EarlyByATime(a, 1e-5)]
)
def test_one_that_stops_early_does_not_hide_behind_its_linear_part(linear, wrong):
    assert "solver.end" in [f.id for f in check_solver(wrong(linear)).failed]


def test_a_wrong_weight_is_no_linear_part():
    class Forgetful(ExponentialEuler):
        """Twice the slope: its rate does not become right in short steps."""

        def step(self, f, t, dt, x, memory):
            return super().step(lambda *at: _doubled(f(*at)), t, dt, x, memory)

    assert "solver.end" in [f.id for f in check_solver(Forgetful(SCALAR)).failed]


def _doubled(slope):
    return tuple(2 * part for part in slope) if isinstance(slope, tuple) else 2 * slope
