"""Sources on manifolds: log p(x) = -log area for the uniform law, with respect to the manifold's own measure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fmkit.sources import Source
from fmkit_riemannian.manifolds import Manifold


class ManifoldUniform(Source):
    """The uniform law: surface measure on the sphere, Lebesgue measure of the angles on the torus.

    Args:
        manifold: where.

    >>> import torch
    >>> from fmkit_riemannian import Sphere
    >>> ManifoldUniform(Sphere()).log_prob(torch.tensor([[0.0, 0.0, 1.0]])).exp()  # 1 / (4 pi)
    tensor([0.0796])
    """

    def __init__(self, manifold: Manifold) -> None:
        super().__init__()
        self.manifold = manifold

    def sample(self, shape, *, cond=None, generator=None, dtype=None, device=None) -> Tensor:
        return self.manifold.uniform(shape, generator=generator, dtype=dtype, device=device)

    def log_prob(self, x: Tensor, cond: Any = None) -> Tensor:
        """`(B,)` log-densities in nats. Where x lies is not looked at: points may have gone round the torus."""
        return torch.full((len(x),), -self.manifold.log_volume(x.shape[1:]), dtype=x.dtype, device=x.device)
