"""The divergence of a field, trace(dv/dx): exact for any event shape, or Hutchinson's unbiased estimate.

    div v = sum_i e_i^T (dv/dx) e_i  =  E z^T (dv/dx) z   for any z with E z z^T = I

Both evaluate the field once and multiply rows of the Jacobian from the left (vector-Jacobian products), vectorised.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.parts import Part
from fmkit.randomness import normal_like, signs_like
from fmkit.shapes import sum_event

VelocityFunction = Callable[[Any, Tensor], Tensor]
RateFunction = Callable[[Any, Tensor], tuple[Tensor, Tensor]]

# Rows of the Jacobian taken at once, times batch, times dimension: about a hundred megabytes in a wide network.
CHUNK_ELEMENTS = 2**21


class Divergence(Part):
    """The base class of both. A subclass implements `rate`."""

    group: ClassVar[str] = "fmkit.divergences"

    @abc.abstractmethod
    def rate(self, f: VelocityFunction, x: Tensor, generator: torch.Generator | None = None) -> RateFunction:
        """A function (t, x) -> (velocity (B, *event), divergence (B,)) for one whole integration.

        Args:
            f: the velocity, `(t, x) -> (B, *event)`; rows must not depend on each other.
            x: `(B, *event)` points like those it will be asked about.
            generator: for random probes, which are drawn here and fixed for the whole integration.
        """


class ExactDivergence(Divergence):
    """The whole trace, D rows of the Jacobian, in chunks that bound memory.

    Args:
        chunk: rows at once; by default as many as fit about a hundred megabytes.

    Raises:
        ArgumentError: if chunk is below 1.
    """

    def __init__(self, chunk: int | None = None) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ArgumentError(f"chunk is {chunk}, expected at least 1")
        self.chunk = chunk

    def rate(self, f: VelocityFunction, x: Tensor, generator: torch.Generator | None = None) -> RateFunction:
        dim = x[0].numel()
        basis = torch.eye(dim, dtype=x.dtype, device=x.device)
        chunk = self.chunk or max(1, min(dim, CHUNK_ELEMENTS // x.numel()))

        def rate(t: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            velocity, pull = torch.func.vjp(lambda y: f(t, y), x)  # type: ignore[misc]

            def diagonal(e: Tensor) -> Tensor:
                row = pull(e.reshape(x.shape[1:]).expand_as(velocity))[0]
                return row.reshape(len(row), -1) @ e

            return velocity, torch.func.vmap(diagonal, chunk_size=chunk)(basis).sum(0)

        return rate


class HutchinsonDivergence(Divergence):
    """Hutchinson's estimate z^T (dv/dx) z, averaged over probes z that stay fixed during an integration.

    Unbiased for the log-density, not for the density. Rademacher probes are exact for a diagonal Jacobian.

    Args:
        probes: number of probes, >= 1.
        distribution: of the probes' entries, "rademacher" (least variance) or "gaussian".

    Raises:
        ArgumentError: if probes is below 1, or the distribution is neither.
    """

    def __init__(self, probes: int = 1, distribution: Literal["rademacher", "gaussian"] = "rademacher") -> None:
        super().__init__()
        if probes < 1:
            raise ArgumentError(f"probes is {probes}, expected at least 1")
        if distribution not in ("rademacher", "gaussian"):
            raise ArgumentError(f"distribution is {distribution!r}, expected 'rademacher' or 'gaussian'")
        self.probes, self.distribution = probes, distribution

    def rate(self, f: VelocityFunction, x: Tensor, generator: torch.Generator | None = None) -> RateFunction:
        draw = normal_like if self.distribution == "gaussian" else signs_like
        probes = draw(x, generator, self.probes)

        def rate(t: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            velocity, pull = torch.func.vjp(lambda y: f(t, y), x)  # type: ignore[misc]
            estimates = torch.func.vmap(lambda z: sum_event(pull(z)[0] * z))(probes)
            return velocity, estimates.mean(0)

        return rate
