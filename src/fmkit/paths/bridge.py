"""Paths with noise of their own: x_t = t x1 + (1 - t) x0 + gamma(t) z, z ~ N(0, I) (Tong et al., arXiv 2302.00482)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.paths.affine import AffinePath, Coefficients


class ICFM(AffinePath):
    """Independent conditional flow matching: a straight line inside a tube, gamma = sigma (constant).

    The ODE starts at the source blurred by sigma, and ends at the data blurred by sigma.

    Args:
        sigma: the tube's standard deviation, >= 0.

    Raises:
        ArgumentError: if sigma is negative or not finite.
    """

    def __init__(self, sigma: float = 0.1) -> None:
        super().__init__()
        self.noise = _check_noise(sigma)

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def gamma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.noise)

    def rates(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(one, -one, torch.zeros_like(t))


class SchrodingerBridge(AffinePath):
    """A Brownian bridge between x0 and x1: gamma = sigma sqrt(t (1 - t)).

    gamma' is infinite at both ends, so the interval is [1e-5, 1 - 1e-5]. Under the entropic coupling of the same sigma
    this is the Schrödinger bridge; under any other it is still a valid path.

    Args:
        sigma: the bridge's diffusion coefficient, >= 0.

    Raises:
        ArgumentError: if sigma is negative or not finite.
    """

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.noise = _check_noise(sigma)

    @property
    def interval(self) -> tuple[float, float]:
        return (1e-5, 1.0 - 1e-5)

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def gamma(self, t: Tensor) -> Tensor:
        return self.noise * torch.sqrt(t * (1 - t))

    def rates(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(one, -one, self.noise * (1 - 2 * t) / (2 * torch.sqrt(t * (1 - t))))


def _check_noise(sigma: float) -> float:
    if not 0 <= sigma < math.inf:
        raise ArgumentError(f"sigma is {sigma}, expected a standard deviation >= 0")
    return sigma
