"""VP, VE, cosine and linear-VP against the paper's formulas, written again here, and against 40-digit derivatives."""

import mpmath
import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.paths import Cosine, LinearVP, VarianceExploding, VariancePreserving


def at(t):
    return torch.tensor([t], dtype=torch.float64)


def draws(seeded, n=200):
    return [torch.randn(n, 3, generator=seeded(i), dtype=torch.float64) for i in range(2)]


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def vp_19_first(t, x, x1, beta_min=0.1, beta_max=20.0):
    """u = a'(1-t) / (1 - a(1-t)²) (a(1-t) x - x1), with a(s) = exp(-T(s)/2)."""
    s = 1 - t
    a = torch.exp(-(beta_min * s + s**2 * (beta_max - beta_min) / 2) / 2)
    d_a = -(beta_min + s * (beta_max - beta_min)) / 2 * a
    return d_a / (1 - a**2) * (a * x - x1)


def vp_19_second(t, x, x1, beta_min=0.1, beta_max=20.0):
    """u = -T'(1-t)/2 [(exp(-T(1-t)) x - exp(-T(1-t)/2) x1) / (1 - exp(-T(1-t)))]."""
    s = 1 - t
    total, d_total = beta_min * s + s**2 * (beta_max - beta_min) / 2, beta_min + s * (beta_max - beta_min)
    return -d_total / 2 * (torch.exp(-total) * x - torch.exp(-total / 2) * x1) / (1 - torch.exp(-total))


@pytest.mark.parametrize("formula", [vp_19_first, vp_19_second])
@pytest.mark.parametrize("rates", [(0.1, 20.0), (0.5, 5.0)])
def test_vp_velocity_is_equation_19(formula, rates, seeded):
    x0, x1 = draws(seeded)
    t = torch.rand(200, 1, generator=seeded(2), dtype=torch.float64) * 0.98
    point = VariancePreserving(*rates).sample(t[:, 0], x0, x1)
    assert relative(point.velocity, formula(t, point.x, x1, *rates)) < 1e-12


def test_ve_velocity_is_equation_17(seeded):
    """u = -(sigma'(1-t)/sigma(1-t)) (x - x1), and sigma'/sigma = log(sigma_max/sigma_min)."""
    x0, x1 = draws(seeded)
    t = torch.rand(200, generator=seeded(2), dtype=torch.float64)
    for low, high in ((0.01, 50.0), (0.1, 7.0)):
        point = VarianceExploding(low, high).sample(t, x0, x1)
        want = -torch.log(torch.tensor(high / low, dtype=torch.float64)) * (point.x - x1)
        assert relative(point.velocity, want) < 1e-12


def test_vp_constants():
    path = VariancePreserving()
    assert path.alpha(at(0.0)).item() == pytest.approx(0.00657, abs=5e-6)
    assert path.interval == (0.0, 1 - 1e-5)
    assert path.alpha(at(0.5)).item() == pytest.approx(float(mpmath.exp(-(0.05 + 19.9 / 8) / 2)), rel=1e-14)
    t = torch.linspace(*path.interval, 101, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0)


def test_vp_with_one_rate_is_the_ornstein_uhlenbeck_process():
    """beta_min = beta_max = b: alpha = exp(-b (1 - t)/2)."""
    t = torch.linspace(0, 0.99, 12, dtype=torch.float64)
    path = VariancePreserving(3.0, 3.0)
    torch.testing.assert_close(path.alpha(t), torch.exp(-1.5 * (1 - t)), rtol=1e-14, atol=0)
    torch.testing.assert_close(path.rates(t).alpha, 1.5 * path.alpha(t), rtol=1e-14, atol=0)


def test_ve_constants():
    path = VarianceExploding()
    assert path.sigma(at(0.0)).item() == pytest.approx(50.0, rel=1e-14)
    assert path.sigma(at(1.0)).item() == pytest.approx(0.01, rel=1e-14)
    assert path.sigma(at(0.5)).item() == pytest.approx((50 * 0.01) ** 0.5, rel=1e-14)
    assert path.interval == (0.0, 1.0)


def test_cosine_and_linear_vp_keep_the_variance():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    for path in (Cosine(), LinearVP()):
        torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), rtol=1e-14, atol=0)
    assert Cosine().sigma(at(1.0)).item() == 0.0
    assert Cosine().alpha(at(1 / 3)).item() == pytest.approx(0.5)
    assert (Cosine().interval, LinearVP().interval) == ((0.0, 1.0), (0.0, 1 - 1e-5))
    assert LinearVP().alpha(at(0.6)).item() == 0.6
    assert LinearVP().sigma(at(0.6)).item() == pytest.approx(0.8)


PRECISE = {
    VariancePreserving: (
        lambda t: mpmath.exp(-((1 - t) / 10 + (1 - t) ** 2 * mpmath.mpf(199) / 20) / 2),
        lambda t: mpmath.sqrt(1 - mpmath.exp(-((1 - t) / 10 + (1 - t) ** 2 * mpmath.mpf(199) / 20))),
    ),
    VarianceExploding: (lambda t: mpmath.mpf(1), lambda t: mpmath.mpf(5000) ** (1 - t) / 100),
    Cosine: (lambda t: mpmath.sin(mpmath.pi * t / 2), lambda t: mpmath.cos(mpmath.pi * t / 2)),
    LinearVP: (lambda t: t, lambda t: mpmath.sqrt(1 - t**2)),
}


@pytest.mark.parametrize("cls", PRECISE, ids=lambda c: c.__name__)
def test_functions_and_rates_against_forty_digits(cls):
    path = cls()
    for t in (1e-6, 0.1, 0.5, 0.9, 0.999, 1 - 2**-16, path.interval[1] - 1e-9):
        with mpmath.workdps(40):
            exact = [float(f(mpmath.mpf(t))) for f in PRECISE[cls]]
            slopes = [float(mpmath.diff(f, mpmath.mpf(t), h=mpmath.mpf(10) ** -18)) for f in PRECISE[cls]]
        here, rate = path.coefficients(at(t)), path.rates(at(t))
        # 1 - t is rounded to 1e-16, which near t = 1 - 1e-5 is 1e-11 of it, unless t is a binary fraction.
        near = 1e-14 if t == 1 - 2**-16 else 1e-12 + 3e-16 / (1 - t)
        for got, want in zip((here.alpha, here.sigma, rate.alpha, rate.sigma), (*exact, *slopes), strict=True):
            assert got.item() == pytest.approx(want, rel=near, abs=1e-15)


@pytest.mark.parametrize("path", [VariancePreserving(), LinearVP()], ids=repr)
def test_ends_are_finite(path):
    for t in path.interval:
        point = path.sample(t, torch.ones(2, 1), torch.ones(2, 1))
        assert torch.isfinite(point.velocity).all()
        assert torch.isfinite(point.x).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VariancePreserving(0.0, 20.0), "0 < beta_min <= beta_max, got 0.0 and 20.0"),
        (lambda: VariancePreserving(20.0, 0.1), "0 < beta_min <= beta_max, got 20.0 and 0.1"),
        (lambda: VariancePreserving(0.1, float("nan")), "got 0.1 and nan"),
        (lambda: VariancePreserving(0.1, float("inf")), "got 0.1 and inf"),
        (lambda: VarianceExploding(0.0, 50.0), "0 < sigma_min < sigma_max, got 0.0 and 50.0"),
        (lambda: VarianceExploding(-1.0, 50.0), "got -1.0"),
        (lambda: VarianceExploding(1.0, 1.0), "got 1.0 and 1.0"),
        (lambda: VarianceExploding(0.01, float("inf")), "inf"),
    ],
)
def test_constants_out_of_range_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
