"""What a point x_t = x of an affine path says about the data, the noise and every view of it.

The data is a mixture sum_k w_k N(mu_k, Sigma_k), or n points (Sigma_k = 0); the source is N(m, s² I), coupled
independently. Then x_t = alpha x1 + sigma x0 + gamma z is a mixture too:

    p_t(x) = sum_k w_k N(x; c_k, V_k),   c_k = alpha mu_k + sigma m,   V_k = alpha² Sigma_k + (sigma² s² + gamma²) I
    r_k(x) = w_k N(x; c_k, V_k) / p_t(x)                                       (the posterior over components)

A view of the point is a row (a, b, c) over the latents (x1, x0, z), as in `fmkit.paths.affine`; its mean given x is

    sum_k r_k [a mu_k + b m + G_k V_k^-1 (x - c_k)],   G_k = a alpha Sigma_k + (b sigma s² + c gamma) I

The row (alpha', sigma', gamma') gives the marginal velocity (Lipman et al., arXiv 2210.02747, eq. 8), (1, 0, 0) the
data, (0, 1, 0) the noise; the score grad log p_t is -sum_k r_k V_k^-1 (x - c_k). Within a component the view has
covariance

    [(a sigma - b alpha)² s² Sigma_k + (a gamma - c alpha)² Sigma_k + (b gamma - c sigma)² s² I] V_k^-1

and the mean of its trace plus the spread of the components' means is the least loss any network can reach: what
Theorem 2 leaves between L_CFM and L_FM. Everything is computed in float64, along the axes of each Sigma_k.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fmkit.oracle import law
from fmkit.oracle.law import Row
from fmkit.paths import AffinePath
from fmkit.sources import Gaussian

if TYPE_CHECKING:
    from fmkit.oracle.mixture import Mixture


def view_row(path: AffinePath, view: str, t: Tensor) -> Row:
    """The view over the latents (x1, x0, z); a score's is that of one sample, where the source is its noise."""
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    match view:
        case "velocity":
            return Row.of(path.rates(t))
        case "data":
            return Row(one, zero, zero)
        case "noise":
            return Row(zero, one, zero)
        case "latent":
            return Row(zero, zero, one)
        case _:
            return Row(zero, -1 / path.coefficients(t).sigma, zero)


def noise_variance(at: Row, source: Gaussian) -> Tensor:
    """The variance of all that is not data, sigma² s² + gamma², `(B,)`."""
    return (at.sigma * source.std) ** 2 + at.gamma**2


class Posterior:
    """The law of the latents given points of a path.

    Args:
        mixture: the law of the data, K components over D numbers.
        source: the law of x0.
        at: the path's coefficients (alpha, sigma, gamma) at the points' times.
        x: `(B, D)` points.

    Attributes:
        x: `(B, D)`, less sigma m.
        variance: of x along the axes of each component: `(B, K, D)`, or `(B, K, 1)` where the components are round.
    """

    def __init__(self, mixture: Mixture, source: Gaussian, at: Row, x: Tensor) -> None:
        self.mixture, self.source, self.at = mixture, source, at
        self.x = x - (at.sigma * source.mean)[:, None]
        variance = (at.alpha**2)[:, None, None] * mixture.variances + noise_variance(at, source)[:, None, None]
        # Points with no noise at all: their own component stays finite, and all others are infinitely far.
        self.variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)

    @cached_property
    def log_joint(self) -> Tensor:
        """log w_k N(x; c_k, V_k), `(B, K)`."""
        dim = self.mixture.dim
        if self.mixture.axes is None:
            variance = self.variance[..., 0]
            square, log_det = self._squares() / variance, dim * variance.log()
        else:
            square = (self.away() ** 2 / self.variance).sum(-1)
            log_det = self.variance.log().sum(-1)
        return self.mixture.log_weights - 0.5 * (square + log_det + dim * math.log(2 * math.pi))

    @cached_property
    def responsibilities(self) -> Tensor:
        """P(component k | x), `(B, K)`."""
        return torch.softmax(self.log_joint, 1)

    def away(self) -> Tensor:
        """x - c_k along the axes of Sigma_k, `(B, K, D)`."""
        away = self.x[:, None] - self.at.alpha[:, None, None] * self.mixture.means
        return away if self.mixture.axes is None else torch.einsum("bki,kij->bkj", away, self.mixture.axes)

    def mean(self, row: Row) -> Tensor:
        """E[row of the latents | x], `(B, D)`."""
        return self._blend(row.alpha, self._gain(row)) + (row.sigma * self.source.mean)[:, None]

    def score(self) -> Tensor:
        """grad log p_t(x), `(B, D)`."""
        return self._blend(torch.zeros_like(self.at.alpha), -1 / self.variance)

    def variance_of(self, row: Row) -> Tensor:
        """The trace of Cov[row of the latents | x], `(B,)`."""
        at, std, posterior = self.at, self.source.std, self.responsibilities
        apart = self._apart(row)
        data = ((row.alpha * at.sigma - row.sigma * at.alpha) * std) ** 2
        data = data + (row.alpha * at.gamma - row.gamma * at.alpha) ** 2
        rest = ((row.sigma * at.gamma - row.gamma * at.sigma) * std) ** 2
        within = (data[:, None, None] * self.mixture.variances + rest[:, None, None]) / self.variance
        within = within.sum(-1) * (self.mixture.dim / within.shape[-1])
        return (posterior * (within + apart)).sum(1)

    def _apart(self, row: Row) -> Tensor:
        """How far the view's mean in each component is from that in all, squared: `(B, K)`."""
        posterior, means, gain = self.responsibilities, self.mixture.means, self._gain(row)
        if self.mixture.alike:  # then the means differ by (a - gain alpha) mu_k only: nothing of size B K D
            moved = (row.alpha[:, None] - gain[..., 0] * self.at.alpha[:, None]) ** 2
            return moved * torch.cdist(posterior @ means, means, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        each = gain * self.away()
        if self.mixture.axes is not None:
            each = torch.einsum("kij,bkj->bki", self.mixture.axes, each)
        each = row.alpha[:, None, None] * means + each
        return (each - torch.einsum("bk,bki->bi", posterior, each)[:, None]).square().sum(-1)

    def _squares(self) -> Tensor:
        """|x - c_k|² `(B, K)`, over pieces of K, and without the cancellation of |x|² - 2 x.c + |c|².

        The differences are taken at a copy y of x that needs no gradient, so derivatives in x keep nothing of size
        B K D: |x - c|² = |y - c|² + 2 (x - y).(y - c) + |x - y|².
        """
        y, means, alpha = self.x.detach(), self.mixture.means, self.at.alpha
        pieces = []
        for piece in means.split(max(1, law.CHUNK_ELEMENTS // y.numel())):
            pieces.append((y[:, None] - alpha[:, None, None] * piece).square().sum(-1))
        shift = self.x - y
        linear = (shift * y).sum(1, keepdim=True) - alpha[:, None] * (shift @ means.T)
        return torch.cat(pieces, 1) + 2 * linear + shift.square().sum(1, keepdim=True)

    def _gain(self, row: Row) -> Tensor:
        """G_k V_k^-1 along the axes."""
        data = (row.alpha * self.at.alpha)[:, None, None] * self.mixture.variances
        noise = row.sigma * self.at.sigma * self.source.std**2 + row.gamma * self.at.gamma
        return (data + noise[:, None, None]) / self.variance

    def _blend(self, a: Tensor, gain: Tensor) -> Tensor:
        """sum_k r_k [a mu_k + A_k gain_k A_k^T (x - c_k)], `(B, D)`, A_k the axes; nothing of size B K D if round."""
        posterior, means, axes = self.responsibilities, self.mixture.means, self.mixture.axes
        mean = a[:, None] * (posterior @ means)
        if axes is not None:
            return mean + torch.einsum("kij,bkj->bi", axes, posterior[..., None] * gain * self.away())
        pull = posterior * gain[..., 0]
        return mean + pull.sum(1, keepdim=True) * self.x - self.at.alpha[:, None] * (pull @ means)
