"""The data sets: on their manifold, with the spread and the balance they claim, from their seed alone."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from fmkit.errors import ArgumentError
from fmkit_riemannian import Sphere, SphereMixture, Torus, TorusMixture


@pytest.mark.parametrize(
    ("data", "manifold"),
    [(SphereMixture(std=0.1), Sphere()), (SphereMixture(dim=5, std=0.1), Sphere()), (TorusMixture(std=0.2), Torus())],
)
def test_bumps_have_their_spread_and_weight(data, manifold):
    split = data.load(3)
    x = torch.cat([split.train.x, split.test])
    manifold.check(x)
    assert len(split.train.x) == 4 * len(split.test)
    means = data.means()
    away = torch.stack([torch.linalg.vector_norm(manifold.log(mu.expand_as(x), x), dim=-1) for mu in means])
    nearest, mode = away.double().min(0)
    # |std z| in the tangent space of k dimensions: chi with k degrees of freedom.
    freedom = len(means[0]) - isinstance(manifold, Sphere)
    assert stats.kstest((nearest / data.std).numpy(), stats.chi(freedom).cdf).pvalue > 1e-3
    assert stats.chisquare(torch.bincount(mode).numpy()).pvalue > 1e-3


def test_one_bump_lies_across_the_seam():
    x = TorusMixture(std=0.2).load().test[:, 0]
    assert ((x < 0.2).float().mean() - (x > 2 * math.pi - 0.2).float().mean()).abs() < 0.03
    assert (x < 0.2).float().mean() > 0.08


def test_the_seed_decides():
    for data in (SphereMixture(size=50), TorusMixture(size=50)):
        assert torch.equal(data.load(1).test, data.load(1).test)
        assert not torch.equal(data.load(1).test, data.load(2).test)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SphereMixture(dim=1), "dim is 1, expected at least 2"),
        (lambda: SphereMixture(std=0.0), "std is 0.0"),
        (lambda: TorusMixture(modes=0), "modes is 0"),
        (lambda: TorusMixture(size=5), "size is 5"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ArgumentError, match=said):
        make()
