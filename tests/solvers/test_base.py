"""What every solver owes: exact landing, times inside the interval, honest counts, both directions, clear refusals.

All are run here on dx/dt = x² cos t, whose solution from x(s) is x(t) = 1 / (1/x(s) + sin s - sin t).
"""

import itertools
import math

import pytest
import torch

from fmkit import registry
from fmkit.errors import ArgumentError, FmkitError, SolverError
from fmkit.solvers import AB3, RK4, AdaptiveHeun, Dopri5, Euler, FixedStep, Heun, Solution, Solver, UniformGrid, Watched
from fmkit.solvers.base import check_times

ODES = [e.name for e in registry.entries("fmkit.solvers") if e.package == "fmkit" and e.load().reads == "velocity"]
FIXED = [n for n in ODES if issubclass(registry.load("fmkit.solvers", n), FixedStep)]


def make(name: str) -> Solver:
    cls = registry.load("fmkit.solvers", name)
    return cls(steps=50) if "steps" in cls.__init__.__code__.co_varnames else cls()


def bernoulli(t, x):
    return x**2 * math.cos(float(t))


def exact(x, begin, end):
    return 1 / (1 / x + math.sin(begin) - math.sin(end))


def start(dtype=torch.float64):
    return torch.tensor([[0.3, 0.5], [0.6, -0.4], [0.1, -0.5]], dtype=dtype)


class Recorder:
    """Counts its calls and keeps their times."""

    def __init__(self, f=bernoulli):
        self.f, self.times = f, []

    def __call__(self, t, x):
        self.times.append(float(t))
        return self.f(t, x)


TOLERANCE = {"euler": 3e-2, "torchdiffeq-euler": 3e-2}
SECOND = dict.fromkeys(["midpoint", "heun", "ab2", "torchdiffeq-midpoint", "torchdiffeq-heun2", "adaptive-heun"], 1e-3)
SECOND["fehlberg2"] = 1e-2  # its error estimate has a factor of 1/512


@pytest.mark.parametrize("name", ODES)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (1e-5, 1 - 1e-5), (0.9, 0.25)])
def test_reaches_the_closed_form(name, times):
    x0 = start()
    solution = make(name).solve(bernoulli, x0, times)
    error = (solution.final - exact(x0, *times)).abs().max().item()
    assert error < TOLERANCE.get(name, SECOND.get(name, 2e-4))
    assert solution.times == times
    assert torch.equal(solution.states[0], x0)
    assert solution.status == "success"


@pytest.mark.parametrize("name", ODES)
@pytest.mark.parametrize("times", [(0.1, 0.7000001), (1.0, 1e-5), (0.0, 1 - 1e-5), (0.3, 0.3 + 1e-9)])
def test_lands_exactly_on_the_last_time(name, times):
    """dx/dt = 1 shows how far time went: to the last time, up to the rounding of as many additions as steps."""
    x0 = torch.zeros(2, 1, dtype=torch.float64)
    final = make(name).solve(lambda t, x: torch.ones_like(x), x0, times).final
    torch.testing.assert_close(final, torch.full_like(x0, times[1] - times[0]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ODES)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1 - 1e-5, 1e-5), (0.2, 0.6, 0.61, 0.9), (1.0, 0.7, 0.1)])
def test_never_evaluates_outside_the_interval(name, times):
    f = Recorder()
    make(name).solve(f, start(), times)
    assert min(times) <= min(f.times)
    assert max(f.times) <= max(times)


@pytest.mark.parametrize("name", ODES)
@pytest.mark.parametrize("times", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.33, 0.5, 1.0)])
@pytest.mark.parametrize("integrals", [False, True])
def test_counts_every_evaluation_once_for_each_sample(name, times, integrals):
    f = Recorder(lambda t, s: (bernoulli(t, s[0]), s[0].sum(1)) if integrals else bernoulli(t, s))
    x0 = (start(), torch.zeros(3, dtype=torch.float64)) if integrals else start()
    solution = make(name).solve(f, x0, times)
    assert solution.nfe.tolist() == [len(f.times)] * 3
    assert solution.nfe.dtype == torch.int64
    assert (solution.accepted > 0).all()
    assert solution.accepted.shape == solution.rejected.shape == (3,)


@pytest.mark.parametrize("name", ODES)
def test_intermediate_times_do_not_move_the_end(name):
    x0 = start()
    for ends in ((0.0, 1.0), (1.0, 0.0)):
        plain = make(name).solve(bernoulli, x0, ends)
        stops = [ends[0], *sorted([0.333, 0.5, 0.91], reverse=ends[0] > ends[1]), ends[1]]
        stopped = make(name).solve(bernoulli, x0, stops)
        assert torch.equal(plain.final, stopped.final)
        assert len(stopped.states) == 5
        for t, state in zip(stops, stopped.states, strict=True):
            error = (state - exact(x0, ends[0], t)).abs().max().item()
            # between its steps an adaptive method interpolates, at a lower order than it steps
            assert error < max(TOLERANCE.get(name, SECOND.get(name, 2e-4)), 0 if name in FIXED else 2e-3)


@pytest.mark.parametrize("name", ODES)
def test_integrals_are_given_at_intermediate_times_too(name):
    """dx/dt = 1 beside dy/dt = 2: straight lines, which interpolation of any order keeps."""
    state = (torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    stops = (0.0, 0.25, 0.5, 1.0)
    states = make(name).solve(lambda t, s: (torch.ones_like(s[0]), torch.full_like(s[1], 2.0)), state, stops).states
    for t, (x, y) in zip(stops, states, strict=True):
        torch.testing.assert_close(x, torch.full_like(x, t), rtol=0, atol=1e-12)
        torch.testing.assert_close(y, torch.full_like(y, 2 * t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ODES)
def test_integrals_ride_along(name):
    """The point beside an integral moves as alone (for fixed steps), and d log x / dt = x cos t integrates to it."""
    x0 = start().abs()
    state = (x0, torch.zeros(3, 2, dtype=torch.float64))
    point, integral = (
        make(name).solve(lambda t, s: (bernoulli(t, s[0]), s[0] * math.cos(float(t))), state, (0.0, 1.0)).final
    )
    want = torch.log(exact(x0, 0.0, 1.0) / x0)
    tolerance = TOLERANCE.get(name, SECOND.get(name, 2e-4))
    assert (integral - want).abs().max().item() < tolerance
    if name in FIXED:
        assert torch.equal(point, make(name).solve(bernoulli, x0, (0.0, 1.0)).final)


@pytest.mark.parametrize("name", ODES)
def test_backward_undoes_forward(name):
    x0 = start()
    there = make(name).solve(bernoulli, x0, (0.1, 0.9)).final
    back = make(name).solve(bernoulli, there, (0.9, 0.1)).final
    assert (back - x0).abs().max().item() < 2 * TOLERANCE.get(name, SECOND.get(name, 2e-4))
    assert (there - x0).abs().max().item() > 0.1


@pytest.mark.parametrize("name", ODES)
@pytest.mark.parametrize("event", [(), (4,), (2, 3, 4)])
def test_any_event_shape_and_precision(name, event):
    for dtype in (torch.float32, torch.float64):
        x0 = torch.full((2, *event), 0.5, dtype=dtype)
        final = make(name).solve(bernoulli, x0, (0.0, 1.0)).final
        assert final.dtype == dtype
        want = exact(torch.full((2, *event), 0.5), 0.0, 1.0)
        torch.testing.assert_close(final.float(), want, rtol=0, atol=TOLERANCE.get(name, SECOND.get(name, 2e-4)))


@pytest.mark.parametrize("name", ODES)
def test_a_field_that_is_not_a_number_is_an_error(name):
    calls = itertools.count()

    def f(t, x):
        assert next(calls) < 5000, "still asking for more of it"
        return x * float("nan")

    with pytest.raises(SolverError, match="t = ") as caught:
        make(name).solve(f, start(), (0.0, 1.0))
    assert "still asking" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["euler", "rk4", "ab4", "torchdiffeq-rk4", "bosh3", "dopri5", "scipy-dop853", "scipy-lsoda"]
)
def test_a_field_that_blows_up_is_an_error(name):
    """dx/dt = 4 x² from 0.5 is infinite at t = 0.5; fixed steps may step across the pole, and then end non-finite."""
    calls = itertools.count()

    def f(t, x):
        assert next(calls) < 30_000, "still asking for more of it"
        return 4 * x**2

    said = ""
    try:
        final = make(name).solve(f, torch.full((1, 1), 0.5, dtype=torch.float64), (0.0, 1.0)).final
    except SolverError as error:
        final, said = torch.zeros(1), str(error)
    assert torch.isfinite(final).all()
    assert "still asking" not in said
    assert not said or "t = " in said


BAD_TIMES = {
    "one": ([0.5], r"times are \[0\.5\], expected two or more"),
    "none": ([], r"times are \[\], expected two or more"),
    "equal": ([0.5, 0.5], "strictly increasing or strictly decreasing"),
    "turning": ([0.0, 1.0, 0.5], "strictly increasing or strictly decreasing"),
    "repeated": ([0.0, 0.5, 0.5, 1.0], "strictly increasing or strictly decreasing"),
    "nan": ([0.0, float("nan")], "expected finite numbers"),
    "infinite": ([0.0, float("inf")], "expected finite numbers"),
}


@pytest.mark.parametrize("name", ODES)
@pytest.mark.parametrize("mistake", BAD_TIMES)
def test_bad_times_are_refused(name, mistake):
    times, message = BAD_TIMES[mistake]
    with pytest.raises(ArgumentError, match=message):
        make(name).solve(bernoulli, start(), times)


@pytest.mark.parametrize("name", ["euler", "ab3", "torchdiffeq-rk4", "dopri5", "scipy-dop853", "scipy-lsoda"])
def test_an_interval_shorter_than_the_steps_rounding_is_crossed_or_refused(name):
    x0 = start()
    try:
        final = make(name).solve(bernoulli, x0, (0.3, 0.1 + 0.2)).final
    except FmkitError:
        return
    torch.testing.assert_close(final, x0, rtol=0, atol=1e-14)


def test_a_partial_grid_integrates_over_what_it_says():
    """[0.5, 1] begins at 0.5 and ends at 1, and is not carried back to 0."""
    x0 = start()
    final = RK4(steps=100).solve(bernoulli, x0, [0.5, 1.0]).final
    torch.testing.assert_close(final, exact(x0, 0.5, 1.0), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [Heun(10), AB3(10), Dopri5(), AdaptiveHeun()], ids=repr)
def test_gradients_pass_through(solver):
    """x(1) = x0 exp(w): d x(1)/dw = x(1), d x(1)/dx0 = exp(w), and autograd agrees with differences of the solver."""

    def end(w, x0):
        return solver.solve(lambda t, x: w * x, x0, (0.0, 1.0)).final

    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    x0 = start().requires_grad_()
    dw, dx = torch.autograd.grad(end(w, x0).sum(), (w, x0))
    assert dw.item() == pytest.approx(math.exp(0.7) * x0.sum().item(), rel=5e-3)
    torch.testing.assert_close(dx, torch.full_like(x0, math.exp(0.7)), rtol=5e-3, atol=0)
    if isinstance(solver, FixedStep):
        assert torch.autograd.gradcheck(end, (w, x0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["euler", "torchdiffeq-euler"])
@pytest.mark.parametrize("integrals", [False, True])
def test_low_precision_states_are_accumulated_in_at_least_single_precision(dtype, name, integrals):
    """4000 steps of 1/4000 stop at 0.125 in bfloat16 and at 0.5 in float16: half an ulp there is more than a step.

    The function is given, and the end is given back in, the state's own precision.
    """
    seen = set()

    def f(t, x):
        seen.add((x[0] if integrals else x).dtype)
        return (torch.ones_like(x[0]), torch.ones_like(x[1])) if integrals else torch.ones_like(x)

    x0 = torch.zeros(1, 1, dtype=dtype)
    solver = registry.load("fmkit.solvers", name)(steps=4000)
    final = solver.solve(f, (x0, x0) if integrals else x0, (0.0, 1.0)).final
    for part in final if integrals else (final,):
        assert part.item() == pytest.approx(1.0, abs=0.01)
        assert part.dtype == dtype
    assert seen == {dtype}


def test_check_times():
    assert check_times([1, torch.tensor(0.5), 0]) == (1.0, 0.5, 0.0)
    with pytest.raises(FmkitError):
        check_times([0.0, -0.0])


def test_times_may_be_as_near_as_rounding_lets_them():
    """Apart by 1e-12, or by 1e-12 of their size beyond 1."""
    for near in ((0.0, 2e-12), (0.5, 0.5 - 2e-12), (1e3, 1e3 + 2e-9), (0.0, 0.5, 0.5 + 2e-12)):
        assert check_times(near) == near
    for nearer in ((0.0, 5e-13), (0.5, 0.5 - 5e-13), (1e3, 1e3 + 5e-10), (0.0, 0.5, 0.5 + 5e-13)):
        with pytest.raises(ArgumentError, match="expected ones further apart than rounding"):
            check_times(nearer)


@pytest.mark.parametrize("kind", [float, torch.tensor, lambda t: torch.tensor([t, t])])
def test_a_watched_functions_times_stay_inside_and_its_calls_are_counted(kind):
    """A float32 1 is beyond 1 - 1e-9; the clamp is in double precision, and so is what the function is given."""
    low, high = 1e-9, 1 - 1e-9
    seen, state = [], torch.ones(2, 1)
    watched = Watched(lambda s, t, x: seen.append((s, t)) or x, (high, low))
    for given, want in ((0.0, low), (1.0, high), (0.25, 0.25)):
        x = watched(kind(given), kind(0.5), state)
        s, t = seen.pop()
        if isinstance(s, torch.Tensor):
            assert s.dtype == t.dtype == torch.float64
            assert (s == want).all()
        else:
            assert (s, t) == (want, 0.5)
        assert x is state
    assert watched.calls == 3


def test_a_state_that_is_not_finite_is_counted_and_located():
    x0 = torch.zeros(4, 3)
    bad = torch.zeros(4, 3)
    bad[2, 1], bad[3] = float("nan"), float("inf")
    said = r"Euler reached t = 1 with 2 of 4 samples not finite, the first in row 2"
    with pytest.raises(SolverError, match=said):
        Euler(1).solve(lambda t, x: bad, x0, (0.0, 1.0))
    with pytest.raises(SolverError, match=said):
        Euler(1).solve(lambda t, x: (torch.zeros(4, 3), bad.sum(1)), (x0, x0[:, 0]), (0.0, 1.0))


def test_solvers_work_inside_function_transforms():
    """A derivative of the end through the solver: d/dw exp(w) x0."""
    x0 = start()
    end = torch.func.jacfwd(lambda w: RK4(20).solve(lambda t, x: w * x, x0, (0.0, 1.0)).final)
    torch.testing.assert_close(end(torch.tensor(0.7).double()), math.exp(0.7) * x0, rtol=1e-6, atol=0)


def test_solution_final_is_the_last_state():
    states = (torch.zeros(1), torch.ones(1))
    assert Solution((0.0, 1.0), states, *torch.zeros(3, 1)).final is states[1]


def test_a_solver_is_not_changed_by_solving():
    solver = AB3(8, UniformGrid())
    first = solver.solve(bernoulli, start(), (0.0, 1.0)).final
    solver.solve(lambda t, x: -x, start(), (1.0, 0.0))
    assert torch.equal(solver.solve(bernoulli, start(), (0.0, 1.0)).final, first)
