"""Likelihoods of held-out data: bits per dimension of integer images, and nats of anything else.

    bits/dim(x) = -(1/d) log2 (1/K) sum_k p(x + u_k),   u_k ~ U(0, 1)^d       (Lipman et al. 2022, eq. 47)

p is the flow's density in the user's units, where grey levels are the integers 0 .. levels - 1, so that the integral
of p over [x, x + 1)^d is the probability of the image x. By Jensen's inequality the expectation lies above the bits of
that probability, and falls to them as K grows. Use an accurate solver: few-step likelihoods mean nothing.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.metrics.base import default_generator
from fmkit.shapes import time_dtype

if TYPE_CHECKING:
    from fmkit.divergence import Divergence
    from fmkit.flow import Flow
    from fmkit.solvers import Solver


class NegativeLogLikelihood(NamedTuple):
    """-E log p over a data set, in nats per event, and the standard error of that mean."""

    mean: float
    standard_error: float


def bits_per_dim(
    flow: Flow,
    x: Tensor,
    cond: Any = None,
    *,
    levels: int,
    samples: int = 1,
    solver: Solver | None = None,
    divergence: Divergence | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`(B,)` bits per dimension of integer images, in float64; their mean is the figure papers report.

    Args:
        flow: whose samples are in the units of x (its transform owns its log-determinant).
        x: `(B, *event)` grey levels 0 .. levels - 1, of any dtype.
        cond: a condition for each image, or one label for all.
        levels: number of grey levels, >= 2; 256 for 8-bit images.
        samples: K, dequantizations of each image, >= 1; the paper takes 50 / 15 / 10 for CIFAR-10 / ImageNet-32 / -64.
        solver: instead of the flow's own.
        divergence: instead of the flow's own.
        batch_size: images at once; all by default. An adaptive solver's steps depend on it, within its tolerance.
        generator: draws u, and the probes of a stochastic divergence; None draws the same numbers at each call.

    Raises:
        ArgumentError: if x holds anything but whole numbers in 0 .. levels - 1, or a number is out of range.
        CombinationError: if the flow has no density.
    """
    for name, value, least in (("levels", levels, 2), ("samples", samples, 1)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ArgumentError(f"{name} is {value!r}, expected a whole number of at least {least}")
    x = _check_levels(x, levels)
    generator = default_generator(flow.device) if generator is None else generator
    logs = []
    for _ in range(samples):
        u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
        logs.append(_log_prob(flow, x + u, cond, batch_size, solver, divergence, generator))
    log_mean = torch.logsumexp(torch.stack(logs), 0) - math.log(samples)
    return -log_mean / (x[0].numel() * math.log(2))


def nll(
    flow: Flow,
    x: Tensor,
    cond: Any = None,
    *,
    solver: Solver | None = None,
    divergence: Divergence | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> NegativeLogLikelihood:
    """The mean of -log p over `(B, *event)` points, in nats in the user's units, and its standard error.

    Args:
        flow: the flow.
        x: the points, B >= 2.
        cond: a condition for each, or one label for all.
        solver: instead of the flow's own.
        divergence: instead of the flow's own.
        batch_size: points at once; all by default.
        generator: draws the probes of a stochastic divergence; None draws the same at each call.

    Raises:
        ArgumentError: for fewer than two points, or points of another shape.
        CombinationError: if the flow has no density.
    """
    if not isinstance(x, Tensor) or x.ndim < 1 or len(x) < 2:
        raise ArgumentError("x has fewer than two points; the standard error of a mean needs two")
    generator = default_generator(flow.device) if generator is None else generator
    log_prob = _log_prob(flow, x, cond, batch_size, solver, divergence, generator)
    return NegativeLogLikelihood(-log_prob.mean().item(), log_prob.std().item() / math.sqrt(len(x)))


def _log_prob(
    flow: Flow,
    x: Tensor,
    cond: Any,
    batch_size: int | None,
    solver: Solver | None,
    divergence: Divergence | None,
    generator: torch.Generator,
) -> Tensor:
    """`(B,)` log-densities in float64, a batch at a time; a condition for each point is cut with it."""
    if batch_size is not None and batch_size < 1:
        raise ArgumentError(f"batch_size is {batch_size}, expected at least 1")
    cond = None if cond is None else torch.as_tensor(cond)
    if cond is not None and cond.ndim and len(cond) != len(x):
        raise ArgumentError(f"{len(cond)} conditions for {len(x)} points; expected one for each, or one for all")
    logs = []
    for start in range(0, len(x), batch_size or len(x)):
        rows = slice(start, start + (batch_size or len(x)))
        part = cond if cond is None or cond.ndim == 0 else cond[rows]
        logs.append(flow.log_prob(x[rows], part, solver=solver, divergence=divergence, generator=generator))
    return torch.cat(logs).to(time_dtype(logs[0].device))


def _check_levels(x: Tensor, levels: int) -> Tensor:
    """The grey levels in float64, if that is what they are."""
    if not isinstance(x, Tensor) or x.ndim < 2 or x.numel() == 0:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ArgumentError(f"x has {got}, expected a non-empty tensor (B, *event) of grey levels")
    x = x.to(time_dtype(x.device))
    if not bool((x == x.round()).all()):
        wrong = x[x != x.round()][0].item()
        raise ArgumentError(f"x holds {wrong:g}, expected whole grey levels 0 .. {levels - 1}, not yet dequantized")
    low, high = (v.item() for v in torch.aminmax(x))
    if low < 0 or high > levels - 1:
        raise ArgumentError(f"grey levels range over {low:g} .. {high:g}, expected 0 .. {levels - 1}")
    return x
