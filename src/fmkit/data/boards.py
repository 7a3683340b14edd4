"""A checkerboard and a pinwheel, with noise z ~ N(0, I) and a component k drawn by its weight.

checkerboard   x uniform on the squares floor(x_1/side) + floor(x_2/side) even
pinwheel       x = scale R(-angle) f,  f = (1 + radial_std z_1, tangential_std z_2),
               angle = 2 pi k/arms + rate exp(f_1)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fmkit.arguments import check_count
from fmkit.data.toy import Toy, at_least_zero, check_draw, chosen, normal, points, positive, uniform
from fmkit.errors import ArgumentError
from fmkit.oracle import Boxes
from fmkit.shapes import numbers


class Checkerboard(Toy):
    """Uniform on the dark squares of a board centred at the origin.

    The field has two boards of 4x4 squares. The default is the one of the paper's authors, of side 1/0.45 on
    [-4.44, 4.44]², whose entropy log(8/0.45²) = 3.676 nats is the one published results refer to; `side=2` is the
    board on [-4, 4]² of earlier work, with entropy log 32 = 3.466.

    Args:
        cells: squares along an edge, even.
        side: of a square, > 0.
        n_train: training samples.
        n_test: held-out samples.

    Raises:
        ArgumentError: if cells is not a positive even number, or the side not positive.

    Examples:
        >>> round(Checkerboard().entropy, 3)
        3.676
    """

    def __init__(self, cells: int = 4, side: float = 1 / 0.45, n_train: int = 10_000, n_test: int = 2_000) -> None:
        super().__init__(n_train, n_test)
        if check_count("cells", cells) % 2:
            raise ArgumentError(f"cells is {cells}, expected an even number: half of the squares are dark")
        self.cells, self.side = cells, float(positive("side", side))

    @property
    def entropy(self) -> float:
        """The differential entropy in nats: the logarithm of the dark area."""
        return math.log(self.cells**2 / 2) + 2 * math.log(self.side)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        check_draw(n, generator)
        half = self.cells // 2
        column = torch.randint(-half, half, (n,), generator=generator, device=generator.device)
        row = 2 * torch.randint(half, (n,), generator=generator, device=generator.device) - half
        row = row + (column + half) % 2
        # Off the edges by more than a rounding to float32: on the other side of one lies a light square.
        margin = 1e-7 * self.cells
        inside = uniform((n, 2), generator).clamp(margin, 1 - margin)
        return (self.side * (torch.stack([column, row], 1) + inside)).float(), None

    def log_prob(self, x: Tensor) -> Tensor:
        square = torch.floor(points(x, 2) / self.side)
        half = self.cells // 2
        dark = (square.sum(1) % 2 == 0) & (square >= -half).all(1) & (square < half).all(1)
        return torch.full(dark.shape, -self.entropy, dtype=x.dtype, device=x.device).masked_fill_(~dark, -math.inf)

    def law(self, component: int | None = None) -> Boxes:
        chosen(component, self.components)
        square = torch.arange(self.cells, dtype=torch.float64) - self.cells // 2
        corners = torch.cartesian_prod(square, square)
        low = self.side * corners[corners.sum(1) % 2 == 0]
        return Boxes(low, low + self.side)


class Pinwheel(Toy):
    """Gaussians stretched along spokes and sheared into a spiral (Johnson et al. 2016).

    Args:
        arms: of the wheel, >= 1.
        radial_std: along a spoke, of length 1, >= 0.
        tangential_std: across it, >= 0.
        rate: of the shear: a point at f_1 along its spoke is turned by rate exp(f_1).
        scale: factor on everything, > 0.
        n_train: training samples.
        n_test: held-out samples.
        labels: the arm as the condition.

    Raises:
        ArgumentError: for numbers out of range.
    """

    def __init__(
        self,
        arms: int = 5,
        radial_std: float = 0.3,
        tangential_std: float = 0.1,
        rate: float = 0.25,
        scale: float = 2.0,
        n_train: int = 10_000,
        n_test: int = 2_000,
        labels: bool = False,
    ) -> None:
        super().__init__(n_train, n_test, labels)
        self.components = check_count("arms", arms)
        self.spread = (at_least_zero("radial_std", radial_std), at_least_zero("tangential_std", tangential_std))
        self.rate, self.scale = float(numbers("rate", rate)), float(positive("scale", scale))

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        check_draw(n, generator)
        k = torch.randint(self.components, (n,), generator=generator, device=generator.device)
        z = normal((n, 2), generator)
        along, across = 1 + self.spread[0] * z[:, 0], self.spread[1] * z[:, 1]
        angle = 2 * math.pi * k / self.components + self.rate * along.exp()
        cos, sin = angle.cos(), angle.sin()
        x = torch.stack([cos * along + sin * across, cos * across - sin * along], 1)
        return (self.scale * x).float(), k
