"""torchdiffeq's methods: orders of the fixed ones, tolerances of the adaptive ones, and the ends that VP needs."""

import math
import warnings

import pytest
import torch

from fmkit.errors import ArgumentError, SolverError
from fmkit.flow import Flow
from fmkit.paths import VariancePreserving
from fmkit.solvers import (
    AdaptiveHeun,
    Bosh3,
    Dopri5,
    Dopri8,
    Fehlberg2,
    ListedGrid,
    ShiftedGrid,
    TorchdiffeqEuler,
    TorchdiffeqExplicitAdams,
    TorchdiffeqHeun2,
    TorchdiffeqHeun3,
    TorchdiffeqImplicitAdams,
    TorchdiffeqMidpoint,
    TorchdiffeqRK4,
    UniformGrid,
)
from fmkit.sources import Gaussian

FIXED = {TorchdiffeqEuler: 1, TorchdiffeqMidpoint: 2, TorchdiffeqHeun2: 2, TorchdiffeqHeun3: 3, TorchdiffeqRK4: 4}
ADAPTIVE = [AdaptiveHeun, Bosh3, Dopri5, Dopri8]


def bernoulli(t, x):
    return x**2 * math.cos(float(t))


def solve(solver, times=(0.0, 1.0)):
    """The error at the end, and the evaluations."""
    x0 = torch.tensor([[0.3, 0.6, -0.5]], dtype=torch.float64)
    solution = solver.solve(bernoulli, x0, times)
    want = 1 / (1 / x0 + math.sin(times[0]) - math.sin(times[1]))
    return (solution.final - want).abs().max().item(), solution


@pytest.mark.parametrize("cls", FIXED, ids=lambda c: c.__name__)
@pytest.mark.parametrize("grid", [UniformGrid(), ShiftedGrid(3.0)], ids=repr)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0)])
def test_order(cls, grid, times, observed_order):
    steps = [40, 80, 160] if FIXED[cls] > 2 else [160, 320, 640]
    errors = [solve(cls(n, grid), times)[0] for n in steps]
    assert observed_order(steps, errors) == pytest.approx(FIXED[cls], abs=0.15)
    assert cls.order == FIXED[cls]


@pytest.mark.parametrize("cls", [TorchdiffeqExplicitAdams, TorchdiffeqImplicitAdams])
def test_adams_methods_converge_at_order_four_at_least(cls, observed_order):
    steps = [20, 40, 80]
    errors = [solve(cls(n))[0] for n in steps]
    assert errors[-1] < 1e-6
    assert observed_order(steps, errors) > 3.5 or errors[-1] < 1e-11


def test_explicit_adams_has_the_order_it_claims(observed_order):
    steps = [40, 80, 160]
    observed = observed_order(steps, [solve(TorchdiffeqExplicitAdams(n))[0] for n in steps])
    assert observed == pytest.approx(TorchdiffeqExplicitAdams.order, abs=0.3)


@pytest.mark.parametrize("solver", [Dopri5(1e-2, 1e-2), AdaptiveHeun(1e-2, 1e-2), TorchdiffeqRK4(4)], ids=repr)
def test_a_state_in_16_bits_reaches_the_field_as_it_is_and_is_summed_in_32(solver):
    seen = set()

    def f(t, x):
        seen.add(x.dtype)
        return -x

    end = solver.solve(f, torch.ones(2, 1, dtype=torch.bfloat16), (0.0, 1.0)).final
    assert seen == {torch.bfloat16}
    assert end.dtype == torch.bfloat16
    assert end[0, 0].item() == pytest.approx(math.exp(-1), rel=2e-2)


def test_a_warning_of_the_implicit_iteration_says_what_helps_at_the_users_line():
    with pytest.warns(
        UserWarning, match=r"^Functional iteration .* \(TorchdiffeqImplicitAdams; take more steps\)$"
    ) as caught:
        TorchdiffeqImplicitAdams(10).solve(lambda t, x: -30 * x, torch.ones(1, 1, dtype=torch.float64), (0.0, 1.0))
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("cls", ADAPTIVE)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0)])
def test_tolerance_is_honoured(cls, times):
    """The global error stays within a hundred tolerances, and a tighter tolerance costs more and gives more."""
    loose, first = solve(cls(rtol=1e-4, atol=1e-4), times)
    tight, second = solve(cls(rtol=1e-7, atol=1e-7), times)
    assert loose < 1e-2
    assert tight < 1e-5
    assert second.nfe[0] > first.nfe[0]
    assert second.accepted[0] > first.accepted[0]


@pytest.mark.parametrize(
    ("cls", "nodes"),
    [
        (TorchdiffeqEuler, [0]),
        (TorchdiffeqMidpoint, [0, 1 / 2]),
        (TorchdiffeqHeun2, [0, 1]),
        (TorchdiffeqHeun3, [0, 1 / 3, 2 / 3]),
        (TorchdiffeqRK4, [0, 1 / 3, 2 / 3, 1]),
    ],
)
def test_the_nodes_of_a_step_are_those_of_the_method_named(cls, nodes):
    seen = []
    cls(1).solve(lambda t, x: (seen.append(float(t)), x)[1], torch.ones(1, 1), (0.0, 1.0))
    assert seen == pytest.approx(nodes)
    assert cls().steps == 100


@pytest.mark.parametrize(("cls", "stages"), [(AdaptiveHeun, 1), (Fehlberg2, 2), (Bosh3, 3), (Dopri5, 6), (Dopri8, 13)])
def test_a_step_costs_the_stages_of_the_method_named(cls, stages):
    """Two evaluations to begin with (the slope, and a first step's length), and the last stage is the next's first."""
    _, solution = solve(cls(1e-6, 1e-6))
    assert (solution.nfe == 2 + stages * (solution.accepted + solution.rejected)).all()
    assert cls.method == {AdaptiveHeun: "adaptive_heun"}.get(cls, cls.__name__.lower())


def test_the_tolerance_is_the_papers_unless_said():
    default, said = solve(Dopri5())[1], solve(Dopri5(1e-5, 1e-5, 10_000))[1]
    assert torch.equal(default.final, said.final)
    assert not torch.equal(default.final, solve(Dopri5(1.1e-5, 1e-5))[1].final)
    assert not torch.equal(default.final, solve(Dopri5(1e-5, 1.1e-5))[1].final)
    assert (Dopri5().rtol, Dopri5().atol, Dopri5().max_steps) == (1e-5, 1e-5, 10_000)


@pytest.mark.parametrize("cls", [TorchdiffeqRK4, TorchdiffeqExplicitAdams])
def test_states_between_steps_are_interpolated_by_cubics(cls):
    """On x = t³ + t² (its slope known) a cubic through values and slopes of a step's ends is exact."""
    stops = (0.0, 0.13, 0.5, 0.77, 1.0)
    states = cls(4).solve(lambda t, x: torch.full_like(x, 3 * t**2 + 2 * t), torch.zeros(1, 1).double(), stops).states
    assert [s.item() for s in states] == pytest.approx([t**3 + t**2 for t in stops], abs=1e-12)


def test_steps_lie_where_the_grid_says():
    """Euler's on dx/dt = t from 0 to 2, in steps of 0.6 and 1.4: 0.6 * 0 + 1.4 * 0.6."""
    solver = TorchdiffeqEuler(2, ListedGrid([0.0, 0.3, 1.0]))
    end = solver.solve(lambda t, x: torch.full_like(x, float(t)), torch.zeros(1, 1).double(), (0.0, 2.0)).final
    assert end.item() == pytest.approx(0.84)


def test_higher_orders_are_cheaper_at_tight_tolerances():
    cost = [solve(cls(rtol=1e-10, atol=1e-10))[1].nfe[0].item() for cls in (Bosh3, Dopri5, Dopri8)]
    assert cost == sorted(cost, reverse=True)


def test_rejected_steps_are_counted():
    """A field that turns suddenly at t = 1/2 makes a step too long."""
    solution = Dopri5(1e-6, 1e-6).solve(
        lambda t, x: torch.full_like(x, math.tanh(400 * (float(t) - 0.5))),
        torch.zeros(1, 1, dtype=torch.float64),
        (0.0, 1.0),
    )
    assert solution.rejected[0] > 0
    # two to start with; six new ones a step, as the seventh is the next step's first
    assert solution.nfe[0].item() == 2 + 6 * (solution.accepted + solution.rejected)[0]


def test_too_many_steps_are_an_error_that_says_where_and_what_to_do():
    with pytest.raises(SolverError, match=r"Dopri5 did not reach t = 1 after \d+ evaluations.*looser tolerances"):
        Dopri5(1e-10, 1e-10, max_steps=5).solve(bernoulli, torch.full((1, 1), 0.5, dtype=torch.float64), (0.0, 1.0))


@pytest.mark.parametrize("cls", ADAPTIVE)
def test_a_diffusion_field_is_not_asked_beyond_its_end(cls, mixtures, schedules, exact_field, seeded):
    """Left alone, torchdiffeq's dopri5 oversteps VP's end, where sqrt(1 - a²) is not a number."""
    times, field = [], exact_field(mixtures[2], schedules["vp"])
    flow = Flow(VariancePreserving().start(Gaussian()), field, cls(1e-4, 1e-4), 2)
    field.register_forward_hook(lambda module, inputs, output: times.append(inputs[0][0].item()))
    x = flow.sample(8, generator=seeded(0))
    assert torch.isfinite(x).all()
    assert max(times) <= 1 - 1e-5
    assert torch.isfinite(flow.log_prob(x)).all()
    assert min(times) >= 0.0


@pytest.mark.parametrize("cls", ADAPTIVE)
@pytest.mark.parametrize(
    ("rtol", "atol"), [(0.0, 1e-5), (1e-5, 0.0), (1e-5, -1.0), (float("nan"), 1e-5), (math.inf, 1e-5), (1e-5, math.inf)]
)
def test_tolerances_out_of_range_are_refused(cls, rtol, atol):
    with pytest.raises(ArgumentError, match=f"rtol is {rtol} and atol {atol}, expected positive numbers"):
        cls(rtol, atol)


def test_counts_out_of_range_are_refused():
    assert Dopri5(max_steps=1).max_steps == 1
    with pytest.raises(ArgumentError, match="max_steps is 0, expected at least 1"):
        Dopri5(max_steps=0)
    with pytest.raises(ArgumentError, match="steps is 0, expected a whole number of at least 1"):
        TorchdiffeqRK4(0)


def test_a_networks_own_warning_is_left_as_it_is():
    def f(t, x):
        warnings.warn("of the user's network", stacklevel=1)
        return x

    with pytest.warns(UserWarning, match="user's network") as caught:
        TorchdiffeqRK4(2).solve(f, torch.ones(1, 1), (0.0, 1.0))
    assert {str(w.message) for w in caught} == {"of the user's network"}


def test_an_end_that_is_not_finite_is_said_and_no_iteration_before_it():
    """x' = x² from 2 has its pole at t = 1/2; the state at t = 0.1 is finite, and the error alone is raised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(SolverError, match="TorchdiffeqImplicitAdams reached t = 1 with 1 of 1 samples not finite"):
            TorchdiffeqImplicitAdams(50).solve(lambda t, x: x**2, torch.full((1, 1), 2.0).double(), (0.0, 0.1, 1.0))
    assert [str(w.message) for w in caught] == []


def test_a_generator_must_be_one_even_where_nothing_is_drawn():
    for solver in (Dopri5(), TorchdiffeqRK4(2)):
        with pytest.raises(ArgumentError, match="generator is 3, expected a torch.Generator"):
            solver.solve(bernoulli, torch.ones(1, 1), (0.0, 1.0), generator=3)
