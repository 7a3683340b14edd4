"""Theorem 3: u_t(x | x1) = (sigma_t'/sigma_t) (x - mu_t) + mu_t' for any mean and standard deviation."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.paths import CondOT, Cosine, GaussianPath, VarianceExploding, VariancePreserving


class Like(GaussianPath):
    """An affine path, told as a mean and a standard deviation."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    @property
    def interval(self):
        return self.path.interval

    def mean(self, t, x1):
        return self.path.alpha(t) * x1

    def std(self, t, x1):
        return self.path.sigma(t)


class Curved(GaussianPath):
    """mu = t x1 + sin(pi t) x1², sigma = (1 - t/2) (1 + x1²): both depend on x1, coordinate by coordinate."""

    def mean(self, t, x1):
        return t * x1 + torch.sin(torch.pi * t) * x1**2

    def std(self, t, x1):
        return (1 - t / 2) * (1 + x1**2)


@pytest.mark.parametrize("path", [CondOT(), CondOT(0.1), VariancePreserving(), VarianceExploding(), Cosine()], ids=repr)
@pytest.mark.parametrize("event", [(), (2,), (2, 3)])
def test_agrees_with_the_affine_path_it_describes(path, event, seeded):
    x0, x1 = (torch.randn(50, *event, generator=seeded(i), dtype=torch.float64) for i in range(2))
    t = torch.rand(50, generator=seeded(2), dtype=torch.float64) * path.interval[1]
    general, affine = Like(path).sample(t, x0, x1), path.sample(t, x0, x1)
    torch.testing.assert_close(general.x, affine.x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(general.velocity, affine.velocity, rtol=1e-9, atol=1e-12)


def test_theorem_3(seeded):
    x0, x1 = (torch.randn(50, 3, generator=seeded(i), dtype=torch.float64) for i in range(2))
    t = torch.rand(50, 1, generator=seeded(2), dtype=torch.float64)
    point = Curved().sample(t[:, 0], x0, x1)
    mean, d_mean = t * x1 + torch.sin(torch.pi * t) * x1**2, x1 + torch.pi * torch.cos(torch.pi * t) * x1**2
    std, d_std = (1 - t / 2) * (1 + x1**2), -(1 + x1**2) / 2
    torch.testing.assert_close(point.x, mean + std * x0, rtol=1e-12, atol=1e-12)
    assert torch.equal(point.t, t[:, 0])
    assert (point.x0 is x0, point.x1 is x1, point.z) == (True, True, None)
    torch.testing.assert_close(point.velocity, d_std / std * (point.x - mean) + d_mean, rtol=1e-12, atol=1e-12)


def test_the_velocity_is_finite_where_the_standard_deviation_is_zero(seeded):
    x0, x1 = (torch.randn(4, 2, generator=seeded(i)) for i in range(2))
    torch.testing.assert_close(Like(CondOT()).sample(1.0, x0, x1).velocity, x1 - x0)


def test_the_datas_precision_is_kept(seeded):
    x0, x1 = (torch.randn(4, 2, generator=seeded(i)) for i in range(2))
    point = Curved().sample(0.5, x0, x1)
    assert (point.x.dtype, point.velocity.dtype) == (torch.float32, torch.float32)


class Given(GaussianPath):
    def __init__(self, mean, std):
        super().__init__()
        self._mean, self._std = mean, std

    def mean(self, t, x1):
        return self._mean(t, x1)

    def std(self, t, x1):
        return self._std(t, x1)


def keep(t, x1):
    return t * x1


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (keep, lambda t, x1: t - 0.7, r"Given\.std is negative or NaN"),
        (keep, lambda t, x1: t * float("nan"), r"Given\.std is negative or NaN"),
        (lambda t, x1: (t * x1).sum(1), keep, r"Given\.mean has shape \(3,\), expected \(3, 2\)"),
        (lambda t, x1: (t * x1)[:, :1], lambda t, x1: 1 - t, r"Given\.mean has shape \(3, 1\), expected \(3, 2\)"),
        (lambda t, x1: 0.0, keep, r"Given\.mean has shape \(\), expected \(3, 2\)"),
        (keep, lambda t, x1: (1 - t).flatten(), r"Given\.std has shape \(3,\), expected one that fits \(3, 2\)"),
        (keep, lambda t, x1: (1 - t)[:, None], r"Given\.std has shape \(3, 1, 1\), expected one that fits \(3, 2\)"),
    ],
    ids=["negative", "nan", "no events", "half the event", "a number", "no axis", "grown batch"],
)
def test_functions_that_do_not_fit_are_refused(mean, std, message):
    with pytest.raises(ArgumentError, match=message):
        Given(mean, std).sample(0.5, torch.ones(3, 2), torch.ones(3, 2))


def test_a_constant_standard_deviation_may_be_a_plain_number():
    x0, x1 = torch.full((3, 2), 2.0), torch.ones(3, 2)
    point = Given(keep, lambda t, x1: 0.1).sample(0.5, x0, x1)
    torch.testing.assert_close(point.x, torch.full((3, 2), 0.7))
    torch.testing.assert_close(point.velocity, x1)
