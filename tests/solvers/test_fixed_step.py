"""The one loop: where it steps, what an intermediate time costs, and what it refuses."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.solvers import AB2, RK4, Euler, Heun, ListedGrid, Midpoint


def recorded(solver, times):
    seen = []

    def f(t, x):
        seen.append(t)
        return x * t

    return solver.solve(f, torch.ones(2, 1, dtype=torch.float64), times), seen


def test_steps_lie_between_the_first_time_and_the_last():
    _, seen = recorded(Euler(4), (0.2, 1.0))
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8])
    _, seen = recorded(Euler(4), (1.0, 0.2))
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_an_intermediate_time_on_the_grid_costs_nothing():
    solution, seen = recorded(Euler(10), (0.0, 0.3, 0.7, 1.0))  # 0.3 and 0.7 are no exact tenths of the way
    assert len(seen) == 10
    assert solution.accepted.tolist() == [10, 10]
    assert solution.rejected.tolist() == [0, 0]
    assert len(solution.states) == 4


def test_an_intermediate_time_off_the_grid_costs_one_step_beside_it():
    for solver, cost in ((Euler(10), 1), (Midpoint(10), 2), (RK4(10), 4)):
        plain, _ = recorded(solver, (0.0, 1.0))
        stopped, _ = recorded(solver, (0.0, 0.33, 0.37, 1.0))
        assert stopped.nfe[0] == plain.nfe[0] + 2 * cost
        assert torch.equal(stopped.final, plain.final)


def test_an_intermediate_time_is_reached_from_the_grid_point_before_it():
    """Euler on dx/dt = t x: at 0.25 after ten steps of 0.1 is x(0.2) (1 + 0.05 * 0.2)."""
    solution, _ = recorded(Euler(10), (0.0, 0.2, 0.25, 1.0))
    torch.testing.assert_close(solution.states[2], solution.states[1] * (1 + 0.05 * 0.2))


def test_one_step_of_each_method_by_hand():
    """dx/dt = t x from x(1) = 1 with dt = 1/2."""
    one = torch.ones(1, 1, dtype=torch.float64)

    def step(solver):
        return solver.solve(lambda t, x: t * x, one, (1.0, 1.5)).final.item()

    assert step(Euler(1)) == pytest.approx(1.5)
    assert step(Midpoint(1)) == pytest.approx(1 + 0.5 * 1.25 * 1.25)
    assert step(Heun(1)) == pytest.approx(1 + 0.25 * (1 + 1.5 * 1.5))
    k1 = 1.0
    k2 = 1.25 * (1 + 0.25 * k1)
    k3 = 1.25 * (1 + 0.25 * k2)
    k4 = 1.5 * (1 + 0.5 * k3)
    assert step(RK4(1)) == pytest.approx(1 + 0.5 / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    # AB2 after a midpoint step: x2 = x1 + h (3/2 f1 - 1/2 f0)
    x1 = 1 + 0.25 * 1.125 * 1.125
    two = AB2(2).solve(lambda t, x: t * x, one, (1.0, 1.5)).final.item()
    assert two == pytest.approx(x1 + 0.25 * (1.5 * 1.25 * x1 - 0.5 * 1.0))


def test_a_hundred_steps_unless_said():
    _, seen = recorded(Euler(), (0.0, 1.0))
    assert len(seen) == 100


def test_a_time_is_moved_onto_the_grid_by_rounding_alone():
    """1e-10 off a grid point is on it, 1e-6 off is a step beside; neither moves the end."""
    plain, _ = recorded(Euler(10), (0.0, 1.0))
    for off, cost in ((1e-10, 0), (-1e-10, 0), (1e-6, 1), (-1e-6, 1)):
        solution, seen = recorded(Euler(10), (0.0, 0.3 + off, 1.0))
        assert len(seen) == 10 + cost
        torch.testing.assert_close(solution.final, plain.final, rtol=1e-9, atol=0)
    # as a share of the way: an interval of a thousandth has a thousandth of the rounding
    assert len(recorded(Euler(10), (0.0, 0.0003 + 1e-10, 0.001))[1]) == 11


def test_a_step_beside_the_trajectory_stays_inside_and_is_counted():
    solution, seen = recorded(Midpoint(2), (0.0, 0.7, 1.0))
    assert solution.nfe.tolist() == [len(seen)] * 2 == [6, 6]


@pytest.mark.parametrize("steps", [0, -3, 2.5, True, "10", None])
def test_steps_that_are_no_count_are_refused(steps):
    with pytest.raises(ArgumentError, match="expected a whole number of at least 1"):
        Euler(steps)


def test_steps_lie_where_the_grid_says():
    assert recorded(Euler(2, ListedGrid([0.0, 0.3, 1.0])), (0.0, 2.0))[1] == [0.0, 0.6]
    assert recorded(Euler(2), (0.0, 2.0))[1] == [0.0, 1.0]
