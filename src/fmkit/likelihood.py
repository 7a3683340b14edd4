"""The log-density along a flow (Lipman et al., arXiv 2210.02747, app. C): the point and, beside it, an integral.

    d/dt [x, l] = [v(t, x), div v(t, x)],     log p_end(x_end) = log p_begin(x_begin) - l

A stochastic divergence gives k independent estimates of l, whose spread tells the error of their mean. The error of a
solver's steps is seen by taking the likelihood of a few samples again with finer ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fmkit.adjoint import solve_by_adjoint
from fmkit.divergence import Divergence
from fmkit.errors import ArgumentError, LikelihoodWarning
from fmkit.solvers import Solver, refined

DOUBTED = 16  # samples whose likelihood is taken again with finer steps
TOLERATED = 0.01  # bits per dimension
LOOSE = 1e-3  # a tolerance from which an adaptive solver is doubted

Velocity = Callable[[Any, Tensor], Tensor]


class Carried(NamedTuple):
    """Points at the end of an integration, and the integral of the divergence on the way.

    Attributes:
        x: `(B, *event)` points.
        integrals: `(B, k)` estimates of the integral, independent of each other.
        exact: whether they are the integral itself, but for the solver's error.
    """

    x: Tensor
    integrals: Tensor
    exact: bool

    @property
    def integral(self) -> Tensor:
        """`(B,)` the mean estimate."""
        return self.integrals.mean(1)

    @property
    def standard_error(self) -> Tensor:
        """`(B,)` the standard error of the mean estimate; 0 where the divergence is exact.

        Raises:
            ArgumentError: if there is only one estimate, and it is not exact.
        """
        if self.exact:
            return torch.zeros_like(self.integral)
        k = self.integrals.shape[1]
        if k < 2:
            raise ArgumentError("one probe has no standard error; take HutchinsonDivergence(probes=2) or more")
        return self.integrals.std(1) / math.sqrt(k)


def carry(
    f: Velocity,
    x: Tensor,
    times: Sequence[float],
    solver: Solver,
    divergence: Divergence,
    generator: torch.Generator | None,
    inputs: Sequence[Tensor] | None = None,
) -> Carried:
    """Points carried along the velocity f from the first time to the last, with the integral of its divergence.

    Args:
        f: `(t, x) -> (B, *event)`; rows do not depend on each other.
        x: `(B, *event)` points at the first time.
        times: where to begin and where to end, in either direction.
        solver: of ODEs.
        divergence: exact or not.
        generator: of its probes.
        inputs: for gradients by the adjoint, what they are wanted of besides x; None for those through the steps.
    """
    rate = divergence.rate(f, x, generator)

    def augmented(t: Any, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return rate(t, state[0])

    begin = (x, x.new_zeros(len(x), divergence.estimates))
    if inputs is None:
        y, integrals = solver.solve(augmented, begin, times).final
    else:
        y, integrals = solve_by_adjoint(solver, augmented, begin, times, inputs)
    return Carried(y, integrals, divergence.exact)


def doubt(score: Callable[[Solver], Tensor], solver: Solver, dim: int, done: Tensor | None = None) -> None:
    """Warn if the log-densities of these few samples change when the solver is finer: they are then none.

    Fixed steps are cut in two, and the change is scaled to the whole error by Richardson's rule for the solver's order.
    An adaptive solver is doubted where its tolerance is loose, and its change from a tight one shown as it is.

    Args:
        score: the log-densities `(n,)` by a solver, always with the same probes.
        solver: the solver in doubt.
        dim: the number of elements of an event.
        done: what it gave, where that need not be computed again.
    """
    finer = refined(solver)
    if finer is None:
        return
    known: Any = solver  # has steps, or tolerances: it has a finer one
    steps = getattr(solver, "steps", None)
    tolerance = None if isinstance(steps, int) else max(known.rtol, known.atol)
    if tolerance is not None and tolerance <= LOOSE:
        return
    with torch.no_grad():
        coarse, fine = score(solver) if done is None else done.detach(), score(finer)
    # Outside a bounded start both are -inf, which is no error.
    error = torch.where(coarse == fine, 0.0, (coarse - fine).double()).abs().mean().item()
    if tolerance is None:
        error, how, seen = error / (1 - 0.5 ** getattr(solver, "order", 1)), f"in {steps} steps", "twice the steps show"
    else:
        how, seen = f"at a tolerance of {tolerance:g}", "a tighter one shows"
    bits = error / (math.log(2) * max(1, dim))
    if not bits <= TOLERATED:
        text = (
            f"log-densities by {type(solver).__name__} {how} are off by about {error:.2g} nats a sample ({bits:.2g} "
            f"bits per dimension), as {seen}; take more steps, or an adaptive solver at a small tolerance"
        )
        warnings.warn(LikelihoodWarning(text, bits), stacklevel=6)
