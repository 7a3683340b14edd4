"""Data that is uniform on boxes, and what a point x_t = x of an affine path says about it.

With y = x - sigma m and v = sigma² s² + gamma², all that is not data: given the box, each coordinate of x1 has the
density of N(y/alpha, v/alpha²) cut to the box. With x1 = l + (h - l) f and z(f) = (alpha x1 - y)/sqrt(v),

    P(box | x) is proportional to w prod over coordinates of  integral_0^1 exp(-z(f)²/2) df

and the moments of f under exp(-z²/2) are those of x1. The integrals are Gauss's, over where the integrand is not
negligible; no difference of nearly equal numbers is taken. Given x1, the other latents are Gaussian:

    E[(a, b, c) | x1, x] = a x1 + b m + k (y - alpha x1),   k = (b sigma s² + c gamma)/v
    variance              (b gamma - c sigma)² s²/v  a coordinate
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.oracle.law import Law, Row
from fmkit.oracle.posterior import noise_variance
from fmkit.quadrature import gauss
from fmkit.shapes import numbers
from fmkit.sources import Gaussian

NODES = 48
REACH = 9.0  # in standard deviations: beyond lie 2e-19 of a Gaussian


class Boxes(Law):
    """Uniform on disjoint boxes of equal volume.

    Args:
        low: `(K, D)`, the boxes' lower corners.
        high: `(K, D)`, the upper ones.

    Raises:
        ArgumentError: if they are no such arrays, or a box has no inside.

    Attributes:
        low, high: the corners, float64.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Any, high: Any) -> None:
        super().__init__()
        self.register_buffer("low", numbers("low", low), persistent=False)
        self.register_buffer("high", numbers("high", high), persistent=False)
        if self.low.ndim != 2 or self.low.numel() == 0 or self.high.shape != self.low.shape:
            shapes = f"{tuple(self.low.shape)} and {tuple(self.high.shape)}"
            raise ArgumentError(f"low and high have shapes {shapes}, expected (K, D) both")
        if not bool((self.low < self.high).all()):
            raise ArgumentError("a box has its upper corner not above its lower one in every coordinate")
        self.event_shape = tuple(self.low.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.low.device

    @property
    def size(self) -> int:
        return NODES * self.low.numel()

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        device = self.device if generator is None else generator.device
        k = torch.randint(len(self.low), (n,), generator=generator, device=device).to(self.device)
        u = torch.rand(n, self.low.shape[1], generator=generator, dtype=self.low.dtype, device=device).to(self.device)
        return self.low[k] + (self.high - self.low)[k] * u

    def given(self, source: Gaussian, at: Row, x: Tensor) -> BoxPosterior:
        return BoxPosterior(self, source, at, x)

    def standardised(self, shift: Tensor, scale: Tensor) -> Boxes:
        shift, scale = shift.to(self.low), scale.to(self.low)
        return Boxes((self.low - shift) / scale, (self.high - shift) / scale)


class BoxPosterior:
    """The law of the latents given points `(B, D)`; arguments as of `Posterior`."""

    def __init__(self, boxes: Boxes, source: Gaussian, at: Row, x: Tensor) -> None:
        self.boxes, self.source, self.at = boxes, source, at
        variance = noise_variance(at, source)
        self.variance = variance.clamp_min(torch.finfo(variance.dtype).tiny)
        y = (x - (at.sigma * source.mean)[:, None])[:, None]
        std, alpha = self.variance.sqrt()[:, None, None], at.alpha[:, None, None]
        first, last = (alpha * boxes.low - y) / std, (alpha * boxes.high - y) / std  # z at the faces, (B, K, D)
        # From the nearest point of the box to 0, z may go as far as exp(-z²/2) falls by exp(-REACH²/2).
        nearest = torch.zeros_like(first).clamp(torch.minimum(first, last), torch.maximum(first, last))
        reach = (nearest.square() + REACH**2).sqrt()
        width = last - first
        flat = width.abs() < torch.finfo(width.dtype).tiny
        slope = torch.where(flat, 1.0, width)
        ends = torch.stack([(-reach - first) / slope, (reach - first) / slope])
        begin = torch.where(flat, 0.0, ends.amin(0).clamp(0, 1))
        end = torch.where(flat, 1.0, ends.amax(0).clamp(0, 1))
        nodes, weights = (r.to(x) for r in gauss(NODES))
        f = begin[..., None] + (end - begin)[..., None] * nodes  # (B, K, D, NODES)
        z = first[..., None] + width[..., None] * f
        density = weights * torch.exp((nearest.square()[..., None] - z.square()) / 2)
        mass = density.sum(-1)
        self.log_mass = (mass * (end - begin)).log() - nearest.square() / 2  # of each coordinate
        share = density / mass[..., None]
        mean = (share * f).sum(-1)
        side = boxes.high - boxes.low
        self.mean_x = boxes.low + side * mean
        self.mean_z = (share * z).sum(-1)
        self.variance_x = side**2 * (share * (f - mean[..., None]).square()).sum(-1)

    @cached_property
    def responsibilities(self) -> Tensor:
        """P(box | x), `(B, K)`."""
        return torch.softmax(self.log_mass.sum(-1), 1)

    def mean(self, row: Row) -> Tensor:
        """E[row of the latents | x], `(B, D)`."""
        of_noise = (row.sigma * self.at.sigma * self.source.std**2 + row.gamma * self.at.gamma) / self.variance.sqrt()
        each = row.alpha[:, None, None] * self.mean_x - of_noise[:, None, None] * self.mean_z
        mean = torch.einsum("bk,bkd->bd", self.responsibilities, each)
        return mean + (row.sigma * self.source.mean)[:, None]

    def variance_of(self, row: Row) -> Tensor:
        """The trace of Cov[row of the latents | x], `(B,)`."""
        at, s2, weight = self.at, self.source.std**2, self.responsibilities
        data = at.sigma * s2 * (row.alpha * at.sigma - row.sigma * at.alpha)
        data = (data + at.gamma * (row.alpha * at.gamma - row.gamma * at.alpha)) / self.variance
        mean = torch.einsum("bk,bkd->bd", weight, self.mean_x)
        spread = (self.variance_x + (self.mean_x - mean[:, None]).square()).sum(-1)
        rest = (row.sigma * at.gamma - row.gamma * at.sigma) ** 2 * s2 / self.variance
        return data**2 * (weight * spread).sum(1) + rest * mean.shape[1]
