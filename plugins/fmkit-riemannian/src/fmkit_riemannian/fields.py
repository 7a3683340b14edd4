"""Fields on manifolds: a network in the embedding space, projected onto the tangent space.

    v(t, x) = P_x network(t, embed(x)):   the sphere in R^d, the torus as a circle (cos x, sin x) for each angle

So the field is tangent to the sphere whatever the network says, and periodic in every angle of the torus.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fmkit.fields import VectorField, as_field, ask
from fmkit_riemannian.manifolds import Manifold


class TangentField(VectorField):
    """A network made tangent.

    Args:
        manifold: where the field lives.
        network: `(t, y)` or `(t, y, cond)`, y in the embedding space: `(B, d)` on the sphere, `(B, 2d)` for d angles.

    >>> import torch
    >>> from fmkit.fields import MLP
    >>> from fmkit_riemannian import Torus
    >>> TangentField(Torus(), MLP(4, width=8, depth=1))(torch.rand(5), torch.rand(5, 2)).shape
    torch.Size([5, 2])
    """

    def __init__(self, manifold: Manifold, network: VectorField) -> None:
        super().__init__()
        self.manifold, self.network = manifold, as_field(network)

    @property
    def interval(self) -> tuple[float, float]:
        return self.network.interval

    @property
    def offers(self) -> frozenset[str]:
        return self.network.offers & {"velocity"}

    @property
    def euclidean(self) -> bool:
        return self.manifold.flat

    def forward(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        x = self.manifold.nearest(x)
        return self.manifold.tangent(x, ask(self.network, t, self.manifold.embed(x), cond))
