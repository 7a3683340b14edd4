"""Time grids: ends exact, the shift's formula, and backward the same points as forward."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmkit.errors import ArgumentError
from fmkit.solvers import Euler, HalvedGrid, ListedGrid, ShiftedGrid, UniformGrid

GRIDS = [UniformGrid(), ShiftedGrid(), ShiftedGrid(0.4), ListedGrid([0.0, 0.1, 0.15, 0.7, 1.0])]


def test_uniform():
    assert UniformGrid().times(2.0, 3.0, 4) == [2.0, 2.25, 2.5, 2.75, 3.0]


def test_shift_is_the_formula_of_its_paper_in_noise_time():
    """tau -> s tau / (1 + (s-1) tau), tau = 1 - u; with s = 3 half-way lands at tau = 3/4."""
    assert ShiftedGrid(3.0).fractions(2) == [0.0, pytest.approx(0.25), 1.0]
    got = ShiftedGrid(3.0).fractions(10)
    for i, u in enumerate(got):
        tau = 1 - i / 10
        assert u == pytest.approx(1 - 3 * tau / (1 + 2 * tau))
    lengths = [b - a for a, b in itertools.pairwise(got)]
    assert lengths == sorted(lengths)  # short near the noise
    assert ShiftedGrid().fractions(10) == got  # 3 is the shift unless said
    assert ShiftedGrid(1.0).fractions(7) == pytest.approx(UniformGrid().fractions(7))


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
@given(begin=st.floats(0, 0.4), length=st.floats(0.1, 0.6))
def test_ends_are_exact_and_backward_retraces_forward(grid, begin, length):
    end = begin + length
    forward, backward = grid.times(begin, end, 4), grid.times(end, begin, 4)
    assert (forward[0], forward[-1], len(forward)) == (begin, end, 5)
    assert (backward[0], backward[-1]) == (end, begin)
    assert forward == sorted(set(forward))
    assert backward == pytest.approx(forward[::-1], abs=1e-15)


def test_a_halved_grid_has_the_other_grids_points_and_their_middles():
    assert HalvedGrid(ListedGrid([0.0, 0.2, 1.0])).fractions(4) == pytest.approx([0.0, 0.1, 0.2, 0.6, 1.0])
    with pytest.raises(ArgumentError, match="the solver has 5 steps, expected twice those of the halved grid"):
        HalvedGrid(UniformGrid()).fractions(5)


def test_a_listed_grid_is_where_the_solver_steps():
    seen = []

    def f(t, x):
        seen.append(t)
        return torch.zeros_like(x)

    Euler(4, ListedGrid([0.0, 0.1, 0.15, 0.7, 1.0])).solve(f, torch.zeros(1, 1), (0.0, 1.0))
    assert seen == pytest.approx([0.0, 0.1, 0.15, 0.7])


@pytest.mark.parametrize(
    "positions", [[0.0], [0.0, 0.5], [0.1, 1.0], [0.0, 0.6, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0], [1.0, 0.0]]
)
def test_positions_that_are_no_grid_are_refused(positions):
    with pytest.raises(ArgumentError, match="strictly increasing ones from 0 to 1"):
        ListedGrid(positions)


def test_another_number_of_steps_than_listed_is_refused():
    with pytest.raises(ArgumentError, match="the solver has 3 steps, the listed grid 2"):
        Euler(3, ListedGrid([0.0, 0.5, 1.0])).solve(lambda t, x: x, torch.zeros(1, 1), (0.0, 1.0))


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_shifts_out_of_range_are_refused(shift):
    with pytest.raises(ArgumentError, match=f"shift is {shift}, expected a positive number"):
        ShiftedGrid(shift)


@pytest.mark.parametrize(
    "grid", [UniformGrid(), ShiftedGrid(), HalvedGrid(UniformGrid()), ListedGrid([0.0, 0.3, 1.0])], ids=repr
)
def test_wrong_questions_are_refused_by_name(grid):
    with pytest.raises(ArgumentError, match="^steps is 0, "):
        grid.fractions(0)
    with pytest.raises(ArgumentError, match="^begin is 'now', "):
        grid.times("now", 1.0, 2)
    with pytest.raises(ArgumentError, match="^end is None, "):
        grid.times(0.0, None, 2)


def test_a_list_of_one_step():
    assert ListedGrid([0.0, 1.0]).times(0.2, 0.7, 1) == [0.2, 0.7]
