"""Wrong solvers fail with the right law named; unusual ones pass, or are said not to have been checked."""

import dataclasses
import itertools

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.solvers import AB3, RK4, Dopri5, Euler, EulerMaruyama, Heun, ListedGrid, Midpoint, ShiftedGrid, Solver
from fmkit.solvers.base import check_times, count, finished, point_of
from fmkit.sources import Gaussian
from fmkit.testing import check_solver
from fmkit.testing.problems import logistic, sphere


def broken(solver, **options):
    return {f.id.removeprefix("solver.") for f in check_solver(solver, **options).failed}


class FirstOrder(Euler):
    order = 2


class MissesTheTime(Midpoint):
    """The midpoint method with the slope's time taken at the step's beginning: of order 1 where f depends on t."""

    def step(self, f, t, dt, x, memory):
        return x + dt * f(t, x + dt / 2 * f(t, x)), memory


class Bare(Solver):
    """Euler's method without any of fmkit's loop, for wrong solvers to start from."""

    order = 1

    def __init__(self, steps: int = 50) -> None:
        super().__init__()
        self.steps = steps

    def solve(self, f, x0, times, *, generator=None):
        times = check_times(times)
        states, x, calls = [x0], x0, 0
        for a, b in itertools.pairwise(times):
            h = (b - a) / self.steps
            for k in range(self.taken):
                x = self.plus(x, h, f(self.time(a, h, k), x))
                calls += 1
            states.append(x)
        return finished(self, times, states, x0, calls, self.steps)

    @property
    def taken(self):
        return self.steps

    def time(self, a, h, k):
        return a + k * h

    def plus(self, x, h, slope):
        if isinstance(x, tuple):
            return tuple(self.plus(part, h, s) for part, s in zip(x, slope, strict=True))
        return x + h * slope


class Oversteps(Bare):
    """A right-point rule that looks a step too far at its end."""

    def time(self, a, h, k):
        return a + (k + 1.5) * h


class EndsEarly(Bare):
    @property
    def taken(self):
        return self.steps - 1


class Miscounts(RK4):
    def solve(self, f, x0, times, *, generator=None):
        found = super().solve(f, x0, times)
        return dataclasses.replace(found, nfe=count(x0, self.steps))


class CountsTheBatch(RK4):
    def solve(self, f, x0, times, *, generator=None):
        found = super().solve(f, x0, times)
        return dataclasses.replace(found, nfe=found.nfe * len(point_of(x0)))


class ForwardOnly(Midpoint):
    """Backward it takes Euler steps."""

    def step(self, f, t, dt, x, memory):
        return super().step(f, t, dt, x, memory) if dt > 0 else Euler().step(f, t, dt, x, memory)


class DropsIntegrals(Heun):
    def step(self, f, t, dt, x, memory):
        new, memory = super().step(f, t, dt, x, memory)
        return ((new[0], x[1]) if isinstance(x, tuple) else new), memory


class MixesRows(Heun):
    def step(self, f, t, dt, x, memory):
        def clipped(s, y):
            slope = f(s, y)
            if isinstance(slope, tuple):
                return slope
            return slope * min(1.0, 2.0 / slope.norm().item())

        return super().step(clipped, t, dt, x, memory)


class Single(Heun):
    def solve(self, f, x0, times, *, generator=None):
        found = super().solve(f, x0, times)
        return dataclasses.replace(found, states=tuple(s if isinstance(s, tuple) else s.float() for s in found.states))


class AnyTimes(Heun):
    def solve(self, f, x0, times, *, generator=None):
        times = [t for t in times if abs(t) < 9] or [0.0]
        ends = (times[0], times[-1] if times[-1] != times[0] else times[0] + 1)
        return super().solve(f, x0, times if len(set(times)) > 1 and times == sorted(times) else ends)


class StopsToLook(Midpoint):
    """It takes its steps anew in every stretch, so that an intermediate time moves the end."""

    def solve(self, f, x0, times, *, generator=None):
        found = super().solve(f, x0, times)
        if len(times) == 2:
            return found
        x = x0
        for a, b in itertools.pairwise(times):
            x = super().solve(f, x, (a, b)).final
        return dataclasses.replace(found, states=(*found.states[:-1], x))


class DrawsFromTheGlobal(Heun):
    def solve(self, f, x0, times, *, generator=None):
        torch.rand(1)
        return super().solve(f, x0, times)


class TooMuchNoise(EulerMaruyama):
    def _variance(self, at, t):
        return 1.5 * super()._variance(at, t)


class ScoreForgotten(EulerMaruyama):
    def _drift(self, at, t, dt):
        return at.velocity if dt > 0 else -at.velocity


class OneSeed(EulerMaruyama):
    def init(self, x, generator):
        return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("solver", "first", "others"),
    [
        (FirstOrder(), "order", set()),
        (MissesTheTime(), "order", {"integrals"}),
        (Oversteps(), "inside", {"between"}),
        (EndsEarly(), "end", {"reversible", "integrals", "between", "order"}),
        (Miscounts(), "nfe", set()),
        (CountsTheBatch(), "nfe", set()),
        (ForwardOnly(), "order", {"reversible"}),
        (DropsIntegrals(), "integrals", set()),
        (MixesRows(), "rows", {"end", "order", "reversible", "integrals", "between"}),
        (Single(), "dtype", {"order", "reversible", "end", "rows", "integrals", "between"}),
        (AnyTimes(), "times", {"order", "end", "reversible", "inside"}),
        (StopsToLook(), "between", {"nfe"}),
        (DrawsFromTheGlobal(), "seeds", set()),
        (TooMuchNoise(), "marginals", set()),
        (ScoreForgotten(), "marginals", set()),
        (OneSeed(), "seeds", set()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Solver) else "",
)
def test_a_wrong_solver_breaks_the_law_it_breaks(solver, first, others):
    found = broken(solver)
    assert first in found
    assert found <= {first} | others


def test_the_order_seen_is_said():
    (finding,) = check_solver(FirstOrder()).failed
    assert finding.measured == pytest.approx(1.0, abs=0.1)
    assert "order 1.0" in finding.said or "order 0.9" in finding.said
    assert "of 2" in finding.said


@pytest.mark.parametrize(
    "solver",
    [Euler(3), AB3(7, ShiftedGrid(2.0)), RK4(20, ListedGrid([k / 20 for k in range(21)])), Dopri5(1e-9, 1e-9)],
    ids=["coarse", "shifted", "listed", "tight"],
)
def test_a_right_solver_passes_however_it_is_set(solver):
    check_solver(solver).raise_if_failed()


def test_a_solver_of_another_protocol_or_of_other_points_is_not_checked():
    class Rates(Euler):
        reads = "rates"

    class Triangles(Euler):
        def solve(self, f, x0, times, *, generator=None):
            if x0.shape[1:] != (2,):
                raise ArgumentError("two numbers, please")
            return super().solve(f, x0, times)

    for solver, said in ((Rates(), "it reads 'rates'"), (Triangles(), "two numbers, please")):
        report = check_solver(solver)
        assert not report.ok
        assert not report.failed
        assert said in report.unchecked[0].said
    with pytest.raises(ArgumentError, match="got a Gaussian, expected a Solver"):
        check_solver(Gaussian())


def test_a_problem_of_ones_own_is_used():
    problem = sphere()
    check_solver(RK4(), problem=problem).raise_if_failed()
    assert broken(FirstOrder(), problem=problem) == {"order"}
    assert "end" in broken(EndsEarly(), problem=problem)


@pytest.mark.parametrize("problem", [logistic(), sphere()], ids=["logistic", "sphere"])
def test_the_closed_forms_solve_their_equations(problem):
    h = 1e-5
    assert torch.allclose(problem.flow(0.0, problem.x0), problem.x0, atol=1e-15)
    for t in (0.1, 0.5, 0.9):
        slope = (problem.flow(t + h, problem.x0) - problem.flow(t - h, problem.x0)) / (2 * h)
        x = problem.flow(t, problem.x0)
        torch.testing.assert_close(problem.field(t, x), slope, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(problem.field(torch.full((len(x),), t), x), slope, rtol=1e-6, atol=1e-6)
