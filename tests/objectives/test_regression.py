"""Objectives: targets and weights in closed form, minimisers that give back the marginal field, gradients, refusals."""

import math

import pytest
import torch

from fmkit.couplings import Independent, OptimalTransport, Paired
from fmkit.errors import CombinationError
from fmkit.objectives import (
    DataPrediction,
    LogitNormal,
    NoisePrediction,
    ScoreFlow,
    ScoreMatching,
    UniformTime,
    VelocityMatching,
)
from fmkit.objectives.base import Batch
from fmkit.paths import (
    ICFM,
    AffinePath,
    CondOT,
    Cosine,
    GaussianPath,
    LinearVP,
    PathSample,
    Polynomial,
    ProbabilityPath,
    SchrodingerBridge,
    VarianceExploding,
    VariancePreserving,
)
from fmkit.sources import Gaussian, Uniform

PATHS = {
    "condot": CondOT(),
    "vp": VariancePreserving(),
    "ve": VarianceExploding(),
    "cosine": Cosine(),
    "polynomial": Polynomial(),
    "linear-vp": LinearVP(),
}
ALL = [VelocityMatching, DataPrediction, NoisePrediction, ScoreMatching, ScoreFlow]


class Fixed(torch.nn.Module):
    """Answers with what it was given, and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, t, x, cond=None):
        self.asked = (t, x, cond)
        return self.answer(t, x) if callable(self.answer) else self.answer


def batch(seeded, n=64, event=(3,)):
    return [torch.randn(n, *event, generator=seeded(i), dtype=torch.float64) for i in range(2)]


def beta(t):
    return 0.1 + (1 - t) * 19.9


def by_hand(cls, t, x0, x1):
    """Target and weight on the VP path, from the paper: x = a x1 + s x0."""
    total = 0.1 * (1 - t) + 9.95 * (1 - t) ** 2
    a = torch.exp(-total / 2)
    s = torch.sqrt(1 - a**2)
    x = a * x1 + s * x0
    one = torch.ones_like(t)
    return {
        VelocityMatching: (
            -beta(t) / 2 * (torch.exp(-total) * x - torch.exp(-total / 2) * x1) / (1 - torch.exp(-total)),
            one,
        ),
        DataPrediction: (x1, one),
        NoisePrediction: (x0, one),
        ScoreMatching: (-(x - a * x1) / s**2, s**2),
        ScoreFlow: (-(x - a * x1) / s**2, beta(t)),
    }[cls]


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("event", [(), (3,), (2, 3)])
def test_the_loss_is_the_weighted_squared_distance_to_the_target(cls, event, seeded):
    x0, x1 = batch(seeded, event=event)
    network = Fixed(lambda t, x: torch.sin(x))
    loss = cls().loss(network, VariancePreserving(), (x0, x1), generator=seeded(5))
    t = loss.t.reshape(-1, *[1] * len(event))
    target, weight = by_hand(cls, t, x0, x1)
    asked_t, x, _ = network.asked
    torch.testing.assert_close(asked_t, loss.t)
    want = (weight * (torch.sin(x) - target) ** 2).reshape(64, -1).mean(1)
    assert loss.value.shape == loss.t.shape == (64,)
    torch.testing.assert_close(loss.value, want, rtol=1e-7, atol=1e-9)
    assert len(set(loss.t.tolist())) == 64


@pytest.mark.parametrize("cls", ALL)
def test_a_network_that_knows_the_target_has_no_loss(cls, seeded):
    x0, x1 = batch(seeded)
    path = Cosine()
    t = cls().loss(Fixed(torch.zeros_like(x0)), path, (x0, x1), generator=seeded(5)).t
    target = cls().target(path, path.sample(t, x0, x1))
    loss = cls().loss(Fixed(target), path, Batch(x0, x1), generator=seeded(5))
    assert loss.value.abs().max() == 0


def test_scoreflow_weighs_by_the_squared_diffusion_of_other_paths_too(seeded):
    """g² = 2 (alpha'/alpha) sigma² - (sigma²)': CondOT 2 (1-t)/t; VE -(sigma²)' = 2 log(5000) sigma²."""
    t = torch.rand(50, generator=seeded(0), dtype=torch.float64) * 0.9 + 0.05
    torch.testing.assert_close(ScoreFlow().weight(CondOT(), t), 2 * (1 - t) / t)
    sigma2 = 2500 * 5000 ** (-2 * t)
    torch.testing.assert_close(ScoreFlow().weight(VarianceExploding(), t), 2 * math.log(5000) * sigma2)
    vp = VariancePreserving(0.5, 9.0)
    torch.testing.assert_close(ScoreFlow().weight(vp, t), 0.5 + (1 - t) * 8.5)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("cls", ALL)
def test_the_exact_minimiser_gives_the_marginal_field(name, cls, schedules, mixtures, seeded):
    """The minimiser of each loss is a posterior mean; the field made of it is u_t, whatever was regressed."""
    path, schedule, mixture = PATHS[name], schedules[name], mixtures[2]

    def minimiser(t, x):
        data, noise = mixture.posterior(schedule, t, x)
        return {
            VelocityMatching: lambda: mixture.velocity(schedule, t, x),
            DataPrediction: lambda: data,
            NoisePrediction: lambda: noise,
            ScoreMatching: lambda: -noise / schedule.var(t).sqrt()[:, None],
            ScoreFlow: lambda: -noise / schedule.var(t).sqrt()[:, None],
        }[cls]()

    field = cls().field(Fixed(minimiser), path)
    low, high = field.interval
    t = low + (high - low) * torch.rand(200, generator=seeded(0), dtype=torch.float64)
    x = 1.5 * torch.randn(200, 2, generator=seeded(1), dtype=torch.float64)
    want = mixture.velocity(schedule, t, x)
    scale = want.abs().max()
    assert ((field(t, x) - want).abs().max() / scale).item() < 1e-7


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("cls", ALL)
def test_the_posterior_mean_minimises_the_loss(name, cls, schedules, mixtures, seeded):
    """At the minimiser the error is orthogonal to every function of (t, x): E[(f* - target) phi] = 0."""
    path, schedule, mixture, n = PATHS[name], schedules[name], mixtures[2], 100_000
    x1, x0 = mixture.sample(n, seeded(0)), torch.randn(n, 2, generator=seeded(1), dtype=torch.float64)
    t = cls().time.sample(n, (0.1, 0.9), generator=seeded(2))
    point = path.sample(t, x0, x1)
    data, noise = mixture.posterior(schedule, t, point.x)
    best = {
        "velocity": mixture.velocity(schedule, t, point.x),
        "data": data,
        "noise": noise,
        "score": -noise / schedule.var(t).sqrt()[:, None],
    }[cls.view]
    error = cls().target(path, point) - best
    spread = schedule.var(t).sqrt()[:, None] + 1
    for phi in (
        torch.ones_like(point.x),
        point.x / spread,
        torch.sin(2 * point.x),
        t[:, None] * point.x.abs() / spread,
    ):
        terms = (error * phi).sum(1)
        assert terms.mean().abs() < 5 * terms.std() / math.sqrt(n)


def test_gradients_of_cfm_and_fm_agree(mixtures, schedules, seeded):
    """Theorem 2, by Monte Carlo with 1e5 points: under 5 percent apart (FM regresses the marginal velocity itself)."""
    n, mixture = 100_000, mixtures[2]
    x1, x0 = mixture.sample(n, seeded(0)), torch.randn(n, 2, generator=seeded(1), dtype=torch.float64)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).double()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, t, x):
            return self.net(torch.cat([t[:, None], x], 1))

    network = Net()
    loss = VelocityMatching().loss(network, CondOT(), (x0, x1), generator=seeded(2))
    cfm = torch.autograd.grad(loss.value.mean(), network.parameters())
    t = loss.t
    x = (1 - t[:, None]) * x0 + t[:, None] * x1
    fm_loss = (network(t, x) - mixture.velocity(schedules["condot"], t, x)).square().mean(1)
    fm = torch.autograd.grad(fm_loss.mean(), network.parameters())
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in (cfm, fm))
    assert ((a - b).norm() / b.norm()).item() < 0.05
    # the two losses differ by the variance of the target given x, which does not depend on the network
    floor = (x1 - x0 - mixture.velocity(schedules["condot"], t, x)).square().mean(1)
    assert (loss.value.mean() - fm_loss.mean()).item() == pytest.approx(floor.mean().item(), rel=0.02)


def test_conditions_reach_the_network(seeded):
    x0, x1 = batch(seeded)
    labels, network = torch.arange(64), Fixed(x0)
    VelocityMatching().loss(network, CondOT(), (x0, x1, labels), generator=seeded(0))
    assert torch.equal(network.asked[2], labels)


def test_times_come_from_the_sampler_and_the_objectives_interval(seeded):
    x0, x1 = batch(seeded, n=20_000, event=(1,))
    t = ScoreMatching(LogitNormal(mean=5.0)).loss(Fixed(x0), CondOT(), (x0, x1), generator=seeded(0)).t
    low, high = ScoreMatching().interval(CondOT())
    assert t.median().item() == pytest.approx(low + (high - low) * torch.tensor(5.0).sigmoid().item(), abs=1e-3)
    assert low <= t.min() <= t.max() <= high
    # the times are drawn before the noise, from the same generator: two calls agree, and so do the points
    again = VelocityMatching(UniformTime()).loss(Fixed(x0), ICFM(), (x0, x1), generator=seeded(0))
    before = torch.get_rng_state()
    network = Fixed(x0)
    once = VelocityMatching(UniformTime()).loss(network, ICFM(), (x0, x1), generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.value, once.value)
    generator = seeded(0)
    generator_t = UniformTime().sample(20_000, generator=generator)
    assert torch.equal(network.asked[1], ICFM().sample(generator_t, x0, x1, generator=generator).x)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("cls", ALL)
def test_the_interval_cuts_off_no_more_than_it_must(name, cls):
    """1e-4 off the data end costs 0.0026 nats, 1e-3 costs 0.026; velocity needs no cut at all."""
    path = PATHS[name]
    low, high = cls().interval(path)
    if cls is VelocityMatching:
        assert (low, high) == path.interval
    if cls in (VelocityMatching, NoisePrediction):
        assert high == path.interval[1]
    if cls in (VelocityMatching, DataPrediction):
        assert low == path.interval[0]
    assert high >= 1 - 1.5e-4
    alpha, sigma = path.coefficients(torch.tensor([low, high], dtype=torch.float64))[:2]
    if cls in (NoisePrediction, ScoreMatching, ScoreFlow):
        assert alpha[0] >= 0.999e-3
        assert alpha[0] <= 1.2e-2 or low == path.interval[0]  # no further in than a step of ten beyond what is needed
    if cls in (DataPrediction, ScoreMatching, ScoreFlow):
        assert sigma[1] >= 0.999e-4


class Manifold(ProbabilityPath):
    euclidean = False

    def sample(self, t, x0, x1, *, generator=None):
        return PathSample(t, x1, x0, x1, x1)


class Straight(GaussianPath):
    def mean(self, t, x1):
        return t * x1

    def std(self, t, x1):
        return 1 - t


REFUSED = [
    (
        DataPrediction(),
        Manifold(),
        Gaussian(),
        Independent(),
        "Manifold: the path is not affine, so data gives no velocity",
    ),
    (NoisePrediction(), Straight(), Gaussian(), Independent(), "the path is not affine, so noise gives no velocity"),
    (DataPrediction(), ICFM(), Gaussian(), Independent(), "ICFM: the path has latent noise, so data alone"),
    (NoisePrediction(), SchrodingerBridge(), Gaussian(), Independent(), "use the velocity objective"),
    (ScoreMatching(), ICFM(), Gaussian(), Independent(), "latent noise"),
    (ScoreMatching(), CondOT(), Uniform(), Independent(), "a score needs a standard Gaussian source"),
    (ScoreFlow(), CondOT(), Gaussian(2.0), Independent(), "a score needs a standard Gaussian source"),
    (
        ScoreMatching(),
        CondOT(),
        Gaussian(),
        OptimalTransport(),
        "OptimalTransport: given x1 the source is no longer Gaussian",
    ),
    (ScoreFlow(), VariancePreserving(), Gaussian(), Paired(), "Paired: given x1"),
]


@pytest.mark.parametrize(("objective", "path", "source", "coupling", "message"), REFUSED)
def test_combinations_without_meaning_are_refused_with_the_reason(objective, path, source, coupling, message):
    with pytest.raises(CombinationError, match=message):
        objective.check(path, source, coupling)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("name", PATHS)
def test_combinations_with_a_meaning_are_not_refused(cls, name):
    cls().check(PATHS[name], Gaussian(), Independent())
    if cls.view != "score":
        cls().check(PATHS[name], Uniform(), OptimalTransport())
    VelocityMatching().check(Manifold(), Uniform(), OptimalTransport())


def test_noise_is_known_only_from_a_standard_gaussian_met_independently(seeded):
    network = Fixed(lambda t, x: x)
    known = {"velocity", "stochastic"}
    for objective in (VelocityMatching(), DataPrediction(), NoisePrediction(), ScoreMatching()):
        offers = objective.field(network, CondOT(), source=Gaussian(), coupling=Independent()).offers
        assert offers == known
        assert objective.field(network, CondOT()).offers == {"velocity"}
        assert objective.field(network, CondOT(), source=Gaussian(), coupling=OptimalTransport()).offers == {"velocity"}
        assert objective.field(network, CondOT(), source=Gaussian(2.0), coupling=Independent()).offers == {"velocity"}
    latent = VelocityMatching().field(network, ICFM(), source=Gaussian(), coupling=Independent())
    assert latent.offers == {"velocity"}


def test_why_the_score_is_refused_under_optimal_transport(seeded):
    """In one dimension OT sorts: x0 is a function of x1, and -x0/sigma is far from the score of x_t."""
    n, t = 100_000, 0.5
    x0 = torch.randn(n, generator=seeded(0), dtype=torch.float64).sort().values
    x1 = (3 + 0.5 * torch.randn(n, generator=seeded(1), dtype=torch.float64)).sort().values
    x = t * x1 + (1 - t) * x0  # N(1.5, 0.75²)
    formula = (-x0 / (1 - t))[(x - 2.5).abs() < 0.1].mean().item()
    true = -(2.5 - 1.5) / 0.75**2
    assert true == pytest.approx(-1.78, abs=0.01)
    assert formula == pytest.approx(-2.67, abs=0.05)


class Short(AffinePath):
    """The straight line, travelled between t = 0.2 and t = 0.7."""

    @property
    def interval(self):
        return (0.2, 0.7)

    def alpha(self, t):
        return 2 * (t - 0.2)

    def sigma(self, t):
        return 2 * (0.7 - t)


@pytest.mark.parametrize("cls", ALL)
def test_on_a_path_of_another_interval_all_stays_inside(cls, seeded):
    objective, path, network = cls(), Short(), Fixed(lambda t, x: torch.zeros_like(x))
    x0, x1 = (x.float() for x in batch(seeded, 256))
    loss = objective.loss(network, path, (x0, x1), generator=seeded(2))
    low, high = objective.interval(path)
    assert 0.2 <= low < loss.t.min() < 0.21
    assert 0.69 < loss.t.max() < high <= 0.7
    assert objective.field(network, path).interval == (low, high)
    # a thousandth of the way, or a ten-thousandth: what alpha and sigma must be at least
    assert path.alpha(low) == pytest.approx(1e-3 if objective.view in ("noise", "score") else 0.0, abs=1e-9)
    assert path.sigma(high) == pytest.approx(1e-4 if objective.view in ("data", "score") else 0.0, abs=1e-9)
    assert loss.value.dtype == torch.float32
    assert loss.logs == {}
