"""Diffusion paths as instances of affine ones: VP, VE, cosine and linear-VP.

fmkit's time runs from noise to data, so a diffusion's own time is s = 1 - t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.paths.affine import AffinePath, Coefficients


class VariancePreserving(AffinePath):
    """VP (eq. 18-19): alpha = a(1-t), sigma² = 1 - a(1-t)², a(s) = exp(-T(s)/2), T(s) = b0 s + s² (b1 - b0)/2.

    The velocity is infinite at t = 1, so the interval ends at 1 - 1e-5; at t = 0 the path is only approximately
    standard normal (a(1) = 0.00657 with the defaults).

    Args:
        beta_min: b0 > 0, the noise rate at the data end.
        beta_max: b1 >= b0, the noise rate at the noise end.

    Raises:
        ArgumentError: if the rates are not positive and in order.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__()
        if not (0 < beta_min <= beta_max < math.inf):
            raise ArgumentError(f"VP needs 0 < beta_min <= beta_max, got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    @property
    def interval(self) -> tuple[float, float]:
        return (0.0, 1.0 - 1e-5)

    def _integral(self, t: Tensor) -> Tensor:
        s = 1 - t
        return self.beta_min * s + s**2 * (self.beta_max - self.beta_min) / 2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))  # expm1: 1 - a² loses its digits near the data

    def rates(self, t: Tensor) -> Coefficients:
        beta = self.beta_min + (1 - t) * (self.beta_max - self.beta_min)
        alpha = self.alpha(t)
        d_alpha = beta / 2 * alpha
        return Coefficients(d_alpha, -alpha * d_alpha / self.sigma(t))


class VarianceExploding(AffinePath):
    """VE (eq. 16-17): x_t = x1 + sigma(1-t) x0 with sigma(s) = sigma_min (sigma_max/sigma_min)^s.

    The ODE starts at N(0, sigma_max²), not at the unit Gaussian: `start` says so.

    Args:
        sigma_min: noise left at the data end, > 0.
        sigma_max: noise at the beginning, > sigma_min, well above the data's spread.

    Raises:
        ArgumentError: if the two are not positive and in order.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        super().__init__()
        if not (0 < sigma_min < sigma_max < math.inf):
            raise ArgumentError(f"VE needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** (1 - t)

    def rates(self, t: Tensor) -> Coefficients:
        return Coefficients(torch.zeros_like(t), -math.log(self.sigma_max / self.sigma_min) * self.sigma(t))


class Cosine(AffinePath):
    """The trigonometric path alpha = sin(pi t/2), sigma = cos(pi t/2) (Albergo & Vanden-Eijnden, arXiv 2209.15571)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))  # cos(pi t/2), and exactly 0 at t = 1

    def rates(self, t: Tensor) -> Coefficients:
        return Coefficients(math.pi / 2 * self.sigma(t), -math.pi / 2 * self.alpha(t))


class LinearVP(AffinePath):
    """The variance-preserving path with a linear mean: alpha = t, sigma = sqrt(1 - t²); it ends at 1 - 1e-5."""

    @property
    def interval(self) -> tuple[float, float]:
        return (0.0, 1.0 - 1e-5)

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt((1 - t) * (1 + t))

    def rates(self, t: Tensor) -> Coefficients:
        return Coefficients(torch.ones_like(t), -t / self.sigma(t))
