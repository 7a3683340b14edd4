"""W2 and sliced W2 against POT and closed forms."""

import sys

import ot
import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.metrics import SlicedWasserstein, Wasserstein, sliced_wasserstein, wasserstein_1d


def gaussian(n, dim, seed=0):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestWasserstein:
    @pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 30), (7, 100)])
    def test_agrees_with_pot(self, n, m):
        x, y = gaussian(n, 3), 2 * gaussian(m, 3, seed=1) + 1
        cost = ot.dist(x.numpy(), y.numpy())
        assert Wasserstein()(x, y) == pytest.approx(ot.emd2(ot.unif(n), ot.unif(m), cost) ** 0.5, rel=1e-9)

    def test_of_a_shift_is_its_length(self):
        x = gaussian(200, 2)
        assert Wasserstein()(x, x.flip(0) + torch.tensor([3.0, -4.0])) == pytest.approx(5.0)

    def test_of_a_scaling_in_one_dimension(self):
        x = gaussian(101, 1)
        assert Wasserstein()(x, 3 * x) == pytest.approx(2 * x.square().mean().sqrt().item())

    def test_of_thousands_of_points_too(self):
        """Between two draws of one law, where the optimum is hardest to find."""
        x, y = gaussian(2500, 2), gaussian(2500, 2, seed=1)
        squared = ot.emd2(ot.unif(2500), ot.unif(2500), ot.dist(x.numpy(), y.numpy()), numItermax=10_000_000)
        assert Wasserstein()(x, y) == pytest.approx(squared**0.5, rel=1e-9)

    def test_far_from_the_origin_no_digits_are_lost(self):
        x = gaussian(200, 2)
        assert Wasserstein()(x + 1e6, x.flip(0) + 1e6 + 1e-3) == pytest.approx(1e-3 * 2**0.5, rel=1e-6)

    def test_without_pot_says_what_would_do(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ot", None)
        x, y = gaussian(20, 2), gaussian(20, 2, seed=1)
        assert Wasserstein()(x, y) > 0
        with pytest.raises(ArgumentError, match="20 samples against 19 need POT: .*or pass equal numbers"):
            Wasserstein()(x, y[1:])


class TestOneDimension:
    @pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 25), (3, 17), (1, 5)])
    def test_agrees_with_pot(self, n, m):
        x, y = gaussian(n, 4), 2 * gaussian(m, 4, seed=1) + 1
        expected = [ot.wasserstein_1d(x[:, i].numpy(), y[:, i].numpy(), p=2) ** 0.5 for i in range(4)]
        torch.testing.assert_close(wasserstein_1d(x, y), torch.tensor(expected, dtype=torch.float64))

    def test_repeating_every_point_changes_nothing(self):
        x, y = gaussian(20, 2), gaussian(30, 2, seed=1)
        torch.testing.assert_close(wasserstein_1d(x.repeat(3, 1), y), wasserstein_1d(x, y))


class TestSlicedWasserstein:
    @pytest.mark.parametrize("m", [60, 45])
    def test_agrees_with_pot_along_the_same_directions(self, m):
        x, y = gaussian(60, 5), 2 * gaussian(m, 5, seed=1) + 1
        directions = torch.nn.functional.normalize(gaussian(5, 40, seed=2), dim=0)
        expected = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.numpy())
        assert sliced_wasserstein(x, y, directions) == pytest.approx(expected, rel=1e-9)

    def test_of_a_shift_is_its_length_over_the_root_of_the_dimension(self):
        # E (theta . a)² = |a|²/d on the unit sphere; over 10,000 directions within five standard errors of (theta.a)².
        x, shift = gaussian(50, 4), torch.tensor([2.0, 0.0, 0.0, 0.0])
        squared = SlicedWasserstein(projections=10_000)(x, x + shift) ** 2
        # (theta . a)²/|a|² follows Beta(1/2, 3/2): mean 1/4, variance 1/16.
        assert abs(squared - 1.0) < 5 * 4 * 0.25 / 100

    def test_in_one_dimension_is_w2(self):
        x, y = gaussian(50, 1), 2 * gaussian(40, 1, seed=1)
        assert SlicedWasserstein(projections=3)(x, y) == pytest.approx(Wasserstein()(x, y), rel=1e-9)

    def test_is_zero_for_equal_sets_alone(self):
        x = gaussian(50, 3)
        assert SlicedWasserstein()(x, x.flip(0)) == pytest.approx(0.0, abs=1e-12)

    def test_mistakes_are_refused(self):
        with pytest.raises(ArgumentError, match="projections is 0, expected a whole number of at least 1"):
            SlicedWasserstein(projections=0)
