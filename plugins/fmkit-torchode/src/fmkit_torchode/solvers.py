"""torchode's methods as solvers (Lienen & Günnemann, 2022): one step size, and one decision to accept it, per sample.

A batch is B problems solved side by side. Sample b takes a step where its own error does not exceed its own bound,

    e_b = max over the state's parts of rms(error / (atol + rtol max(|y|, |y_next|))) < 1,

so neither its answer nor its NFE depends on its neighbours. Every evaluation is of the whole batch, so the wall clock
follows the hardest sample; samples that have arrived wait there with steps of length 0.

NFE: choosing the first step costs 2 evaluations (torchode's initial step, Hairer et al., Sec. II.4), each step of a
method with s stages costs s, or s - 1 where the last stage is the next step's first:

    nfe_b = 2 + 6 steps_b (tsit5, dopri5),   nfe_b = 2 + 2 steps_b (heun),   steps_b accepted and rejected

which is what the sample costs if solved alone; the batch has been evaluated max over b of nfe_b times.

Gradients pass through the steps taken, not through the choice of their sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torchode
from torch import Tensor
from torchode.status_codes import INFINITE_NORM, REACHED_MAX_STEPS

from fmkit.errors import ArgumentError, SolverError
from fmkit.shapes import time_dtype
from fmkit.solvers.base import Function, Solution, Solver, State, Watched, check_problem

FIRST_STEP_NFE = 2


class Torchode(Solver):
    """The base class of the family. A subclass names its `method`.

    States at intermediate times are interpolated, at no evaluation; they do not move the end.

    Args:
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0.
        max_steps: the most steps a sample may take, accepted or not, >= 1.

    Raises:
        ArgumentError: if a tolerance is not positive and finite, or max_steps is not a positive integer.
    """

    method: ClassVar[type]

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000) -> None:
        super().__init__()
        if not (0 < rtol < math.inf and 0 < atol < math.inf):
            raise ArgumentError(f"rtol is {rtol} and atol {atol}, expected positive numbers")
        if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
            raise ArgumentError(f"max_steps is {max_steps!r}, expected a positive integer")
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps

    def solve(
        self, f: Function, x0: State, times: Sequence[float], *, generator: torch.Generator | None = None
    ) -> Solution:
        times = check_problem(f, x0, times, generator)
        layout, watched = Layout(x0), Watched(f, times)
        term = torchode.ODETerm(lambda t, y: layout.pack(watched(t, layout.unpack(y))), with_stats=False)
        method = _landing(self.method(term))
        controller = torchode.IntegralController(self.atol, self.rtol, term=term, norm=layout.norm)
        # torchode calls a sample that ends with its last permitted step a failure; one step more makes the limit exact.
        loop = torchode.AutoDiffAdjoint(
            method, controller, max_steps=self.max_steps + 1, backprop_through_step_size_control=False
        )
        y0 = layout.pack(x0)
        # Stops are evaluated in the step that passes them. Without stops torchode would look at each end in the batch's
        # last step, and a sample's rounding would depend on how long its neighbours take.
        stops = torch.tensor(times, dtype=time_dtype(y0.device), device=y0.device).expand(len(y0), -1)
        problem = torchode.InitialValueProblem(y0, stops[:, 0], stops[:, -1], stops)
        out = loop.to(y0.device).solve(problem, term)
        self._check(out.status, times[-1])
        steps, accepted = out.stats["n_steps"].cpu(), out.stats["n_accepted"].cpu()
        tableau = method.tableau
        nfe = FIRST_STEP_NFE + (tableau.n_stages - int(tableau.fsal)) * steps
        states = (x0, *(layout.unpack(out.ys[:, i]) for i in range(1, len(times))))
        return Solution(times, states, nfe, accepted, steps - accepted)

    def _check(self, status: Tensor, end: float) -> None:
        failed = (status != 0).nonzero().flatten().tolist()
        if not failed:
            return
        reasons = {
            REACHED_MAX_STEPS: f"it needs more than {self.max_steps} steps",
            INFINITE_NORM: "its state or its slope is no longer finite",
        }
        code = int(status[failed[0]])
        raise SolverError(
            f"{type(self).__name__} did not reach t = {end:g} with {len(failed)} of {len(status)} samples, the first "
            f"in row {failed[0]}: {reasons.get(code, f'torchode status {code}')}; a field this stiff wants looser "
            "tolerances, an implicit solver, or a look for non-finite values"
        )


class Tsit5(Torchode):
    """Tsitouras 5(4): six evaluations a step, somewhat fewer steps than Dormand-Prince."""

    method = torchode.Tsit5


class Dopri5(Torchode):
    """Dormand-Prince 5(4), the paper's method: six evaluations a step."""

    method = torchode.Dopri5


class Heun(Torchode):
    """Heun-Euler 2(1): two evaluations a step, for loose tolerances."""

    method = torchode.Heun


class _Landing:
    """An interpolation that gives the step's own result where the step ends: the polynomial there has lost digits."""

    def __init__(self, inner: Any, step: Any) -> None:
        self.inner, self.end, self.y1 = inner, step.t0 + step.dt, step.y1

    def evaluate(self, t: Tensor, idx: Tensor) -> Tensor:
        return torch.where((t == self.end[idx])[:, None], self.y1[idx], self.inner.evaluate(t, idx))


def _landing(method: Any) -> Any:
    interpolate = method.build_interpolation
    method.build_interpolation = lambda step: _Landing(interpolate(step), step)
    return method


class Layout:
    """How a state lies in torchode's `(B, features)`: its parts side by side, in at least float32."""

    def __init__(self, x: State) -> None:
        parts = x if isinstance(x, tuple) else (x,)
        self.single = not isinstance(x, tuple)
        self.shapes, self.dtypes = [p.shape for p in parts], [p.dtype for p in parts]
        self.sizes = [p[0].numel() for p in parts]
        self.dtype = torch.float32
        for dtype in self.dtypes:
            self.dtype = torch.promote_types(self.dtype, dtype)

    def pack(self, x: State) -> Tensor:
        """`(B, features)` of a state."""
        parts = (x,) if isinstance(x, Tensor) else x
        return torch.cat([p.reshape(len(p), -1).to(self.dtype) for p in parts], dim=1)

    def unpack(self, y: Tensor) -> State:
        """The state of `(B, features)`, every part in its own shape and dtype."""
        pieces = zip(y.split(self.sizes, dim=1), self.shapes, self.dtypes, strict=True)
        parts = tuple(piece.reshape(shape).to(dtype) for piece, shape, dtype in pieces)
        return parts[0] if self.single else parts

    def norm(self, y: Tensor) -> Tensor:
        """`(B,)` the largest root mean square of a part: a log-density weighs as much as the whole point."""
        norms = [torch.linalg.vector_norm(p, dim=1) / math.sqrt(p.shape[1]) for p in y.split(self.sizes, dim=1)]
        return torch.stack(norms).amax(0)
