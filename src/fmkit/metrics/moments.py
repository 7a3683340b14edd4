"""Mean and covariance of a set that is never held at once: batches are added, in float64, and forgotten.

    n = a + b,  m = m_a + d b/n,  S = S_a + S_b + d dᵀ ab/n,   d = m_b - m_a

(Chan, Golub and LeVeque 1979), S the sum of centred products: nothing is lost to a mean that is far from zero, as it
is in E[xxᵀ] - E[x]E[x]ᵀ.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.metrics.frechet import frechet_distance
from fmkit.shapes import check_data, check_finite


class Moments:
    """Count, mean and covariance of features `(B, F)`, batch by batch.

    Attributes:
        count: how many rows were added.
        mean: `(F,)`, float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)  # S

    def add(self, features: Tensor) -> Moments:
        """Add a batch `(B, F)`; itself.

        Raises:
            ArgumentError: for anything but finite rows of as many features as before.
        """
        check_finite(check_data(features, "features"), "features")
        if features.ndim != 2 or (self.count and features.shape[1] != len(self.mean)):
            wanted = len(self.mean) if self.count else "F"
            raise ArgumentError(f"features has shape {tuple(features.shape)}, expected (B, {wanted})")
        x = features.detach().cpu().double()
        mean = x.mean(0)
        centred = x - mean
        return self._join(len(x), mean, centred.T @ centred)

    def join(self, other: Moments) -> Moments:
        """Add what another one has seen; itself."""
        return self._join(other.count, other.mean, other.scatter) if other.count else self

    @property
    def covariance(self) -> Tensor:
        """`(F, F)`, unbiased.

        Raises:
            ArgumentError: if fewer than two rows were added.
        """
        if self.count < 2:
            raise ArgumentError(f"{self.count} rows were added, expected at least 2 for a covariance")
        return self.scatter / (self.count - 1)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> Moments:
        if not self.count:
            self.count, self.mean, self.scatter = count, mean, scatter
            return self
        if len(mean) != len(self.mean):
            raise ArgumentError(f"got {len(mean)} features a row, expected {len(self.mean)}")
        total, shift = self.count + count, mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total
        return self


def moments_distance(samples: Moments, reference: Moments) -> float:
    """The squared Fréchet distance between Gaussians of these moments; FID where the features are Inception's.

    Warns:
        UserWarning: where a set has no more rows than features. The bias, about the number of features over that of
            rows, is then as large as what is measured.
    """
    fewest, features = min(samples.count, reference.count), len(reference.mean)
    if fewest <= features:
        warnings.warn(
            f"{fewest} samples for {features} features: the covariance is singular and a Fréchet distance biased "
            f"upwards; take more than {features}, better ten times as many, or look at the kernel distance instead",
            stacklevel=2,
        )
    return frechet_distance(samples.mean, samples.covariance, reference.mean, reference.covariance)
