"""A mixture of Gaussians, sum_k w_k N(mu_k, Sigma_k), kept as what the posterior needs of it.

Sigma_k = A_k diag(variances_k) A_k^T with orthogonal axes A_k; where the components are round (Sigma_k = std_k² I) one
variance each is enough, and there are no axes. A point is a component without width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.oracle.law import Law, Row
from fmkit.oracle.posterior import Posterior
from fmkit.shapes import numbers
from fmkit.sources import Gaussian


class Mixture(Law):
    """K Gaussian components over D numbers, in float64 whatever the precision of the module it is in.

    Args and errors are those of `MixtureOracle`.

    Attributes:
        event_shape: of a sample; D is the number of its elements.
        means: `(K, D)`.
        log_weights: `(K,)`, of weights that sum to 1.
        variances: `(K, D)` along the axes, or `(K, 1)` of round components.
        axes: `(K, D, D)`, the eigenvectors of each covariance in its columns; None for round components.
    """

    means: Tensor
    log_weights: Tensor
    variances: Tensor
    axes: Tensor | None

    def __init__(
        self,
        means: Tensor | Sequence[Any],
        weights: Tensor | Sequence[float] | None = None,
        std: Tensor | Sequence[float] | float | None = None,
        covariances: Tensor | Sequence[Sequence[Sequence[float]]] | None = None,
    ) -> None:
        super().__init__()
        mu = numbers("means", means)
        if mu.ndim < 1 or mu.numel() == 0:
            raise ArgumentError(f"means has shape {tuple(mu.shape)}, expected a non-empty (K, *event)")
        self.event_shape = tuple(mu.shape[1:])
        w = torch.ones(len(mu), dtype=mu.dtype) if weights is None else numbers("weights", weights)
        if w.shape != mu.shape[:1]:
            raise ArgumentError(f"weights has shape {tuple(w.shape)}, expected ({len(mu)},): one for each component")
        if not bool((w > 0).all()):
            raise ArgumentError(f"weights has {w.min().item():g}, expected positive numbers")
        if std is not None and covariances is not None:
            raise ArgumentError("std and covariances are both given; a component has one covariance")
        mu = mu.reshape(len(mu), -1)
        if covariances is None:
            variances, axes = _round(1.0 if std is None else std, len(mu)), None
        else:
            variances, axes = _eigen(numbers("covariances", covariances), (*mu.shape, mu.shape[1]))
        buffers = {"means": mu, "log_weights": torch.log(w / w.sum()), "variances": variances, "axes": axes}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)  # made from the arguments, which are saved

    def __len__(self) -> int:
        return len(self.means)

    @property
    def dim(self) -> int:
        """The number of elements of an event."""
        return self.means.shape[1]

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def size(self) -> int:
        return self.means.numel()

    @property
    def alike(self) -> bool:
        """Whether all components are round and equally wide, as points are."""
        return self.axes is None and bool((self.variances == self.variances[0]).all())

    @property
    def covariances(self) -> Tensor:
        """Sigma_k, `(K, D, D)`."""
        if self.axes is None:
            return self.variances[..., None] * torch.eye(self.dim, dtype=self.means.dtype, device=self.device)
        return (self.axes * self.variances[:, None]) @ self.axes.mT

    @staticmethod
    def pooled(shares: Sequence[float], mixtures: Sequence[Mixture]) -> Mixture:
        """The mixture of mixtures, each with its share."""
        first = mixtures[0]
        means = torch.cat([m.means for m in mixtures]).reshape(-1, *first.event_shape)
        weights = torch.cat([s * m.log_weights.exp() for s, m in zip(shares, mixtures, strict=True)])
        if all(m.axes is None for m in mixtures):
            return Mixture(means, weights, std=torch.cat([m.variances[:, 0] for m in mixtures]).sqrt())
        return Mixture(means, weights, covariances=torch.cat([m.covariances for m in mixtures]))

    def standardised(self, shift: Tensor, scale: Tensor) -> Mixture:
        shift, scale = (v.to(self.means).expand(self.event_shape).reshape(-1) for v in (shift, scale))
        means, weights = ((self.means - shift) / scale).reshape(-1, *self.event_shape), self.log_weights.exp()
        if self.axes is None and bool((scale == scale[0]).all()):
            return Mixture(means, weights, std=self.variances[:, 0].sqrt() / scale[0])
        return Mixture(means, weights, covariances=self.covariances / (scale[:, None] * scale))

    def given(self, source: Gaussian, at: Row, x: Tensor) -> Posterior:
        return Posterior(self, source, at, x)

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        device = self.device if generator is None else generator.device
        k = torch.multinomial(self.log_weights.exp().to(device), n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, generator=generator, dtype=self.means.dtype, device=device)
        k, z = k.to(self.device), z.to(self.device)
        away = self.variances[k].sqrt() * z
        if self.axes is not None:
            away = torch.einsum("nij,nj->ni", self.axes[k], away)
        return self.means[k] + away


def _round(std: Any, n: int) -> Tensor:
    """`(K, 1)` variances of round components."""
    std = numbers("std", std)
    if std.ndim and std.shape != (n,):
        raise ArgumentError(f"std has shape {tuple(std.shape)}, expected ({n},): one for each component")
    if not bool((std >= 0).all()):
        raise ArgumentError(f"std has {std.min().item():g}, expected standard deviations >= 0")
    return (std**2).expand(n)[:, None].contiguous()


def _eigen(covariances: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Eigenvalues `(K, D)` and eigenvectors `(K, D, D)`; what rounding made of a zero is a zero again."""
    if covariances.shape != shape:
        raise ArgumentError(f"covariances has shape {tuple(covariances.shape)}, expected {shape}, as means has it")
    for k, covariance in enumerate(covariances):
        if not torch.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9 * covariance.abs().max().item()):
            raise ArgumentError(f"covariance {k} is not symmetric")
    values, axes = torch.linalg.eigh((covariances + covariances.mT) / 2)
    largest = values.abs().amax(1, keepdim=True)
    negative = (values < -1e-7 * largest).any(1)  # a covariance rounded to float32 may dip that far below 0
    if bool(negative.any()):
        k = int(negative.nonzero()[0])
        raise ArgumentError(f"covariance {k} has eigenvalue {values[k, 0].item():g}, expected a covariance: all >= 0")
    floor = shape[-1] * torch.finfo(values.dtype).eps * largest
    return torch.where(values > floor, values, 0.0), axes
