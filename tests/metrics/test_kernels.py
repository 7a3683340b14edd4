"""Energy distance and MMD against scipy, closed forms, and unbiasedness."""

import math

import numpy as np
import pytest
import scipy.spatial.distance as distance
import scipy.stats
import torch

from fmkit.errors import ArgumentError
from fmkit.metrics import MMD, EnergyDistance


def gaussian(n, dim, seed=0):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestEnergyDistance:
    def test_agrees_with_scipy_in_one_dimension(self):
        # scipy's is the root of the V-statistic; leaving out pairs of a point with itself makes the U-statistic.
        x, y = gaussian(40, 1), 2 * gaussian(25, 1, seed=1) + 1
        v = scipy.stats.energy_distance(x[:, 0], y[:, 0]) ** 2
        removed = sum(distance.pdist(z).mean() / len(z) for z in (x, y))
        assert EnergyDistance()(x, y) == pytest.approx(v - removed, rel=1e-9)

    @pytest.mark.parametrize("block", [2**24, 64])
    def test_agrees_with_scipy_in_many_dimensions_and_small_blocks(self, block, monkeypatch):
        monkeypatch.setattr("fmkit.metrics.kernels.BLOCK_ELEMENTS", block)
        x, y = gaussian(40, 6).numpy(), 2 * gaussian(25, 6, seed=1).numpy()
        expected = 2 * distance.cdist(x, y).mean() - distance.pdist(x).mean() - distance.pdist(y).mean()
        assert EnergyDistance()(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-9)

    def test_is_unbiased(self):
        # 400 pairs of 10-point sets of one law: their mean is zero within five standard errors (false alarm 6e-7);
        # the V-statistic's would be above by 2 E|X - X'|/10 = 0.23, thirty standard errors.
        values = [EnergyDistance()(gaussian(10, 1, seed=2 * s), gaussian(10, 1, seed=2 * s + 1)) for s in range(400)]
        assert abs(np.mean(values)) < 5 * np.std(values) / 20
        assert min(values) < 0

    def test_of_two_gaussians(self):
        # E|X - Y| of N(mu, s²) is s sqrt(2/pi) exp(-mu²/2s²) + mu erf(mu/(s sqrt 2)).
        def mean_absolute(mu, s):
            return s * math.sqrt(2 / math.pi) * math.exp(-(mu**2) / (2 * s**2)) + mu * math.erf(mu / (s * math.sqrt(2)))

        exact = 2 * mean_absolute(1.0, math.sqrt(5)) - mean_absolute(0, math.sqrt(2)) - mean_absolute(0, math.sqrt(8))
        values = [
            EnergyDistance()(gaussian(200, 1, seed=2 * s), 2 * gaussian(200, 1, seed=2 * s + 1) + 1) for s in range(50)
        ]
        assert abs(np.mean(values) - exact) < 5 * np.std(values) / math.sqrt(50)


class TestMMD:
    def test_is_the_u_statistic_of_its_kernel(self):
        x, y = gaussian(30, 3).numpy(), 2 * gaussian(20, 3, seed=1).numpy()

        def kernel(distances):
            return np.exp(-(distances**2) / (2 * 1.5**2)).mean()

        expected = kernel(distance.pdist(x)) + kernel(distance.pdist(y)) - 2 * kernel(distance.cdist(x, y))
        assert MMD(bandwidth=1.5)(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-9)

    def test_of_two_gaussians(self):
        # E k(X, Y) for X - Y ~ N(mu, s²) is h/sqrt(h² + s²) exp(-mu²/2(h² + s²)).
        def mean_kernel(mu, variance, h=0.7):
            return h / math.sqrt(h**2 + variance) * math.exp(-(mu**2) / (2 * (h**2 + variance)))

        exact = mean_kernel(0, 2) + mean_kernel(0, 8) - 2 * mean_kernel(1, 5)
        values = [MMD(0.7)(gaussian(200, 1, seed=2 * s), 2 * gaussian(200, 1, seed=2 * s + 1) + 1) for s in range(50)]
        assert abs(np.mean(values) - exact) < 5 * np.std(values) / math.sqrt(50)

    def test_default_bandwidth_is_the_median_distance_of_the_reference(self):
        x, y = gaussian(30, 3), 2 * gaussian(25, 3, seed=1)
        h = float(np.sort(distance.pdist(y.numpy()))[(300 - 1) // 2])
        assert MMD()(x, y) == pytest.approx(MMD(h)(x, y), rel=1e-9)

    def test_mistakes_are_refused(self):
        with pytest.raises(ArgumentError, match=r"bandwidth is 0.0, expected a positive number"):
            MMD(0.0)
        with pytest.raises(ArgumentError, match="half of the reference points are equal"):
            MMD()(gaussian(5, 2), torch.zeros(5, 2))
