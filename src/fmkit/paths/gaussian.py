"""The paper's general Gaussian path N(mu_t(x1), sigma_t(x1)² I), with Theorem 3's velocity.

    psi_t(x0) = sigma_t(x1) x0 + mu_t(x1)                                  (eq. 11)
    u_t(x | x1) = (sigma_t'/sigma_t) (x - mu_t) + mu_t'                    (Theorem 3, eq. 15)

At the point x = psi_t(x0) the velocity is sigma_t' x0 + mu_t', which needs no division and is finite where
sigma_t = 0.
"""

from __future__ import annotations

import abc
from numbers import Real

import torch
from torch import Tensor

from fmkit.arguments import check_generator
from fmkit.differentiation import time_derivative
from fmkit.errors import ArgumentError
from fmkit.paths.base import PathSample, ProbabilityPath
from fmkit.shapes import check_points


class GaussianPath(ProbabilityPath):
    """A path whose mean and standard deviation are any functions of t and x1; its author writes these two.

    `t` comes as `(B, 1, ..., 1)` in float64, ready to multiply x1. `mean` returns the shape of x1, `std` anything that
    broadcasts to it without growing the batch. Derivatives in t are taken in forward mode.

    Examples:
        >>> import fmkit, torch
        >>> class Lemniscate(fmkit.paths.GaussianPath):
        ...     def mean(self, t, x1):
        ...         return t * x1 + torch.sin(torch.pi * t) * x1.flip(-1)
        ...     def std(self, t, x1):
        ...         return 1 - t
        >>> Lemniscate().sample(1.0, torch.zeros(1, 2), torch.ones(1, 2)).x
        tensor([[1., 1.]])
    """

    @abc.abstractmethod
    def mean(self, t: Tensor, x1: Tensor) -> Tensor:
        """mu_t(x1), of the shape of x1."""

    @abc.abstractmethod
    def std(self, t: Tensor, x1: Tensor) -> Tensor:
        """sigma_t(x1) >= 0, broadcastable to x1."""

    def sample(
        self, t: Tensor | Real, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None = None
    ) -> PathSample:
        t, x0, x1 = check_points(t, x0, x1, self.interval)
        check_generator(generator)
        wide = t.reshape(-1, *[1] * (x1.ndim - 1))
        (mean, std), (d_mean, d_std) = time_derivative(lambda s: self._given(s, x1), wide)
        self._check(mean, std, x1)
        mean, std, d_mean, d_std = (v.to(x1.dtype) for v in (mean, std, d_mean, d_std))
        return PathSample(t, mean + std * x0, x0, x1, d_mean + d_std * x0)

    def _given(self, t: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation as tensors; an author may return a number."""
        mean, std = self.mean(t, x1), self.std(t, x1)
        return mean if isinstance(mean, Tensor) else x1.new_tensor(mean), (
            std if isinstance(std, Tensor) else x1.new_tensor(std)
        )

    def _check(self, mean: Tensor, std: Tensor, x1: Tensor) -> None:
        if mean.shape != x1.shape:
            raise ArgumentError(f"{type(self).__name__}.mean has shape {tuple(mean.shape)}, expected {tuple(x1.shape)}")
        axes = zip(reversed(std.shape), reversed(x1.shape), strict=False)
        if std.ndim not in (0, x1.ndim) or any(n not in (1, m) for n, m in axes):
            raise ArgumentError(
                f"{type(self).__name__}.std has shape {tuple(std.shape)}, expected one that fits {tuple(x1.shape)}"
            )
        if std.device.type == "cpu" and not bool((std >= 0).all()):
            raise ArgumentError(f"{type(self).__name__}.std is negative or NaN, expected a standard deviation")
