"""Runge-Kutta methods: order conditions of the tableaux, and orders measured against a closed-form flow."""

import math

import pytest
import torch

from fmkit.solvers import RK3, RK4, Euler, Heun, Midpoint, ShiftedGrid, UniformGrid
from fmkit.solvers.runge_kutta import Tableau, runge_kutta_step

METHODS = [Euler, Midpoint, Heun, RK3, RK4]
ORDER = {Euler: 1, Midpoint: 2, Heun: 2, RK3: 3, RK4: 4}
STAGES = {Euler: 1, Midpoint: 2, Heun: 2, RK3: 3, RK4: 4}


def bernoulli(t, x):
    return x**2 * math.cos(t)


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize("grid", [UniformGrid(), ShiftedGrid(3.0)], ids=repr)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0)])
def test_order_on_a_nonlinear_field_that_depends_on_time(cls, grid, times, observed_order):
    x0 = torch.tensor([[0.3, 0.6, -0.8]], dtype=torch.float64)
    want = 1 / (1 / x0 + math.sin(times[0]) - math.sin(times[1]))
    steps = [40, 80, 160]
    errors = [(cls(n, grid).solve(bernoulli, x0, times).final - want).abs().max().item() for n in steps]
    assert observed_order(steps, errors) == pytest.approx(ORDER[cls], abs=0.15)
    assert cls.order == ORDER[cls]


@pytest.mark.parametrize("cls", METHODS)
def test_evaluations(cls):
    assert cls(7).solve(bernoulli, torch.ones(3, 1), (0.0, 0.5)).nfe.tolist() == [7 * STAGES[cls]] * 3


@pytest.mark.parametrize("cls", METHODS)
def test_a_slope_that_is_known_costs_no_evaluation_and_changes_nothing(cls):
    x, asked = torch.tensor([[0.3], [0.7]], dtype=torch.float64), []

    def f(t, x):
        asked.append(t)
        return bernoulli(t, x)

    want = runge_kutta_step(cls.tableau, f, 0.2, 0.1, x)
    assert len(asked) == STAGES[cls]
    assert torch.equal(runge_kutta_step(cls.tableau, f, 0.2, 0.1, x, bernoulli(0.2, x)), want)
    assert len(asked) == 2 * STAGES[cls] - 1


def test_a_tableau_that_lacks_a_row_is_not_cut_short():
    with pytest.raises(ValueError, match="shorter"):
        runge_kutta_step(Tableau((0.0, 0.5), ((),), (0.0, 1.0)), bernoulli, 0.0, 0.1, torch.ones(1, 1))


@pytest.mark.parametrize("cls", METHODS)
def test_tableaux_are_consistent(cls):
    """c_i = sum_j a_ij, sum b = 1, sum b c = 1/2 from order 2, and the order's bushy trees."""
    c, a, b = cls.tableau
    assert [sum(row) for row in a] == pytest.approx(list(c))
    for k in range(1, ORDER[cls] + 1):
        assert sum(w * node ** (k - 1) for w, node in zip(b, c, strict=True)) == pytest.approx(1 / k)


def test_heuns_method_is_the_trapezoid_and_midpoint_the_midpoint():
    """Every method of order 2 has sum b c = 1/2: their nodes tell them apart."""
    assert (Heun.tableau.c, Heun.tableau.b) == ((0.0, 1.0), (0.5, 0.5))
    assert (Midpoint.tableau.c, Midpoint.tableau.b) == ((0.0, 0.5), (0.0, 1.0))


def test_rk4_is_the_classical_one_and_not_the_three_eighths_rule():
    assert RK4.tableau.c == (0.0, 0.5, 0.5, 1.0)
    assert RK4.tableau.b == pytest.approx((1 / 6, 1 / 3, 1 / 3, 1 / 6))
