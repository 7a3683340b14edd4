"""Likelihoods of held-out data: bits per dimension of integer images, and nats of anything else.

    bits/dim(x) = -(1/d) log2 (1/K) sum_k p(x + u_k),   u_k ~ U(0, 1)^d       (Lipman et al. 2022, eq. 47)

p is the flow's density in the user's units, where grey levels are the integers 0 .. levels - 1, so that the integral
of p over [x, x + 1)^d is the probability of the image x. By Jensen's inequality the expectation lies above the bits of
that probability, and falls to them as K grows. Use an accurate solver: few-step likelihoods mean nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmkit.arguments import check_count, checked
from fmkit.divergence import Divergence
from fmkit.errors import ArgumentError
from fmkit.flow import Flow
from fmkit.metrics.base import default_generator
from fmkit.shapes import time_dtype
from fmkit.solvers import Solver


class NegativeLogLikelihood(NamedTuple):
    """-E log p over a data set, in nats per event, and the standard error of that mean.

    The error is that of the points' spread, in which the noise of a stochastic divergence's probes is contained.
    """

    mean: float
    standard_error: float


@checked
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
        generator: draws u, and the probes of a stochastic divergence apart from it, so that u is the same whatever the
            divergence; None draws the same numbers at each call.

    Raises:
        ArgumentError: if x holds anything but whole numbers in 0 .. levels - 1, or a number is out of range.
        CombinationError: if the flow has no density.
    """
    how: dict[str, Any] = {"solver": solver, "divergence": divergence, "generator": generator}
    return _dequantized(flow, x, cond, levels, samples, batch_size, False, **how)[0]


@checked
def bits_per_dim_with_error(
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
) -> tuple[Tensor, Tensor]:
    """`bits_per_dim`, and the standard error `(B,)` that a stochastic divergence leaves it with, from its probes.

    The error is 0 for an exact divergence; the choice of u is not in it, and K takes care of that. With K > 1 the noise
    of the probes also biases log (1/K) sum_k p, upwards by up to half its variance in nats: see that it is small.
    Arguments and errors as of `bits_per_dim`.

    Raises:
        ArgumentError: also for a stochastic divergence of a single probe, whose error is not known.
    """
    how: dict[str, Any] = {"solver": solver, "divergence": divergence, "generator": generator}
    return _dequantized(flow, x, cond, levels, samples, batch_size, True, **how)


def _dequantized(
    flow: Flow,
    x: Tensor,
    cond: Any,
    levels: int,
    samples: int,
    batch_size: int | None,
    with_error: bool,
    *,
    generator: torch.Generator | None,
    **how: Any,
) -> tuple[Tensor, Tensor]:
    """Bits, and the error of the probes: the k-th density's weight in d log sum_k p_k is its share of the sum."""
    for name, value, least in (("levels", levels, 2), ("samples", samples, 1)):
        check_count(name, value, least)
    x = _check_levels(x, levels)
    generator = default_generator(flow.device) if generator is None else generator
    probes = _apart(generator)
    logs, errors = [], []
    for _ in range(samples):
        u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
        log_prob, error = _scored(flow, x + u, cond, batch_size, with_error, generator=probes, **how)
        logs.append(log_prob)
        errors.append(error)
    each, unit = torch.stack(logs), x[0].numel() * math.log(2)
    error = (torch.softmax(each, 0) * torch.stack(errors)).square().sum(0).sqrt()
    return -(torch.logsumexp(each, 0) - math.log(samples)) / unit, error / unit


@checked
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
    how = {"solver": solver, "divergence": divergence, "generator": generator}
    log_prob, _ = _scored(flow, x, cond, batch_size, False, **how)
    return NegativeLogLikelihood(-log_prob.mean().item(), log_prob.std().item() / math.sqrt(len(x)))


def standard_error(values: Tensor) -> float | None:
    """Of the mean of `(B,)` independent values; None of a single one, whose spread is unknown."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None


def _apart(generator: torch.Generator) -> torch.Generator:
    """Another generator, that follows from the state of the first and leaves it as it is."""
    seed = torch.randint(2**31, (), generator=generator.clone_state(), device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seed))


def _scored(
    flow: Flow, x: Tensor, cond: Any, batch_size: int | None, with_error: bool, **how: Any
) -> tuple[Tensor, Tensor]:
    """`(B,)` log-densities and the errors of their probes (0 unless asked for), in float64, a batch at a time."""
    if batch_size is not None:
        check_count("batch_size", batch_size)
    cond = None if cond is None else torch.as_tensor(cond)
    if cond is not None and cond.ndim and len(cond) != len(x):
        raise ArgumentError(f"{len(cond)} conditions for {len(x)} points; expected one for each, or one for all")
    logs, errors = [], []
    for start in range(0, len(x), batch_size or len(x)):
        rows = slice(start, start + (batch_size or len(x)))
        part = cond if cond is None or cond.ndim == 0 else cond[rows]
        if with_error:
            log_prob, error = flow.log_prob_with_error(x[rows], part, **how)
        else:
            log_prob = flow.log_prob(x[rows], part, **how)
            error = torch.zeros_like(log_prob)
        logs.append(log_prob)
        errors.append(error)
    double = time_dtype(logs[0].device)
    return torch.cat(logs).to(double), torch.cat(errors).to(double)


def _check_levels(x: Tensor, levels: int) -> Tensor:
    """The grey levels in float64, if that is what they are."""
    if not isinstance(x, Tensor) or x.ndim < 2 or x.numel() == 0:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ArgumentError(f"x has {got}, expected a non-empty tensor (B, *event) of grey levels")
    if x.is_complex() or x.dtype == torch.bool or x.device.type == "meta":
        raise ArgumentError(f"x holds {x.dtype} on {x.device}, expected real grey levels")
    x = x.to(time_dtype(x.device))
    if not bool((x == x.round()).all()):
        wrong = x[x != x.round()][0].item()
        raise ArgumentError(f"x holds {wrong:g}, expected whole grey levels 0 .. {levels - 1}, not yet dequantized")
    low, high = (v.item() for v in torch.aminmax(x))
    if low < 0 or high > levels - 1:
        raise ArgumentError(f"grey levels range over {low:g} .. {high:g}, expected 0 .. {levels - 1}")
    return x
