"""What a coupling does to the samples it is shown: what its pairs cost, and what became of the marginals.

    cost            mean |x0 - x1|² over its pairs, between that of a random and of the best pairing of the same points
    lost            of the points that could have been in a pair, the share that is in none; 0 for a permutation,
                    1/e where as many are drawn with replacement (it is the total variation from uniform then)
    label error     total variation between the labels in the pairs and the labels shown
    leak            how much of the variance of x0 the condition of its x1 tells: the adjusted coefficient of
                    determination of x0 regressed on it (labels as indicators); 0 in expectation if independent

A flow is sampled with x0 and condition independent, so a leak biases what it has learnt: optimal transport that does
not look at conditions has one (Cheng and Schwing, arXiv 2503.10636).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmkit.arguments import checked
from fmkit.couplings import Coupling
from fmkit.errors import ArgumentError
from fmkit.metrics.transport import Wasserstein
from fmkit.shapes import check_batch, check_finite


class CouplingDiagnostics(NamedTuple):
    """The figures of one pairing.

    Attributes:
        cost: mean squared distance of its pairs, summed over the event.
        independent_cost: that of the same points paired at random, in expectation.
        optimal_cost: that of the best pairing of the same points, exactly: never above `cost`.
        lost_source: share of the x0 shown that are in no pair, beyond what their number makes inevitable.
        lost_data: the same of x1.
        label_error: in [0, 1]; None without integer labels.
        leak: at most 1, of x0's variance; None without conditions, or with too few pairs to tell.
    """

    cost: float
    independent_cost: float
    optimal_cost: float
    lost_source: float
    lost_data: float
    label_error: float | None = None
    leak: float | None = None


@checked
def coupling_diagnostics(
    coupling: Coupling,
    x0: Tensor,
    x1: Tensor,
    cond: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> CouplingDiagnostics:
    """Lets a coupling pair what it is shown, and looks at the pairs.

    The cost of the best pairing takes what `Wasserstein` takes: for thousands of pairs, seconds.

    Args:
        coupling: any; one that is fitted first must be.
        x0: `(B, *event)` source samples, as in training: in the units of the model.
        x1: `(M, *event)` data samples; M = B for couplings within a batch.
        cond: `(M,)` integer labels, or `(M, c)` or `(M,)` real numbers, of x1; or None.
        generator: the coupling's only randomness.

    Raises:
        ArgumentError: for samples that the coupling does not take, conditions of another length, or fewer than two
            pairs.

    Examples:
        >>> from fmkit.couplings import OptimalTransport
        >>> x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]])
        >>> coupling_diagnostics(OptimalTransport(), x0, x1)[:3]
        (0.0, 0.5, 0.0)
    """
    check_batch(x0, "x0")
    check_batch(x1, "x1")
    if cond is not None:
        _check_conditions(cond, len(x1))
    i0, i1 = coupling.pair(x0, x1, None, cond, generator=generator)
    if len(i0) < 2:
        raise ArgumentError(f"{type(coupling).__name__} made {len(i0)} pair(s), expected at least two to compare")
    a, b = x0.detach().cpu().double().flatten(1)[i0.cpu()], x1.detach().cpu().double().flatten(1)[i1.cpu()]
    spread = sum((x - x.mean(0)).square().sum(1).mean().item() for x in (a, b))
    return CouplingDiagnostics(
        cost=(a - b).square().sum(1).mean().item(),
        independent_cost=spread + (a.mean(0) - b.mean(0)).square().sum().item(),
        optimal_cost=Wasserstein()(a, b) ** 2,
        lost_source=_lost(i0, len(x0)),
        lost_data=_lost(i1, len(x1)),
        label_error=None if cond is None or cond.is_floating_point() else _label_error(cond, i1),
        leak=None if cond is None else _leak(a, cond.detach().cpu()[i1.cpu()]),
    )


def _check_conditions(cond: Tensor, n: int) -> None:
    if cond.ndim == 0 or len(cond) != n:
        raise ArgumentError(f"cond has shape {tuple(cond.shape)} for {n} samples, expected one for each")
    if cond.is_complex() or cond.is_meta:
        raise ArgumentError(f"cond is {cond.dtype} on {cond.device}, expected labels or vectors of real numbers")
    if cond.is_floating_point():
        check_finite(cond, "cond")


def _lost(i: Tensor, shown: int) -> float:
    return 1 - len(i.unique()) / min(len(i), shown)


def _label_error(labels: Tensor, i1: Tensor) -> float:
    """Half the sum of |share among the pairs - share among what was shown|, over the labels."""
    _, k = labels.unique(dim=0, return_inverse=True)
    shown, paired = (k_.bincount(minlength=int(k.max()) + 1).double() / len(k_) for k_ in (k, k[i1.to(k.device)]))
    return (shown - paired).abs().sum().item() / 2


def _leak(x: Tensor, cond: Any) -> float | None:
    """1 - (residual variance of x, regressed on cond and 1, per degree of freedom) / (its variance)."""
    if cond.is_floating_point():
        features = torch.cat([torch.ones(len(cond), 1, dtype=torch.float64), cond.double().reshape(len(cond), -1)], 1)
    else:
        _, k = cond.unique(dim=0, return_inverse=True)
        features = torch.nn.functional.one_hot(k).double()
    basis, sizes, _ = torch.linalg.svd(features, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes[0]]
    centred = x - x.mean(0)
    left = len(x) - basis.shape[1]
    total = centred.square().sum().item() / (len(x) - 1)
    if left < 1 or total == 0:
        return None
    return 1 - (centred - basis @ (basis.T @ centred)).square().sum().item() / left / total
