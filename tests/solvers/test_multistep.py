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
    """From the k-th grid point on, where k slopes are known, the extrapolating polynomial is the slope itself."""
    k = METHODS[cls]
    positions = [0.0, 0.05, 0.2, 0.3, 0.32, 0.6, 0.9, 1.0]
    full, x0 = positions[k - 1], torch.zeros(1, 1, dtype=torch.float64)
    solution = cls(7, ListedGrid(positions)).solve(
        lambda t, x: torch.full_like(x, k * t ** (k - 1)), x0, (0.0, full, 1.0)
    )
    assert (solution.final - solution.states[1]).item() == pytest.approx(1.0 - full**k, abs=1e-12)


def test_the_start_by_hand():
    """dx/dt = t x, h = 1/2. AB3: a midpoint step, then AB2; AB4: two Runge-Kutta steps of order 3, then AB3."""
    one, h = torch.ones(1, 1, dtype=torch.float64), 0.5

    def ends(cls, steps):
        return [
            x.item() for x in cls(steps).solve(lambda t, x: t * x, one, [1 + h * i for i in range(steps + 1)]).states
        ]

    x1 = 1 + h * 1.25 * 1.25
    x2 = x1 + h * (1.5 * 1.5 * x1 - 0.5 * 1.0)
    assert ends(AB3, 2) == pytest.approx([1.0, x1, x2])

    x = [1.0]
    for t in (1.0, 1.5):
        k1 = t * x[-1]
        k2 = (t + h / 2) * (x[-1] + h / 2 * k1)
        k3 = (t + 3 * h / 4) * (x[-1] + 3 * h / 4 * k2)
        x.append(x[-1] + h / 9 * (2 * k1 + 3 * k2 + 4 * k3))
    x.append(x[2] + h / 12 * (23 * 2.0 * x[2] - 16 * 1.5 * x[1] + 5 * 1.0 * x[0]))
    assert ends(AB4, 3) == pytest.approx(x)


@pytest.mark.parametrize(("cls", "extra"), [(AB2, 1), (AB3, 1), (AB4, 4)])
def test_evaluations(cls, extra):
    """One a step, and what the first max(1, k - 2) Runge-Kutta steps cost beyond it."""
    assert cls(20).solve(bernoulli, torch.ones(2, 1), (0.0, 0.5)).nfe.tolist() == [20 + extra] * 2


@pytest.mark.parametrize("cls", METHODS)
def test_fewer_steps_than_the_order_is_a_runge_kutta_step(cls):
    final = cls(1).solve(bernoulli, torch.full((1, 1), 0.5, dtype=torch.float64), (0.0, 0.2)).final
    assert final.item() == pytest.approx(1 / (2 - math.sin(0.2)), abs=1e-3)
