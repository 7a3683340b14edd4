"""Multistep methods: the classical weights, order k on any grid, one evaluation a step after the start."""

import math

import numpy as np
import pytest
import torch

from fmkit.solvers import AB2, AB3, AB4, ABM3, ABM4, ListedGrid, ShiftedGrid, UniformGrid
from fmkit.solvers.multistep import _weights

BASHFORTH = {AB2: 2, AB3: 3, AB4: 4}
METHODS = {**BASHFORTH, ABM3: 3, ABM4: 4}


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


@pytest.mark.parametrize("cls", BASHFORTH)
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


def test_prediction_and_correction_by_hand():
    """dx/dt = t x, h = 1/2: Adams-Moulton's trapezium, then 5, 8, -1 twelfths, through slopes at predicted points."""
    one, h = torch.ones(1, 1, dtype=torch.float64), 0.5
    first = 1 + h * 1.0
    f1 = 1.5 * first
    x1 = 1 + h / 2 * (1.0 + f1)
    second = x1 + h * (3 / 2 * f1 - 1 / 2 * 1.0)
    f2 = 2.0 * second
    x2 = x1 + h / 12 * (5 * f2 + 8 * f1 - 1.0)
    third = x2 + h * (3 / 2 * f2 - 1 / 2 * f1)
    solution = ABM3(3).solve(lambda t, x: t * x, one, [1.0, 1.5, 2.0, 2.5])
    assert [x.item() for x in solution.states] == pytest.approx([1.0, first, second, third])


@pytest.mark.parametrize(("cls", "k"), [(ABM3, 3), (ABM4, 4)])
def test_corrections_are_exact_for_slopes_of_degree_below_k_and_predictions_below_that(cls, k):
    """On an uneven grid, from where k slopes are known on; what the start left does not change any more."""
    positions = [0.0, 0.05, 0.2, 0.3, 0.32, 0.6, 0.9, 1.0]
    x0 = torch.zeros(1, 1, dtype=torch.float64)

    def ends(degree):
        f = lambda t, x: torch.full_like(x, (degree + 1) * t**degree)  # noqa: E731
        states = cls(7, ListedGrid(positions)).solve(f, x0, positions).states
        return [state.item() - t ** (degree + 1) for state, t in zip(states, positions, strict=True)]

    def missed(n):  # what a prediction of the step from n leaves out of a slope of degree k - 1
        nodal = np.polynomial.Polynomial.fromroots([positions[n - j] for j in range(k - 1)]).integ()
        return k * (nodal(positions[n + 1]) - nodal(positions[n]))

    left = ends(k - 2)[k:]  # by the start
    assert left == pytest.approx([left[0]] * len(left), abs=1e-12)
    left = [error + missed(n) for n, error in enumerate(ends(k - 1)[k + 1 :], k)]
    assert left == pytest.approx([left[0]] * len(left), abs=1e-12)


@pytest.mark.parametrize(("cls", "extra"), [(AB2, 1), (AB3, 1), (AB4, 4), (ABM3, 0), (ABM4, 1)])
def test_evaluations(cls, extra):
    """One a step, and what the start costs beyond it."""
    assert cls(20).solve(bernoulli, torch.ones(2, 1), (0.0, 0.5)).nfe.tolist() == [20 + extra] * 2


@pytest.mark.parametrize("cls", BASHFORTH)
def test_fewer_steps_than_the_order_is_a_runge_kutta_step(cls):
    final = cls(1).solve(bernoulli, torch.full((1, 1), 0.5, dtype=torch.float64), (0.0, 0.2)).final
    assert final.item() == pytest.approx(1 / (2 - math.sin(0.2)), abs=1e-3)
