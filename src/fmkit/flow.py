"""A flow: what the user keeps. A start, a field and a solver; it samples and gives log-densities.

    x(1) = x(0) + integral of v(t, x) dt,     log p1(x(1)) = log p0(x(0)) - integral of div v dt      (App. C)

and, through a transform y = T(x) to the model's units, log p(x) = log p1(T(x)) + log |dT/dx|.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fmkit.adjoint import solve_by_adjoint
from fmkit.arguments import check_count, check_number, checked, shown
from fmkit.compiling import Compile, CompiledProtocol, recorded
from fmkit.divergence import Divergence, ExactDivergence
from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import PredictionField, Rescheduled, VectorField, as_field
from fmkit.likelihood import DOUBTED, Carried, carry, doubt
from fmkit.parts import Part
from fmkit.paths import AffinePath
from fmkit.randomness import stream
from fmkit.shapes import batch_time, check_data, check_finite
from fmkit.solvers import Dopri5, Solution, Solver
from fmkit.sources import Scaled, Source
from fmkit.transforms import Transform

# No gradients, those through the solver's steps, or those of the continuous adjoint.
Gradients = bool | Literal["adjoint"]


class Flow(Part):
    """A continuous normalizing flow from `start` along `field`, over the field's interval.

    Args:
        start: the law at the beginning of the field's interval (a path's `start(source)`).
        field: the velocity.
        solver: how to integrate unless told otherwise: dopri5 at 1e-5 by default.
        event_shape: shape of one sample.
        transform: from the user's units to the model's; none by default.
        divergence: how likelihoods take the divergence: exactly by default.

    Raises:
        ArgumentError: for an event shape that is none, or not that of the field where it is known.

    Samples and densities are in the user's units. No gradients are kept unless asked for: `differentiable=True` gives
    those through the solver's steps, and keeps every step in memory; `differentiable="adjoint"` those of the continuous
    adjoint, in the memory of one step, by a second integration (see `fmkit.adjoint`).
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
        lengths: Any = (event_shape,) if isinstance(event_shape, Integral) else event_shape
        self.event_shape = tuple(check_count("a length of the event_shape", n) for n in lengths)
        known = self.field.event_shape
        if known is not None and tuple(known) != self.event_shape:
            raise ArgumentError(
                f"event_shape is {self.event_shape}, and the field {type(self.field).__name__} takes events of shape "
                f"{tuple(known)}; expected the same"
            )
        self.transform = transform
        self.divergence = ExactDivergence() if divergence is None else divergence
        self._compiled: dict[tuple[str, bool], CompiledProtocol] = {}

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

    @checked
    def sample(
        self,
        n: int,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        differentiable: Gradients = False,
        compile: Compile = False,
    ) -> Tensor:
        """`(n, *event_shape)` samples.

        Args:
            n: how many, >= 1.
            cond: a condition for each, or one label for all.
            solver: instead of the flow's own.
            generator: the only randomness there is.
            differentiable: keep gradients with respect to weights and condition: True, or "adjoint".
            compile: evaluate the field as a compiled graph: seconds at the first call, less time at every other.
                Where that is not possible a warning says so, and the field is evaluated as it is. "graphs" also
                records it, once for each n, and replays it (CUDA graphs): for small fields on a GPU. Elsewhere a
                warning says so, and it is compiled only.

        Raises:
            ArgumentError: for n below 1, a condition of another length, gradients through a compiled field, or another
                word for `compile`.
            CombinationError: for a solver that needs what the field does not offer.
            SolverError: if the integration does not reach its end.
        """
        x0, cond = self._begin(n, cond, generator)
        with self._mode(differentiable):
            y = self._carried(x0, self.interval, cond, solver, generator, differentiable, compile)
            return y if self.transform is None else self.transform.inverse(y)

    @checked
    def log_prob(
        self,
        x: Tensor,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        divergence: Divergence | None = None,
        generator: torch.Generator | None = None,
        differentiable: Gradients = False,
    ) -> Tensor:
        """`(B,)` log-densities, in nats per event, of `(B, *event_shape)` points: of what `sample` draws.

        Few steps make no likelihood: with a fixed-step solver, or an adaptive one whose tolerance is above 1e-3, the
        error is estimated on a few samples and warned of if it is above 0.01 bits per dimension.

        Args:
            x: the points, in the user's units.
            cond: a condition for each, or one label for all.
            solver: instead of the flow's own.
            divergence: instead of the flow's own.
            generator: of a stochastic divergence's probes.
            differentiable: keep gradients with respect to x, weights and condition: True, or "adjoint".

        Raises:
            ArgumentError: for points of another shape, or not finite.
            CombinationError: if there is no such density (a source without one, a manifold, an SDE solver).
            SolverError: if the integration does not reach its end.
        """
        return self._scored(x, cond, solver, divergence, generator, differentiable)[0]

    @checked
    def log_prob_with_error(
        self,
        x: Tensor,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        divergence: Divergence | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`log_prob`, and the standard error `(B,)` that a stochastic divergence leaves it with, from its probes.

        The error is 0 for an exact divergence; the solver's own is not in it. Arguments and errors as of `log_prob`.

        Raises:
            ArgumentError: also for a stochastic divergence of a single probe, whose error is not known.

        Examples:
            >>> import fmkit, torch
            >>> field = fmkit.MixtureOracle(fmkit.paths.CondOT(), means=[[-2.0, 0.0], [2.0, 1.0]], std=0.5)
            >>> flow = fmkit.Flow(fmkit.sources.Gaussian(), field, event_shape=2)
            >>> x, generator = torch.tensor([[0.3, 0.2]]), torch.Generator().manual_seed(0)
            >>> probes = fmkit.HutchinsonDivergence(probes=100)
            >>> value, error = flow.log_prob_with_error(x, divergence=probes, generator=generator)
            >>> bool((value - flow.log_prob(x)).abs() < 3 * error)
            True
        """
        log_prob, carried = self._scored(x, cond, solver, divergence, generator, False)
        return log_prob, carried.standard_error

    def _scored(
        self,
        x: Tensor,
        cond: Any,
        solver: Solver | None,
        divergence: Divergence | None,
        generator: torch.Generator | None,
        differentiable: Gradients,
    ) -> tuple[Tensor, Carried]:
        x = self._check_points(x)
        cond = self._condition(cond, len(x))
        with self._mode(differentiable):
            dtype = self._precision(x.dtype)
            y = (x if self.transform is None else self.transform(x)).to(dtype)
            carried = self._augmented(y, self.interval[::-1], cond, solver, divergence, generator, differentiable)
            log_prob = self.start.log_prob(carried.x, cond) + carried.integral
            self._doubt(y, log_prob, cond, solver, divergence)
            if self.transform is not None:
                log_prob = log_prob + self.transform.log_det(x).to(dtype)
            return log_prob, carried

    @checked
    def sample_with_log_prob(
        self,
        n: int,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        divergence: Divergence | None = None,
        generator: torch.Generator | None = None,
        differentiable: Gradients = False,
    ) -> tuple[Tensor, Tensor]:
        """Samples `(n, *event_shape)` and their log-densities `(n,)`, in one integration; errors as of the two."""
        y0, cond = self._begin(n, cond, generator)
        with self._mode(differentiable):
            carried = self._augmented(y0, self.interval, cond, solver, divergence, generator, differentiable)
            log_prob = self.start.log_prob(y0, cond) - carried.integral
            self._doubt(carried.x, log_prob, cond, solver, divergence)
            if self.transform is None:
                return carried.x, log_prob
            x = self.transform.inverse(carried.x)
            return x, log_prob + self.transform.log_det(x)

    @checked
    def transport(
        self,
        x: Tensor,
        t0: float = 1.0,
        t1: float = 0.0,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        differentiable: Gradients = False,
        compile: Compile = False,
    ) -> Tensor:
        """Points `(B, *event_shape)` carried along the flow from time t0 to t1, forward or backward.

        At the data end (t = 1) points are in the user's units, at any other time in the model's. A time in [0, 1]
        beyond the field's interval means the interval's end. `compile` as in `sample`.

        Raises:
            ArgumentError: for a time outside [0, 1], equal times, or points of another shape.
        """
        x = self._check_points(x)
        begin, end = self._inside(t0), self._inside(t1)
        with self._mode(differentiable):
            if self.transform is not None and begin == self.interval[1]:
                x = self.transform(x)
            x, cond = x.to(self._precision(x.dtype)), self._condition(cond, len(x))
            y = self._carried(x, (begin, end), cond, solver, generator, differentiable, compile)
            return self.transform.inverse(y) if self.transform is not None and end == self.interval[1] else y

    @checked
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

    @checked
    def trajectory(
        self,
        n: int,
        times: Sequence[float] | None = None,
        cond: Any = None,
        *,
        solver: Solver | None = None,
        generator: torch.Generator | None = None,
        compile: Compile = False,
    ) -> Solution:
        """The whole solution of a sampling run, in the model's units: states at `times`, NFE, steps.

        Arguments are those of `sample`, and

        Args:
            n: how many samples.
            times: from the beginning of the interval to its end, with stops between; just the two by default.
        """
        times = self.interval if times is None else [self._inside(t) for t in times]
        x0, cond = self._begin(n, cond, generator)
        with self._mode(False):
            return self._solve(x0, times, cond, solver, generator, compile)

    def in_data_units(self, y: Tensor) -> Tensor:
        """Points `(B, *event_shape)` at the data end, as a trajectory ends with, in the user's units.

        Raises:
            ArgumentError: for points of another shape, or not finite.
        """
        self._check_points(y)
        return y if self.transform is None else self.transform.inverse(y)

    @checked
    def save(self, path: str | Path) -> None:
        """Write the flow to one file, whole or not at all: safetensors, with its parts described in JSON.

        Raises:
            SavedFileError: if a part cannot be written down.
        """
        from fmkit.saving import save_flow

        save_flow(self, path)

    @staticmethod
    @checked
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
        cond = self._condition(cond, check_count("n", n))
        shape = (int(n), *self.event_shape)
        if generator is not None and generator.device.type != self.device.type:
            x0 = self.start.sample(shape, cond=cond, generator=generator, dtype=self.dtype, device=generator.device)
            return x0.to(self.device), cond
        return self.start.sample(shape, cond=cond, generator=generator, dtype=self.dtype, device=self.device), cond

    def _condition(self, cond: Any, n: int) -> Any:
        if cond is None:
            return None
        try:
            cond = torch.as_tensor(cond, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            raise ArgumentError(f"cond is {shown(cond)}, expected numbers: a condition for each sample") from None
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
        if not 0.0 <= check_number("t", t) <= 1.0:
            raise ArgumentError(f"t is {t}, expected a time in [0, 1]")
        return min(max(float(t), self.interval[0]), self.interval[1])

    def _bound(self, protocol: str, cond: Any, compile: Compile = False) -> Callable[..., Any]:
        method = getattr(self.field, protocol)
        if compile:
            key = protocol, recorded(compile, self.device)
            graph = self._compiled.get(key)
            if graph is None or graph.method != method:
                graph = self._compiled[key] = CompiledProtocol(method, graphs=key[1])
            return lambda *at: graph(*at, cond)
        return lambda *at: method(*(batch_time(t, at[-1]) for t in at[:-1]), at[-1], cond)

    def _solve(
        self,
        x: Tensor,
        times: Sequence[float],
        cond: Any,
        solver: Solver | None,
        generator: torch.Generator | None,
        compile: Compile = False,
    ) -> Solution:
        solver = self.solver if solver is None else solver
        check_reads(solver, self.field)
        return solver.solve(self._bound(solver.reads, cond, compile), x, times, generator=generator)

    def _carried(
        self,
        x: Tensor,
        times: Sequence[float],
        cond: Any,
        solver: Solver | None,
        generator: torch.Generator | None,
        differentiable: Gradients,
        compile: Compile,
    ) -> Tensor:
        """The end of x, with the gradients asked for."""
        if compile and differentiable:
            raise ArgumentError(
                f"compile is {compile!r} and differentiable {differentiable!r}; a compiled field keeps none"
            )
        if differentiable != "adjoint":
            return self._solve(x, times, cond, solver, generator, compile).final
        solver = self.solver if solver is None else solver
        check_reads(solver, self.field)
        return solve_by_adjoint(solver, self._bound(solver.reads, cond), x, times, self._inputs(cond))

    def _augmented(
        self,
        x: Tensor,
        times: Sequence[float],
        cond: Any,
        solver: Solver | None,
        divergence: Divergence | None,
        generator: torch.Generator | None,
        differentiable: Gradients,
    ) -> Carried:
        """The end of x, and the integral of the divergence along the way, in the direction of `times`."""
        solver = self.solver if solver is None else solver
        divergence = self.divergence if divergence is None else divergence
        if solver.reads != "velocity":
            raise CombinationError(
                f"{type(solver).__name__} reads {solver.reads!r}: a log-density needs a solver of ODEs"
            )
        if not self.field.euclidean:
            raise CombinationError(
                "this flow lives on a manifold: the divergence in ambient coordinates is not the rate of its "
                "log-density"
            )
        inputs = self._inputs(cond) if differentiable == "adjoint" else None
        return carry(self._bound("velocity", cond), x, times, solver, divergence, generator, inputs)

    def _doubt(
        self, y: Tensor, log_prob: Tensor, cond: Any, solver: Solver | None, divergence: Divergence | None
    ) -> None:
        """Warn if log-densities of points at the data end, in the model's units, are those of too few steps."""
        divergence = self.divergence if divergence is None else divergence
        y, cond = y[:DOUBTED].detach(), None if cond is None else cond[:DOUBTED]
        f = self._bound("velocity", cond)

        def score(solver: Solver) -> Tensor:
            generator = stream(0, "doubt", device=y.device)  # the same probes for all, and none of the user's
            carried = carry(f, y, self.interval[::-1], solver, divergence, generator)
            return self.start.log_prob(carried.x, cond) + carried.integral

        done = log_prob[:DOUBTED] if divergence.exact else None
        doubt(score, self.solver if solver is None else solver, y[0].numel(), done)

    def _inputs(self, cond: Any) -> list[Tensor]:
        """What gradients are wanted of besides the points: weights, and a condition."""
        given = [cond] if isinstance(cond, Tensor) else []
        return [part for part in (*self.field.parameters(), *given) if part.requires_grad]

    @contextlib.contextmanager
    def _mode(self, differentiable: Gradients) -> Iterator[None]:
        """Dropout off, and gradients only where they are asked for."""
        if not isinstance(differentiable, bool) and differentiable != "adjoint":
            raise ArgumentError(f"differentiable is {differentiable!r}, expected True, False or 'adjoint'")
        modes = [(module, module.training) for module in self.field.modules()]
        self.field.eval()
        try:
            with contextlib.nullcontext() if differentiable else torch.no_grad():
                yield
        finally:
            for module, training in modes:  # one by one: a frozen submodule stays frozen
                module.training = training


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
