"""scipy's methods as references: double precision inside, to tolerance, stiff fields, no gradients."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from fmkit.errors import ArgumentError, CombinationError, SolverError
from fmkit.fields import MLP
from fmkit.flow import Flow
from fmkit.solvers import DOP853, LSODA, RK4, Radau
from fmkit.sources import Gaussian

ALL = [DOP853, Radau, LSODA]


def bernoulli(t, x):
    return x**2 * math.cos(t)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0)])
def test_tolerance_is_honoured(cls, times):
    x0 = torch.tensor([[0.3, 0.6, -0.5]], dtype=torch.float64)
    want = 1 / (1 / x0 + math.sin(times[0]) - math.sin(times[1]))
    for tolerance in (1e-6, 1e-11):
        error = (cls(tolerance, tolerance).solve(bernoulli, x0, times).final - want).abs().max().item()
        assert error < 500 * tolerance


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("times", [(0.0, 1.0), (0.0, 0.3, 1.0)])
def test_is_scipys_method_of_that_name_at_a_tolerance_of_1e8(cls, times):
    """Digit for digit, whatever is told of the batch's shape; steps are scipy's accepted ones."""
    x0 = torch.tensor([[0.3, 0.6], [-0.5, 0.1]], dtype=torch.float64)
    solution = cls().solve(bernoulli, x0, times)
    theirs = solve_ivp(
        lambda t, y: y**2 * math.cos(t),
        (0.0, 1.0),
        x0.flatten().numpy(),
        method=cls.__name__,
        rtol=1e-8,
        atol=1e-8,
        dense_output=len(times) > 2,
    )
    for t, state in zip(times[1:-1], solution.states[1:-1], strict=True):
        assert state.flatten().tolist() == theirs.sol(t).tolist()
    assert solution.final.flatten().tolist() == theirs.y[:, -1].tolist()
    assert solution.accepted.tolist() == [len(theirs.t) - 1] * 2
    assert solution.nfe.tolist() == [theirs.nfev] * 2 or cls is Radau  # which counts a Jacobian's apart


@pytest.mark.parametrize("cls", ALL)
def test_gives_up_after_as_many_evaluations_as_said(cls):
    seen = []
    with pytest.raises(SolverError, match=rf"{cls.__name__} is at t = 0\.\d+ of 1 after 20 evaluations"):
        cls(max_nfe=20).solve(lambda t, x: (seen.append(t), bernoulli(t, x))[1], torch.full((1, 1), 0.5), (0.0, 1.0))
    assert len(seen) == 20
    assert cls().max_nfe == 1_000_000
    assert cls(max_nfe=1).max_nfe == 1
    with pytest.raises(ArgumentError, match="max_nfe is 0, expected at least 1"):
        cls(max_nfe=0)


@pytest.mark.parametrize("cls", ALL)
def test_the_arithmetic_is_double_whatever_the_states_precision(cls):
    """A float32 state is advanced in float64: the end is the exact one, rounded once."""
    x0 = torch.tensor([[0.3, 0.6, -0.5]])
    want = 1 / (1 / x0.double() - math.sin(1.0))
    final = cls(1e-11, 1e-11).solve(lambda t, x: x.double() ** 2 * math.cos(t), x0, (0.0, 1.0)).final
    torch.testing.assert_close(final.double(), want, rtol=2e-7, atol=0)


@pytest.mark.parametrize("cls", [Radau, LSODA])
def test_implicit_methods_take_a_stiff_field_cheaply(cls):
    """dx/dt = -1e5 (x - cos t): x follows cos t."""
    solution = cls(1e-6, 1e-6).solve(
        lambda t, x: -1e5 * (x - math.cos(t)), torch.zeros(1, 1, dtype=torch.float64), (0.0, 1.0)
    )
    assert solution.final.item() == pytest.approx(math.cos(1.0), abs=1e-4)
    assert solution.nfe[0] < 1000


@pytest.mark.parametrize("cls", ALL)
def test_gradients_are_refused_rather_than_lost(cls):
    x0 = torch.ones(1, 1, requires_grad=True)
    with pytest.raises(CombinationError, match=f"no gradient passes through {cls.__name__}"):
        cls().solve(bernoulli, x0, (0.0, 1.0))
    with torch.no_grad():
        cls().solve(bernoulli, x0, (0.0, 1.0))


def test_gradients_with_respect_to_weights_are_refused_too(seeded):
    """The state needs no gradient then, the field does."""
    flow = Flow(Gaussian(), MLP(1, width=4, depth=1), event_shape=1)
    with pytest.raises(CombinationError, match="no gradient"):
        flow.sample(2, solver=DOP853(), generator=seeded(0), differentiable=True)


@pytest.mark.parametrize("cls", ALL)
def test_tolerances_out_of_range_are_refused(cls):
    with pytest.raises(ArgumentError, match=r"rtol is 0\.0 and atol 1e-08, expected positive numbers"):
        cls(rtol=0.0)


def test_agrees_with_an_own_method():
    x0 = torch.tensor([[0.3, 0.6, -0.5]], dtype=torch.float64)
    times = (0.0, 0.3, 1.0)
    reference, own = DOP853(1e-12, 1e-12).solve(bernoulli, x0, times), RK4(400).solve(bernoulli, x0, times)
    for a, b in zip(reference.states, own.states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cls", ALL)
def test_a_pole_is_seen_long_before_the_evaluations_run_out(cls):
    """x' = x² from 1 has its pole at t = 1, where steps shrink for ever; from a time that is not 0 as well."""
    for begin in (0.0, 3.0):
        asked = []

        def f(t, x, asked=asked):
            asked.append(t)
            return x**2

        with pytest.raises(SolverError, match=rf"{cls.__name__} "):
            cls().solve(f, torch.ones(1, 1, dtype=torch.float64), (begin, begin + 2.0))
        assert len(asked) < 20_000


@pytest.mark.parametrize("cls", [DOP853, LSODA])
def test_a_large_batch_is_no_pole(cls):
    x0 = torch.ones(500, 1, dtype=torch.float64)
    torch.testing.assert_close(cls().solve(lambda t, x: -x, x0, (0.0, 1.0)).final, x0 * math.exp(-1), rtol=1e-6, atol=0)


def test_a_state_of_three_parts_comes_back_in_its_shapes():
    x0 = (torch.full((2, 3), 1.0), torch.full((2,), 2.0, dtype=torch.float64), torch.full((2, 2), 4.0))
    end = DOP853().solve(lambda t, x: tuple(-part for part in x), x0, (0.0, 1.0)).final
    for part, begin in zip(end, x0, strict=True):
        torch.testing.assert_close(part, begin * math.exp(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("cls", ALL)
def test_a_solver_that_is_stuck_where_it_began_gives_up_at_once(cls):
    """The pole of x' = x² from 1e12 is at t = 1e-12: nothing moves, and one round of patience tells."""
    asked = []
    with pytest.raises(SolverError, match=rf"{cls.__name__} "):
        cls().solve(lambda t, x: (asked.append(t), x**2)[1], torch.full((1, 1), 1e12, dtype=torch.float64), (0.0, 1.0))
    assert len(asked) < 3000


@pytest.mark.parametrize("length", [1e-6, 1e3])
def test_what_counts_as_a_standstill_is_in_proportion_to_the_interval(length):
    """An oscillation of 60 periods is none, fast or slow, near t = 0 or far from it."""
    k = 120 * math.pi / length
    x0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    turn = torch.tensor([[0.0, k], [-k, 0.0]], dtype=torch.float64)
    solution = DOP853(1e-9, 1e-9).solve(lambda t, x: x @ turn, x0, (500.0, 500.0 + length))
    assert solution.nfe[0] > 2 * (2000 + 10 * 2)
    torch.testing.assert_close(solution.final, x0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_field_is_asked_for_gradients_once_to_see_whether_it_has_any(cls, wanted):
    """And never where none are wanted: the graph of a thousand evaluations would fill the memory."""
    seen = []
    with torch.set_grad_enabled(wanted):
        cls().solve(lambda t, x: (seen.append(torch.is_grad_enabled()), -x)[1], torch.ones(1, 1), (0.0, 1.0))
    assert seen[0] == wanted
    assert not any(seen[1:])


@pytest.mark.parametrize("cls", ALL)
def test_a_state_in_16_bits_is_advanced_in_double_precision(cls):
    """x' = exp t from 1 ends in e, rounded once; an integral beside it keeps its own precision."""
    point, e = torch.ones(2, 1, dtype=torch.bfloat16), torch.full((2, 1), math.e, dtype=torch.bfloat16)
    alone = cls().solve(lambda t, x: torch.full((2, 1), math.exp(t)), point, (0.0, 1.0)).final
    assert torch.equal(alone, e)
    x, integral = (
        cls().solve(lambda t, s: (torch.full((2, 1), math.exp(t)), s[1] + 1), (point, torch.zeros(2)), (0.0, 1.0)).final
    )
    assert torch.equal(x, e)
    torch.testing.assert_close(integral, torch.full((2,), math.e - 1))


@pytest.mark.parametrize("cls", ALL)
def test_an_end_beyond_the_states_precision_is_an_error(cls):
    """1e5 is more than float16 holds."""
    with pytest.raises(SolverError, match=f"{cls.__name__} reached t = 1 with 1 of 2 samples not finite"):
        cls().solve(lambda t, x: torch.tensor([[0.0], [1e5]]), torch.tensor([[0.0], [1.0]]).half(), (0.0, 1.0))


def test_a_jacobian_of_many_columns_is_no_standstill():
    """Radau asks once for each of 2100 equations, all at one time."""
    solution = Radau(1e-2, 1e-2).solve(lambda t, x: -x, torch.ones(2100, 1, dtype=torch.float64), (0.0, 0.1))
    torch.testing.assert_close(solution.final, torch.full_like(solution.final, math.exp(-0.1)), rtol=1e-2, atol=0)


@pytest.mark.parametrize("cls", ALL)
def test_a_generator_must_be_one_even_where_nothing_is_drawn(cls):
    with pytest.raises(ArgumentError, match="generator is 3, expected a torch.Generator"):
        cls().solve(bernoulli, torch.ones(1, 1), (0.0, 1.0), generator=3)
