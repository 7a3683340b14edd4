"""Affine paths: the derived velocity, the default rates, the conversions between views, the beginning's law."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmkit.errors import ArgumentError, CombinationError
from fmkit.paths import (
    ICFM,
    AffinePath,
    Coefficients,
    CondOT,
    Cosine,
    LinearVP,
    Polynomial,
    SchrodingerBridge,
    VarianceExploding,
    VariancePreserving,
)
from fmkit.sources import Gaussian, Uniform

TWO = [
    CondOT(),
    CondOT(0.1),
    VariancePreserving(),
    VarianceExploding(),
    Cosine(),
    Polynomial(),
    Polynomial(3.5),
    LinearVP(),
]
THREE = [ICFM(), ICFM(0.7), SchrodingerBridge(), SchrodingerBridge(0.3)]
names = [repr(p) for p in TWO]
names3 = [repr(p) for p in THREE]


def f64(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views_of(path, t, seed=0, n=16):
    """A point and every view of it, from its latents."""
    x0, x1 = f64(n, 3, seed=seed), f64(n, 3, seed=seed + 1)
    times = torch.full((n,), t, dtype=torch.float64)
    point = path.sample(times, x0, x1, generator=torch.Generator().manual_seed(seed + 2))
    at = path.coefficients(times)
    views = {"velocity": point.velocity, "data": x1, "noise": x0}
    if point.z is None:
        views["score"] = -x0 / at.sigma[:, None]
    else:
        views |= {"latent": point.z, "score": -point.z / at.gamma[:, None]}
    return point, views


def close(got, want, tolerance=1e-9):
    scale = want.abs().max().clamp_min(1.0)
    assert ((got - want).abs().max() / scale).item() < tolerance


class Plugin(AffinePath):
    """alpha = t³, sigma = (1 - t) exp(t): derivatives 3t² and -t exp(t)."""

    def alpha(self, t):
        return t**3

    def sigma(self, t):
        return (1 - t) * torch.exp(t)


class WithNoise(Plugin):
    """The same, and gamma = sin(pi t): derivative pi cos(pi t)."""

    def gamma(self, t):
        return torch.sin(torch.pi * t)


def test_a_plugins_rates_are_its_functions_derivatives():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    rate = WithNoise().rates(t)
    torch.testing.assert_close(rate.alpha, 3 * t**2, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rate.sigma, -t * torch.exp(t), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(rate.gamma, torch.pi * torch.cos(torch.pi * t), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("path", [*TWO, *THREE], ids=names + names3)
def test_built_in_rates_agree_with_forward_mode_differentiation(path):
    low, high = path.interval
    t = low + (high - low) * torch.linspace(0, 1, 101, dtype=torch.float64)
    closed, derived = path.rates(t), AffinePath.rates(path, t)
    for ours, theirs in zip(closed, derived, strict=True):
        if ours is None:
            assert theirs is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", [*TWO, *THREE, Plugin(), WithNoise()], ids=repr)
def test_velocity_is_the_time_derivative_of_the_state_with_the_latents_held(path):
    n, h = 32, 1e-5
    x0, x1 = f64(n, 2), f64(n, 2, seed=1)
    t = 0.05 + 0.9 * torch.rand(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    here, before, after = (
        path.sample(s, x0, x1, generator=torch.Generator().manual_seed(3)) for s in (t, t - h, t + h)
    )
    slope = (after.x - before.x) / (2 * h)
    close(here.velocity, slope, 2e-7)


@pytest.mark.parametrize("path", [CondOT(), ICFM(0.5), WithNoise()], ids=repr)
@pytest.mark.parametrize("event", [(), (3,), (2, 3, 4)])
def test_each_row_has_its_own_time(path, event):
    x0, x1 = f64(5, *event), f64(5, *event, seed=1)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    point = path.sample(t, x0, x1, generator=torch.Generator().manual_seed(0))
    z = torch.zeros_like(x0) if point.z is None else point.z
    at = path.coefficients(t)
    for i in range(5):
        gamma = 0.0 if at.gamma is None else at.gamma[i]
        torch.testing.assert_close(point.x[i], at.alpha[i] * x1[i] + at.sigma[i] * x0[i] + gamma * z[i])


@pytest.mark.parametrize("path", [CondOT(), ICFM(0.5)], ids=repr)
def test_a_point_comes_with_its_ends_and_its_time(path):
    x0, x1, t = f64(3, 2), f64(3, 2, seed=1), torch.tensor([0.1, 0.3, 0.5])
    point = path.sample(t, x0, x1, generator=torch.Generator().manual_seed(0))
    assert point.x0 is x0
    assert point.x1 is x1
    assert torch.equal(point.t, t.double())


def test_coefficients_are_taken_in_double_precision_for_single_precision_data():
    path = VariancePreserving()
    x0, x1 = torch.ones(1, 1), torch.zeros(1, 1)
    t = torch.tensor([1 - 1.5e-5], dtype=torch.float64)
    # sigma² = T(1.5e-5) to first order; a float32 time would have moved 1 - t by up to 0.4 percent.
    assert path.sample(t, x0, x1).x.item() == pytest.approx((0.1 * 1.5e-5 + 19.9 / 2 * (1.5e-5) ** 2) ** 0.5, rel=1e-6)
    assert path.sample(t, x0, x1).x.dtype == torch.float32


@pytest.mark.parametrize("path", TWO, ids=names)
@given(t=st.floats(0.02, 0.98), seed=st.integers(0, 1000))
def test_every_view_gives_every_other(path, t, seed):
    point, views = views_of(path, t, seed, n=4)
    for have, want in itertools.product(views, views):
        close(path.convert(point.t, point.x, want, **{have: views[have]}), views[want], 1e-8)


@pytest.mark.parametrize("path", THREE, ids=names3)
@given(t=st.floats(0.02, 0.98), seed=st.integers(0, 1000))
def test_two_views_give_every_other_where_the_path_has_latent_noise(path, t, seed):
    point, views = views_of(path, t, seed, n=4)
    for pair in itertools.combinations(views, 2):
        if pair == ("latent", "score"):
            continue
        # (state, velocity, one latent) has a determinant that vanishes at some times for a bridge; stay off them.
        rows = {"data": [1, 0, 0], "noise": [0, 1, 0], "latent": [0, 0, 1], "score": [0, 0, 1]}
        at, rate = path.coefficients(point.t[:1]), path.rates(point.t[:1])
        rows["velocity"] = [v.item() for v in rate]
        matrix = torch.tensor([[v.item() for v in at], *(rows[name] for name in pair)], dtype=torch.float64)
        if torch.linalg.det(matrix).abs() < 1e-2:
            continue
        for want in views:
            got = path.convert(point.t, point.x, want, **{name: views[name] for name in pair})
            close(got, views[want], 1e-8)


def test_the_state_of_a_point_is_the_point():
    point, views = views_of(Cosine(), 0.3)
    close(Cosine().convert(point.t, point.x, "state", data=views["data"]), point.x, 1e-14)


@pytest.mark.parametrize("path", [CondOT(), VariancePreserving(), Cosine(), Polynomial(), LinearVP()], ids=repr)
def test_the_score_is_the_gradient_of_the_conditional_log_density(path):
    t = 0.6
    x1, x = f64(8, 3), f64(8, 3, seed=1).requires_grad_()
    at = path.coefficients(torch.tensor(t, dtype=torch.float64).expand(8))
    log_density = -((x - at.alpha[:, None] * x1) ** 2).sum() / (2 * at.sigma[0] ** 2)
    (gradient,) = torch.autograd.grad(log_density, x)
    close(path.convert(t, x.detach(), "score", data=x1), gradient, 1e-12)


@pytest.mark.parametrize("name", ["condot", "vp", "ve", "cosine", "polynomial", "linear-vp"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_marginal_views_of_a_mixture(name, t, schedules, mixtures):
    """Conditional means obey the same linear relations: from the exact velocity, the exact data, noise and score."""
    path = dict(
        zip(["condot", "vp", "ve", "cosine", "polynomial", "linear-vp"], [TWO[0], *TWO[2:6], TWO[7]], strict=True)
    )[name]
    mixture, schedule = mixtures[2], schedules[name]
    x = (1.5 * f64(16, 2)).requires_grad_()
    times = torch.full((16,), t, dtype=torch.float64)
    (score,) = torch.autograd.grad(mixture.log_prob(x, schedule, t).sum(), x)
    x = x.detach()
    velocity = mixture.velocity(schedule, times, x)
    data, noise = mixture.posterior(schedule, times, x)
    exact = {"velocity": velocity, "data": data, "noise": noise, "score": score}
    for have, want in itertools.product(exact, exact):
        close(path.convert(times, x, want, **{have: exact[have]}), exact[want], 1e-8)


@pytest.mark.parametrize("t", [0.15, 0.5, 0.85])
def test_the_score_of_a_path_with_latent_noise(t, schedules, mixtures):
    """For x_t = t x1 + (1-t) x0 + gamma z the score is that of z: -E[z | x]/gamma, checked on Gaussian x0."""
    path, mixture, schedule = ICFM(), mixtures[2], schedules["icfm"]
    x = f64(16, 2).requires_grad_()
    times = torch.full((16,), t, dtype=torch.float64)
    (score,) = torch.autograd.grad(mixture.log_prob(x, schedule, t).sum(), x)
    x = x.detach()
    velocity = mixture.velocity(schedule, times, x)
    data, _ = mixture.posterior(schedule, times, x)
    close(path.convert(times, x, "score", velocity=velocity, data=data), score, 1e-8)


@pytest.mark.parametrize("path", TWO, ids=names)
def test_conversions_are_finite_at_the_ends(path):
    x = f64(4, 2)
    for t, have, want in itertools.product(
        path.interval, ("velocity", "data", "noise", "score"), ("velocity", "data", "noise", "score")
    ):
        got = path.convert(t, x, want, **{have: f64(4, 2, seed=1)})
        assert torch.isfinite(got).all(), f"{want} from {have} at t = {t}"


def test_an_end_that_determines_the_view_is_not_moved():
    """At t = 1 CondOT's point is the data, at t = 0 it is the noise: exactly, whatever the velocity."""
    x, velocity = f64(4, 2), f64(4, 2, seed=1)
    assert torch.equal(CondOT().convert(1.0, x, "data", velocity=velocity), x)
    assert torch.equal(CondOT().convert(0.0, x, "noise", velocity=velocity), x)
    assert CondOT().determined("data", "velocity") == (0.0, 1.0)
    assert CondOT().determined("score", "velocity") == (0.0, 1 - 1e-5)
    assert Polynomial().determined("data", "velocity") == (1e-5, 1.0)


class Part(AffinePath):
    """Moves from the noise to the data between two times only, and stands still before and after."""

    def __init__(self, begin, end):
        super().__init__()
        self.begin, self.end = begin, end

    def alpha(self, t):
        return ((t - self.begin) / (self.end - self.begin)).clamp(0.0, 1.0)

    def sigma(self, t):
        return 1 - self.alpha(t)


@pytest.mark.parametrize(("begin", "end"), [(0.0, 0.2), (0.8, 1.0), (0.4, 0.6)])
def test_views_that_are_one_for_most_of_the_time_determine_another_for_the_rest(begin, end):
    """A velocity of 0 says nothing of the data; while the path moves, x + (1 - alpha)/alpha' u is the data."""
    path, middle = Part(begin, end), (begin + end) / 2
    x, u = f64(3, 2), f64(3, 2, seed=1)
    close(path.convert(middle, x, "data", velocity=u), x + 0.5 * (end - begin) * u, 1e-12)
    low, high = path.determined("data", "velocity")
    assert (low, high) == pytest.approx((0 if begin == 0 else 1e-5, 1 if end == 1 else 1 - 1e-5), abs=1e-12)


def test_conversions_next_to_a_singular_end_are_the_limits():
    """CondOT's score at t = 1 is 0/0 in the formula and -(noise)/sigma just beside it."""
    x1, x0 = f64(4, 2), f64(4, 2, seed=1)
    path = CondOT()
    at_the_end = path.convert(1.0, x1, "score", velocity=x1 - x0)
    beside = path.convert(1 - 1e-5, x1, "score", velocity=x1 - x0)
    close(at_the_end, beside, 1e-9)
    close(beside, -1e5 * (x1 - (1 - 1e-5) * (x1 - x0)), 1e-9)


@pytest.mark.parametrize("path", THREE, ids=names3)
def test_one_view_does_not_determine_a_path_with_latent_noise(path):
    x = f64(2, 2)
    with pytest.raises(CombinationError, match=r"3 latents.*2 view\(s\) more, got velocity"):
        path.convert(0.5, x, "data", velocity=x)


def test_two_views_of_a_path_without_latent_noise_are_one_too_many():
    x = f64(2, 2)
    with pytest.raises(CombinationError, match=r"2 latents.*1 view"):
        CondOT().convert(0.5, x, "score", velocity=x, data=x)


def test_views_that_say_the_same_thing_do_not_determine_the_others():
    x = f64(2, 2)
    with pytest.raises(CombinationError):
        SchrodingerBridge().convert(0.5, x, "data", latent=x, score=-2 * x)


def test_a_path_without_latent_noise_has_no_latent():
    x = f64(2, 2)
    with pytest.raises((ArgumentError, CombinationError)):
        CondOT().convert(0.5, x, "latent", velocity=x)
    with pytest.raises((ArgumentError, CombinationError)):
        CondOT().convert(0.5, x, "data", latent=x)


def test_unknown_views_are_refused_with_the_nearest_one():
    x = f64(2, 2)
    with pytest.raises(ArgumentError, match=r"'velocty' is not a view.*did you mean 'velocity'"):
        CondOT().convert(0.5, x, "data", velocty=x)
    with pytest.raises(ArgumentError, match=r"'dta' is not a view.*did you mean 'data'"):
        CondOT().convert(0.5, x, "dta", velocity=x)


def test_views_are_not_broadcast():
    x = f64(4, 2)
    with pytest.raises(ArgumentError, match=r"velocity has shape \(1, 2\), expected that of x, \(4, 2\)"):
        CondOT().convert(0.5, x, "data", velocity=x[:1])
    with pytest.raises(ArgumentError, match=r"velocity has shape \(4, 1\), expected that of x, \(4, 2\)"):
        CondOT().convert(0.5, x, "data", velocity=x[:, :1])
    with pytest.raises(ArgumentError, match=r"t has shape \(2,\), expected \(4,\)"):
        CondOT().convert(torch.tensor([0.5, 0.5]), x, "data", velocity=x)


@pytest.mark.parametrize("t", [2.0, -0.1, float("nan")])
def test_conversions_outside_the_interval_are_refused(t):
    x = f64(2, 2)
    with pytest.raises(ArgumentError, match="expected inside"):
        CondOT().convert(t, x, "data", velocity=x)


def test_starts():
    gaussian = Gaussian()
    assert CondOT().start(gaussian) is gaussian
    ve = VarianceExploding().start(gaussian)
    assert (ve.std, ve.mean) == (pytest.approx(50.0, rel=1e-12), 0.0)
    assert ICFM(0.1).start(gaussian).std ** 2 == pytest.approx(1.01, rel=1e-12)
    # the bridge's beginning at t = 1e-5: (1 - t)² + t (1 - t) = 1 - t
    assert SchrodingerBridge().start(gaussian).std ** 2 == pytest.approx(1 - 1e-5, rel=1e-12)
    # a later beginning: sigma(0.3) of CondOT is 0.7
    assert CondOT().start(Gaussian(2.0, 1.0), 0.3).std == pytest.approx(1.4)
    assert CondOT().start(Gaussian(2.0, 1.0), 0.3).mean == pytest.approx(0.7)
    # not Gaussian: scaled all the same, with the density of a scaled variable
    scaled = VarianceExploding().start(Uniform(0.0, 1.0))
    x = torch.tensor([[10.0, 20.0], [49.0, 51.0]])
    assert scaled.log_prob(x).tolist() == [pytest.approx(-2 * torch.tensor(50.0).log().item()), float("-inf")]


class ConstantSigma(AffinePath):
    """An author may return a plain number."""

    def alpha(self, t):
        return t

    def sigma(self, t):
        return 0.5

    def gamma(self, t):
        return 0.25


def test_a_constant_function_may_be_a_plain_number():
    path = ConstantSigma()
    point = path.sample(0.5, torch.ones(2, 2), torch.zeros(2, 2), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(point.x, 0.5 + 0.25 * point.z)
    torch.testing.assert_close(point.velocity, torch.zeros(2, 2))
    assert path.start(Gaussian()).std == pytest.approx((0.25 + 0.0625) ** 0.5)


class Short(AffinePath):
    """A path that has no meaning outside [0.6, 0.9], and says so."""

    interval = (0.6, 0.9)

    def alpha(self, t):
        assert (t >= 0.6).all()
        assert (t <= 0.9).all()
        return t

    def sigma(self, t):
        return 1 - self.alpha(t)


class ShortWithNoise(Short):
    def gamma(self, t):
        return 0.1 * self.alpha(t)


def test_a_path_is_asked_on_its_interval_alone():
    """At t = 0.6, the beginning: x1 = (x + 0.4 u) and the law of 0.4 x0 [+ 0.06 z]."""
    x, u = f64(2, 2), f64(2, 2, seed=1)
    torch.testing.assert_close(Short().convert(0.6, x, "data", velocity=u), x + 0.4 * u)
    torch.testing.assert_close(
        ShortWithNoise().convert(0.6, x, "latent", data=u, noise=x), (x - 0.6 * u - 0.4 * x) / 0.06
    )
    assert Short().start(Gaussian()).std == pytest.approx(0.4)
    assert ShortWithNoise().start(Gaussian()).std == pytest.approx(math.hypot(0.4, 0.06))
    assert (Short().has_latent, ShortWithNoise().has_latent) == (False, True)
    for path in (Short(), ShortWithNoise()):
        for t in path.interval:
            assert torch.isfinite(path.sample(t, x, u, generator=torch.Generator().manual_seed(0)).velocity).all()


class ConstantTensor(ConstantSigma):
    """Or a tensor without a dimension."""

    def sigma(self, t):
        return torch.tensor(0.5, dtype=t.dtype)


def test_a_constant_function_may_be_a_tensor_of_no_dimension():
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    assert ConstantTensor().coefficients(t).sigma.tolist() == [0.5, 0.5]
    assert ConstantTensor().rates(t).sigma.tolist() == [0.0, 0.0]


class Forgetful(ConstantSigma):
    def rates(self, t):
        return Coefficients(torch.ones_like(t), torch.zeros_like(t))


def test_rates_without_that_of_the_noise_are_refused():
    with pytest.raises(ArgumentError, match="Forgetful has a gamma, and its rates leave out gamma'"):
        Forgetful().sample(0.5, f64(2, 2), f64(2, 2))


class Halting(AffinePath):
    """alpha' = sigma' = 0 at t = 1/2 alone: there, and nowhere else, a velocity does not determine the data."""

    def alpha(self, t):
        return 4 * (t - 0.5) ** 3 + 0.5

    def sigma(self, t):
        return 1 - self.alpha(t)


def test_a_path_that_halts_half_way_converts_elsewhere():
    x0, x1 = f64(4, 2), f64(4, 2, seed=1)
    for t in (0.25, 0.75):
        point = Halting().sample(t, x0, x1)
        close(Halting().convert(t, point.x, "data", velocity=point.velocity), x1)
