"""Mixtures of Gaussians, with noise z ~ N(0, I) and a component k drawn by its weight.

gaussian-mixture   x = mu_k + L_k z,  L_k L_k^T = Sigma_k
8gaussians         x = R (cos 2 pi k/8, sin 2 pi k/8) + std z
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fmkit.data.toy import Toy, check_draw, chosen, normal, points, positive
from fmkit.errors import ArgumentError
from fmkit.oracle import Mixture
from fmkit.shapes import numbers


class GaussianMixture(Toy):
    """sum_k w_k N(mu_k, Sigma_k), in any number of dimensions.

    Args:
        means: `(K, d)`, a row for each component; by default three at distance 4 from the origin of the plane.
        weights: `(K,)` positive numbers, scaled to sum 1; equal by default.
        std: one standard deviation, or `(K,)` of them: Sigma_k = std_k² I; 1 by default.
        covariances: `(K, d, d)` symmetric positive definite, instead of std.
        n_train: training samples.
        n_test: held-out samples.
        labels: the component as the condition.

    Raises:
        ArgumentError: for shapes that do not fit, weights or deviations that are not positive, a covariance that is
            not symmetric positive definite, or both std and covariances.

    Examples:
        >>> GaussianMixture(means=[[0.0]]).log_prob(torch.zeros(1, 1)).item()  # -log sqrt(2 pi)
        -0.9189385175704956
    """

    means: Tensor
    log_weights: Tensor
    factors: Tensor
    scales: Tensor | None

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float]] | None = None,
        weights: Tensor | Sequence[float] | None = None,
        std: Tensor | Sequence[float] | float | None = None,
        covariances: Tensor | Sequence[Sequence[Sequence[float]]] | None = None,
        n_train: int = 10_000,
        n_test: int = 2_000,
        labels: bool = False,
    ) -> None:
        super().__init__(n_train, n_test, labels)
        mu = _circle(3, 4.0) if means is None else numbers("means", means)
        if mu.ndim != 2 or mu.numel() == 0:
            raise ArgumentError(f"means has shape {tuple(mu.shape)}, expected (K, d): a row for each component")
        self.components, dim = mu.shape
        self.register_buffer("means", mu, persistent=False)
        w = positive("weights", torch.ones(len(mu)) if weights is None else weights, (len(mu),))
        self.register_buffer("log_weights", torch.log(w / w.sum()), persistent=False)
        if std is not None and covariances is not None:
            raise ArgumentError("std and covariances are both given; a component has one covariance")
        if covariances is None:
            scales = positive("std", 1.0 if std is None else std, (len(mu),))
            factors = scales[:, None, None] * torch.eye(dim, dtype=torch.float64)
        else:
            scales, factors = None, _cholesky(numbers("covariances", covariances), (len(mu), dim, dim))
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("factors", factors, persistent=False)

    @property
    def shares(self) -> list[float]:
        return self.log_weights.exp().tolist()

    def law(self, component: int | None = None) -> Mixture:
        k = chosen(component, self.components)
        means, weights = self.means[k], self.log_weights[k].exp()
        if self.scales is not None:
            return Mixture(means, weights, std=self.scales[k])
        return Mixture(means, weights, covariances=self.factors[k] @ self.factors[k].mT)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        check_draw(n, generator)
        device = generator.device
        k = torch.multinomial(self.log_weights.exp().to(device), n, replacement=True, generator=generator)
        z = normal((n, self.means.shape[1]), generator)
        x = self.means.to(device)[k] + torch.einsum("nij,nj->ni", self.factors.to(device)[k], z)
        return x.float(), k

    def log_prob(self, x: Tensor) -> Tensor:
        wide = points(x, self.means.shape[1])
        factors, means = self.factors.to(x.device), self.means.to(x.device)
        offset = (wide[:, None] - means).permute(1, 2, 0)  # (K, d, B)
        z = torch.linalg.solve_triangular(factors, offset, upper=False)
        log_det = factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.log_weights.to(x.device) - log_det - 0.5 * z.shape[1] * math.log(2 * math.pi)
        return torch.logsumexp(constant[:, None] - 0.5 * z.square().sum(1), 0).to(x.dtype)


class EightGaussians(GaussianMixture):
    """Eight equal Gaussians on a ring: radius 5 and std 1, as in Tong et al. 2024 (Table 2).

    Args:
        radius: of the ring, > 0.
        std: of each Gaussian, > 0.
        n_train: training samples.
        n_test: held-out samples.
        labels: which Gaussian, counted anticlockwise from the first axis, as the condition.

    Raises:
        ArgumentError: if the radius or std is not positive.
    """

    def __init__(
        self, radius: float = 5.0, std: float = 1.0, n_train: int = 10_000, n_test: int = 2_000, labels: bool = False
    ) -> None:
        means = _circle(8, float(positive("radius", radius)))
        super().__init__(means, std=std, n_train=n_train, n_test=n_test, labels=labels)


def _circle(n: int, radius: float) -> Tensor:
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def _cholesky(covariances: Tensor, shape: tuple[int, ...]) -> Tensor:
    if covariances.shape != shape:
        raise ArgumentError(f"covariances has shape {tuple(covariances.shape)}, expected {shape}, as means has it")
    for k, covariance in enumerate(covariances):
        if not torch.allclose(covariance, covariance.T, rtol=1e-6, atol=0):
            raise ArgumentError(f"covariance {k} is not symmetric")
        if torch.linalg.cholesky_ex(covariance).info:
            raise ArgumentError(f"covariance {k} is not positive definite")
    return torch.linalg.cholesky(covariances)
