"""torchode's solvers against closed-form flows, one sample against the same sample in company, and NFE by counting."""

from __future__ import annotations

import math

import pytest
import torch

import fmkit
from fmkit import registry
from fmkit.errors import ArgumentError, SolverError
from fmkit.shapes import batch_time
from fmkit.solvers import Dopri5 as BatchDopri5
from fmkit.solvers import Solver
from fmkit_torchode import Dopri5, Heun, Tsit5

SOLVERS = [Tsit5, Dopri5, Heun]
STIFFNESS = torch.tensor([1.0, 400.0, 3.0, 20.0], dtype=torch.float64)


def swing(t, x):
    """x' = cos(3t) x, so x(t) = x(0) exp(sin(3t)/3)."""
    return x * torch.cos(3 * t).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def swung(x, t0, t1):
    return x * math.exp((math.sin(3 * t1) - math.sin(3 * t0)) / 3)


def chase(k):
    """x' = -k (x - cos t), stiff where k is large; row b has its own k."""

    def f(t, x):
        return -k[:, None] * (x - torch.cos(batch_time(t, x))[:, None])

    return f


def chased(k, x0, t):
    """Its solution: a particular one, and what is left of the beginning."""
    k = k[:, None]
    steady = (k * k * math.cos(t) + k * math.sin(t)) / (1 + k * k)
    return steady + (x0 - k * k / (1 + k * k)) * torch.exp(-k * t)


@pytest.fixture
def points():
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (0.2, 0.9)])
def test_the_error_follows_the_tolerance(points, solver, times):
    loose, tight = 1e-3, 1e-6
    errors = []
    for tolerance in (loose, tight):
        out = solver(tolerance, tolerance).solve(swing, points, times)
        errors.append((out.final - swung(points, *times)).abs().max().item())
    assert errors[0] < 5 * loose
    assert errors[1] < min(5 * tight, 0.05 * errors[0])


@pytest.mark.parametrize(("solver", "order"), [(Tsit5, 5), (Dopri5, 5), (Heun, 2)])
def test_the_work_follows_the_order(points, solver, order):
    """Steps grow as tolerance^(-1/order): the error of a step is dt^order, as the embedded method's is."""
    loose, tight = (1e-6, 1e-10) if order == 5 else (1e-3, 1e-6)
    steps = [solver(tol, tol).solve(swing, points, (0.0, 3.0)).accepted.max() for tol in (loose, tight)]
    measured = math.log(loose / tight) / math.log(steps[1] / steps[0])
    assert measured == pytest.approx(order, rel=0.12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_stiff_neighbour_changes_neither_answer_nor_nfe(points, solver):
    tool = solver(1e-5, 1e-5)
    together = tool.solve(chase(STIFFNESS), points, (0.0, 1.0))
    for b in range(4):
        alone = tool.solve(chase(STIFFNESS[b : b + 1]), points[b : b + 1], (0.0, 1.0))
        assert together.nfe[b] == alone.nfe[0]
        torch.testing.assert_close(together.final[b], alone.final[0], rtol=1e-12, atol=1e-13)
    assert together.nfe[0] < together.nfe[1] / 2  # and the stiff one is the dear one
    torch.testing.assert_close(together.final, chased(STIFFNESS, points, 1.0), rtol=0, atol=2e-4)


def test_a_solver_that_shares_its_steps_is_caught_by_that(points):
    """The contrast: torchdiffeq's dopri5 takes the batch's steps, so the easy sample pays for the stiff one."""
    tool = BatchDopri5(1e-5, 1e-5)
    together = tool.solve(chase(STIFFNESS), points, (0.0, 1.0))
    alone = tool.solve(chase(STIFFNESS[:1]), points[:1], (0.0, 1.0))
    assert together.nfe[0] > 2 * alone.nfe[0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.3, 0.0)])
def test_nfe_is_what_a_counter_counts(points, solver, times):
    calls = []
    k = STIFFNESS

    def counted(t, x):
        calls.append(len(x))
        return chase(k)(t, x) * (1 if times[0] < times[-1] else -1)

    tool = solver(1e-4, 1e-4)
    together = tool.solve(counted, points, times)
    assert len(calls) == together.nfe.max()
    for b in range(4):
        k = STIFFNESS[b : b + 1]
        calls.clear()
        tool.solve(counted, points[b : b + 1], times)
        assert len(calls) == together.nfe[b]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("times", [(0.1, 0.7), (0.7, 0.1), (1e-5, 1 - 1e-5), (1 - 1e-5, 1e-5)])
def test_never_outside_the_interval_and_up_to_its_end(points, solver, dtype, times):
    seen = []

    def f(t, x):
        assert t.shape == (4,)
        seen.append(t.clone())
        return swing(t, x)

    solver(1e-4, 1e-4).solve(f, points.to(dtype), times)
    seen = torch.cat(seen)
    assert seen.min() == min(times)
    assert seen.max() == max(times)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_end_keeps_every_digit_in_float32(points, solver):
    """A constant slope is integrated exactly by every step; an interpolant through 16 y_mid - 8 (y0 + y1) is not."""
    x0 = 1e4 * points.float()
    end = solver(1e-6, 1e-6).solve(lambda t, x: torch.ones_like(x), x0, (0.0, 1.0)).final
    torch.testing.assert_close(end, x0 + 1, rtol=2.5e-7, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_stops_are_on_the_solution_and_move_nothing(points, solver):
    tool = solver(1e-7, 1e-7)
    stops = (0.0, 0.11, 0.5, 0.93, 1.0)
    with_stops, without = tool.solve(swing, points, stops), tool.solve(swing, points, (0.0, 1.0))
    assert torch.equal(with_stops.final, without.final)
    assert torch.equal(with_stops.nfe, without.nfe)
    assert torch.equal(with_stops.states[0], points)
    for t, x in zip(stops, with_stops.states, strict=True):
        torch.testing.assert_close(x, swung(points, 0.0, t), rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2, 3)])
def test_any_event_shape(shape):
    x0 = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = Tsit5(1e-8, 1e-8).solve(swing, x0, (0.0, 1.0))
    torch.testing.assert_close(out.final, swung(x0, 0.0, 1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_integral_beside_the_point_is_held_to_the_tolerance_too(solver):
    """An integral of cos 40t takes the same steps beside 1000 coordinates at rest as it takes alone."""
    nothing = torch.zeros(2, dtype=torch.float64)
    rest = torch.zeros(2, 1000, dtype=torch.float64)
    tool = solver(1e-6, 1e-6)
    beside = tool.solve(lambda t, state: (torch.zeros_like(rest), torch.cos(40 * t)), (rest, nothing), (0.0, 1.0))
    alone = tool.solve(lambda t, x: torch.cos(40 * t), nothing, (0.0, 1.0))
    assert torch.equal(beside.nfe, alone.nfe)
    x, integral = beside.final
    assert torch.equal(x, rest)
    torch.testing.assert_close(integral, torch.full_like(nothing, math.sin(40) / 40), rtol=0, atol=2e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_are_those_of_the_closed_form(points, solver):
    x0, rate = points.clone().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    end = solver(1e-7, 1e-7).solve(lambda t, x: rate * x, x0, (0.0, 1.0)).final
    by_x0, by_rate = torch.autograd.grad(end.sum(), (x0, rate))
    torch.testing.assert_close(by_x0, torch.full_like(points, math.exp(0.7)), rtol=1e-5, atol=0)
    torch.testing.assert_close(by_rate, (points * math.exp(0.7)).sum(), rtol=1e-5, atol=1e-6)


def test_a_sample_that_blows_up_is_named():
    """x' = x² ends at t = 1/x0: rows 0 and 1 get to 1, row 2 cannot."""
    x0 = torch.tensor([[0.1], [0.5], [2.0]], dtype=torch.float64)
    with pytest.raises(SolverError, match=r"Dopri5 did not reach t = 1 with 1 of 3 samples, the first in row 2"):
        Dopri5(max_steps=500).solve(lambda t, x: x * x, x0, (0.0, 1.0))
    fine = Dopri5(1e-8, 1e-8, max_steps=500).solve(lambda t, x: x * x, x0[:2], (0.0, 1.0)).final
    torch.testing.assert_close(fine, x0[:2] / (1 - x0[:2]), rtol=1e-6, atol=0)


def test_a_slope_that_is_not_finite_is_named(points):
    def f(t, x):
        return torch.where(torch.tensor([[False], [True], [False], [True]]), torch.nan, x)

    with pytest.raises(SolverError, match=r"2 of 4 samples, the first in row 1: .* no longer finite"):
        Tsit5().solve(f, points, (0.0, 1.0))


@pytest.mark.parametrize("solver", SOLVERS)
def test_max_steps_is_exact(points, solver):
    f, x0 = chase(STIFFNESS[:1]), points[:1]
    out = solver(1e-4, 1e-4).solve(f, x0, (0.0, 1.0))
    steps = int(out.accepted + out.rejected)
    assert torch.equal(solver(1e-4, 1e-4, max_steps=steps).solve(f, x0, (0.0, 1.0)).final, out.final)
    with pytest.raises(SolverError, match=f"needs more than {steps - 1} steps"):
        solver(1e-4, 1e-4, max_steps=steps - 1).solve(f, x0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rtol": 0.0}, "rtol is 0.0"),
        ({"atol": math.nan}, "atol nan"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"max_steps": True}, "max_steps is True"),
    ],
)
def test_what_cannot_be_is_refused(arguments, said):
    with pytest.raises(ArgumentError, match=said):
        Tsit5(**arguments)


def test_times_that_turn_round_are_refused(points):
    with pytest.raises(ArgumentError, match="strictly"):
        Tsit5().solve(swing, points, (0.0, 1.0, 0.5))


class Stretch(torch.nn.Module):
    """v = a x: from N(0, I) to N(0, e^(2a) I)."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t, x):
        return self.a * x


def test_a_flow_has_the_density_of_its_closed_form(tmp_path):
    flow = fmkit.Flow(fmkit.sources.Gaussian(), Stretch(), Tsit5(1e-8, 1e-8), event_shape=(2, 3))
    exact = torch.distributions.Normal(0.0, math.exp(0.5))
    x, log_prob = flow.sample_with_log_prob(5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_prob, exact.log_prob(x).sum((1, 2)), rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-6)
    flow.save(tmp_path / "stretch.flow")
    again = fmkit.Flow.load(tmp_path / "stretch.flow", using=[Stretch()])
    assert isinstance(again.solver, Tsit5)
    assert again.solver.rtol == 1e-8
    torch.testing.assert_close(again.log_prob(x), flow.log_prob(x), rtol=0, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_registered_under_its_name(solver):
    name = f"torchode-{solver.__name__.lower()}"
    entry = registry.find(Solver.group, name)
    assert entry.package == "fmkit-torchode"
    assert registry.load(Solver.group, name) is solver
    assert registry.name_of(solver) == name
