"""The divergence of a field, trace(dv/dx): exact for any event shape, or Hutchinson's unbiased estimates.

    div v = sum_i e_i^T (dv/dx) e_i  =  E z^T (dv/dx) z   for any z with E z z^T = I

Both evaluate the field once and multiply rows of the Jacobian from the left (vector-Jacobian products), vectorised, in
chunks that bound memory. Forward mode would evaluate the field again for every chunk, and was 1.1 to 5 times slower at
every size and network tried.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_generator, shown
from fmkit.errors import ArgumentError
from fmkit.parts import Part
from fmkit.randomness import normal_like, signs_like
from fmkit.shapes import check_answer, check_batch, sum_event

VelocityFunction = Callable[[Any, Tensor], Tensor]
RateFunction = Callable[[Any, Tensor], tuple[Tensor, Tensor]]

# Rows of the Jacobian taken at once, times batch, times dimension. What a processor's cache holds is fastest there; a
# GPU wants more work at once, about a hundred megabytes in a wide network.
CPU_ELEMENTS, GPU_ELEMENTS = 2**18, 2**21


class Divergence(Part):
    """The base class of both. A subclass implements `rate`, and says how many estimates it gives.

    Attributes:
        exact: whether an estimate is the divergence itself, without error.
        estimates: how many independent estimates there are.
    """

    group: ClassVar[str] = "fmkit.divergences"
    exact: ClassVar[bool] = False
    estimates: int = 1

    @abc.abstractmethod
    def rate(self, f: VelocityFunction, x: Tensor, generator: torch.Generator | None = None) -> RateFunction:
        """A function (t, x) -> (velocity (B, *event), estimates (B, k)) for one whole integration.

        The k = `estimates` columns are independent and unbiased, so that their spread tells the error of their mean.

        Args:
            f: the velocity, `(t, x) -> (B, *event)`; rows must not depend on each other.
            x: `(B, *event)` points like those it will be asked about.
            generator: for random probes, which are drawn here and fixed for the whole integration.
        """


class ExactDivergence(Divergence):
    """The whole trace, D rows of the Jacobian, as one estimate without error.

    Args:
        chunk: rows at once; by default as many as are fast, within about a hundred megabytes.

    Raises:
        ArgumentError: if chunk is no whole number of at least 1.
    """

    exact = True

    def __init__(self, chunk: int | None = None) -> None:
        super().__init__()
        self.chunk = None if chunk is None else check_count("chunk", chunk)

    def rate(self, f: VelocityFunction, x: Tensor, generator: torch.Generator | None = None) -> RateFunction:
        _check(f, x, generator)
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        chunk = self.chunk or _fitting(x)

        def rate(t: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            velocity, pull = _pulled(f, t, x)

            def diagonal(e: Tensor) -> Tensor:
                row = pull(e.reshape(x.shape[1:]).expand_as(velocity))[0]
                return row.reshape(len(row), -1) @ e

            return velocity, torch.func.vmap(diagonal, chunk_size=chunk)(basis).sum(0)[:, None]

        return rate


class HutchinsonDivergence(Divergence):
    """Hutchinson's estimates z^T (dv/dx) z, one for each probe z; probes stay fixed during an integration.

    Unbiased for the log-density, not for the density. Rademacher probes are exact for a diagonal Jacobian.

    Args:
        probes: number of probes, >= 1; from 2 on the error of their mean is known.
        distribution: of the probes' entries, "rademacher" (least variance) or "gaussian".

    Raises:
        ArgumentError: if probes is no whole number of at least 1, or the distribution is neither.
    """

    def __init__(self, probes: int = 1, distribution: Literal["rademacher", "gaussian"] = "rademacher") -> None:
        super().__init__()
        if distribution not in ("rademacher", "gaussian"):
            raise ArgumentError(f"distribution is {distribution!r}, expected 'rademacher' or 'gaussian'")
        self.probes, self.distribution = check_count("probes", probes), distribution
        self.estimates = self.probes

    def rate(self, f: VelocityFunction, x: Tensor, generator: torch.Generator | None = None) -> RateFunction:
        _check(f, x, generator)
        draw = normal_like if self.distribution == "gaussian" else signs_like
        probes = draw(x, generator, self.probes)

        def rate(t: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            velocity, pull = _pulled(f, t, x)

            def estimate(z: Tensor) -> Tensor:
                return sum_event(pull(z)[0] * z)

            return velocity, torch.func.vmap(estimate, out_dims=1, chunk_size=_fitting(x))(probes)

        return rate


def _check(f: Any, x: Tensor, generator: Any) -> None:
    if not callable(f):
        raise ArgumentError(f"f is {shown(f)}, expected a function (t, x) -> velocity")
    if not isinstance(x, Tensor) or x.device.type != "meta":  # where memory is counted, and no number comes out
        check_batch(x)
    check_generator(generator)


def _pulled(f: VelocityFunction, t: Any, x: Tensor) -> tuple[Tensor, Callable[..., Any]]:
    """The velocity, and what multiplies its Jacobian from the left."""

    def velocity(y: Tensor) -> Tensor:
        out = f(t, y)
        return check_answer(out, y, "f")

    return torch.func.vjp(velocity, x)  # type: ignore[return-value]


def _fitting(x: Tensor) -> int:
    """How many rows of the Jacobian to take at once."""
    return max(1, (CPU_ELEMENTS if x.device.type == "cpu" else GPU_ELEMENTS) // x.numel())
