"""Data sets on manifolds: mixtures of wrapped normals, x = exp_mu(std z), z standard normal in the tangent space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmkit.data import Data, DataSet, Split
from fmkit.errors import ArgumentError
from fmkit.training import stream
from fmkit_riemannian.manifolds import Manifold, Sphere, Torus


class SphereMixture(DataSet):
    """2d bumps on the unit sphere of R^d, around the points +-e_i of the axes, equally heavy.

    Args:
        dim: d >= 2.
        std: of each bump, in radians, > 0.
        size: samples in all, 80 % of them for training; >= 10.

    Raises:
        ArgumentError: for a value out of range.
    """

    def __init__(self, dim: int = 3, std: float = 0.2, size: int = 20_000) -> None:
        super().__init__()
        _check(dim, 2, std, size)
        self.dim, self.std, self.size = dim, std, size

    def means(self) -> Tensor:
        """`(2d, d)` centres of the bumps."""
        return torch.cat([torch.eye(self.dim), -torch.eye(self.dim)])

    def load(self, seed: int = 0) -> Split:
        generator = stream(seed, "sphere-mixture")
        return _split(_mixture(Sphere(), self.means(), self.std, self.size, generator))


class TorusMixture(DataSet):
    """`modes` bumps along the diagonal of the torus, equally heavy; the first one lies across its seam, at 0.

    Args:
        dim: number of angles, >= 1.
        modes: number of bumps, >= 1.
        std: of each bump, in radians, > 0.
        size: samples in all, 80 % of them for training; >= 10.

    Raises:
        ArgumentError: for a value out of range.
    """

    def __init__(self, dim: int = 2, modes: int = 3, std: float = 0.3, size: int = 20_000) -> None:
        super().__init__()
        _check(dim, 1, std, size)
        if modes < 1:
            raise ArgumentError(f"modes is {modes}, expected at least 1")
        self.dim, self.modes, self.std, self.size = dim, modes, std, size

    def means(self) -> Tensor:
        """`(modes, dim)` centres of the bumps."""
        return (torch.arange(self.modes) * (2 * math.pi / self.modes))[:, None].expand(-1, self.dim)

    def load(self, seed: int = 0) -> Split:
        generator = stream(seed, "torus-mixture")
        return _split(_mixture(Torus(), self.means(), self.std, self.size, generator))


def _mixture(manifold: Manifold, means: Tensor, std: float, size: int, generator: torch.Generator) -> Tensor:
    mu = means[torch.randint(len(means), (size,), generator=generator)]
    z = torch.randn(manifold.embed(mu).shape, generator=generator)
    return manifold.exp(mu, std * manifold.tangent(mu, z))


def _split(x: Tensor) -> Split:
    cut = int(0.8 * len(x))
    return Split(Data(x[:cut]), x[cut:])


def _check(dim: int, least: int, std: float, size: int) -> None:
    if dim < least:
        raise ArgumentError(f"dim is {dim}, expected at least {least}")
    if not 0 < std < math.inf:
        raise ArgumentError(f"std is {std}, expected a positive number of radians")
    if size < 10:
        raise ArgumentError(f"size is {size}, expected at least 10")
