"""Exact minibatch optimal transport: the permutation that minimises the sum of squared distances.

pi = argmin over permutations of sum_k |x0[pi(k)] - x1[k]|²       (Tong et al., arXiv 2302.00482;
                                                                   Pooladian et al., arXiv 2304.14772)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmkit.couplings.assignment import assign
from fmkit.couplings.base import Coupling, check_batches


class OptimalTransport(Coupling):
    """The optimal assignment within a batch, exactly, in float64; a permutation, nothing drawn.

    x1 keeps its order and x0 is reordered, so labels and conditions of the data stay where they are.
    Conditions are not looked at: with them, optimal transport correlates x0 with the condition, which
    `ConditionalOptimalTransport` avoids.
    """

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None) -> tuple[Tensor, Tensor]:
        check_batches(x0, x1, cond0, cond1, generator)
        i0 = assign(*(x.detach().reshape(len(x), -1) for x in (x0, x1)))
        return i0.to(x1.device), torch.arange(len(x1), device=x1.device)
