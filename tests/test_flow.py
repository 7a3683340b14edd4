"""Flows of exact fields against the exact densities; transport, units, gradients, refusals."""

import contextlib
import math
import re

import numpy as np
import pytest
import torch

from fmkit.divergence import ExactDivergence, HutchinsonDivergence
from fmkit.errors import ArgumentError, CombinationError, SavedFileError
from fmkit.fields import MLP, PredictionField, VectorField
from fmkit.flow import Flow
from fmkit.oracle import MixtureOracle
from fmkit.paths import (
    ICFM,
    CondOT,
    Cosine,
    GaussianPath,
    LinearVP,
    Polynomial,
    SchrodingerBridge,
    VarianceExploding,
    VariancePreserving,
)
from fmkit.shapes import widen
from fmkit.solvers import (
    DOP853,
    RK4,
    Dopri5,
    Euler,
    EulerMaruyama,
    Fehlberg2,
    Midpoint,
    ShiftedGrid,
    Solution,
    Solver,
    TorchdiffeqEuler,
    TorchdiffeqRK4,
)
from fmkit.sources import Empirical, Gaussian, Source, Uniform
from fmkit.transforms import Affine

PATHS = {
    "condot": CondOT(),
    "vp": VariancePreserving(),
    "ve": VarianceExploding(),
    "cosine": Cosine(),
    "polynomial": Polynomial(),
    "linear-vp": LinearVP(),
    "icfm": ICFM(),
    "schrodinger-bridge": SchrodingerBridge(),
}


def exact_flow(name, dim, schedules, mixtures, exact_field, dtype=torch.float64, **more):
    field = exact_field(mixtures[dim], schedules[name], dtype)
    return Flow(PATHS[name].start(Gaussian(), field.interval[0]), field, event_shape=dim, **more)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_log_prob_of_an_exact_field(name, dim, schedules, mixtures, exact_field, seeded):
    flow = exact_flow(name, dim, schedules, mixtures, exact_field)
    x = 1.2 * torch.randn(100, dim, generator=seeded(5), dtype=torch.float64)
    want = mixtures[dim].log_prob(x, schedules[name], flow.interval[1])
    error = (flow.log_prob(x) - want).abs()
    assert error.max() < 0.02
    assert error.mean() < 0.004


@pytest.mark.parametrize("name", ["condot", "vp", "icfm"])
def test_log_prob_in_single_precision(name, schedules, mixtures, exact_field, seeded):
    flow = exact_flow(name, 2, schedules, mixtures, exact_field, torch.float32)
    x = torch.randn(50, 2, generator=seeded(5))
    log_prob = flow.log_prob(x)
    assert log_prob.dtype == torch.float32
    want = mixtures[2].log_prob(x.double(), schedules[name], flow.interval[1]).float()
    assert (log_prob - want).abs().max() < 0.02


def test_the_density_integrates_to_one(schedules, mixtures, exact_field):
    """A wide tube (noise 0.7): a start that ignored it would be off by far more than the tolerance."""
    field = exact_field(mixtures[1], schedules["icfm"]._replace(var=lambda t: (1 - t) ** 2 + 0.49))
    flow = Flow(ICFM(0.7).start(Gaussian()), field, event_shape=1)
    x = torch.linspace(-8, 8, 801, dtype=torch.float64)[:, None]
    density = flow.log_prob(x).exp()
    assert torch.trapezoid(density, x[:, 0]).item() == pytest.approx(1.0, abs=1e-3)
    exact = mixtures[1].log_prob(x, field.schedule, 1.0).exp()
    assert (density - exact).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["condot", "vp", "ve", "schrodinger-bridge"])
def test_samples_follow_the_density(name, schedules, mixtures, exact_field, seeded):
    """Kolmogorov-Smirnov in one dimension, false alarm 1e-4."""
    n, mixture = 20_000, mixtures[1]
    flow = exact_flow(name, 1, schedules, mixtures, exact_field)
    x = flow.sample(n, generator=seeded(7), solver=Dopri5(1e-4, 1e-4)).flatten().sort().values
    t = torch.tensor(flow.interval[1], dtype=torch.float64)
    spread = (schedules[name].alpha(t) ** 2 * mixture.c2 + schedules[name].var(t)).sqrt()
    exact = (
        mixture.w * torch.distributions.Normal(schedules[name].alpha(t) * mixture.mu[:, 0], spread).cdf(x[:, None])
    ).sum(1)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    assert max((exact - steps[:-1]).max(), (steps[1:] - exact).max()) < 2.23 / math.sqrt(n)


@pytest.mark.parametrize("name", ["condot", "vp"])
def test_sample_with_log_prob_is_consistent(name, schedules, mixtures, exact_field, seeded):
    flow = exact_flow(name, 2, schedules, mixtures, exact_field)
    x, log_prob = flow.sample_with_log_prob(50, generator=seeded(1))
    torch.testing.assert_close(x, flow.sample(50, generator=seeded(1)), rtol=0, atol=2e-3)
    torch.testing.assert_close(log_prob, flow.log_prob(x), rtol=0, atol=5e-3)
    torch.testing.assert_close(log_prob, mixtures[2].log_prob(x, schedules[name], flow.interval[1]), rtol=0, atol=2e-2)


def test_hutchinson_is_unbiased_for_the_log_density(schedules, mixtures, exact_field, seeded):
    flow = exact_flow("condot", 2, schedules, mixtures, exact_field, solver=RK4(30), divergence=HutchinsonDivergence())
    x = torch.tensor([[0.5, -0.3]], dtype=torch.float64).expand(4000, 2)
    estimates = flow.log_prob(x, generator=seeded(0))
    want = mixtures[2].log_prob(x[:1]).item()
    assert estimates.mean().item() == pytest.approx(want, abs=5 * estimates.std().item() / math.sqrt(4000) + 1e-3)
    assert estimates.std() > 0.01
    assert torch.equal(estimates, flow.log_prob(x, generator=seeded(0)))


@pytest.mark.parametrize("event", [(), (4,), (2, 3, 4)])
def test_any_event_shape(event, seeded):
    """v = x: x(1) = e x(0), so log p(x) = log N(x/e) - D."""

    class Grow(VectorField):
        def forward(self, t, x, cond=None):
            return x

    flow = Flow(Gaussian(), Grow(), event_shape=event)
    x = torch.randn(3, *event, generator=seeded(0))
    d = math.prod(event)
    want = -0.5 * (x / math.e).square().reshape(3, -1).sum(1) - d / 2 * math.log(2 * math.pi) - d
    torch.testing.assert_close(flow.log_prob(x), want, rtol=1e-4, atol=1e-4)
    assert flow.sample(5, generator=seeded(0)).shape == (5, *event)
    sample, log_prob = flow.sample_with_log_prob(5, generator=seeded(0))
    torch.testing.assert_close(log_prob, flow.log_prob(sample), rtol=1e-4, atol=1e-3)


def test_transport_there_and_back(schedules, mixtures, exact_field, seeded):
    flow = exact_flow("condot", 2, schedules, mixtures, exact_field, solver=Dopri5(1e-8, 1e-8))
    x = torch.randn(20, 2, generator=seeded(0), dtype=torch.float64)
    noise = flow.transport(x)
    assert (noise - x).abs().max() > 0.1
    torch.testing.assert_close(flow.transport(noise, 0.0, 1.0), x, rtol=0, atol=1e-5)
    half = flow.transport(x, 1.0, 0.4)
    torch.testing.assert_close(flow.transport(half, 0.4, 0.0), noise, rtol=0, atol=1e-5)


def test_transport_of_one_gaussian_is_the_closed_form(schedules, new_mixture, exact_field, seeded):
    """The map of N(0, I) to N(mu, c²) from t to s: alpha_s mu + sqrt(V_s/V_t) (x - alpha_t mu)."""
    mixture, schedule = new_mixture([1.0], [[1.0, -2.0]], [0.4]), schedules["condot"]
    flow = Flow(Gaussian(), exact_field(mixture, schedule), Dopri5(1e-9, 1e-9), 2)
    x = torch.randn(20, 2, generator=seeded(0), dtype=torch.float64)
    for t, s in ((0.2, 0.9), (1.0, 0.0), (0.7, 0.1)):
        v = [((1 - u) ** 2 + u**2 * 0.16) for u in (t, s)]
        want = s * mixture.mu + math.sqrt(v[1] / v[0]) * (x - t * mixture.mu)
        torch.testing.assert_close(flow.transport(x, t, s), want, rtol=0, atol=1e-6)


def test_times_beyond_the_interval_mean_its_end(schedules, mixtures, exact_field, seeded):
    flow = exact_flow("schrodinger-bridge", 2, schedules, mixtures, exact_field)
    x = torch.randn(4, 2, generator=seeded(0), dtype=torch.float64)
    assert torch.equal(flow.transport(x, 1.0, 0.5), flow.transport(x, 1 - 1e-5, 0.5))


class Brief(VectorField):
    """v = x on [0.2, 0.7]: growth by exp(1/2)."""

    @property
    def interval(self):
        return (0.2, 0.7)

    def forward(self, t, x, cond=None):
        assert ((t >= 0.2) & (t <= 0.7)).all()
        return x


def test_everything_runs_over_the_fields_interval(seeded):
    flow, x0 = Flow(Gaussian(), Brief(), RK4(20), 1), torch.randn(5, 1, generator=seeded(0))
    grown = x0 * math.exp(0.5)
    torch.testing.assert_close(flow.sample(5, generator=seeded(0)), grown)
    want = Gaussian().log_prob(x0) - 0.5
    torch.testing.assert_close(flow.log_prob(grown), want)
    sample, log_prob = flow.sample_with_log_prob(5, generator=seeded(0))
    torch.testing.assert_close(sample, grown)
    torch.testing.assert_close(log_prob, want)
    torch.testing.assert_close(flow.transport(grown), x0)
    torch.testing.assert_close(flow.trajectory(5, generator=seeded(0)).final, grown)


def test_trajectory(schedules, mixtures, exact_field, seeded):
    flow = exact_flow("vp", 2, schedules, mixtures, exact_field)
    solution = flow.trajectory(4, [0.0, 0.5, 1.0], generator=seeded(0), solver=Midpoint(10))
    assert solution.times == (0.0, 0.5, 1 - 1e-5)
    assert solution.nfe[0].item() == 22  # 20, and a step of 2 beside the trajectory: 0.5 is not quite on the grid
    assert torch.equal(solution.final, flow.sample(4, generator=seeded(0), solver=Midpoint(10)))


@pytest.mark.parametrize("scale", [3.0, torch.tensor([0.5, 4.0])])
def test_units(scale, schedules, mixtures, exact_field, seeded):
    """A density in the user's units: x = scale y + shift, p_x(x) = p_y(y) / |scale|."""
    shift = torch.tensor([10.0, -3.0])
    plain = exact_flow("condot", 2, schedules, mixtures, exact_field)
    flow = exact_flow("condot", 2, schedules, mixtures, exact_field, transform=Affine(shift, scale))
    y = torch.randn(30, 2, generator=seeded(0), dtype=torch.float64)
    x = y * scale + shift
    log_det = torch.log(torch.as_tensor(scale).double().expand(2)).sum()
    torch.testing.assert_close(flow.log_prob(x), plain.log_prob(y) - log_det, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        flow.sample(9, generator=seeded(1)), plain.sample(9, generator=seeded(1)) * scale + shift
    )
    sample, log_prob = flow.sample_with_log_prob(9, generator=seeded(1))
    torch.testing.assert_close(log_prob, flow.log_prob(sample), rtol=0, atol=5e-3)
    # transport: user's units at the data end, the model's elsewhere
    torch.testing.assert_close(flow.transport(x), plain.transport(y), rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.transport(y, 0.3, 1.0), plain.transport(y, 0.3, 1.0) * scale + shift)
    torch.testing.assert_close(flow.transport(y, 0.3, 0.0), plain.transport(y, 0.3, 0.0))


class Scale(VectorField):
    """v = w x, so x(1) = e^w x(0) and log p(x) = log N(e^-w x) - D w."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, t, x, cond=None):
        return self.w * x if cond is None else self.w * x + cond


def test_log_prob_has_gradients(seeded):
    flow, x = Flow(Gaussian(), Scale(), RK4(20), 2), torch.randn(4, 2, generator=seeded(0), dtype=torch.float64)
    x.requires_grad_()
    log_prob = flow.log_prob(x, differentiable=True)
    (dw,) = torch.autograd.grad(log_prob.sum(), flow.field.w, retain_graph=True)
    (dx,) = torch.autograd.grad(log_prob.sum(), x)
    shrink = math.exp(-0.6)
    assert dw.item() == pytest.approx((x.square() * shrink).sum().item() - 8, rel=1e-5)
    torch.testing.assert_close(dx, -x.detach() * shrink, rtol=1e-5, atol=0)
    assert torch.autograd.gradcheck(lambda y: flow.log_prob(y, differentiable=True), (x,))
    assert not flow.log_prob(x).requires_grad
    assert not any(part.requires_grad for part in flow.log_prob_with_error(x))


def test_samples_have_gradients(seeded):
    flow = Flow(Gaussian(), Scale(), RK4(20), 2)
    x = flow.sample(4, generator=seeded(0), differentiable=True)
    (dw,) = torch.autograd.grad(x.sum(), flow.field.w)
    assert dw.item() == pytest.approx(x.sum().item(), rel=1e-5)
    assert not flow.sample(4, generator=seeded(0)).requires_grad
    assert not flow.trajectory(4, generator=seeded(0)).final.requires_grad
    assert not any(part.requires_grad for part in flow.sample_with_log_prob(4, generator=seeded(0)))
    assert not flow.transport(torch.zeros(4, 2)).requires_grad
    x, log_prob = flow.sample_with_log_prob(4, generator=seeded(0), differentiable=True)
    (dw,) = torch.autograd.grad(log_prob.sum(), flow.field.w)
    assert dw.item() == pytest.approx(-8, rel=1e-5)  # log p(x(1)) = log N(x0) - 2 w for each of 4


def test_seeded_by_the_generator_alone(seeded):
    flow = Flow(Gaussian(), Scale(), RK4(2), 2)
    before = torch.get_rng_state()
    first, again, other = (flow.sample(8, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_conditions_go_with_their_rows(seeded):
    flow = Flow(Gaussian(), Scale(), RK4(20), 1)
    cond = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    x0 = torch.zeros(3, 1, dtype=torch.float64)
    grown = (math.exp(0.3) - 1) / 0.3
    torch.testing.assert_close(flow.transport(x0, 0.0, 1.0, cond), cond * grown, rtol=1e-6, atol=0)
    x = torch.zeros(3, 1, dtype=torch.float64)
    want = -0.5 * (math.exp(-0.3) * cond[:, 0] * grown) ** 2 - 0.5 * math.log(2 * math.pi) - 0.3
    torch.testing.assert_close(flow.log_prob(x, cond), want, rtol=1e-6, atol=0)


def test_one_label_for_all(seeded):
    field = MLP(2, width=8, depth=1, classes=3)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=seeded(0))
    flow = Flow(Gaussian(), field, Euler(3), 2)
    one = flow.sample(4, 2, generator=seeded(0))
    assert torch.equal(one, flow.sample(4, torch.full((4,), 2), generator=seeded(0)))
    assert not torch.equal(one, flow.sample(4, 1, generator=seeded(0)))


def test_dropout_is_off_and_the_mode_is_put_back(seeded):
    field = MLP(2, width=16, depth=1, dropout=0.9)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=seeded(0))
    flow = Flow(Gaussian(), field, Euler(2), 2)
    field.train()
    assert torch.equal(flow.sample(4, generator=seeded(0)), flow.sample(4, generator=seeded(0)))
    assert field.training


class OnASphere(VectorField):
    @property
    def euclidean(self):
        return False

    def forward(self, t, x, cond=None):
        return torch.zeros_like(x)


def test_what_has_no_density_is_refused(seeded):
    x = torch.randn(4, 2, generator=seeded(0))
    with pytest.raises(CombinationError, match="manifold"):
        Flow(Gaussian(), OnASphere(), event_shape=2).log_prob(x)
    with pytest.raises(CombinationError, match="manifold"):
        Flow(Gaussian(), OnASphere(), event_shape=2).sample_with_log_prob(3)
    with pytest.raises(CombinationError, match=r"EulerMaruyama .*a log-density needs"):
        Flow(Gaussian(), Scale(), event_shape=2).log_prob(x, solver=EulerMaruyama(4))
    flow = Flow(Empirical(x), Scale(), event_shape=2)
    assert flow.sample(3, generator=seeded(0)).shape == (3, 2)
    with pytest.raises(CombinationError, match="Empirical has no density"):
        flow.log_prob(x)
    with pytest.raises(CombinationError, match="Empirical has no density"):
        flow.sample_with_log_prob(3)


def test_outside_a_bounded_start_the_density_is_zero():
    flow = Flow(Uniform(0.0, 1.0), Scale(), RK4(20), 1)
    inside, outside = flow.log_prob(torch.tensor([[math.exp(0.3) - 0.01], [math.exp(0.3) + 0.01]], dtype=torch.float64))
    assert inside.item() == pytest.approx(-0.3, abs=1e-6)
    assert outside.item() == -math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f.sample(0), "n is 0, expected a whole number of at least 1"),
        (lambda f: f.sample(-1), "n is -1"),
        (lambda f: f.sample(True), "n is True"),
        (lambda f: f.sample(2.0), r"n is 2\.0"),
        (lambda f: f.sample_with_log_prob(0), "n is 0"),
        (lambda f: f.trajectory(0), "n is 0"),
        (lambda f: f.sample(3, torch.zeros(2, 2)), "2 conditions for 3 samples; expected one for each, or one for all"),
        (lambda f: f.log_prob(torch.zeros(3, 2), torch.zeros(1, 2)), "1 conditions for 3 samples"),
        (
            lambda f: f.log_prob(torch.tensor([[0.0, 1.0], [math.nan, 0.0]])),
            "x has 1 non-finite values, the first in row 1",
        ),
        (lambda f: f.log_prob(torch.tensor([[0.0, math.inf]])), "x has 1 non-finite values"),
        (lambda f: f.log_prob(torch.zeros(3, 3)), r"x has events of shape \(3,\), this flow's are \(2,\)"),
        (lambda f: f.log_prob(torch.zeros(2)), r"x has events of shape \(\), this flow's are \(2,\)"),
        (lambda f: f.log_prob(torch.zeros(0, 2)), r"x has shape \(0, 2\), expected a non-empty"),
        (
            lambda f: f.log_prob(torch.zeros(3, 2, dtype=torch.int64)),
            r"x has dtype torch\.int64, expected floating point",
        ),
        (lambda f: f.log_prob([[0.0, 1.0]]), "x is .*, expected a tensor"),
        (lambda f: f.transport(torch.zeros(3, 2), 1.5, 0.0), r"t is 1\.5, expected a time in \[0, 1\]"),
        (lambda f: f.transport(torch.zeros(3, 2), 1.0, math.nan), "t1 is nan, expected a number"),
        (lambda f: f.transport(torch.zeros(3, 2), math.inf, 0.0), "^t is inf, expected a finite number"),
        (lambda f: f.transport(torch.zeros(3, 2), 0.5, 0.5), "strictly increasing or strictly decreasing"),
        (lambda f: f.trajectory(3, [0.0, 2.0]), r"t is 2\.0, expected a time"),
    ],
)
def test_mistakes_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(Flow(Gaussian(), Scale(), Euler(2), 2))


def test_a_reference_in_double_precision_agrees(schedules, mixtures, exact_field, seeded):
    flow = exact_flow("condot", 2, schedules, mixtures, exact_field)
    x = torch.randn(5, 2, generator=seeded(0), dtype=torch.float64)
    exact = mixtures[2].log_prob(x)
    assert (flow.log_prob(x, solver=DOP853(1e-10, 1e-10)) - exact).abs().max() < 1e-6


def test_a_start_that_ignores_the_paths_would_be_seen(schedules, mixtures, exact_field, seeded):
    """The unit Gaussian instead of VE's N(0, 50²) is off by much more than the 0.02 nats allowed."""
    right = exact_flow("ve", 2, schedules, mixtures, exact_field)
    wrong = Flow(Gaussian(), right.field, event_shape=2)
    x = torch.randn(5, 2, generator=seeded(0), dtype=torch.float64)
    assert (right.log_prob(x) - wrong.log_prob(x)).abs().min() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", [Euler(50), Dopri5(1e-2, 1e-2)], ids=repr)
def test_a_network_in_16_bits_is_integrated_in_32(dtype, solver, seeded):
    """The network sees its own precision, the state keeps float32: v = x grows by e, to the network's rounding."""

    class Grow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2, bias=False)
            torch.nn.init.eye_(self.layer.weight)

        def forward(self, t, x):
            return self.layer(x)

    flow = Flow(Gaussian(), Grow().to(dtype), solver, 2)
    x0 = Gaussian().sample((64, 2), generator=seeded(0), dtype=dtype)
    factor = (1 + 1 / 50) ** 50 if isinstance(solver, Euler) else math.e
    torch.testing.assert_close(flow.sample(64, generator=seeded(0)).float(), x0.float() * factor, rtol=2e-2, atol=2e-2)
    assert torch.isfinite(flow.log_prob(x0)).all()


class TestFewSteps:
    """A likelihood of few steps is invalid, and said to be, by about as much as it is off."""

    def test_warns_with_the_error(self):
        flow, x = Flow(Gaussian(), Spread(), event_shape=2), torch.ones(5, 2, dtype=torch.float64)
        exact = flow.log_prob(x, solver=RK4(200))
        with pytest.warns(UserWarning, match=r"Euler in 4 steps are off by about .* nats a sample") as caught:
            few = flow.log_prob(x, solver=Euler(4))
        said = float(re.search(r"about ([\d.e+-]+) nats", str(caught[0].message)).group(1))
        off = (few - exact).abs().mean().item()
        assert 0.5 * off < said < 2 * off
        with pytest.warns(UserWarning, match="off by about"):
            flow.sample_with_log_prob(3, solver=Euler(4))

    def test_is_silent_where_the_steps_suffice(self):
        flow, x = Flow(Gaussian(), Spread(), event_shape=2), torch.ones(5, 2, dtype=torch.float64)
        flow.log_prob(x, solver=RK4(40))
        flow.log_prob(x, solver=TorchdiffeqRK4(40))
        flow.log_prob(x, solver=Dopri5(1e-4, 1e-4))
        flow.log_prob(x, solver=RK4(40), divergence=HutchinsonDivergence())

    @pytest.mark.parametrize(
        ("solver", "said"),
        [
            (TorchdiffeqEuler(4), "TorchdiffeqEuler in 4 steps"),
            (Euler(3, ShiftedGrid()), "Euler in 3 steps"),
            (Fehlberg2(0.1, 0.1), r"Fehlberg2 at a tolerance of 0\.1"),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("divergence", [ExactDivergence(), HutchinsonDivergence(2)], ids=repr)
    def test_whatever_the_solver_and_the_divergence(self, solver, said, divergence, seeded):
        """Rademacher probes are exact here: the error is the solver's alone, and said in its size."""
        flow, x = Flow(Gaussian(), Spread(), event_shape=2), torch.ones(5, 2, dtype=torch.float64)
        exact, generator = flow.log_prob(x, solver=RK4(200)), seeded(0)
        with pytest.warns(UserWarning, match=f"{said} are off by about") as caught:
            few = flow.log_prob(x, solver=solver, divergence=divergence, generator=generator)
        told = float(re.search(r"about ([\d.e+-]+) nats", str(caught[0].message)).group(1))
        off = (few - exact).abs().mean().item()
        assert 0.5 * off < told < 2 * off
        want = seeded(0)
        HutchinsonDivergence(2).rate(lambda t, y: y, x, want)
        if not divergence.exact:  # the estimate takes nothing from the user's generator
            assert torch.equal(generator.get_state(), want.get_state())

    def test_the_warning_points_at_the_users_line(self):
        with pytest.warns(UserWarning, match="off by about") as caught:
            Flow(Gaussian(), Spread(), event_shape=2).log_prob(torch.ones(5, 2), solver=Euler(2))
        assert caught[0].filename == __file__

    def test_conditions_stay_with_the_samples_that_are_tried_again(self):
        """Twenty samples, twenty conditions, of which one needs more than two steps; the first sixteen are tried."""
        flow = Flow(Gaussian(), Conditioned(), event_shape=1)
        x, cond = torch.ones(20, 1), torch.zeros(20)
        cond[17] = 4.0
        flow.log_prob(x, cond, solver=Euler(2))
        cond[3] = 4.0
        with pytest.warns(UserWarning, match="off by about"):
            flow.log_prob(x, cond, solver=Euler(2))


class Spread(VectorField):
    """dx/dt = 3 t x: log p changes by 3 a dimension, of which Euler sees a part."""

    def forward(self, t, x, cond=None):
        return 3 * widen(t, x) * x


class Conditioned(VectorField):
    """dx/dt = c t² x, a row's c its condition: log p changes by c/3, which few steps miss."""

    def forward(self, t, x, cond=None):
        return widen(cond * t**2, x) * x


class TestStandardError:
    """What the probes leave a log-density with: its size is right, and an exact divergence has none."""

    def test_is_the_spread_of_the_estimate(self, schedules, mixtures, exact_field, seeded):
        """Of 2,000 estimates from 8 probes each: unbiased, and the mean square of the error said is their variance."""
        flow = exact_flow("condot", 2, schedules, mixtures, exact_field, solver=RK4(30))
        x = torch.tensor([[0.5, -0.3]], dtype=torch.float64).expand(2000, 2)
        exact = flow.log_prob(x[:1])
        value, error = flow.log_prob_with_error(x, divergence=HutchinsonDivergence(8, "gaussian"), generator=seeded(0))
        assert (value - exact).mean().abs() < 4 * value.std() / math.sqrt(2000)
        assert error.square().mean().item() == pytest.approx(value.var().item(), rel=0.1)
        same = flow.log_prob(x, divergence=HutchinsonDivergence(8, "gaussian"), generator=seeded(0))
        assert torch.equal(value, same)

    def test_is_zero_where_the_divergence_is_exact(self, seeded):
        flow, x = Flow(Gaussian(), Scale(), RK4(20), 2), torch.randn(4, 2, generator=seeded(0), dtype=torch.float64)
        value, error = flow.log_prob_with_error(x)
        assert torch.equal(value, flow.log_prob(x))
        assert (error == 0).all()
        assert error.shape == (4,)

    def test_of_one_probe_is_not_known(self):
        flow = Flow(Gaussian(), Scale(), RK4(20), 2, divergence=HutchinsonDivergence())
        with pytest.raises(ArgumentError, match="one probe has no standard error"):
            flow.log_prob_with_error(torch.ones(3, 2))


class Neighbours(VectorField):
    """A smooth field of images, every pixel moved by itself and its neighbours."""

    def forward(self, t, x, cond=None):
        return torch.sin(0.6 * x + 0.5 * x.roll(1, -1) - 0.4 * x.roll(1, -2) + widen(t, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [8, 28])
def test_likelihoods_of_images_by_either_divergence_agree_within_the_error(size, dtype, seeded):
    flow = Flow(Gaussian(), Neighbours(), RK4(6), (1, size, size))
    x = torch.randn(2, 1, size, size, generator=seeded(0), dtype=torch.float64).to(dtype)
    exact = flow.log_prob(x)
    value, error = flow.log_prob_with_error(x, divergence=HutchinsonDivergence(64), generator=seeded(1))
    assert exact.dtype == value.dtype == dtype
    assert ((value - exact).abs() < 4.5 * error).all()
    assert (error < 0.02 * size**2).all()
    torch.testing.assert_close(
        exact.double(), flow.log_prob(x.double()), rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0
    )


class Centred(Source):
    """N(c, I), a row's c its condition."""

    def sample(self, shape, *, cond=None, generator=None, dtype=None, device=None):
        return Gaussian().sample(shape, generator=generator, dtype=dtype, device=device) + cond

    def log_prob(self, x, cond=None):
        return Gaussian().log_prob(x - cond)


STEPS = 60
FORWARD, BACKWARD = (1 + 0.3 / STEPS) ** STEPS, (1 - 0.3 / STEPS) ** STEPS


class TestWhatIsAskedIsDone:
    """Along dx/dt = w x + c from N(c, I) by Euler's n steps, everything has a closed form.

    With r = (1 + w/n)^n and q = (1 - w/n)^n, x(1) = r x(0) + c (r - 1)/w, backward x(0) = q x(1) - c (1 - q)/w, and the
    integral of the divergence is w D, or w |z|² by a probe z. The flow's own solver and divergence are others.
    """

    cond = torch.tensor([[0.5, -1.0], [0.0, 0.3], [2.0, 1.0]], dtype=torch.float64)

    def flow(self, **more):
        return Flow(Centred(), Scale(), RK4(20), 2, **more)

    def ahead(self, x0):
        return FORWARD * x0 + self.cond * (FORWARD - 1) / 0.3

    def back(self, x):
        return BACKWARD * x - self.cond * (1 - BACKWARD) / 0.3

    def x0(self, generator):
        return torch.randn(3, 2, generator=generator, dtype=torch.float64) + self.cond

    def squares(self, generator, probes=4):
        """|z|² of each of the probes that a generator draws next."""
        like = torch.ones(3, 2, dtype=torch.float64)
        return HutchinsonDivergence(probes, "gaussian").rate(lambda t, y: y, like, generator)(0.0, like)[1]

    def test_by_samples(self, seeded):
        want = self.ahead(self.x0(seeded(1)))
        x = self.flow().sample(3, self.cond, solver=Euler(STEPS), generator=seeded(1))
        torch.testing.assert_close(x, want, rtol=1e-12, atol=0)
        solution = self.flow().trajectory(3, cond=self.cond, solver=Euler(STEPS), generator=seeded(1))
        torch.testing.assert_close(solution.final, want, rtol=1e-12, atol=0)
        assert solution.times == (0.0, 1.0)

    def test_by_transport(self, seeded):
        x = torch.randn(3, 2, generator=seeded(0), dtype=torch.float64)
        there = self.flow().transport(x, 0.0, 1.0, self.cond, solver=Euler(STEPS))
        torch.testing.assert_close(there, self.ahead(x), rtol=1e-12, atol=0)
        torch.testing.assert_close(
            self.flow().transport(x, cond=self.cond, solver=Euler(STEPS)), self.back(x), rtol=1e-12, atol=0
        )

    def test_by_log_densities(self, seeded):
        x = torch.randn(3, 2, generator=seeded(0), dtype=torch.float64)
        base = Gaussian().log_prob(self.back(x) - self.cond)
        how = {"solver": Euler(STEPS), "generator": seeded(3), "divergence": HutchinsonDivergence(4, "gaussian")}
        torch.testing.assert_close(
            self.flow().log_prob(x, self.cond, solver=Euler(STEPS)), base - 0.6, rtol=1e-12, atol=0
        )
        want = base - 0.3 * self.squares(seeded(3)).mean(1)
        torch.testing.assert_close(self.flow().log_prob(x, self.cond, **how), want, rtol=1e-12, atol=0)
        value, error = self.flow().log_prob_with_error(x, self.cond, **how | {"generator": seeded(3)})
        torch.testing.assert_close(value, want, rtol=1e-12, atol=0)
        torch.testing.assert_close(error, 0.3 * self.squares(seeded(3)).std(1) / 2, rtol=1e-12, atol=0)
        own = self.flow(divergence=how["divergence"]).log_prob(x, self.cond, solver=Euler(STEPS), generator=seeded(3))
        torch.testing.assert_close(own, want, rtol=1e-12, atol=0)

    def test_by_samples_with_their_log_densities(self, seeded):
        generator = seeded(2)
        x0 = self.x0(generator)
        base, squares = Gaussian().log_prob(x0 - self.cond), self.squares(generator)
        how = {"solver": Euler(STEPS), "divergence": HutchinsonDivergence(4, "gaussian")}
        x, log_prob = self.flow().sample_with_log_prob(3, self.cond, **how, generator=seeded(2))
        torch.testing.assert_close(x, self.ahead(x0), rtol=1e-12, atol=0)
        torch.testing.assert_close(log_prob, base - 0.3 * squares.mean(1), rtol=1e-12, atol=0)
        x, log_prob = self.flow().sample_with_log_prob(3, self.cond, solver=Euler(STEPS), generator=seeded(2))
        torch.testing.assert_close(log_prob, base - 0.6, rtol=1e-12, atol=0)

    def test_with_the_generator_that_drives_the_solver(self, schedules, mixtures, exact_field, seeded):
        """Of an SDE: every draw is the generator's, those of the steps included."""
        network = exact_field(mixtures[2], schedules["condot"])
        field = PredictionField(network, CondOT(), interval=(0.0, 0.99), gaussian=True)
        flow, x = Flow(Gaussian(), field, event_shape=2), torch.zeros(5, 2, dtype=torch.float64)
        how = {"solver": EulerMaruyama(3)}
        for call in (
            lambda g: flow.sample(5, **how, generator=g),
            lambda g: flow.transport(x, 0.0, 1.0, **how, generator=g),
            lambda g: flow.trajectory(5, **how, generator=g).final,
        ):
            first, again, other = (call(seeded(s)) for s in (1, 1, 2))
            assert torch.equal(first, again)
            assert not torch.isclose(first, other).any()


class TestGradientsByTheAdjoint:
    """By a solver through whose steps no gradient passes: x(1) = e^w x(0) + c (e^w - 1)/w."""

    solver = DOP853(1e-9, 1e-9)

    def test_of_samples(self, seeded):
        flow, cond = Flow(Gaussian(), Scale(), event_shape=1), torch.full((3, 1), 0.7, dtype=torch.float64)
        cond.requires_grad_()
        x = flow.sample(3, cond, solver=self.solver, generator=seeded(0), differentiable="adjoint")
        dw, dc = torch.autograd.grad(x.sum(), (flow.field.w, cond))
        w, x0 = 0.3, (x.detach() - cond.detach() * (math.exp(0.3) - 1) / 0.3) / math.exp(0.3)
        by_w = math.exp(w) * x0 + cond.detach() * (math.exp(w) / w - (math.exp(w) - 1) / w**2)
        assert dw.item() == pytest.approx(by_w.sum().item(), rel=1e-6)
        torch.testing.assert_close(dc, torch.full_like(dc, (math.exp(w) - 1) / w), rtol=1e-6, atol=0)
        flow.field.w.requires_grad_(False)  # frozen weights are no obstacle to the rest
        x = flow.sample(3, cond, solver=self.solver, generator=seeded(0), differentiable="adjoint")
        torch.testing.assert_close(torch.autograd.grad(x.sum(), cond)[0], dc)

    def test_of_points_carried_along(self, seeded):
        flow = Flow(Gaussian(), Scale(), self.solver, 1, Affine(1.0, 2.0))
        x = torch.randn(3, 1, generator=seeded(0), dtype=torch.float64).requires_grad_()
        y = flow.transport(x, differentiable="adjoint")
        dw, dx = torch.autograd.grad(y.sum(), (flow.field.w, x))
        assert dw.item() == pytest.approx(-y.sum().item(), rel=1e-6)
        torch.testing.assert_close(dx, torch.full_like(dx, math.exp(-0.3) / 2), rtol=1e-6, atol=0)

    def test_of_log_densities(self, seeded):
        """log p(x) = log N(e^-w x) - D w."""
        flow = Flow(Gaussian(), Scale(), self.solver, 2)
        x = torch.randn(4, 2, generator=seeded(0), dtype=torch.float64).requires_grad_()
        dw, dx = torch.autograd.grad(flow.log_prob(x, differentiable="adjoint").sum(), (flow.field.w, x))
        assert dw.item() == pytest.approx((x.detach().square() * math.exp(-0.6)).sum().item() - 8, rel=1e-6)
        torch.testing.assert_close(dx, -x.detach() * math.exp(-0.6), rtol=1e-6, atol=0)
        _, log_prob = flow.sample_with_log_prob(4, generator=seeded(0), differentiable="adjoint")
        (dw,) = torch.autograd.grad(log_prob.sum(), flow.field.w)
        assert dw.item() == pytest.approx(-8, rel=1e-6)


class TestRescheduled:
    """Of one Gaussian N(m, c²) the samples are m + c x0 on any path from the unit Gaussian to the data."""

    def flow(self, schedules, new_mixture, exact_field):
        field = exact_field(new_mixture([1.0], [[1.0, -2.0]], [0.4]), schedules["condot"])
        units, divergence = Affine(1.0, 2.0), HutchinsonDivergence(3)
        return Flow(Gaussian(), PredictionField(field, CondOT()), Dopri5(1e-8, 1e-8), 2, units, divergence)

    @pytest.mark.parametrize("path", [Cosine(), Polynomial(3.0)], ids=repr)
    def test_the_samples_are_the_same(self, path, schedules, new_mixture, exact_field, seeded):
        flow = self.flow(schedules, new_mixture, exact_field)
        again = flow.rescheduled(path)
        y = torch.tensor([1.0, -2.0]) + 0.4 * torch.randn(6, 2, generator=seeded(0), dtype=torch.float64)
        torch.testing.assert_close(flow.sample(6, generator=seeded(0)), 1 + 2 * y, rtol=0, atol=1e-6)
        torch.testing.assert_close(again.sample(6, generator=seeded(0)), 1 + 2 * y, rtol=0, atol=1e-6)
        want = -0.5 * ((y - torch.tensor([1.0, -2.0])) / 0.4).square().sum(1) - math.log(2 * math.pi * 0.8**2)
        torch.testing.assert_close(again.log_prob(1 + 2 * y, divergence=ExactDivergence()), want, rtol=0, atol=1e-5)

    def test_all_but_the_way_is_kept(self, schedules, new_mixture, exact_field):
        flow = self.flow(schedules, new_mixture, exact_field)
        again = flow.rescheduled(VarianceExploding())
        assert (again.solver, again.transform, again.divergence) == (flow.solver, flow.transform, flow.divergence)
        assert again.event_shape == (2,)
        assert not again.training
        # VE's noise is 50 times as large, and its data where it begins not yet 0: x = x1 + 50 x0 is CondOT's t = 1/51
        assert again.start.std == pytest.approx(51.0, rel=1e-9)
        assert again.interval == (0.0, 1.0)

    def test_refusals(self):
        class Bent(GaussianPath):
            def mean(self, t, x1):
                return t * x1

            def std(self, t, x1):
                return 1 - 0.9 * t

        for field in (Scale(), PredictionField(Scale(), Bent())):
            with pytest.raises(CombinationError, match="only a flow trained on an affine path"):
                Flow(Gaussian(), field, event_shape=2).rescheduled(Cosine())


def test_what_a_flow_is_unless_said():
    flow = Flow(Gaussian(), Scale())
    assert isinstance(flow.solver, Dopri5)
    assert (flow.solver.rtol, flow.solver.atol) == (1e-5, 1e-5)
    assert isinstance(flow.divergence, ExactDivergence)
    assert (flow.event_shape, flow.transform, flow.interval) == ((), None, (0.0, 1.0))


@pytest.mark.parametrize("shape", [3, np.int64(3), [3], (3,), torch.Size([3])], ids=repr)
def test_a_flows_event_may_be_a_number_or_a_sequence_of_them(shape, seeded):
    flow = Flow(Gaussian(), Scale(), Euler(1), shape)
    assert flow.event_shape == (3,)
    assert flow.sample(np.int64(2), generator=seeded(0)).shape == (2, 3)


@pytest.mark.parametrize("shape", [0, -1, True, (2, 0), (2, 1.5)], ids=repr)
def test_other_events_are_refused(shape):
    with pytest.raises(ArgumentError, match="event_shape"):
        Flow(Gaussian(), Scale(), event_shape=shape)


def test_a_field_that_knows_its_events_is_given_no_others():
    field = MixtureOracle(CondOT(), [[0.0, 1.0]])
    assert Flow(Gaussian(), field, event_shape=2).event_shape == Flow(Gaussian(), field, event_shape=[2]).event_shape
    for shape in ((), 3, (2, 2)):
        with pytest.raises(ArgumentError, match=r"MixtureOracle takes events of shape \(2,\); expected the same"):
            Flow(Gaussian(), field, event_shape=shape)


class Still(Solver):
    """Stays where it is: for a device without numbers."""

    def solve(self, f, x0, times, *, generator=None):
        return Solution(tuple(times), (x0, x0), *torch.zeros(3, len(x0)))


def test_a_flow_is_where_its_fields_weights_are_or_its_buffers_in_their_precision(seeded):
    """The start is drawn where the generator is, and what is given goes where the weights are."""
    asked = []

    class Watched(Gaussian):
        def sample(self, shape, **how):
            asked.append((shape, how["dtype"], torch.device(how["device"]).type))
            return super().sample(shape, **how)

    bare, buffers, weights = Spread(), Spread(), Scale()
    buffers.register_buffer("kept", torch.zeros(1, device="meta"))
    for field, where, dtype in (
        (bare, "cpu", torch.float32),
        (buffers, "meta", torch.float32),
        (weights.to("meta"), "meta", torch.float64),
    ):
        flow = Flow(Watched(), field, Still(), 2)
        assert (flow.device.type, flow.dtype) == (where, dtype)
        assert flow.sample(3, generator=seeded(0)).device.type == where
        assert asked.pop() == ((3, 2), dtype, "cpu")
        assert flow.sample(3).device.type == where
        assert asked.pop() == ((3, 2), dtype, where)
        carried = flow.transport(torch.zeros(3, 2, dtype=torch.float64))
        assert (carried.device.type, carried.dtype) == (where, torch.float64)  # a field without weights takes any


def test_the_precision_of_a_field_without_weights_is_the_points_own():
    flow, x = Flow(Gaussian(), Spread(), RK4(40), 2), torch.ones(3, 2, dtype=torch.float64)
    assert flow.log_prob(x).dtype == flow.transport(x).dtype == torch.float64
    assert flow.log_prob(x.float()).dtype == flow.transport(x.float()).dtype == torch.float32


def test_the_transform_is_applied_in_the_users_precision():
    """Digits that single precision does not have: 1e9 + 1 and 1e9 + 2 become 1 and 2."""

    class Still(torch.nn.Linear):
        def forward(self, t, x):
            assert x.dtype == self.weight.dtype == torch.float32
            return torch.zeros_like(x)

    flow = Flow(Gaussian(), Still(1, 1), Euler(1), 1, Affine(1e9, 1.0))
    x = torch.tensor([[1e9 + 1], [1e9 + 2]], dtype=torch.float64)
    assert flow.transport(x).tolist() == [[1.0], [2.0]]
    torch.testing.assert_close(flow.log_prob(x), Gaussian().log_prob(torch.tensor([[1.0], [2.0]])))


def test_units_over_an_interval_of_the_fields_own(seeded):
    """At the end of [0.2, 0.7] points are in the user's units, at its beginning in the model's."""
    flow, y = Flow(Gaussian(), Brief(), RK4(20), 1, Affine(10.0, 3.0)), torch.randn(4, 1, generator=seeded(0))
    torch.testing.assert_close(flow.transport(10 + 3 * y), y * math.exp(-0.5))
    torch.testing.assert_close(flow.transport(10 + 3 * y, 0.7, 0.2), y * math.exp(-0.5))
    torch.testing.assert_close(flow.transport(y, 0.0, 1.0), 10 + 3 * y * math.exp(0.5))
    torch.testing.assert_close(flow.transport(y, 0.2, 0.45), y * math.exp(0.25))
    ends = flow.trajectory(4, generator=seeded(0))
    torch.testing.assert_close(flow.in_data_units(ends.final), flow.sample(4, generator=seeded(0)))
    assert torch.equal(Flow(Gaussian(), Brief(), event_shape=1).in_data_units(y), y)
    with pytest.raises(ArgumentError, match="x has events of shape"):
        flow.in_data_units(torch.zeros(3, 2))


@pytest.mark.parametrize("cond", ["text", [[1.0], [1.0, 2.0]], object()], ids=["text", "ragged", "object"])
def test_a_condition_of_no_numbers_is_refused(cond):
    with pytest.raises(ArgumentError, match=r"cond is .*, expected numbers"):
        Flow(Gaussian(), Scale(), Euler(2), 2).sample(2, cond)


@pytest.mark.parametrize("fails", [False, True])
def test_every_submodule_is_in_its_mode_again_whatever_happens(fails, seeded):
    """Off during the integration; a frozen part stays frozen, and the rest in training."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.learning = torch.nn.Dropout(0.5).eval(), torch.nn.Dropout(0.5)

        def forward(self, t, x):
            assert not any(m.training for m in self.modules())
            if fails:
                raise RuntimeError("of the user's network")
            return self.learning(self.frozen(x))

    network = Two()
    flow = Flow(Gaussian(), network, Euler(2), 2)
    with pytest.raises(RuntimeError, match="of the user's network") if fails else contextlib.nullcontext():
        flow.sample(3, generator=seeded(0))
    assert (network.training, network.learning.training, network.frozen.training) == (True, True, False)


@pytest.mark.parametrize("wrong", ["adjoin", ""])
def test_another_word_for_gradients_is_refused(wrong):
    with pytest.raises(ArgumentError, match="expected True, False or 'adjoint'"):
        Flow(Gaussian(), Scale(), Euler(2), 2).sample(2, differentiable=wrong)


def test_a_saved_flow_of_the_users_own_field_is_read_with_it(tmp_path, seeded):
    flow = Flow(Gaussian(), Spread(), RK4(7), 2)
    flow.save(tmp_path / "a.flow")
    again = Flow.load(tmp_path / "a.flow", using=[Spread])
    assert torch.equal(again.sample(3, generator=seeded(0)), flow.sample(3, generator=seeded(0)))
    with pytest.raises(SavedFileError):
        Flow.load(tmp_path / "a.flow")
