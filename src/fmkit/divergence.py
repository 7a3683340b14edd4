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

# Rows of the Jacobian taken at once, times batch, times dimension: as measured on a processor, where half of it or four
# times as much hardly differ; a GPU wants more work at once, about a hundred megabytes in a wide network.
CPU_ELEMENTS, GPU_ELEMENTS = 2**20, 2**21
# Up to so many rows are taken one after the other.
FEW = 4


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
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
        chunk = self.chunk or _fitting(x)

        def diagonal(row: Tensor, e: Tensor) -> Tensor:
            return row.reshape(len(row), -1) @ e.flatten()

        def rate(t: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            velocity, entries = _products(f, t, x, basis, diagonal, chunk)
            return velocity, entries.sum(1, keepdim=True)

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

        def estimate(row: Tensor, z: Tensor) -> Tensor:
            return sum_event(row * z)

        def rate(t: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            return _products(f, t, x, probes, estimate, _fitting(x))

        return rate


def _check(f: Any, x: Tensor, generator: Any) -> None:
    if not callable(f):
        raise ArgumentError(f"f is {shown(f)}, expected a function (t, x) -> velocity")
    if not isinstance(x, Tensor) or x.device.type != "meta":  # where memory is counted, and no number comes out
        check_batch(x)
    check_generator(generator)


def _products(
    f: VelocityFunction, t: Any, x: Tensor, vectors: Tensor, product: Callable[[Tensor, Tensor], Tensor], chunk: int
) -> tuple[Tensor, Tensor]:
    """The velocity, and `(B, k)` products of z^T (dv/dx) with z, for each z of the k vectors.

    A few are taken one after the other: vectorising costs as much as several of them. Inside another transform of
    torch.func, and in inference mode, plain automatic differentiation does not work.
    """
    plain = torch._C._functorch.peek_interpreter_stack() is None and not torch.is_inference_mode_enabled()
    if len(vectors) <= FEW and plain:
        velocity, pull = _plainly(f, t, x)
        return velocity, torch.stack([product(pull(z), z) for z in vectors], 1)
    velocity, pulled = torch.func.vjp(lambda y: check_answer(f(t, y), y, "f"), x)  # type: ignore[misc]

    def one(z: Tensor) -> Tensor:
        return product(pulled(z.expand_as(velocity))[0], z)

    return velocity, torch.func.vmap(one, out_dims=1, chunk_size=chunk)(vectors)


def _plainly(f: VelocityFunction, t: Any, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The velocity, and what multiplies its Jacobian from the left; differentiable where gradients are kept."""
    kept = torch.is_grad_enabled()
    with torch.enable_grad():
        y = x if kept and x.requires_grad else x.detach().requires_grad_()
        velocity = check_answer(f(t, y), y, "f")

    def pull(z: Tensor) -> Tensor:
        if not velocity.requires_grad:  # a constant field
            return torch.zeros_like(x)
        (row,) = torch.autograd.grad(
            velocity, y, z.expand_as(velocity), retain_graph=True, create_graph=kept, materialize_grads=True
        )
        return row

    return velocity if kept else velocity.detach(), pull


def _fitting(x: Tensor) -> int:
    """How many rows of the Jacobian to take at once."""
    return max(1, (CPU_ELEMENTS if x.device.type == "cpu" else GPU_ELEMENTS) // x.numel())
