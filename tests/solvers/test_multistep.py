"""Adams-Bashforth: the classical weights on equal steps, order k on any grid, one evaluation a step after the start."""

import math

import pytest
import torch

from fmkit.solvers import AB2, AB3, AB4, ListedGrid, ShiftedGrid, UniformGrid
from fmkit.solvers.multistep import _weights

METHODS = {AB2: 2, AB3: 3, AB4: 4}


def bernoulli(t, x):
    return x**2 * math.cos(t)


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize("grid", [UniformGrid(), ShiftedGrid(3.0), ShiftedGrid(0.5)], ids=repr)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0)])
def test_order(cls, grid, times, observed_order):
    x0 = torch.tensor([[0.3, 0.6, -0.8]], dtype=torch.float64)
    want = 1 / (1 / x0 + math.sin(times[0]) - math.sin(times[1]))
    steps = [160, 320, 640]
    errors = [(cls(n, grid).solve(bernoulli, x0, times).final - want).abs().max().item() for n in steps]
    assert observed_order(steps, errors) == pytest.approx(METHODS[cls], abs=0.15)
    assert cls.order == METHODS[cls]


def test_classical_weights():
    """Hairer, Norsett & Wanner, Solving ODEs I, III.1: newest slope first."""
    assert _weights((0.0, -1.0)) == pytest.approx((3 / 2, -1 / 2))
    assert _weights((0.0, -1.0, -2.0)) == pytest.approx((23 / 12, -16 / 12, 5 / 12))
    assert _weights((0.0, -1.0, -2.0, -3.0)) == pytest.approx((55 / 24, -59 / 24, 37 / 24, -9 / 24))


@pytest.mark.parametrize("cls", METHODS)
def test_exact_for_slopes_that_are_polynomials_of_degree_below_k_on_an_uneven_grid(cls):
    """After the start (exact too for these) the extrapolating polynomial is the slope itself."""
    k = METHODS[cls]
    grid = ListedGrid([0.0, 0.05, 0.2, 0.3, 0.32, 0.6, 0.9, 1.0])
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    final = cls(7, grid).solve(lambda t, x: torch.full_like(x, k * t ** (k - 1)), x0, (0.0, 1.0)).final
    assert final.item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("cls", "extra"), [(AB2, 1), (AB3, 6), (AB4, 9)])
def test_evaluations(cls, extra):
    """One a step, and what the first k - 1 Runge-Kutta steps cost beyond it."""
    assert cls(20).solve(bernoulli, torch.ones(2, 1), (0.0, 0.5)).nfe.tolist() == [20 + extra] * 2


@pytest.mark.parametrize("cls", METHODS)
def test_fewer_steps_than_the_order_is_a_runge_kutta_step(cls):
    final = cls(1).solve(bernoulli, torch.full((1, 1), 0.5, dtype=torch.float64), (0.0, 0.2)).final
    assert final.item() == pytest.approx(1 / (2 - math.sin(0.2)), abs=1e-3)
