"""Gauss's quadrature: the integral of f over [0, 1] is nearly sum_k w_k f(u_k), of smooth f."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.cache
def gauss(n: int) -> tuple[Tensor, Tensor]:
    """`(n,)` nodes u in (0, 1) and weights w, in float64 on the CPU; not to be changed in place."""
    from scipy.special import roots_legendre  # here: a tenth of a second that most programs need not wait

    nodes, weights = roots_legendre(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
