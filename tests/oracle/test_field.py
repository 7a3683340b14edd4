"""Oracles against 50-digit arithmetic, quadrature, brute force and the laws that tie their views together."""

import math

import mpmath as mp
import pytest
import torch

from fmkit import registry
from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import MLP
from fmkit.flow import Flow
from fmkit.objectives import (
    DataPrediction,
    LogitNormal,
    NoisePrediction,
    ScoreFlow,
    ScoreMatching,
    VelocityMatching,
)
from fmkit.oracle import Mixture, MixtureOracle, law, loss_excess
from fmkit.parts import parameters_of
from fmkit.paths import ICFM, AffinePath, CondOT, Cosine, GaussianPath, SchrodingerBridge, VariancePreserving
from fmkit.solvers import DOP853, Dopri5, HeunSDE
from fmkit.sources import Gaussian, Uniform

MEANS = [[-0.8, 0.3], [0.7, -0.4]]
WEIGHTS = [0.3, 0.9]
COVARIANCES = [[[0.5, 0.3], [0.3, 0.4]], [[0.2, -0.15], [-0.15, 0.9]]]
POINTS = torch.tensor([[0.3, -0.2], [-1.1, 0.8], [2.0, 1.5], [0.0, 0.0]], dtype=torch.float64)
EVERY = {
    e.qualified: e.load()()
    for e in registry.entries("fmkit.paths")
    if issubclass(e.load(), AffinePath) and all(p.default is not p.empty for p in parameters_of(e.load()).values())
}
every_path = pytest.mark.parametrize("path", EVERY.values(), ids=EVERY)
SOURCES = {"standard": Gaussian(), "other": Gaussian(1.5, 0.4)}


def of_kind(kind, path, source=None):
    """An oracle with two dimensions: of full or of round components, or of points."""
    if kind == "full":
        return MixtureOracle(path, MEANS, WEIGHTS, covariances=COVARIANCES, source=source)
    if kind == "round":
        return MixtureOracle(path, MEANS, WEIGHTS, std=[0.3, 0.6], source=source)
    points = torch.randn(7, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return MixtureOracle.empirical(path, points, source)


kinds = pytest.mark.parametrize("kind", ["full", "round", "points"])


def places(oracle, seeded, n=24, inside=0.02):
    """Times inside the interval and points of p_t, with the path's own samples."""
    low, high = oracle.path.interval
    t = low + (high - low) * (inside + (1 - 2 * inside) * torch.rand(n, generator=seeded(0), dtype=torch.float64))
    x1 = oracle.sample(n, seeded(1), dtype=torch.float64)
    x0 = oracle.source.sample(x1.shape, generator=seeded(2), dtype=torch.float64)
    return t, oracle.path.sample(t, x0, x1, generator=seeded(3)).x


# -- against independent arithmetic -----------------------------------------------------------------------------------


def _vp(t):
    s = 1 - t
    return mp.exp(-(mp.mpf(0.1) * s + s**2 * (20 - mp.mpf(0.1)) / 2) / 2)


# alpha, sigma, gamma as functions of a 50-digit number.
EXACT = {
    "condot": (lambda t: t, lambda t: 1 - t, None),
    "vp": (_vp, lambda t: mp.sqrt(1 - _vp(t) ** 2), None),
    "ve": (lambda t: mp.mpf(1), lambda t: mp.mpf(0.01) * (mp.mpf(50) / mp.mpf(0.01)) ** (1 - t), None),
    "cosine": (lambda t: mp.sin(mp.pi * t / 2), lambda t: mp.cos(mp.pi * t / 2), None),
    "polynomial": (lambda t: t**2, lambda t: 1 - t**2, None),
    "linear-vp": (lambda t: t, lambda t: mp.sqrt(1 - t**2), None),
    "icfm": (lambda t: t, lambda t: 1 - t, lambda t: mp.mpf(0.1)),
    "schrodinger-bridge": (lambda t: t, lambda t: 1 - t, lambda t: mp.sqrt(t * (1 - t))),
}


def _conditioned(path, t, x, source):
    """log p_t, and the mean of each view given x, by conditioning the joint Gaussian of (x1, x0, z) with inverses."""
    alpha, sigma, gamma = EXACT[path]
    gamma = gamma or (lambda t: mp.mpf(0))
    t, x = mp.mpf(t), mp.matrix([mp.mpf(v) for v in x])
    a, s, g = alpha(t), sigma(t), gamma(t)
    one = mp.eye(2)
    state = mp.matrix(2, 6)
    rate = mp.matrix(2, 6)
    weights = [(a, mp.diff(alpha, t)), (s, mp.diff(sigma, t)), (g, mp.diff(gamma, t))]
    for block, (value, slope) in enumerate(weights):
        for i in range(2):
            state[i, 2 * block + i], rate[i, 2 * block + i] = value, slope
    densities, latents, pulls = [], [], []
    for w, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
        prior = mp.matrix([*(mp.mpf(v) for v in mean), mp.mpf(source.mean), mp.mpf(source.mean), 0, 0])
        spread = mp.matrix(6, 6)
        for i in range(2):
            for j in range(2):
                spread[i, j] = mp.mpf(covariance[i][j])
                spread[2 + i, 2 + j] = mp.mpf(source.std) ** 2 * one[i, j]
                spread[4 + i, 4 + j] = one[i, j]
        total = state * spread * state.T
        away = mp.inverse(total) * (x - state * prior)
        square = ((x - state * prior).T * away)[0]
        densities.append(
            mp.mpf(w) / sum(map(mp.mpf, WEIGHTS)) * mp.exp(-square / 2) / mp.sqrt(mp.det(2 * mp.pi * total))
        )
        latents.append(prior + spread * state.T * away)
        pulls.append(-away)
    p = sum(densities)
    latent = sum((d / p * m for d, m in zip(densities, latents, strict=True)), mp.matrix(6, 1))
    score = sum((d / p * m for d, m in zip(densities, pulls, strict=True)), mp.matrix(2, 1))
    views = {"velocity": rate * latent, "data": latent[0:2], "noise": latent[2:4], "latent": latent[4:6]}
    answer = {name: [float(v) for v in view] for name, view in {**views, "score": score}.items()}
    return {**answer, "log_prob": float(mp.log(p)), "posterior": [float(d / p) for d in densities]}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("name", EXACT)
def test_every_answer_has_the_digits_of_50_digit_arithmetic(name, source):
    path = registry.load("fmkit.paths", f"fmkit/{name}")()
    oracle = of_kind("full", path, source)
    low, high = path.interval
    for share in (0.0, 0.37, 0.93, 1.0):
        t = low + share * (high - low)
        got = {view: oracle.view(view, t, POINTS) for view in ("velocity", "data", "noise", "score")}
        if path.has_latent:
            got["latent"] = oracle.view("latent", t, POINTS)
        got["log_prob"], got["posterior"] = oracle.log_prob(t, POINTS), oracle.responsibilities(t, POINTS)
        with mp.workdps(50):
            want = [_conditioned(name, t, x, source) for x in POINTS.tolist()]
        for view, value in got.items():
            exact = torch.tensor([w[view] for w in want], dtype=torch.float64)
            size = max(1.0, exact.abs().max().item())
            assert (value - exact).abs().max().item() < 1e-12 * size, (view, t)


@pytest.mark.parametrize("path", [CondOT(), ICFM(0.2)], ids=["condot", "icfm"])
def test_velocity_and_density_are_the_integrals_of_eq_6_and_8(path):
    """The trapezoidal rule over x1 on a plane grid: exact to rounding for smooth functions that vanish at its rim."""
    oracle, t = of_kind("full", path), torch.tensor([0.55], dtype=torch.float64)
    axis = torch.linspace(-7, 7, 561, dtype=torch.float64)
    x1 = torch.cartesian_prod(axis, axis)
    means, covariances = torch.tensor(MEANS, dtype=torch.float64), torch.tensor(COVARIANCES, dtype=torch.float64)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor(WEIGHTS, dtype=torch.float64)),
        torch.distributions.MultivariateNormal(means, covariances),
    )
    q = law.log_prob(x1).exp()
    var = 0.45**2 + (0.04 if path.has_latent else 0.0)
    for x in POINTS:
        given = torch.exp(-(x - 0.55 * x1).square().sum(1) / (2 * var)) / (2 * math.pi * var)
        mass = given * q * (14 / 560) ** 2
        velocity = x1 - 0.45 / var * (x - 0.55 * x1)  # Theorem 3, with sigma'/sigma = (var'/2)/var
        torch.testing.assert_close(oracle.log_prob(t, x[None])[0], mass.sum().log(), rtol=0, atol=1e-12)
        exact = (mass[:, None] * velocity).sum(0) / mass.sum()
        torch.testing.assert_close(oracle.velocity(t, x[None])[0], exact, rtol=0, atol=1e-12)


def test_points_are_answered_by_a_softmax_over_their_distances(seeded):
    data = torch.randn(50, 2, 3, generator=seeded(0), dtype=torch.float64)
    oracle = MixtureOracle.empirical(CondOT(), data)
    x = torch.randn(9, 2, 3, generator=seeded(1), dtype=torch.float64)
    for t in (0.0, 0.4, 0.9, 0.999):
        distance = torch.cdist(x.flatten(1), t * data.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        share = torch.softmax(-(distance**2) / (2 * (1 - t) ** 2), 1)
        mean = (share @ data.flatten(1)).reshape(x.shape)
        torch.testing.assert_close(oracle.data(t, x), mean, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(oracle.velocity(t, x), (mean - x) / (1 - t), rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(oracle.responsibilities(t, x), share, rtol=1e-9, atol=1e-15)


def test_points_are_the_limit_of_narrow_components(seeded):
    data = torch.randn(20, 2, generator=seeded(0), dtype=torch.float64)
    points, t = MixtureOracle.empirical(Cosine(), data), 0.8
    x = torch.randn(6, 2, generator=seeded(1), dtype=torch.float64)
    errors = []
    for std in (1e-2, 1e-3):
        narrow = MixtureOracle(Cosine(), data, std=std)
        full = MixtureOracle(Cosine(), data, covariances=std**2 * torch.eye(2).expand(20, 2, 2))
        torch.testing.assert_close(full.velocity(t, x), narrow.velocity(t, x), rtol=1e-10, atol=1e-10)
        errors.append((narrow.velocity(t, x) - points.velocity(t, x)).abs().max().item())
    assert math.log10(errors[0] / errors[1]) == pytest.approx(2, abs=0.05)  # the error is of order std²


@kinds
def test_pieces_change_nothing(kind, monkeypatch, seeded):
    oracle = of_kind(kind, CondOT())
    t, x = places(oracle, seeded)
    whole = oracle.velocity(t, x), oracle.log_prob(t, x), oracle.loss_floor(VelocityMatching(), 100, seeded(0)).value
    monkeypatch.setattr(law, "CHUNK_ELEMENTS", 3)
    torch.testing.assert_close(oracle.velocity(t, x), whole[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(oracle.log_prob(t, x), whole[1], rtol=1e-13, atol=1e-13)
    assert oracle.loss_floor(VelocityMatching(), 100, seeded(0)).value == pytest.approx(whole[2], rel=1e-12)


# -- the laws that tie the views together -----------------------------------------------------------------------------


@kinds
@every_path
def test_the_views_are_those_of_the_paths_conversions(kind, path, seeded):
    oracle = of_kind(kind, path)
    t, x = places(oracle, seeded)
    given = {"data": oracle.data(t, x)}
    if path.has_latent:
        given["noise"] = oracle.noise(t, x)
    for view in {"velocity", "noise", "score"} - set(given):
        want, got = path.convert(t, x, view, **given), oracle.view(view, t, x)
        assert (got - want).abs().max().item() < 1e-9 * max(1.0, want.abs().max().item()), view
    if path.has_latent:
        want = path.convert(t, x, "latent", **given)
        torch.testing.assert_close(oracle.view("latent", t, x), want, rtol=1e-9, atol=1e-9)


@kinds
@every_path
def test_the_score_is_the_gradient_of_the_log_density(kind, path, seeded):
    """And its Jacobian the Hessian: derivatives of both orders, reverse and forward."""
    oracle = of_kind(kind, path)
    t, x = places(oracle, seeded)
    score = oracle.score(t, x)
    gradient = torch.func.grad(lambda y: oracle.log_prob(t, y).sum())(x)
    assert (gradient - score).abs().max().item() < 1e-10 * max(1.0, score.abs().max().item())
    y = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(oracle.log_prob(t, y).sum(), y)
    torch.testing.assert_close(plain, gradient, rtol=1e-12, atol=1e-12)
    for direction in torch.eye(2, dtype=torch.float64):
        along = direction.expand_as(x)
        twice = torch.func.jvp(torch.func.grad(lambda y: oracle.log_prob(t, y).sum()), (x,), (along,))[1]
        once = torch.func.jvp(lambda y: oracle.score(t, y), (x,), (along.contiguous(),))[1]
        assert (twice - once).abs().max().item() < 1e-9 * max(1.0, once.abs().max().item())


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@kinds
@every_path
def test_the_continuity_equation_holds(kind, path, source, seeded):
    """d log p/dt + div u + u . score = 0 (eq. 26)."""
    oracle = of_kind(kind, path, source)
    t, x = places(oracle, seeded)
    rate = torch.func.jvp(lambda s: oracle.log_prob(s, x), (t,), (torch.ones_like(t),))[1]
    jacobian = torch.func.vmap(torch.func.jacrev(lambda s, y: oracle(s[None], y[None])[0], argnums=1))(t, x)
    divergence = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    terms = rate, divergence, (oracle(t, x) * oracle.score(t, x)).sum(1)
    assert (sum(terms).abs() / (1 + sum(v.abs() for v in terms))).max().item() < 1e-8


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_stochastic_protocol_gives_the_score(source, seeded):
    for path in (CondOT(), ICFM(0.3), VariancePreserving()):
        oracle = of_kind("full", path, source)
        t, x = places(oracle, seeded)
        at = oracle.stochastic(t, x)
        torch.testing.assert_close(at.velocity, oracle(t, x))
        torch.testing.assert_close(-at.noise / at.std, oracle.score(t, x), rtol=1e-11, atol=1e-11)
        if source.standard_normal and not path.has_latent:
            torch.testing.assert_close(at.noise, oracle.noise(t, x), rtol=1e-11, atol=1e-11)


def test_an_sde_with_latent_noise_keeps_the_marginals(seeded):
    oracle, n = MixtureOracle(ICFM(0.5), [[-1.0], [1.0]], [0.25, 0.75], std=0.4), 20_000
    flow = Flow(oracle.path.start(oracle.source), oracle, HeunSDE(60), event_shape=1)
    x = flow.sample(n, generator=seeded(0))
    assert x.mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(n))
    assert x.var().item() == pytest.approx(0.16 + 0.25 + 0.75, rel=0.03)
    assert (x < 0).float().mean().item() == pytest.approx(
        0.25 * torch.special.ndtr(torch.tensor(1 / 0.41**0.5)).item()
        + 0.75 * torch.special.ndtr(torch.tensor(-1 / 0.41**0.5)).item(),
        abs=0.015,
    )


# -- flows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [True, False])
@every_path
def test_the_flow_map_of_one_gaussian_solves_the_ode(path, full, seeded):
    extra = {"covariances": COVARIANCES[:1]} if full else {"std": 0.6}
    oracle = MixtureOracle(path, MEANS[:1], source=Gaussian(1.2, 0.3), **extra)
    low, high = path.interval
    x = torch.randn(5, 2, generator=seeded(0), dtype=torch.float64)
    begin, end = low + 0.1 * (high - low), low + 0.95 * (high - low)
    solved = DOP853(rtol=1e-11, atol=1e-12).solve(lambda t, y: oracle(t, y), x, (begin, end)).final
    mapped = oracle.flow_map(x, begin, end)
    torch.testing.assert_close(mapped, solved, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(oracle.flow_map(mapped, end, begin), x, rtol=1e-10, atol=1e-10)
    whole = oracle.flow_map(x, low, high)
    torch.testing.assert_close(oracle.flow_map(oracle.flow_map(x, low, 0.5), 0.5, high), whole, rtol=1e-9, atol=1e-9)


def test_the_flow_map_turns_back_to_the_coordinates_of_the_points(seeded):
    """In three dimensions: in two the eigenvectors may be a reflection, which is its own transpose."""
    covariance = torch.tensor([[0.9, 0.4, -0.1], [0.4, 0.5, 0.2], [-0.1, 0.2, 0.7]], dtype=torch.float64)
    oracle = MixtureOracle(CondOT(), [[0.3, -0.5, 0.8]], covariances=covariance[None])
    x = torch.randn(5, 3, generator=seeded(0), dtype=torch.float64)
    solved = DOP853(rtol=1e-11, atol=1e-12).solve(lambda t, y: oracle(t, y), x, (0.1, 0.9)).final
    torch.testing.assert_close(oracle.flow_map(x, 0.1, 0.9), solved, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", [CondOT(), ICFM(0.1), Cosine()], ids=["condot", "icfm", "cosine"])
@pytest.mark.parametrize("kind", ["full", "round"])
def test_a_flow_along_an_oracle_has_its_log_density(kind, path, seeded):
    oracle = of_kind(kind, path)
    flow = Flow(path.start(oracle.source), oracle, Dopri5(), event_shape=2)
    x = oracle.sample(64, seeded(0), dtype=torch.float64)
    error = (flow.log_prob(x) - oracle.log_prob(path.interval[1], x)).abs()
    assert error.max().item() < 2e-2
    assert error.mean().item() < 2e-3
    y, log_prob = flow.sample_with_log_prob(32, generator=seeded(1))
    assert (log_prob - oracle.log_prob(1.0, y)).abs().mean().item() < 2e-3


def test_a_flow_along_points_ends_on_them(seeded):
    data = torch.randn(30, 1, 2, 2, generator=seeded(0), dtype=torch.float64)
    oracle = MixtureOracle.empirical(CondOT(), data)
    assert oracle.interval == (0.0, 1 - 1e-5)
    x = Flow(Gaussian(), oracle, event_shape=(1, 2, 2)).sample(64, generator=seeded(1))
    nearest = torch.cdist(x.flatten(1).double(), data.flatten(1)).min(1)
    assert nearest.values.max().item() < 5e-4
    assert len(set(nearest.indices.tolist())) > 15


def test_a_saved_oracle_answers_alike(tmp_path, seeded):
    oracle = of_kind("full", CondOT(), Gaussian(2.0))
    Flow(Gaussian(2.0), oracle, event_shape=2).save(tmp_path / "a.flow")
    again = Flow.load(tmp_path / "a.flow", using=[MixtureOracle]).field
    t, x = places(oracle, seeded)
    assert torch.equal(again(t, x), oracle(t, x))


# -- the loss floor ---------------------------------------------------------------------------------------------------


class Perfect(torch.nn.Module):
    """The network that answers with the oracle's view."""

    def __init__(self, oracle, view):
        super().__init__()
        self.oracle, self.view = oracle, view

    def forward(self, t, x):
        return self.oracle.view(self.view, t.clamp(*self.oracle.interval), x)


OBJECTIVES = [VelocityMatching, DataPrediction, NoisePrediction, ScoreMatching, ScoreFlow]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda c: c.__name__)
@kinds
@every_path
def test_the_floor_is_the_loss_of_a_perfect_network(path, kind, objective, seeded):
    objective, n = objective(LogitNormal()), 20_000
    oracle = of_kind(kind, path)
    if path.has_latent and objective.view != "velocity":
        with pytest.raises(CombinationError, match="latent noise"):
            oracle.loss_floor(objective)
        return
    floor = oracle.loss_floor(objective, n, seeded(0))
    x1 = oracle.sample(n, seeded(1), dtype=torch.float64)
    x0 = oracle.source.sample(x1.shape, generator=seeded(2), dtype=torch.float64)
    loss = objective.loss(Perfect(oracle, objective.view), path, (x0, x1), generator=seeded(3)).value
    error = math.hypot(floor.standard_error, (loss.std() / math.sqrt(n)).item())
    assert abs(floor.value - loss.mean().item()) < 4 * error
    assert error < 0.1 * floor.value  # or the line above would say nothing


@pytest.mark.parametrize("objective", [VelocityMatching, DataPrediction, NoisePrediction], ids=lambda c: c.__name__)
@pytest.mark.parametrize("path", [CondOT(), ICFM(0.5)], ids=["condot", "icfm"])
def test_the_floor_knows_the_source(path, objective, seeded):
    """One Gaussian: the conditional variance is Sigma_tt - Sigma_ts² / Sigma_ss of the pair (target, state)."""
    if path.has_latent and objective is not VelocityMatching:
        return
    mean, std, c, gamma = -2.0, 1.7, 0.6, 0.5 * path.has_latent
    oracle = MixtureOracle(path, [[1.0, 4.0]], std=c, source=Gaussian(std, mean))
    floor = oracle.loss_floor(objective(), 40_000, seeded(0))
    low, high = objective().interval(path)
    t = low + (high - low) * (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    a, b = {"velocity": (1, -1), "data": (1, 0), "noise": (0, 1)}[objective.view]
    target = a**2 * c**2 + b**2 * std**2
    both = a * t * c**2 + b * (1 - t) * std**2
    state = t**2 * c**2 + (1 - t) ** 2 * std**2 + gamma**2
    assert floor.value == pytest.approx((target - both**2 / state).mean().item(), abs=4 * floor.standard_error)
    assert floor.standard_error < 0.01 * floor.value


@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_the_floor_of_one_gaussian_on_the_straight_path(std, seeded):
    """c² / (c² t² + (1 - t)²) a coordinate, whose integral over [0, 1] is c pi/2."""
    floor = MixtureOracle(CondOT(), [[3.0, -1.0, 0.5]], std=std).loss_floor(VelocityMatching(), 40_000, seeded(0))
    assert floor.value == pytest.approx(std * math.pi / 2, abs=4 * floor.standard_error)
    assert floor.standard_error < 0.01 * floor.value


def test_the_floor_of_a_mixture_by_quadrature(seeded):
    """E Var[x1 - x0 | x_t] in one dimension: E|target|² - E u_t², the right side of Theorem 2, on a grid of (t, x)."""
    oracle = MixtureOracle(CondOT(), [[-1.0], [1.5]], [0.6, 0.4], std=[0.3, 0.5])
    x = torch.linspace(-9, 9, 3001, dtype=torch.float64)[:, None]
    nodes = torch.linspace(0, 1, 401, dtype=torch.float64)
    square = torch.stack([(oracle.log_prob(t, x).exp() * oracle(t, x)[:, 0] ** 2).sum() * 18 / 3000 for t in nodes])
    weights = torch.tensor([1.0, *([4.0, 2.0] * 200)[:-1], 1.0], dtype=torch.float64) / 1200  # Simpson's rule
    target = 0.6 * (1 + 0.09) + 0.4 * (2.25 + 0.25) + 1
    floor = oracle.loss_floor(VelocityMatching(), 100_000, seeded(0))
    assert floor.value == pytest.approx(target - (weights * square).sum().item(), abs=4 * floor.standard_error)
    assert floor.standard_error < 0.01 * floor.value


def test_the_standard_error_is_that_of_the_estimate(seeded):
    oracle = of_kind("round", SchrodingerBridge())
    runs = [oracle.loss_floor(VelocityMatching(), 100, seeded(i)) for i in range(100)]
    spread = torch.tensor([r.value for r in runs]).std().item()
    claimed = torch.tensor([r.standard_error for r in runs]).square().mean().sqrt().item()
    assert spread == pytest.approx(claimed, rel=0.2)


@pytest.mark.parametrize("n", [2, 7, 50])
def test_the_floor_of_few_draws_has_no_bias(n, seeded):
    oracle = of_kind("round", CondOT())
    runs = torch.tensor([oracle.loss_floor(VelocityMatching(), n, seeded(i)).value for i in range(400)])
    best = oracle.loss_floor(VelocityMatching(), 50_000, seeded(0))
    assert runs.mean().item() == pytest.approx(best.value, abs=4 * runs.std().item() / 20)


# -- the excess over it -----------------------------------------------------------------------------------------------


class Shifted(Perfect):
    """A perfect answer but for a shift by 0.1 in every coordinate."""

    def forward(self, t, x):
        return super().forward(t, x) + 0.1


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda c: c.__name__)
@kinds
def test_the_excess_is_the_weighted_square_of_the_error(kind, objective, seeded):
    oracle, objective = of_kind(kind, VariancePreserving()), objective(LogitNormal())
    perfect = oracle.loss_excess(objective, Perfect(oracle, objective.view).double(), 200, seeded(0))
    assert perfect.value < 1e-12 * max(1.0, oracle.loss_floor(objective, 200, seeded(0)).value)
    shifted = oracle.loss_excess(objective, Shifted(oracle, objective.view).double(), 4000, seeded(0))
    t = objective.time.sample(200_000, objective.interval(oracle.path), generator=seeded(1))
    weight = objective.weight(oracle.path, t)
    want = 0.01 * (1.0 if weight is None else weight.mean().item())
    assert shifted.value == pytest.approx(want, rel=0.02)


def test_floor_and_excess_add_up_to_the_loss(seeded):
    """Theorem 2, of a network that is nowhere near."""
    oracle, objective, network = of_kind("full", CondOT()), VelocityMatching(), MLP(2, width=16)
    floor = oracle.loss_floor(objective, 20_000, seeded(0))
    excess = oracle.loss_excess(objective, network, 20_000, seeded(1))
    x1 = oracle.sample(100_000, seeded(2))
    x0 = torch.randn(x1.shape, generator=seeded(3))
    loss = objective.loss(network, CondOT(), (x0, x1), generator=seeded(4)).value.detach()
    error = math.hypot(floor.standard_error, excess.standard_error, (loss.std() / len(loss) ** 0.5).item())
    assert floor.value + excess.value == pytest.approx(loss.mean().item(), abs=4 * error)
    assert error < 0.02 * excess.value


def test_the_excess_asks_the_network_with_the_condition(seeded):
    class Told(torch.nn.Module):
        def forward(self, t, x, cond):
            assert cond.shape == (len(x),)
            return x + cond[:, None]

    mixture = Mixture([[0.0]], std=1.0)
    values = [
        loss_excess(Told(), mixture, CondOT(), Gaussian(), VelocityMatching(), 100, seeded(0), cond=c).value
        for c in (-3, 0, 3)
    ]
    assert values[1] < min(values[0], values[2])


@pytest.mark.parametrize(("path", "objective"), [(CondOT(), DataPrediction()), (ICFM(0.5), VelocityMatching())])
def test_the_floor_repeats_with_its_generator(path, objective, seeded):
    """The path's own noise as well."""
    oracle = of_kind("full", path)
    first, second = (oracle.loss_floor(objective, 50, seeded(5)) for _ in range(2))
    assert first == second
    assert first != oracle.loss_floor(objective, 50, seeded(6))


# -- shapes, precision, ends ------------------------------------------------------------------------------------------


def test_an_event_of_any_shape_is_its_elements_in_a_row(seeded):
    means = torch.randn(3, 2, 2, generator=seeded(0), dtype=torch.float64)
    root = torch.randn(3, 4, 4, generator=seeded(1), dtype=torch.float64)
    covariances = root @ root.mT
    image = MixtureOracle(CondOT(), means, covariances=covariances)
    flat = MixtureOracle(CondOT(), means.flatten(1), covariances=covariances)
    x = torch.randn(5, 2, 2, generator=seeded(2), dtype=torch.float64)
    t = torch.rand(5, generator=seeded(3), dtype=torch.float64)
    for view in ("velocity", "data", "noise", "score"):
        assert torch.equal(image.view(view, t, x).flatten(1), flat.view(view, t, x.flatten(1)))
    assert torch.equal(image.log_prob(t, x), flat.log_prob(t, x.flatten(1)))
    assert image.sample(6, seeded(4)).shape == (6, 2, 2)
    scalar = MixtureOracle(CondOT(), [-1.0, 1.0], std=0.5)
    column = MixtureOracle(CondOT(), [[-1.0], [1.0]], std=0.5)
    assert torch.equal(scalar.velocity(t, x[:, 0, 0]), column.velocity(t, x[:, 0, :1])[:, 0])
    assert torch.equal(scalar.sample(4, seeded(0)), column.sample(4, seeded(0))[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_precision_is_that_of_the_points_and_no_more_is_lost(dtype, seeded):
    oracle = of_kind("full", CondOT())
    x, t = POINTS.to(dtype), torch.tensor(0.9)
    exact = oracle.velocity(t, x.double())
    oracle.to(dtype)  # as part of a flow of that precision
    got = oracle.velocity(t, x)
    assert got.dtype == dtype
    assert torch.equal(got, exact.to(dtype))
    assert oracle.log_prob(t, x).dtype == dtype


def test_samples_follow_the_data(seeded):
    oracle, n = of_kind("full", CondOT()), 200_000
    x = oracle.sample(n, seeded(0), dtype=torch.float64)
    w = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)
    means, covariances = torch.tensor(MEANS, dtype=torch.float64), torch.tensor(COVARIANCES, dtype=torch.float64)
    mean = w @ means
    away = means - mean
    covariance = (w[:, None, None] * (covariances + away[:, :, None] * away[:, None])).sum(0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.015)
    assert oracle.sample(3, seeded(0)).dtype == torch.float32
    points = MixtureOracle.empirical(CondOT(), torch.tensor([[1.0], [2.0], [5.0]]))
    assert set(points.sample(200, seeded(0)).flatten().tolist()) == {1.0, 2.0, 5.0}


def test_a_component_without_width_keeps_off_the_end_that_has_no_noise():
    flat = [[[1.0, 1.0], [1.0, 1.0]]]
    for path, high in ((CondOT(), 1 - 1e-5), (Cosine(), 1 - 1e-5), (CondOT(0.1), 1.0), (ICFM(0.1), 1.0)):
        assert MixtureOracle(path, [[0.0, 0.0]], covariances=flat).interval == (0.0, high)
        assert MixtureOracle(path, [[0.0, 0.0]], covariances=COVARIANCES[:1]).interval == (0.0, 1.0)
    oracle = MixtureOracle(CondOT(), [[0.0, 0.0]], covariances=flat)
    with pytest.raises(ArgumentError, match=r"t ranges over \[1, 1\], expected inside \[0.0, 0.99999\]"):
        oracle.log_prob(1.0, POINTS)
    here = oracle.data(oracle.interval[1], torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    torch.testing.assert_close(here, torch.tensor([[0.5, 0.5]], dtype=torch.float64), rtol=1e-4, atol=0)
    assert MixtureOracle.empirical(Backward(), POINTS).interval == (1e-5, 1.0)
    with pytest.raises(CombinationError, match="near t = 1 Silent has no noise"):
        MixtureOracle.empirical(Silent(), POINTS)


def test_a_singular_covariance_is_seen_through_its_rounding():
    """Rank one in five dimensions: rounding leaves eigenvalues of either sign, which are zeros."""
    v = torch.tensor([0.3, -1.7, 0.9, 2.1, 0.123], dtype=torch.float64)
    for scale in (1e-6, 1.0, 1e6):
        oracle = MixtureOracle(CondOT(), torch.zeros(1, 5), covariances=scale * (v[:, None] * v)[None])
        assert oracle.interval == (0.0, 1 - 1e-5)
        assert (oracle.mixture.variances == 0).sum().item() == 4
        x = oracle.sample(3, torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(x / x[:, :1], (v / v[0]).expand(3, 5), rtol=1e-9, atol=0)


def test_a_covariance_is_symmetric_up_to_rounding():
    lopsided = torch.tensor(COVARIANCES, dtype=torch.float64)
    lopsided[0, 0, 1] += 2e-7
    oracle = MixtureOracle(CondOT(), MEANS, covariances=lopsided)
    even = MixtureOracle(CondOT(), MEANS, covariances=(lopsided + lopsided.mT) / 2)
    torch.testing.assert_close(oracle.score(0.9, POINTS), even.score(0.9, POINTS), rtol=1e-12, atol=1e-12)


@kinds
def test_far_points_are_finite_and_pulled_back(kind):
    oracle = of_kind(kind, CondOT())
    x = torch.tensor([[300.0, -200.0]], dtype=torch.float64)
    for t in (0.0, 0.5, oracle.interval[1]):
        score = oracle.score(t, x)
        assert bool(torch.isfinite(score).all())
        assert ((score * x).sum() < 0).item()
        assert oracle.responsibilities(t, x).sum().item() == pytest.approx(1)


# -- refusals ---------------------------------------------------------------------------------------------------------


class Backward(AffinePath):
    """From data to noise."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


class Silent(AffinePath):
    """All noise is gone by half time."""

    def alpha(self, t):
        return t

    def sigma(self, t):
        return torch.relu(1 - 2 * t)


class Bent(GaussianPath):
    def mean(self, t, x1):
        return t * x1

    def std(self, t, x1):
        return 1 - t


WRONG = {
    "means of nothing": ({"means": torch.zeros(0, 2)}, "expected a non-empty"),
    "means that are NaN": ({"means": [[0.0, math.nan]]}, "means has 1 non-finite"),
    "means of text": ({"means": [["a", "b"]]}, "means is no array of numbers"),
    "a mean": ({"means": 1.0}, "expected a non-empty"),
    "too few weights": ({"weights": [1.0]}, r"weights has shape \(1,\), expected \(2,\)"),
    "weights with a zero": ({"weights": [1.0, 0.0]}, "weights has 0, expected positive"),
    "negative weights": ({"weights": [1.0, -2.0]}, "weights has -2, expected positive"),
    "too many stds": ({"std": [1.0, 1.0, 1.0]}, r"std has shape \(3,\), expected \(2,\)"),
    "a negative std": ({"std": -1.0}, "std has -1, expected standard deviations >= 0"),
    "both": ({"std": 1.0, "covariances": COVARIANCES}, "both given"),
    "one covariance": ({"covariances": COVARIANCES[0]}, r"covariances has shape \(2, 2\), expected \(2, 2, 2\)"),
    "a lopsided one": ({"covariances": [COVARIANCES[0], [[1.0, 0.2], [0.1, 1.0]]]}, "covariance 1 is not symmetric"),
    "an indefinite one": (
        {"covariances": [COVARIANCES[0], [[1.0, 2.0], [2.0, 1.0]]]},
        "covariance 1 has eigenvalue -1",
    ),
}


@pytest.mark.parametrize("arguments", [w[0] for w in WRONG.values()], ids=WRONG)
def test_wrong_arguments_are_refused(arguments):
    said = next(said for given, said in WRONG.values() if given is arguments)
    with pytest.raises(ArgumentError, match=said):
        MixtureOracle(CondOT(), **{"means": MEANS, **arguments})


def test_what_has_no_closed_form_is_refused():
    with pytest.raises(CombinationError, match="Bent is not affine"):
        MixtureOracle(Bent(), MEANS)
    with pytest.raises(CombinationError, match="Uniform is not Gaussian"):
        MixtureOracle(CondOT(), MEANS, source=Uniform())
    oracle = of_kind("full", CondOT())
    with pytest.raises(CombinationError, match="flow of 2 components has no closed form"):
        oracle.flow_map(POINTS, 0.0, 1.0)
    with pytest.raises(CombinationError, match="CondOT has no latent noise"):
        oracle.view("latent", 0.5, POINTS)
    with pytest.raises(CombinationError, match="a score needs a standard Gaussian source"):
        of_kind("full", CondOT(), Gaussian(2.0)).loss_floor(ScoreMatching())
    with pytest.raises(CombinationError, match="CondOT is no regression"):
        oracle.loss_floor(CondOT())
    with pytest.raises(ArgumentError, match="data has dtype torch.int64"):
        MixtureOracle.empirical(CondOT(), torch.zeros(3, 2, dtype=torch.int64))


def test_wrong_questions_are_refused():
    oracle = of_kind("round", CondOT())
    with pytest.raises(ArgumentError, match=r"x has events of shape \(3,\), this oracle's are \(2,\)"):
        oracle.velocity(0.5, torch.zeros(4, 3))
    with pytest.raises(ArgumentError, match="t has shape"):
        oracle.log_prob(torch.zeros(3), POINTS)
    with pytest.raises(ArgumentError, match="expected inside"):
        oracle.data(1.5, POINTS)
    with pytest.raises(ArgumentError, match="did you mean 'velocity'"):
        oracle.view("velocty", 0.5, POINTS)
    with pytest.raises(ArgumentError, match="a condition was given"):
        oracle(torch.zeros(4), POINTS, torch.zeros(4))
    with pytest.raises(ArgumentError, match="a condition was given"):
        oracle.stochastic(torch.zeros(4), POINTS, torch.zeros(4))
    for n in (0, -1, True, 2.5):
        with pytest.raises(ArgumentError, match="expected a whole number of at least 1"):
            oracle.sample(n)
    with pytest.raises(ArgumentError, match="n is 1, expected a whole number of at least 2"):
        oracle.loss_floor(VelocityMatching(), 1)


def test_points_know_their_source(seeded):
    source = Gaussian(2.0, 0.5)
    points, wide = (
        make(CondOT(), source)
        for make in (
            lambda path, source: MixtureOracle.empirical(path, POINTS, source),
            lambda path, source: MixtureOracle(path, POINTS, std=0.0, source=source),
        )
    )
    x = torch.randn(5, 2, generator=seeded(0), dtype=torch.float64)
    assert torch.equal(points.velocity(torch.full((5,), 0.4), x), wide.velocity(torch.full((5,), 0.4), x))
    standard = MixtureOracle.empirical(CondOT(), POINTS)
    assert not torch.allclose(points.velocity(torch.full((5,), 0.4), x), standard.velocity(torch.full((5,), 0.4), x))


def test_the_excess_repeats_with_its_generator(seeded):
    oracle, network = MixtureOracle(CondOT(), MEANS), MLP(2, 8)
    one, two, other = (oracle.loss_excess(VelocityMatching(), network, 50, seeded(s)).value for s in (0, 0, 1))
    assert one == two != other


class Late(AffinePath):
    """sigma = ((1 - t)/s)² between 1 - s and 1: the noise is gone sooner than time runs out."""

    @property
    def interval(self):
        return (0.5, 1.0)

    def alpha(self, t):
        return 2 * t - 1

    def sigma(self, t):
        return (2 * (1 - t)) ** 2


def test_the_end_of_points_leaves_the_least_noise_and_not_much_more():
    low, high = MixtureOracle.empirical(Late(), POINTS).interval
    assert low == 0.5
    assert 1e-5 <= Late().sigma(high) < 100 * 1e-5
    assert high == pytest.approx(1 - 0.5 * 1e-2)


def test_responsibilities_have_the_precision_of_the_points():
    assert MixtureOracle(CondOT(), MEANS).responsibilities(0.5, torch.zeros(3, 2)).dtype == torch.float32
