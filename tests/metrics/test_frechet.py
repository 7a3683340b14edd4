"""The Fréchet distance against closed forms, scipy's general matrix root, and singular covariances."""

import numpy as np
import pytest
import scipy.linalg
import torch

from fmkit.errors import ArgumentError
from fmkit.metrics import Frechet, frechet_distance


def gaussian(n, dim, seed=0):
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestBetweenGaussians:
    def test_that_commute(self):
        # Diagonal covariances: |m1 - m2|² + sum of (std1 - std2)².
        a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 0.5, 3.0])
        got = frechet_distance(torch.zeros(3), a.square().diag(), torch.full((3,), 2.0), b.square().diag())
        assert got == pytest.approx(12 + 9 + 2.25)

    def test_that_do_not_commute(self):
        s1, s2 = (z.T @ z / 20 for z in (gaussian(20, 5), gaussian(20, 5, seed=1) * torch.arange(1.0, 6.0)))
        m1, m2 = gaussian(2, 5, seed=2)
        root = scipy.linalg.sqrtm(s1.numpy() @ s2.numpy()).real
        expected = ((m1 - m2) ** 2).sum() + np.trace(s1.numpy() + s2.numpy() - 2 * root)
        assert frechet_distance(m1, s1, m2, s2) == pytest.approx(expected.item(), rel=1e-9)

    def test_of_rank_one(self):
        # Gaussians on two lines at an angle: tr (S1^½ S2 S1^½)^½ = |u . v|.
        u, v = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.6, 0.8, 0.0])
        got = frechet_distance(torch.zeros(3), torch.outer(u, u), torch.zeros(3), torch.outer(v, v))
        assert got == pytest.approx(2 - 2 * 0.6, abs=1e-6)

    def test_is_zero_for_equal_ones_and_never_below(self):
        s = gaussian(20, 5).T @ gaussian(20, 5)
        assert 0 <= frechet_distance(torch.zeros(5), s, torch.zeros(5), s) < 1e-10


class TestFrechet:
    def test_of_a_shift_is_its_square(self):
        x = gaussian(100, 3)
        assert Frechet()(x, x + torch.tensor([1.0, 2.0, 2.0])) == pytest.approx(9.0)

    def test_takes_unbiased_covariances(self):
        x, y = gaussian(5, 2), 3 * gaussian(7, 2, seed=1)
        expected = frechet_distance(
            x.mean(0), torch.tensor(np.cov(x.T.numpy())), y.mean(0), torch.tensor(np.cov(y.T.numpy()))
        )
        assert Frechet()(x, y) == pytest.approx(expected, rel=1e-9)

    def test_does_not_depend_on_an_orthogonal_change_of_features(self):
        x, y = gaussian(50, 4), 2 * gaussian(60, 4, seed=1)
        rotation = torch.linalg.qr(gaussian(4, 4, seed=2)).Q
        assert Frechet(lambda z: z @ rotation)(x, y) == pytest.approx(Frechet()(x, y), rel=1e-9)

    def test_features_are_taken_in_batches_of_what_was_given(self):
        seen = []

        def features(batch):
            seen.append((len(batch), batch.dtype, batch.shape[1:], torch.is_grad_enabled()))
            return batch.flatten(1)[:, :2]

        x, y = gaussian(1500, 4).float().reshape(-1, 2, 2), gaussian(20, 4, seed=1).float().reshape(-1, 2, 2)
        expected = Frechet()(x[:, 0], y[:, 0])
        assert Frechet(features)(x, y) == pytest.approx(expected, rel=1e-12)
        assert seen == [(n, torch.float32, (2, 2), False) for n in (1024, 476, 20)]

    def test_features_of_a_wrong_shape_are_refused(self):
        with pytest.raises(ArgumentError, match=r"features has shape \(10,\), expected \(10, F\)"):
            Frechet(lambda z: z[:, 0])(gaussian(10, 2), gaussian(10, 2))
