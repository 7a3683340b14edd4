"""SDE solvers: for every lam the marginals are the flow's.

On Gaussian data every step is linear in the state and in its normal draw, x' = M x + K n, so the variance after a run
is a recursion v' = M² v + K² without sampling error. M and K are read off the solver; the exact variance is
alpha² c² + sigma².
"""

import itertools
import math

import pytest
import torch

from fmkit.couplings import Independent
from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import Stochastic
from fmkit.flow import Flow
from fmkit.objectives import VelocityMatching
from fmkit.paths import CondOT, Cosine, VariancePreserving
from fmkit.solvers import Euler, EulerMaruyama, Heun, HeunSDE
from fmkit.solvers.grids import ShiftedGrid, UniformGrid
from fmkit.sources import Gaussian

C = 0.6  # the data is N(0, C²)
PATHS = {"condot": CondOT(), "cosine": Cosine(), "vp": VariancePreserving()}


def stochastic(schedule):
    """What a perfect network on N(0, C²) knows: velocity v'/(2v) x and noise sigma/v x."""

    def f(t, x):
        t = torch.tensor(t, dtype=torch.float64)
        v = schedule.alpha(t) ** 2 * C**2 + schedule.var(t)
        d_v = 2 * schedule.alpha(t) * schedule.d_alpha(t) * C**2 + schedule.d_var(t)
        std = schedule.var(t).sqrt()
        return Stochastic(d_v / (2 * v) * x, std / v * x, std)

    return f


def variance(schedule, t):
    t = torch.tensor(t, dtype=torch.float64)
    return (schedule.alpha(t) ** 2 * C**2 + schedule.var(t)).item()


def variance_after(solver, f, begin, end, v):
    times = solver.grid.times(begin, end, solver.steps)
    draw = torch.randn(1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).item()
    for t, t_next in itertools.pairwise(times):
        zero, one = (
            solver.step(
                f, t, t_next - t, torch.full((1, 1), x0, dtype=torch.float64), torch.Generator().manual_seed(0)
            )[0].item()
            for x0 in (0.0, 1.0)
        )
        v = (one - zero) ** 2 * v + (zero / draw) ** 2
    return v


@pytest.mark.parametrize(("cls", "order"), [(EulerMaruyama, 1), (HeunSDE, 2)])
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("lam", [0.6, 1.0, 3.0])
@pytest.mark.parametrize("direction", [1, -1])
def test_marginal_variances_are_the_flows_at_the_order_of_the_method(
    cls, order, name, lam, direction, schedules, observed_order
):
    f, ends = stochastic(schedules[name]), (0.05, 0.9)[::direction]
    steps = [80, 160, 320]
    errors = [
        abs(
            variance_after(cls(n, lam), f, *ends, variance(schedules[name], ends[0]))
            - variance(schedules[name], ends[1])
        )
        for n in steps
    ]
    assert errors[-1] < (2e-2 if order == 1 else 1e-3)
    assert observed_order(steps, errors) == pytest.approx(order, abs=0.2)
    assert cls.order == order


def test_a_strength_that_depends_on_time_keeps_the_marginals(schedules, observed_order):
    f = stochastic(schedules["condot"])
    steps, errors = [40, 80, 160], []
    for n in steps:
        solver = HeunSDE(n, lambda t: 4 * t * (1 - t) + 0.1, ShiftedGrid(2.0))
        errors.append(abs(variance_after(solver, f, 0.0, 0.9, 1.0) - variance(schedules["condot"], 0.9)))
    assert errors[-1] < 1e-3
    assert observed_order(steps, errors) == pytest.approx(2, abs=0.25)


def test_the_noise_has_the_variance_said(schedules):
    """One Euler-Maruyama step from x: variance 2 lam std dt, mean x + (v - lam noise) dt; backward v turns."""
    f, x, dt, lam = stochastic(schedules["condot"]), 0.7, 0.01, 1.5
    n = 200_000
    at = f(0.4, torch.tensor(x, dtype=torch.float64))
    for sign in (1, -1):
        state = torch.full((n, 1), x, dtype=torch.float64)
        out, _ = EulerMaruyama(1, lam).step(f, 0.4, sign * dt, state, torch.Generator().manual_seed(1))
        spread = math.sqrt(2 * lam * at.std.item() * dt)
        want = x + sign * dt * at.velocity.item() - dt * lam * at.noise.item()
        assert out.mean().item() == pytest.approx(want, abs=5 * spread / math.sqrt(n))
        assert out.std().item() == pytest.approx(spread, rel=5 / math.sqrt(2 * n))


@pytest.mark.parametrize("cls", [EulerMaruyama, HeunSDE])
def test_the_strength_is_one_unless_said(cls, schedules):
    f, x0 = stochastic(schedules["condot"]), torch.ones(4, 1, dtype=torch.float64)
    default, said, other = (
        solver.solve(f, x0, (0.0, 1.0), generator=torch.Generator().manual_seed(0)).final
        for solver in (cls(10), cls(10, 1.0), cls(10, 1.01))
    )
    assert torch.equal(default, said)
    assert not torch.equal(default, other)
    assert cls().steps == 100


@pytest.mark.parametrize(("sde", "ode"), [(EulerMaruyama, Euler), (HeunSDE, Heun)])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_no_noise_is_the_flow(sde, ode, ends, schedules):
    f, x0 = stochastic(schedules["condot"]), torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    random = sde(20, 0.0).solve(f, x0, ends, generator=torch.Generator().manual_seed(0))
    plain = ode(20).solve(lambda t, x: f(t, x).velocity, x0, ends)
    torch.testing.assert_close(random.final, plain.final, rtol=1e-13, atol=1e-13)
    assert random.nfe.tolist() == plain.nfe.tolist()


@pytest.mark.parametrize("cls", [EulerMaruyama, HeunSDE])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_mixture_is_sampled_and_its_marginals_are_right(cls, lam, mixtures, schedules, exact_field, seeded):
    """Through the flow, from an exact network: Kolmogorov-Smirnov in one dimension, false alarm 1e-4."""
    mixture, n = mixtures[1], 20_000
    network = exact_field(mixture, schedules["condot"])
    field = VelocityMatching().field(network, CondOT(), source=Gaussian(), coupling=Independent())
    flow = Flow(Gaussian(), field, cls(100, lam), 1)
    x = flow.sample(n, generator=seeded(3)).flatten().sort().values
    normal = torch.distributions.Normal(mixture.mu[:, 0], mixture.c2.sqrt())
    exact = (mixture.w * normal.cdf(x[:, None])).sum(1)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((exact - steps[:-1]).max().item(), (steps[1:] - exact).max().item())
    assert distance < 2.23 / math.sqrt(n) + 0.004  # the bound of the test, and the step's own error


def test_finite_at_both_ends(schedules, mixtures, exact_field, seeded):
    """std = 0 at CondOT's end and noise is 0/0 there; the parametrisation by g² = 2 lam std never divides."""
    network = exact_field(mixtures[2], schedules["condot"])
    field = VelocityMatching().field(network, CondOT(), source=Gaussian(), coupling=Independent())
    for ends in ((0.0, 1.0), (1.0, 0.0)):
        for cls in (EulerMaruyama, HeunSDE):
            x = cls(50).solve(lambda t, x: field.stochastic(t, x), torch.ones(4, 2, dtype=torch.float64), ends).final
            assert torch.isfinite(x).all()


def test_seeded_by_the_generator_alone(schedules):
    f, x0 = stochastic(schedules["condot"]), torch.zeros(8, 1, dtype=torch.float64)
    before = torch.get_rng_state()
    runs = [HeunSDE(10).solve(f, x0, (0.0, 1.0), generator=torch.Generator().manual_seed(s)).final for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_stops_at_grid_points_only(schedules):
    f, x0 = stochastic(schedules["condot"]), torch.zeros(2, 1, dtype=torch.float64)
    solution = EulerMaruyama(10).solve(f, x0, (0.0, 0.3, 1.0), generator=torch.Generator().manual_seed(0))
    plain = EulerMaruyama(10).solve(f, x0, (0.0, 1.0), generator=torch.Generator().manual_seed(0))
    assert torch.equal(solution.final, plain.final)
    with pytest.raises(ArgumentError, match=r"EulerMaruyama can only stop at its grid points, and t = 0\.25"):
        EulerMaruyama(10).solve(f, x0, (0.0, 0.25, 1.0))


def test_refusals(schedules, mixtures, exact_field):
    x0 = torch.zeros(2, 1)
    with pytest.raises(ArgumentError, match="lam is -1"):
        EulerMaruyama(10, -1)
    for lam in ("nan", "inf"):
        with pytest.raises(ArgumentError, match=f"lam is {lam}"):
            HeunSDE(10, float(lam))
    with pytest.raises(ArgumentError, match="a log-density needs"):
        EulerMaruyama(10).solve(stochastic(schedules["condot"]), (x0, x0), (0.0, 1.0))
    with pytest.raises(CombinationError, match="EulerMaruyama reads 'stochastic', and this field offers velocity"):
        Flow(Gaussian(), exact_field(mixtures[1], schedules["condot"]), EulerMaruyama(10), 1).sample(2)


def test_the_grid_is_honoured(schedules):
    times = []

    def f(t, x):
        times.append(t)
        return Stochastic(torch.zeros_like(x), torch.zeros_like(x), torch.zeros(()))

    EulerMaruyama(4, grid=ShiftedGrid(3.0)).solve(f, torch.zeros(1, 1), (0.0, 1.0))
    assert times == pytest.approx(ShiftedGrid(3.0).fractions(4)[:-1])
    assert times != pytest.approx(UniformGrid().fractions(4)[:-1])


@pytest.mark.parametrize("cls", [EulerMaruyama, HeunSDE])
def test_the_strength_of_the_noise_follows_the_time(cls, seeded):
    """A function that is a constant is that constant, and is asked at the times of the steps."""
    asked = []

    def lam(t):
        asked.append(t)
        return 0.7

    f, x = (lambda t, x: Stochastic(-x, x / 2, torch.full_like(x[:, :1], 0.5))), torch.ones(4, 2, dtype=torch.float64)
    ends = [cls(4, lam=value).solve(f, x, (0.0, 1.0), generator=seeded(0)).final for value in (lam, 0.7)]
    assert torch.equal(*ends)
    assert set(asked) == {k / 4 for k in range(4 + (cls is HeunSDE))}
