"""Wasserstein distances of order two, W2 (not squared), between the empirical laws of two sets.

W2²(P, Q) = min over plans of E |X - Y|²;   in one dimension  W2² = integral of (F^-1(u) - G^-1(u))² du
SW2²(P, Q) = E over directions theta on the unit sphere of W2²(theta . P, theta . Q)     (Bonneel et al. 2015)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmkit.arguments import check_count
from fmkit.couplings.assignment import assign
from fmkit.errors import ArgumentError
from fmkit.metrics.base import Metric, as_points, default_generator, squared_distances
from fmkit.shapes import check_data, check_finite


class SlicedWasserstein(Metric):
    """SW2 over random directions: exact in each direction, for any N and M.

    Args:
        projections: number of directions, >= 1.

    Raises:
        ArgumentError: if projections is below 1.

    Examples:
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> SlicedWasserstein()(x, x)
        0.0
    """

    def __init__(self, projections: int = 256) -> None:
        super().__init__()
        self.projections = check_count("projections", projections)

    def forward(self, samples: Tensor, reference: Tensor, generator: torch.Generator | None = None) -> float:
        x, y = as_points(samples, reference, generator)
        generator = default_generator() if generator is None else generator
        shape = (x.shape[1], self.projections)
        directions = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
        return _sliced(x, y, (directions / directions.norm(dim=0)).to(x.device))


class Wasserstein(Metric):
    """Exact W2: an optimal assignment between sets of equal sizes, else POT's network simplex.

    10,000 points against as many take half a minute and 2 GB; memory grows like N M. The expected value at a finite N
    is above zero for equal laws (`floor`).
    """

    def forward(self, samples: Tensor, reference: Tensor, generator: torch.Generator | None = None) -> float:
        x, y = as_points(samples, reference, generator)
        if len(x) == len(y):
            return (x[assign(x, y).to(x.device)] - y).square().sum(1).mean().sqrt().item()
        try:
            import ot
        except ImportError as error:
            raise ArgumentError(
                f"{len(x)} samples against {len(y)} need POT: pip install 'fmkit[ot]', or pass equal numbers"
            ) from error
        cost = squared_distances(x, y).cpu().numpy()
        squared = ot.emd2(ot.unif(len(x)), ot.unif(len(y)), cost, numItermax=100_000_000)
        return max(float(squared), 0.0) ** 0.5


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> float:
    """SW2 between `(N, D)` and `(M, D)` points along the given unit directions `(D, L)`.

    Raises:
        ArgumentError: for shapes that do not fit, numbers that are not finite, or directions that are not of length 1.
    """
    _check_columns(x, y)
    check_finite(check_data(directions, "directions"), "directions")
    if directions.ndim != 2 or len(directions) != x.shape[1]:
        raise ArgumentError(f"directions has shape {tuple(directions.shape)}, expected ({x.shape[1]}, L)")
    if bool(((directions.norm(dim=0) - 1).abs() > 1e-3).any()):
        raise ArgumentError("directions are not of length 1, expected unit vectors in the columns")
    return _sliced(x, y, directions.to(x.dtype))


def _sliced(x: Tensor, y: Tensor, directions: Tensor) -> float:
    return wasserstein_1d(x @ directions, y @ directions).square().mean().sqrt().item()


def _check_columns(x: Tensor, y: Tensor) -> None:
    for name, points in {"x": x, "y": y}.items():
        check_finite(check_data(points, name), name)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.dtype != y.dtype:
        got = f"x has shape {tuple(x.shape)} ({x.dtype}) and y {tuple(y.shape)} ({y.dtype})"
        raise ArgumentError(f"{got}; expected (N, D) and (M, D), of one dtype")


def wasserstein_1d(x: Tensor, y: Tensor) -> Tensor:
    """`(L,)` exact W2 between the columns of `(N, L)` and `(M, L)`, through their quantile functions.

    Raises:
        ArgumentError: for shapes or dtypes that do not fit, or numbers that are not finite.
    """
    _check_columns(x, y)
    x, y = x.sort(0).values, y.sort(0).values
    n, m = len(x), len(y)
    if n == m:
        return (x - y).square().mean(0).sqrt()
    # Both quantile functions are constant between the levels i/n and j/m; counted in units of 1/(n m), exactly.
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    share = torch.diff(levels, prepend=levels.new_zeros(1)).to(x.dtype) / (n * m)
    return (share[:, None] * (x[(levels - 1) // m] - y[(levels - 1) // n]).square()).sum(0).sqrt()
