"""What a flow on small images is compared with: each density worked out again by another hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import fmkit
from fmkit.baselines import BANDWIDTHS, QUICK_IN_ALL, REGULARIZATIONS, are_quick, bits_per_dim
from fmkit.data import Pictures, image_split
from fmkit.errors import ArgumentError
from fmkit.randomness import stream


def split(n=40, shape=(1, 2, 2)):
    images = torch.randint(16, (n, *shape), generator=torch.Generator().manual_seed(0)).byte()
    return image_split(Pictures(images, torch.arange(n) % 2))


def dequantized(x, seed, name):
    """x + u, with the draws that fmkit names."""
    u = torch.rand(x.shape, generator=stream(seed, f"baselines-{name}"), dtype=torch.float64)
    return (x.double() + u).flatten(1).numpy()


def test_each_density_is_what_its_name_says():
    small = split()
    scores = bits_per_dim(small, seed=3)
    a, b = dequantized(small.train.x, 3, "train"), dequantized(small.test, 3, "test")
    mean, covariance = a.mean(0), np.cov(a, rowvar=False, bias=True)
    gaussian = [multivariate_normal(mean, covariance + r * np.eye(4)).logpdf(b).mean() for r in REGULARIZATIONS]
    assert scores["one full Gaussian"] == pytest.approx(-max(gaussian) / (4 * math.log(2)), rel=1e-6)
    squares = ((b[:, None] - a) ** 2).sum(2)
    kernels = [
        (logsumexp(-squares / (2 * h**2), axis=1) - math.log(len(a)) - 2 * math.log(2 * math.pi * h**2)).mean()
        for h in BANDWIDTHS
    ]
    assert scores["kernel density"] == pytest.approx(-max(kernels) / (4 * math.log(2)), rel=1e-6)
    assert set(scores) == {"one full Gaussian", "ten full Gaussians", "thirty diagonal Gaussians", "kernel density"}


def test_no_more_gaussians_than_images():
    assert set(bits_per_dim(split(25))) == {"one full Gaussian", "ten full Gaussians", "kernel density"}


def test_of_which_data_they_are_a_matter_of_seconds():
    assert are_quick(fmkit.data.Digits(flat=False).load())
    assert not are_quick(split(4, (1, 16, 17)))  # 272 numbers an image
    for x in (torch.empty(QUICK_IN_ALL // 4 + 1, 4), [1, 2]):  # too many, and not in memory
        small = split()
        assert are_quick(small)
        assert not are_quick(dataclasses.replace(small, train=dataclasses.replace(small.train, x=x)))


def test_data_without_grey_levels_is_refused():
    with pytest.raises(ArgumentError, match="this data has no grey levels"):
        bits_per_dim(fmkit.data.Moons().load())
