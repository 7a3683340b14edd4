"""The exact assignment of points to points, with a head start.

    pi = argmin over permutations of sum_j |x0[pi(j)] - x1[j]|²

Subtracting potentials f_i from rows and g_j from columns of the cost changes every permutation's cost alike, so the
optimum stays where it is. Potentials that are nearly dual-optimal leave a cost that is nearly zero along the optimum,
and the exact solver (scipy's shortest augmenting paths, Crouse 2016) then finds most of its paths at once. Annealed
Sinkhorn iterations give such potentials. They may be as rough as they like: only speed depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Temperatures of the annealing, in units of the mean cost, sweeps at each, and how far a sweep goes beyond its aim. By
# measurement: beginning much colder, float32 fails on some data.
LEVELS = (0.05, 0.008, 0.001)
CAREFUL = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # where the potentials themselves are wanted
SWEEPS, RELAXATION = 6, np.float32(1.6)
# Below this many points the solver needs no head start.
SMALL = 64
# Exponents are cut here: denormal numbers are slow, and rough potentials are welcome.
FLOOR = np.float32(-40.0)


def assign(x0: Tensor, x1: Tensor) -> Tensor:
    """The row of x0 that each row of x1 meets under the optimal assignment: exact, in float64, a permutation.

    Args:
        x0: `(n, d)` finite points.
        x1: `(n, d)` finite points.

    Returns:
        `(n,)` int64 indices on the CPU.

    Examples:
        >>> import torch
        >>> assign(torch.tensor([[0.0, 0.0], [5.0, 1.0]]), torch.tensor([[5.0, 0.0], [0.0, 1.0]]))
        tensor([1, 0])
    """
    if x0.shape[1] == 1:  # on a line the optimum is the order, where an assignment solver is at its slowest
        rank = x1[:, 0].argsort(stable=True).argsort()
        return x0[:, 0].argsort(stable=True)[rank].cpu()
    # A shift of all x0, or of all x1, changes the cost by potentials, and near the origin fewer digits are lost.
    a, b = (_centred(x) for x in (x0, x1))
    cost = squared_distances(b, a)
    scale = float(cost.mean())
    if not 1e-100 < scale < 1e100 and (unit := max(float(x.abs().amax()) for x in (a, b))) > 0:
        cost = squared_distances(b / unit, a / unit)  # nor does a change of units, and in these nothing overflows
    return torch.from_numpy(_solved(cost.cpu().numpy()))


def _solved(cost: np.ndarray) -> np.ndarray:
    """The column of each row of a square cost; the cost is overwritten."""
    from scipy.optimize import linear_sum_assignment  # here: a third of a second that most programs need not wait

    if len(cost) > SMALL:
        cost -= potentials(cost.astype(np.float32))[0][:, None]  # the columns' own are in their minima below
    # Rows and columns that begin at zero are what the solver likes best, whatever the potentials were.
    cost -= cost.min(0)
    cost -= cost.min(1, keepdims=True)
    return linear_sum_assignment(cost)[1].astype(np.int64, copy=False)


def _centred(x: Tensor) -> Tensor:
    x = x.to(torch.float64, copy=True)
    return x.sub_(x.mean(0))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """`(n, m)` squared distances between `(n, d)` and `(m, d)` points, through one matrix product."""
    return torch.addmm(b.square().sum(1) + a.square().sum(1, keepdim=True), a, b.T, alpha=-2)


def potentials(cost: np.ndarray, levels: Sequence[float] = LEVELS) -> tuple[np.ndarray, np.ndarray]:
    """Nearly optimal dual potentials `(n,)` and `(m,)` of `(n, m)` float32 costs, by annealed Sinkhorn iterations.

    At each temperature e the kernel exp((f_i + g_j - c_ij) / e) is made once, and scaled by matrix products; the
    scalings are then absorbed into the potentials (Schmitzer, arXiv 1610.06519). Sweeps are over-relaxed in logarithms
    (Thibault et al., arXiv 1711.01851). Zeros where float32 cannot do it.

    In numpy, not torch: at a few hundred points the time is that of calling a hundred small operations.
    """
    n, m = cost.shape
    f: np.ndarray = np.zeros(n, np.float32)
    g: np.ndarray = np.zeros(m, np.float32)
    kernel = np.empty_like(cost)
    with np.errstate(all="ignore"):  # what is not finite is looked at below
        scale = cost.mean()
        for level in levels if scale > 0 else ():
            e = np.float32(level * scale)
            np.subtract(cost, g, out=kernel)
            f = kernel.min(1)  # so that no exponent is above zero, and each row has one that is zero
            kernel -= f[:, None]
            kernel *= -1 / e
            np.exp(np.maximum(kernel, FLOOR, out=kernel), out=kernel)
            u, v = 1 / kernel.sum(1), np.ones_like(g)
            for sweep in range(SWEEPS):
                if sweep:
                    u = u * (kernel @ v * u) ** -RELAXATION
                v = v * (u @ kernel * np.float32(m / n) * v) ** -RELAXATION
            f, g = f + e * np.log(u), g + e * np.log(v)
    if not (np.isfinite(f).all() and np.isfinite(g).all()):
        return np.zeros_like(f), np.zeros_like(g)
    return f, g
