"""Straight paths: conditional optimal transport and its polynomial kin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.paths.affine import AffinePath, Coefficients


class CondOT(AffinePath):
    """Conditional optimal transport (eq. 20-23): alpha = t, sigma = 1 - (1 - sigma_min) t; a straight line.

    Args:
        sigma_min: standard deviation left at t = 1, in [0, 1).

    Raises:
        ArgumentError: if sigma_min is outside [0, 1).
    """

    def __init__(self, sigma_min: float = 0.0) -> None:
        super().__init__()
        if not 0 <= sigma_min < 1:
            raise ArgumentError(f"sigma_min is {sigma_min}, expected a standard deviation in [0, 1)")
        self.sigma_min = sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t if self.sigma_min == 0 else 1 - (1 - self.sigma_min) * t

    def rates(self, t: Tensor) -> Coefficients:
        return Coefficients(torch.ones_like(t), torch.full_like(t, self.sigma_min - 1))


class Polynomial(AffinePath):
    """alpha = t^n, sigma = 1 - t^n: the straight line of CondOT, travelled at another speed.

    Args:
        n: the power, >= 1 (below 1 the velocity is infinite at t = 0).

    Raises:
        ArgumentError: if n is below 1.
    """

    def __init__(self, n: float = 2.0) -> None:
        super().__init__()
        if not 1 <= n < math.inf:
            raise ArgumentError(f"n is {n}, expected a power of at least 1")
        self.n = n

    def alpha(self, t: Tensor) -> Tensor:
        return t**self.n

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t**self.n

    def rates(self, t: Tensor) -> Coefficients:
        rate = self.n * t ** (self.n - 1)
        return Coefficients(rate, -rate)
