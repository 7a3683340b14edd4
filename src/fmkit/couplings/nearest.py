"""Which cell of a power diagram a point lies in.

    cell(x) = argmin_j |x - y_j|² - g_j = argmax_j <x, y_j> - h_j,     h_j = (|y_j|² - g_j) / 2

Everywhere by one product with all y_j. In two and three dimensions there is a shorter way: the lower hull of the points
(y_j, h_j) knows which cells touch and where their corners are. A point begins in a cell at the corner nearest to it and
moves to the best neighbouring cell while that is better. The cells are those of a convex function, so where no
neighbour is better, none is: the answer is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# Up to so many dimensions, and from FEW points on, there is a walk.
WALK = 3
FEW = 512
# The most neighbours of one cell that a walk looks at.
NEIGHBOURS = 512
# Entries of the product with all y_j at a time.
CHUNK = 2**23


class Cells:
    """The power diagram of `(N, d)` points y with `(N,)` potentials g, both finite, on one device.

    Examples:
        >>> import torch
        >>> Cells(torch.tensor([[0.0], [4.0]]), torch.tensor([0.0, 8.0])).of(torch.tensor([[0.9], [1.1]]))
        tensor([0, 1])
    """

    def __init__(self, y: Tensor, g: Tensor) -> None:
        self.shift = y.double().mean(0)  # near the origin fewer digits are lost
        self.y = y.double() - self.shift
        self.h = (self.y.square().sum(1) - g) / 2
        self._walk: _Walk | None = None
        if y.device.type == "cpu" and 2 <= y.shape[1] <= WALK and len(y) >= FEW:
            self._walk = _Walk.over(self.y.numpy(), self.h.numpy())

    def of(self, x: Tensor) -> Tensor:
        """`(B,)` int64 indices of the cells of `(B, d)` points."""
        x = x.double() - self.shift
        if self._walk is not None:
            return torch.from_numpy(self._walk.to(x.numpy()))
        return torch.cat([values.argmax(1) for values in self._values(x)])

    def two(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(B,)` each: the cells of the points, the second best, and by how much it is worse in |x - y|² - g.

        Raises:
            ValueError: if there is one cell only.
        """
        if len(self.y) < 2:
            raise ValueError("one cell has no second best")
        found = [values.topk(2, dim=1) for values in self._values(x.double() - self.shift)]
        value, index = (torch.cat([getattr(f, name) for f in found]) for name in ("values", "indices"))
        return index[:, 0], index[:, 1], 2 * (value[:, 0] - value[:, 1])

    def _values(self, x: Tensor) -> Iterator[Tensor]:
        for some in x.split(max(1, CHUNK // len(self.y))):
            yield torch.addmm(-self.h, some, self.y.T)


class _Walk:
    """From corner to cell to neighbouring cell, for all points at once."""

    def __init__(self, y: np.ndarray, h: np.ndarray, corners: np.ndarray, cells: np.ndarray, next_to: np.ndarray):
        from scipy.spatial import KDTree

        self.y, self.h, self.cells, self.next_to = y, h, cells, next_to
        self.tree = KDTree(corners)

    @classmethod
    def over(cls, y: np.ndarray, h: np.ndarray) -> _Walk | None:
        """The walk, or None where the points have no hull of full dimension, or one cell touches too many."""
        from scipy.spatial import ConvexHull, QhullError

        try:
            hull = ConvexHull(np.c_[y, h], qhull_options="Qt")
        except QhullError:
            return None
        lower = hull.equations[:, -2] < 0
        simplices, normals = hull.simplices[lower], hull.equations[lower, :-1]
        corners = -normals[:, :-1] / normals[:, -1:]  # where the affine functions of the simplex's cells are equal
        finite = np.isfinite(corners).all(1)
        next_to = _neighbours(simplices, len(y))
        if not finite.any() or next_to is None:
            return None
        return cls(y, h, corners[finite], simplices[finite, 0], next_to)

    def to(self, x: np.ndarray) -> np.ndarray:
        at = self.cells[self.tree.query(x)[1]]
        value = np.einsum("bd,bd->b", x, self.y[at]) - self.h[at]
        moving = np.arange(len(x))
        while len(moving):
            near = self.next_to[at[moving]]
            values = np.einsum("bd,bkd->bk", x[moving], self.y[near]) - self.h[near]
            best = values.argmax(1)
            better = values[np.arange(len(moving)), best] > value[moving]
            moving, near, best, values = (v[better] for v in (moving, near, best, values))
            rows = np.arange(len(moving))
            at[moving], value[moving] = near[rows, best], values[rows, best]
        return at.astype(np.int64)


def _neighbours(simplices: np.ndarray, n: int) -> np.ndarray | None:
    """`(n, most)` cells that share an edge of the hull, each row filled up with the cell itself."""
    corners = range(simplices.shape[1])
    edges = np.concatenate([simplices[:, [a, b]] for a in corners for b in corners if a != b])
    edges = np.unique(edges, axis=0)
    count = np.bincount(edges[:, 0], minlength=n)
    if count.max() > NEIGHBOURS:
        return None
    next_to = np.repeat(np.arange(n)[:, None], count.max(), axis=1)
    place = np.arange(len(edges)) - np.repeat(np.cumsum(count) - count, count)
    next_to[edges[:, 0], place] = edges[:, 1]
    return next_to
