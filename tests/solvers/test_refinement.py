"""Finer solvers: less error by the order claimed, on the same grid; the solver itself stays as it was."""

import math

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.solvers import (
    AB3,
    RK4,
    Dopri5,
    Euler,
    ListedGrid,
    Midpoint,
    ShiftedGrid,
    Solver,
    TorchdiffeqMidpoint,
    refined,
)

X0 = torch.ones(1, 1, dtype=torch.float64)


def error(solver):
    return abs(solver.solve(lambda t, x: -x, X0, (0.0, 1.0)).final.item() - math.exp(-1))


@pytest.mark.parametrize("grid", [None, ShiftedGrid()], ids=repr)
@pytest.mark.parametrize("method", [Euler, Midpoint, RK4, AB3, TorchdiffeqMidpoint])
def test_half_the_steps_length_by_the_order(method, grid):
    solver = method(40, grid)
    finer = refined(solver)
    assert math.log2(error(solver) / error(finer)) == pytest.approx(solver.order, abs=0.15)
    assert finer.solve(lambda t, x: x, X0, (0.0, 1.0)).accepted.item() == 80
    assert solver.steps == 40
    assert solver.grid.times(0, 1, 40) == finer.grid.times(0, 1, 80)[::2]


def test_a_loose_tolerance_becomes_tight_and_a_tight_one_stays():
    finer = refined(Dopri5(1e-1, 1e-7))
    assert (finer.rtol, finer.atol) == (1e-5, 1e-7)
    assert error(finer) < error(Dopri5(1e-1, 1e-1))


def test_a_solver_with_neither_has_no_finer_one():
    class Exact(Solver):
        def solve(self, f, x0, times, *, generator=None):
            raise NotImplementedError

    assert refined(Exact()) is None


def test_steps_without_a_grid_are_doubled_alone():
    class Own(Solver):
        def __init__(self, steps):
            super().__init__()
            self.steps = steps

        def solve(self, f, x0, times, *, generator=None):
            raise NotImplementedError

    finer = refined(Own(7))
    assert finer.steps == 14
    assert not hasattr(finer, "grid")


def test_the_users_own_times_are_kept_and_each_step_halved():
    finer = refined(Midpoint(2, ListedGrid([0.0, 0.2, 1.0])))
    assert finer.grid.times(0, 1, 4) == pytest.approx([0.0, 0.1, 0.2, 0.6, 1.0])
    with pytest.raises(ArgumentError, match="has 3 steps, the listed grid 2"):
        finer.grid.times(0, 1, 6)


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_one_tolerance_alone_is_none(name):
    class Half(Solver):
        def solve(self, f, x0, times, *, generator=None):
            raise NotImplementedError

    half = Half()
    setattr(half, name, 0.1)
    assert refined(half) is None
