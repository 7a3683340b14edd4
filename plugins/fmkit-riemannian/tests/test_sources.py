"""The uniform laws against their known marginals."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from fmkit.errors import ArgumentError
from fmkit_riemannian import ManifoldUniform, Sphere, Torus


def test_heights_on_the_sphere_are_uniform(generator):
    """Archimedes: any coordinate of a uniform point of S² is uniform on [-1, 1] (not so if a cube is normalised)."""
    x = ManifoldUniform(Sphere()).sample((20_000, 3), generator=generator, dtype=torch.float64)
    direction = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    for heights in (x[:, 0], x[:, 2], x @ direction):
        assert stats.kstest(heights.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_any_dimension_by_its_beta_law(generator):
    """x_i² ~ Beta(1/2, (d-1)/2) on S^(d-1)."""
    x = ManifoldUniform(Sphere()).sample((20_000, 7), generator=generator, dtype=torch.float64)
    for i in (0, 6):
        assert stats.kstest((x[:, i] ** 2).numpy(), stats.beta(0.5, 3.0).cdf).pvalue > 1e-3


def test_angles_are_uniform_and_independent(generator):
    x = ManifoldUniform(Torus()).sample((20_000, 2), generator=generator, dtype=torch.float64)
    for i in (0, 1):
        assert stats.kstest(x[:, i].numpy(), stats.uniform(0, 2 * math.pi).cdf).pvalue > 1e-3
    difference = Torus().nearest(x[:, :1] - x[:, 1:])[:, 0]
    assert stats.kstest(difference.numpy(), stats.uniform(0, 2 * math.pi).cdf).pvalue > 1e-3


def test_log_prob_integrates_to_one_over_the_area():
    at = ManifoldUniform(Sphere()).log_prob(torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(at.exp() * 4 * math.pi, torch.ones(3, dtype=torch.float64))
    at = ManifoldUniform(Torus()).log_prob(torch.ones(3, 2, dtype=torch.float64))
    torch.testing.assert_close(at.exp() * (2 * math.pi) ** 2, torch.ones(3, dtype=torch.float64))


def test_it_follows_its_generator_alone(manifold):
    source = ManifoldUniform(manifold)
    one, two = (source.sample((5, 3), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)


def test_a_sphere_in_one_dimension_is_refused():
    with pytest.raises(ArgumentError, match="d >= 2"):
        ManifoldUniform(Sphere()).sample((5, 1))
