"""A flow: what the user keeps. A start, a field and a solver; it samples and gives log-densities.

    x(1) = x(0) + integral of v(t, x) dt,     log p1(x(1)) = log p0(x(0)) - integral of div v dt      (App. C)

and, through a transform y = T(x) to the model's units, log p(x) = log p1(T(x)) + log |dT/dx|.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmkit.divergence import Divergence, ExactDivergence
from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import PredictionField, Rescheduled, VectorField, as_field
from fmkit.parts import Part
from fmkit.paths import AffinePath
from fmkit.shapes import batch_time, check_data, check_finite
from fmkit.solvers import Dopri5, FixedStep, Solution, Solver, twice
from fmkit.sources import Scaled, Source
from fmkit.transforms import Transform


class Flow(Part):
    """A continuous normalizing flow from `start` along `field`, over the field's interval.

    Args:
        start: the law at the beginning of the field's interval (a path's `start(source)`).
        field: the velocity.
        solver: how to integrate unless told otherwise: dopri5 at 1e-5 by default.
        event_shape: shape of one sample.
        transform: from the user's units to the model's; none by default.
        divergence: how likelihoods take the divergence: exactly by default.

    Samples and densities are in the user's units. No gradients are kept unless `differentiable=True`.
    """

    def __init__(
        self,
        start: Source,
        field: VectorField,
        solver: Solver | None = None,
        event_shape: Sequence[int] | int = (),
        transform: Transform | None = None,
        divergence: Divergence | None = None,
    ) -> None:
        super().__init__()
        self.start = start
        self.field = as_field(field)
        self.solver = Dopri5() if solver is None else solver
        self.event_shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        self.transform = transform
        self.divergence = ExactDivergence() if divergence is None else divergence

    @property
    def interval(self) -> tuple[float, float]:
        """The times integrated over: the field's."""
        return self.field.interval

    @property
    def device(self) -> torch.device:
        """Where the field's weights are, or its buffers if it has none."""
        return next((v.device for v in (*self.field.parameters(), *self.field.buffers())), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the field's weights; the default one for a field without any."""
        return self._precision(torch.get_default_dtype())

    def _precision(self, otherwise: torch.dtype) -> torch.dtype:
        return next((p.dtype for p in self.field.parameters()), otherwise)

    def sample(
        self,
        n: int,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        differentiable: bool = False,
    ) -> Tensor:
        """`(n, *event_shape)` samples.

        Args:
            n: how many, >= 1.
            cond: a condition for each, or one label for all.
            solver: instead of the flow's own.
            generator: the only randomness there is.
            differentiable: keep gradients with respect to weights and condition.

        Raises:
            ArgumentError: for n below 1, or a condition of another length.
            CombinationError: for a solver that needs what the field does not offer.
            SolverError: if the integration does not reach its end.
        """
        x0, cond = self._begin(n, cond, generator)
        with self._mode(differentiable):
            y = self._solve(x0, self.interval, cond, solver, generator).final
            return self.in_data_units(y)

    def log_prob(
        self,
        x: Tensor,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        divergence: Divergence | None = None,
        generator: torch.Generator | None = None,
        differentiable: bool = False,
    ) -> Tensor:
        """`(B,)` log-densities, in nats per event, of `(B, *event_shape)` points: of what `sample` draws.

        With a fixed-step solver and the exact divergence the error is estimated on a few samples, and warned of if it
        is above 0.01 bits per dimension.

        Raises:
            ArgumentError: for points of another shape, or not finite.
            CombinationError: if there is no such density (a source without one, a manifold, an SDE solver).
            SolverError: if the integration does not reach its end.
        """
        x = self._check_points(x)
        cond = self._condition(cond, len(x))
        with self._mode(differentiable):
            dtype = self._precision(x.dtype)
            y = (x if self.transform is None else self.transform(x)).to(dtype)
            y0, change = self._augmented(y, self.interval[::-1], cond, solver, divergence, generator)
            log_prob = self.start.log_prob(y0, cond) + change
            return log_prob if self.transform is None else log_prob + self.transform.log_det(x).to(dtype)

    def sample_with_log_prob(
        self,
        n: int,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        divergence: Divergence | None = None,
        generator: torch.Generator | None = None,
        differentiable: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Samples `(n, *event_shape)` and their log-densities `(n,)`, in one integration; errors as of the two."""
        y0, cond = self._begin(n, cond, generator)
        with self._mode(differentiable):
            y, change = self._augmented(y0, self.interval, cond, solver, divergence, generator)
            log_prob = self.start.log_prob(y0, cond) - change
            if self.transform is None:
                return y, log_prob
            x = self.transform.inverse(y)
            return x, log_prob + self.transform.log_det(x)

    def transport(
        self,
        x: Tensor,
        t0: float = 1.0,
        t1: float = 0.0,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        differentiable: bool = False,
    ) -> Tensor:
        """Points `(B, *event_shape)` carried along the flow from time t0 to t1, forward or backward.

        At the data end (t = 1) points are in the user's units, at any other time in the model's. A time in [0, 1]
        beyond the field's interval means the interval's end.

        Raises:
            ArgumentError: for a time outside [0, 1], equal times, or points of another shape.
        """
        x = self._check_points(x)
        begin, end = self._inside(t0), self._inside(t1)
        with self._mode(differentiable):
            if self.transform is not None and begin == self.interval[1]:
                x = self.transform(x)
            y = self._solve(
                x.to(self._precision(x.dtype)), (begin, end), self._condition(cond, len(x)), solver, generator
            ).final
            return self.transform.inverse(y) if self.transform is not None and end == self.interval[1] else y

    def rescheduled(self, path: AffinePath) -> Flow:
        """This flow, followed along another affine path: the same samples, by other and perhaps easier ways.

        Raises:
            CombinationError: if this flow's field was not trained on an affine path without latent noise.
        """
        if not isinstance(self.field, PredictionField) or not isinstance(self.field.path, AffinePath):
            raise CombinationError("only a flow trained on an affine path can be followed along another")
        field = Rescheduled(self.field, self.field.path, path)
        start = Scaled.of(self.start, field.scale(field.interval[0]))
        return Flow(start, field, self.solver, self.event_shape, self.transform, self.divergence).eval()

    def trajectory(
        self,
        n: int,
        times: Sequence[float] | None = None,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
    ) -> Solution:
        """The whole solution of a sampling run, in the model's units: states at `times`, NFE, steps.

        Args:
            n: how many samples.
            times: from the beginning of the interval to its end, with stops between; just the two by default.
        """
        times = self.interval if times is None else [self._inside(t) for t in times]
        x0, cond = self._begin(n, cond, generator)
        with self._mode(False):
            return self._solve(x0, times, cond, solver, generator)

    def in_data_units(self, y: Tensor) -> Tensor:
        """Points `(B, *event_shape)` at the data end, as a trajectory ends with, in the user's units."""
        return y if self.transform is None else self.transform.inverse(y)

    def save(self, path: str | Path) -> None:
        """Write the flow to one file, whole or not at all: safetensors, with its parts described in JSON.

        Raises:
            SavedFileError: if a part cannot be written down.
        """
        from fmkit.saving import save_flow

        save_flow(self, path)

    @staticmethod
    def load(path: str | Path, *, using: Iterable[Any] = ()) -> Flow:
        """Read a flow. Nothing in the file is run or imported; its parts must be installed.

        Args:
            path: a file written by `save`.
            using: classes of parts that no package registers, and the user's own network modules.

        Raises:
            SavedFileError: for a file that is damaged, no flow, or names what is not installed.
        """
        from fmkit.saving import load_flow

        return load_flow(path, using)

    def _begin(self, n: int, cond: Any, generator: torch.Generator | None) -> tuple[Tensor, Any]:
        if isinstance(n, bool) or not isinstance(n, Integral) or n < 1:
            raise ArgumentError(f"n is {n!r}, expected a number of samples of at least 1")
        cond = self._condition(cond, int(n))
        shape = (int(n), *self.event_shape)
        if generator is not None and generator.device.type != self.device.type:
            x0 = self.start.sample(shape, cond=cond, generator=generator, dtype=self.dtype, device=generator.device)
            return x0.to(self.device), cond
        return self.start.sample(shape, cond=cond, generator=generator, dtype=self.dtype, device=self.device), cond

    def _condition(self, cond: Any, n: int) -> Any:
        if cond is None:
            return None
        cond = torch.as_tensor(cond, device=self.device)
        if cond.ndim == 0:
            cond = cond.expand(n)
        if len(cond) != n:
            raise ArgumentError(f"{len(cond)} conditions for {n} samples; expected one for each, or one for all")
        return cond

    def _check_points(self, x: Tensor) -> Tensor:
        check_finite(check_data(x, "x"), "x")
        if x.shape[1:] != self.event_shape:
            raise ArgumentError(f"x has events of shape {tuple(x.shape[1:])}, this flow's are {self.event_shape}")
        return x.to(self.device)  # its precision is the user's until the transform has been applied

    def _inside(self, t: float) -> float:
        if not 0.0 <= t <= 1.0:
            raise ArgumentError(f"t is {t}, expected a time in [0, 1]")
        return min(max(float(t), self.interval[0]), self.interval[1])

    def _bound(self, protocol: str, cond: Any) -> Callable[..., Any]:
        method = getattr(self.field, protocol)
        return lambda *at: method(*(batch_time(t, at[-1]) for t in at[:-1]), at[-1], cond)

    def _solve(
        self, x: Tensor, times: Sequence[float], cond: Any, solver: Solver | None, generator: torch.Generator | None
    ) -> Solution:
        solver = self.solver if solver is None else solver
        check_reads(solver, self.field)
        return solver.solve(self._bound(solver.reads, cond), x, times, generator=generator)

    def _augmented(
        self,
        x: Tensor,
        times: Sequence[float],
        cond: Any,
        solver: Solver | None,
        divergence: Divergence | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """The end of x, and the integral of the divergence along the way, in the direction of `times`."""
        solver = self.solver if solver is None else solver
        if solver.reads != "velocity":
            raise CombinationError(
                f"{type(solver).__name__} reads {solver.reads!r}: a log-density needs a solver of ODEs"
            )
        if not self.field.euclidean:
            raise CombinationError(
                "this flow lives on a manifold: the divergence in ambient coordinates is not the rate of its "
                "log-density"
            )
        divergence = divergence or self.divergence
        rate = divergence.rate(self._bound("velocity", cond), x, generator)
        end = solver.solve(lambda t, s: rate(t, s[0]), _with_integral(x), times).final
        if isinstance(solver, FixedStep) and isinstance(divergence, ExactDivergence):
            rows = x[:DOUBTED].detach()
            few = None if cond is None else cond[:DOUBTED]
            rate = divergence.rate(self._bound("velocity", few), rows)
            with torch.no_grad():
                finer = twice(solver).solve(lambda t, s: rate(t, s[0]), _with_integral(rows), times).final
            _warn_if_off(solver, end[1][:DOUBTED].detach() - finer[1], self.event_shape)
        return end

    @contextlib.contextmanager
    def _mode(self, differentiable: bool) -> Iterator[None]:
        """Dropout off, and gradients only where they are asked for."""
        modes = [(module, module.training) for module in self.field.modules()]
        self.field.eval()
        try:
            with contextlib.nullcontext() if differentiable else torch.no_grad():
                yield
        finally:
            for module, training in modes:  # one by one: a frozen submodule stays frozen
                module.training = training


DOUBTED = 16  # samples whose likelihood is taken again with twice the steps
TOLERATED = 0.01  # bits per dimension


def _with_integral(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, torch.zeros(len(x), dtype=x.dtype, device=x.device)


def _warn_if_off(solver: FixedStep, difference: Tensor, event_shape: tuple[int, ...]) -> None:
    """A likelihood of few steps is no likelihood: say by how much it is off, by Richardson's estimate."""
    error = difference.double().abs().mean().item() / (1 - 0.5**solver.order)
    bits = error / (math.log(2) * max(1, math.prod(event_shape)))
    if not bits <= TOLERATED:
        warnings.warn(
            f"log-densities by {type(solver).__name__} in {solver.steps} steps are off by about {error:.2g} nats a "
            f"sample ({bits:.2g} bits per dimension), as twice the steps show; take more steps, or an adaptive solver",
            stacklevel=5,
        )


def check_reads(solver: Solver, field: VectorField) -> None:
    """Refuse a solver that reads what the field does not offer.

    Raises:
        CombinationError: naming both.
    """
    if solver.reads in field.offers:
        return
    sde = "; an SDE needs a standard Gaussian source, the independent coupling and a path without latent noise"
    raise CombinationError(
        f"{type(solver).__name__} reads {solver.reads!r}, and this field offers {', '.join(sorted(field.offers))}"
        + (sde if solver.reads == "stochastic" else "")
    )
