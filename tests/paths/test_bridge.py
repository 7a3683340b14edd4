"""Paths with latent noise: the law of x_t given both ends, its Gaussian special case, and the noise's seed."""

import math

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.paths import ICFM, SchrodingerBridge

N = 200_000


def moments(path, t, x0, x1, seeded):
    """Mean and standard deviation of x_t given the ends, from many draws."""
    ends = [torch.full((N, 1), v, dtype=torch.float64) for v in (x0, x1)]
    x = path.sample(t, *ends, generator=seeded(1)).x
    return x.mean().item(), x.std().item()


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("sigma", [1.0, 0.3])
def test_the_bridge_is_brownian(t, sigma, seeded):
    """x_t | x0, x1 ~ N((1-t) x0 + t x1, sigma² t (1-t))."""
    mean, std = moments(SchrodingerBridge(sigma), t, -2.0, 3.0, seeded)
    exact = sigma * math.sqrt(t * (1 - t))
    assert mean == pytest.approx((1 - t) * -2 + t * 3, abs=5 * exact / math.sqrt(N))
    assert std == pytest.approx(exact, rel=5 / math.sqrt(2 * N))


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_the_tube_is_as_wide_everywhere(t, seeded):
    mean, std = moments(ICFM(0.1), t, -2.0, 3.0, seeded)
    assert mean == pytest.approx((1 - t) * -2 + t * 3, abs=5 * 0.1 / math.sqrt(N))
    assert std == pytest.approx(0.1, rel=5 / math.sqrt(2 * N))


def test_velocities(seeded):
    """I-CFM: x1 - x0. The bridge: x1 - x0 + (1 - 2t) / (2 t (1 - t)) (x - mean) (Tong et al., eq. 3 of the bridge)."""
    x0, x1 = (torch.randn(100, 2, generator=seeded(i), dtype=torch.float64) for i in range(2))
    t = 0.01 + 0.98 * torch.rand(100, 1, generator=seeded(2), dtype=torch.float64)
    torch.testing.assert_close(ICFM().sample(t[:, 0], x0, x1, generator=seeded(3)).velocity, x1 - x0)
    for sigma in (1.0, 0.4):
        point = SchrodingerBridge(sigma).sample(t[:, 0], x0, x1, generator=seeded(3))
        away = point.x - (1 - t) * x0 - t * x1
        want = x1 - x0 + (1 - 2 * t) / (2 * t * (1 - t)) * away
        torch.testing.assert_close(point.velocity, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("t", [0.25, 0.5, 0.8])
def test_the_gaussian_schrodinger_bridge(t, seeded):
    """Between N(-a, I) and N(a, I) under the entropic coupling: N(a (2t - 1), t (1-t) sqrt(4 + s⁴) + (1-t)² + t²)."""
    a, s = 1.5, 0.8
    covariance = (math.sqrt(4 + s**4) - s**2) / 2
    base = torch.randn(N, generator=seeded(0), dtype=torch.float64)
    other = torch.randn(N, generator=seeded(1), dtype=torch.float64)
    x0, x1 = base - a, covariance * base + math.sqrt(1 - covariance**2) * other + a
    x = SchrodingerBridge(s).sample(t, x0, x1, generator=seeded(2)).x
    variance = t * (1 - t) * math.sqrt(4 + s**4) + (1 - t) ** 2 + t**2
    assert x.mean().item() == pytest.approx(a * (2 * t - 1), abs=5 * math.sqrt(variance / N))
    assert x.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / N))


@pytest.mark.parametrize("path", [ICFM(), SchrodingerBridge()], ids=repr)
def test_the_noise_follows_from_the_generator_alone(path, seeded):
    x0, x1 = torch.zeros(64, 2), torch.ones(64, 2)
    before = torch.get_rng_state()
    first, again, other = (path.sample(0.5, x0, x1, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.z, again.z)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.z, other.z)
    z = path.sample(0.5, torch.zeros(N, 1), torch.zeros(N, 1), generator=seeded(0)).z
    assert z.mean().item() == pytest.approx(0, abs=5 / math.sqrt(N))
    assert z.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * N))


def test_the_bridges_velocity_stays_bounded_on_its_interval(seeded):
    """gamma' at 1e-5 is 158 times sigma: large, and finite."""
    path = SchrodingerBridge()
    assert path.interval == (1e-5, 1 - 1e-5)
    for t in path.interval:
        rate = path.rates(torch.tensor([t], dtype=torch.float64)).gamma.item()
        assert abs(rate) == pytest.approx(0.5 / math.sqrt(1e-5), rel=1e-4)


@pytest.mark.parametrize("cls", [ICFM, SchrodingerBridge])
@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_noise_out_of_range_is_refused(cls, sigma):
    with pytest.raises(ArgumentError, match=f"sigma is {sigma}, expected a standard deviation >= 0"):
        cls(sigma)


@pytest.mark.parametrize("cls", [ICFM, SchrodingerBridge])
def test_without_noise_both_are_the_straight_line(cls, seeded):
    x0, x1 = (torch.randn(8, 2, generator=seeded(i)) for i in range(2))
    point = cls(0.0).sample(0.3, x0, x1, generator=seeded(0))
    torch.testing.assert_close(point.x, 0.7 * x0 + 0.3 * x1)
    torch.testing.assert_close(point.velocity, x1 - x0)
