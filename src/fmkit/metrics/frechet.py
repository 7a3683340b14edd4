"""The Fréchet distance between Gaussians fitted to features, squared as in FID (Heusel et al. 2017; Dowson 1982).

    d² = |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1^½ S2 S1^½)^½

S^½ is the symmetric root from an eigendecomposition, and tr (S1^½ S2 S1^½)^½ the sum of singular values of
S1^½ S2^½: nothing here takes the root of a non-symmetric matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fmkit.arguments import shown
from fmkit.errors import ArgumentError
from fmkit.metrics.base import Metric, as_points
from fmkit.shapes import check_data, check_finite

FEATURE_BATCH = 1024


class Frechet(Metric):
    """d² between Gaussians fitted to the features of both sets; with the data itself as features by default.

    It is FID only with FID's network as `features`. It is biased upwards by about the number of features over N, so
    compare at equal N, beside `floor`.

    Args:
        features: `(B, *event) -> (B, F)`, called without gradients on batches of 1,024 as they were given (in their
            own dtype); the flattened events by default.
    """

    def __init__(self, features: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.features = features

    def forward(self, samples: Tensor, reference: Tensor, generator: torch.Generator | None = None) -> float:
        x, y = as_points(samples, reference, generator)
        if self.features is not None:
            x, y = as_points(_in_batches(self.features, samples), _in_batches(self.features, reference))
        return frechet_distance(x.mean(0), _covariance(x), y.mean(0), _covariance(y))


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """d² between N(mean1, cov1) and N(mean2, cov2), means `(F,)` and covariances `(F, F)`, in float64.

    Raises:
        ArgumentError: for shapes that do not fit, numbers that are not finite, or what is no covariance.

    Examples:
        >>> one = torch.eye(2)
        >>> frechet_distance(torch.zeros(2), one, torch.tensor([3.0, 0.0]), 4 * one)  # 9 + 2 (2 - 1)²
        11.0
    """
    _check_moments("1", mean1, cov1)
    _check_moments("2", mean2, cov2)
    if mean1.shape != mean2.shape:
        raise ArgumentError(f"the means have shapes {tuple(mean1.shape)} and {tuple(mean2.shape)}; need equal ones")
    m1, s1, m2, s2 = (v.double() for v in (mean1, cov1, mean2, cov2))
    shared = torch.linalg.svdvals(_root("1", s1) @ _root("2", s2)).sum()
    squared = (m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * shared
    return max(squared.item(), 0.0)


def _in_batches(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        pieces = [features(batch) for batch in x.split(FEATURE_BATCH)]
    if not all(isinstance(piece, Tensor) for piece in pieces):
        raise ArgumentError(f"features returned {shown(pieces[0])}, expected a tensor (B, F)")
    values = torch.cat(pieces)
    if values.ndim != 2 or len(values) != len(x):
        raise ArgumentError(f"features has shape {tuple(values.shape)}, expected ({len(x)}, F)")
    return values


def _check_moments(which: str, mean: Tensor, covariance: Tensor) -> None:
    check_finite(check_data(mean, f"mean{which}"), f"mean{which}")
    check_finite(check_data(covariance, f"cov{which}"), f"cov{which}")
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        got = f"mean{which} has shape {tuple(mean.shape)} and cov{which} {tuple(covariance.shape)}"
        raise ArgumentError(f"{got}; expected (F,) and (F, F)")
    largest = covariance.abs().max().item()
    if not torch.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6 * largest):
        raise ArgumentError(f"cov{which} is not symmetric, expected a covariance")


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _root(which: str, covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -1e-4 * covariance.abs().max():
        raise ArgumentError(f"cov{which} has a negative eigenvalue, expected a covariance")
    return vectors * values.clamp_min(0).sqrt() @ vectors.T
