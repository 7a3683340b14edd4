"""Distances from averages over pairs: energy distance and maximum mean discrepancy, both as unbiased U-statistics.

    2 E k(X, Y) - E k(X, X') - E k(Y, Y'),   k = |x - y|: the energy distance (Székely and Rizzo 2013)
    the same times -1,                       k = exp(-|x - y|²/2h²): MMD² (Gretton et al. 2012, Lemma 6)

X' is an independent copy: pairs of a point with itself are left out, so the expectation is zero if the laws agree and
a single value may be slightly negative. Neither is square-rooted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.metrics.base import Metric, as_points, squared_distances

BLOCK_ELEMENTS = 2**24
MEDIAN_POINTS = 1000


class EnergyDistance(Metric):
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, in the units of the data; zero only for equal laws."""

    def forward(self, samples: Tensor, reference: Tensor, generator: torch.Generator | None = None) -> float:
        x, y = as_points(samples, reference, generator)
        return _contrast(x, y, torch.sqrt)


class MMD(Metric):
    """Squared maximum mean discrepancy with a Gaussian kernel, between -2 and 2.

    Args:
        bandwidth: h, > 0; by default the median distance between the first 1,000 reference points.

    Raises:
        ArgumentError: if the bandwidth is not positive, or the median is zero.
    """

    def __init__(self, bandwidth: float | None = None) -> None:
        super().__init__()
        if bandwidth is not None and not 0 < bandwidth < math.inf:
            raise ArgumentError(f"bandwidth is {bandwidth}, expected a positive number")
        self.bandwidth = bandwidth

    def forward(self, samples: Tensor, reference: Tensor, generator: torch.Generator | None = None) -> float:
        x, y = as_points(samples, reference, generator)
        h = _median_distance(y[:MEDIAN_POINTS]) if self.bandwidth is None else self.bandwidth
        return -_contrast(x, y, lambda squared: torch.exp(squared / (-2 * h**2)))


def _contrast(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor]) -> float:
    """2 E k(X, Y) - E k(X, X') - E k(Y, Y'), with k a function of the squared distance."""
    shift = x.mean(0)
    x, y = x - shift, y - shift
    across = _pair_sum(x, y, kernel) / (len(x) * len(y))
    within = [(_pair_sum(z, z, kernel, same=True)) / (len(z) * (len(z) - 1)) for z in (x, y)]
    return 2 * across - sum(within)


def _pair_sum(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor], same: bool = False) -> float:
    """The sum of k over all pairs, in blocks of rows; without the diagonal if both sets are the same."""
    rows, total = max(1, BLOCK_ELEMENTS // len(y)), 0.0
    for start in range(0, len(x), rows):
        values = kernel(squared_distances(x[start : start + rows], y))
        if same:
            values.diagonal(start).zero_()
        total += values.sum().item()
    return total


def _median_distance(y: Tensor) -> float:
    pairs = torch.triu_indices(len(y), len(y), offset=1, device=y.device)
    median = squared_distances(y, y)[pairs[0], pairs[1]].sqrt().median().item()
    if median == 0:
        raise ArgumentError("half of the reference points are equal: the kernel has no bandwidth; give one")
    return median
