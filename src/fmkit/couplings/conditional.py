"""Optimal transport that leaves the source independent of the condition.

    minimise sum_k |x0[i0[k]] - x1[i1[k]]|² + w |c0[i0[k]] - c1[i1[k]]|²        (Cheng and Schwing, arXiv 2503.10636)

Plain optimal transport sends noise to the samples nearest to it, labels and all, so given a label the noise is no
longer what it is when one samples with that label. Here each x0 is given a condition first, one of the batch's at
random, and is kept to samples of that condition: exactly for labels (w is infinite), nearly for vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fmkit.arguments import check_number
from fmkit.couplings.assignment import assign, squared_distances
from fmkit.couplings.base import Coupling, check_batches
from fmkit.errors import ArgumentError


class ConditionalOptimalTransport(Coupling):
    """The best permutation within each label; for vectors, the best under a cost that looks at conditions as well.

    Integers are labels, a row of several is one label; floating-point conditions are vectors, compared by their squared
    distance. Row k of x0 has the condition of row k of x1 unless `cond0` says otherwise: the two were drawn
    independently, or x0 was drawn for that condition. x1 keeps its order.

    Args:
        weight: w, in units of squared distance per unit of squared condition, not negative; found from `ratio`
            in each batch by default. Labels do not need it.
        ratio: the share of all pairs that may be better than x0's own, in (0, 1): w is the greatest weight under which
            that share costs no more than the pair that was drawn (the paper's r; it takes 0.01 to 0.1).

    Examples:
        >>> import torch
        >>> from fmkit.couplings import ConditionalOptimalTransport
        >>> x0, x1 = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([[3.0], [2.0], [1.0], [0.0]])
        >>> ConditionalOptimalTransport().pair(x0, x1, None, torch.tensor([0, 0, 1, 1]))
        (tensor([1, 0, 3, 2]), tensor([0, 1, 2, 3]))
    """

    def __init__(self, weight: float | None = None, ratio: float = 0.01) -> None:
        super().__init__()
        if weight is not None and not check_number("weight", weight) >= 0:
            raise ArgumentError(f"weight is {weight}, expected a number from 0")
        if not 0 < check_number("ratio", ratio) < 1:
            raise ArgumentError(f"ratio is {ratio}, expected a share between 0 and 1")
        self.weight, self.ratio = weight, ratio

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None) -> tuple[Tensor, Tensor]:
        check_batches(x0, x1, cond0, cond1, generator)
        c0, c1 = _conditions(cond0, cond1, x1.device)
        a, b = (x.detach().reshape(len(x), -1) for x in (x0, x1))
        i0 = self._by_vectors(a, b, c0, c1) if c1.is_floating_point() else _by_labels(a, b, c0, c1)
        return i0.to(x1.device), torch.arange(len(x1), device=x1.device)

    def _by_vectors(self, x0: Tensor, x1: Tensor, c0: Tensor, c1: Tensor) -> Tensor:
        x0, x1, c0, c1 = (v.double() for v in (x0, x1, c0, c1))
        w = weight_of(x0, x1, c0, c1, self.ratio) if self.weight is None else self.weight
        return assign(*(torch.cat((x, w**0.5 * c), 1) for x, c in ((x0, c0), (x1, c1))))


def weight_of(x0: Tensor, x1: Tensor, c0: Tensor, c1: Tensor, ratio: float) -> float:
    """The greatest w under which `ratio` of all other pairs (i, j) cost no more than the pair (j, j).

    A pair does so up to w_ij = (|x0_j - x1_j|² - |x0_i - x1_j|²) / (|c0_i - c1_j|² - |c0_j - c1_j|²), so w is a
    quantile of these; at most the greatest that is finite, at least 0.
    """
    near, apart = squared_distances(x1, x0), squared_distances(c1, c0).clamp_(min=0)
    gain, price = near.diagonal()[:, None] - near, apart - apart.diagonal()[:, None]
    limits = torch.where(price > 0, gain / price, torch.where(gain >= 0, torch.inf, -torch.inf))
    limits = limits[~torch.eye(len(limits), dtype=torch.bool, device=limits.device)]
    if len(limits) == 0:
        return 0.0
    w = limits.sort(descending=True).values[max(1, int(ratio * len(limits))) - 1]
    finite = limits[torch.isfinite(limits)]
    return max(0.0, float(w if torch.isfinite(w) else finite.max() if len(finite) else 0.0))


def _by_labels(x0: Tensor, x1: Tensor, c0: Tensor, c1: Tensor) -> Tensor:
    _, labels = torch.cat((c0, c1)).unique(dim=0, return_inverse=True)
    labels0, labels1 = labels.cpu().chunk(2)
    i0 = torch.empty(len(x1), dtype=torch.int64)
    for label in labels.unique().tolist():
        rows0, rows1 = (torch.nonzero(side == label)[:, 0] for side in (labels0, labels1))
        if len(rows0) != len(rows1):
            raise ArgumentError(
                f"the label {(c1[rows1] if len(rows1) else c0[rows0])[0].tolist()} is on {len(rows0)} rows of x0 and "
                f"{len(rows1)} of x1; a permutation within labels needs as many"
            )
        i0[rows1] = rows0[assign(x0[rows0.to(x0.device)], x1[rows1.to(x1.device)])]
    return i0


def _conditions(cond0: Any, cond1: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both sides as `(n, k)` tensors of one kind, labels or vectors."""
    if cond1 is None:
        raise ArgumentError("there are no conditions for x1; without any, OptimalTransport is what this would be")
    sides = {"cond1": cond1, "cond0": cond1 if cond0 is None else cond0}
    rows = []
    for name, value in sides.items():
        if not isinstance(value, Tensor) or value.is_complex():
            raise ArgumentError(f"{name} is a {type(value).__name__}, expected a tensor of labels or of vectors")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ArgumentError(f"{name} has non-finite values, expected finite ones")
        rows.append(value.detach().to(device).reshape(len(value), -1))
    if rows[0].shape != rows[1].shape or rows[0].is_floating_point() != rows[1].is_floating_point():
        raise ArgumentError(
            f"cond0 has shape {tuple(sides['cond0'].shape)} and dtype {sides['cond0'].dtype}, cond1 "
            f"{tuple(cond1.shape)} and {cond1.dtype}; expected conditions of one kind"
        )
    return rows[1], rows[0]
