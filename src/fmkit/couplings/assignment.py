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
SWEEPS, RELAXATION = 6, 1.6
# Below this many points the solver needs no head start.
SMALL = 64
# Exponents are cut here: denormal numbers are slow, and rough potentials are welcome.
FLOOR = -40.0


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
    from scipy.optimize import linear_sum_assignment  # here: a third of a second that most programs need not wait

    if x0.shape[1] == 1:  # on a line the optimum is the order, where an assignment solver is at its slowest
        rank = x1[:, 0].argsort(stable=True).argsort()
        return x0[:, 0].argsort(stable=True)[rank].cpu()
    # A shift of all x0, or of all x1, changes the cost by potentials, and near the origin fewer digits are lost.
    a, b = (_centred(x) for x in (x0, x1))
    unit = max(float(part.abs()) for x in (a, b) for part in torch.aminmax(x))
    if unit > 0 and not 1e-6 < unit < 1e6:  # nor does a change of units, and in these nothing overflows
        a, b = a / unit, b / unit
    cost = squared_distances(b, a)
    if len(a) > SMALL:
        f, g = potentials(cost.float())
        cost -= f.double()[:, None]
        cost -= g.double()
    # Rows and columns that begin at zero are what the solver likes best, whatever the potentials were.
    cost -= cost.amin(0)
    cost -= cost.amin(1, keepdim=True)
    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1].astype(np.int64, copy=False))


def _centred(x: Tensor) -> Tensor:
    x = x.to(torch.float64, copy=True)
    return x.sub_(x.mean(0))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """`(n, m)` squared distances between `(n, d)` and `(m, d)` points, through one matrix product."""
    return torch.addmm(b.square().sum(1) + a.square().sum(1, keepdim=True), a, b.T, alpha=-2)


def potentials(cost: Tensor, levels: Sequence[float] = LEVELS) -> tuple[Tensor, Tensor]:
    """Nearly optimal dual potentials `(n,)` and `(m,)` of `(n, m)` float32 costs, by annealed Sinkhorn iterations.

    At each temperature e the kernel exp((f_i + g_j - c_ij) / e) is made once, and scaled by matrix products; the
    scalings are then absorbed into the potentials (Schmitzer, arXiv 1610.06519). Sweeps are over-relaxed in logarithms
    (Thibault et al., arXiv 1711.01851). Zeros where float32 cannot do it.
    """
    scale = float(cost.mean())
    f, g, kernel = cost.new_zeros(len(cost)), cost.new_zeros(cost.shape[1]), torch.empty_like(cost)
    for level in levels if scale > 0 else ():
        e = level * scale
        torch.sub(cost, g, out=kernel)
        f = kernel.amin(1)  # so that no exponent is above zero, and each row has one that is zero
        kernel.sub_(f[:, None]).mul_(-1 / e).clamp_(min=FLOOR).exp_()
        u, v = kernel.sum(1).reciprocal_(), torch.ones_like(g)
        for sweep in range(SWEEPS):
            if sweep:
                u = u * (kernel @ v).mul_(u).pow_(-RELAXATION)
            v = v * (u @ kernel).mul_(len(g) / len(f)).mul_(v).pow_(-RELAXATION)
        f, g = f + e * u.log(), g + e * v.log()
    if not bool(torch.isfinite(f).all() and torch.isfinite(g).all()):
        return torch.zeros_like(f), torch.zeros_like(g)
    return f, g
