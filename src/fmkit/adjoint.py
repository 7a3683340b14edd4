"""Gradients through an integration by the continuous adjoint (Chen et al., arXiv 1806.07366, section 2 and app. B).

For dx/dt = f(t, x; theta) and a loss L of x(t1), the adjoint a = dL/dx and the gradient g = dL/dtheta obey

    da/dt = -a^T df/dx,   dg/dt = -a^T df/dtheta,   a(t1) = dL/dx(t1),   g(t1) = 0

and are integrated backward from t1 to t0 beside the state itself, by the same solver. Memory does not grow with the
number of steps. The gradient is that of the exact flow, to the solver's accuracy; gradients through the steps
themselves are those of the steps taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fmkit.errors import CombinationError
from fmkit.solvers import Function, Solver, State

Parts = tuple[Tensor, ...]


def solve_by_adjoint(solver: Solver, f: Function, x0: State, times: Sequence[float], inputs: Sequence[Tensor]) -> State:
    """The state at the last of `times`, with gradients by the adjoint to x0 and to `inputs`.

    Args:
        solver: of ODEs; also one through whose steps no gradient passes.
        f: the right-hand side, `(t, state) -> d state/dt`.
        x0: the state at the first time: a tensor `(B, ...)`, or a tuple of them.
        times: as of `Solver.solve`.
        inputs: everything else that gradients are wanted of: the weights f uses, a condition.

    Raises:
        CombinationError: for a solver of SDEs; and, when gradients are taken, for one that gives each sample steps of
            its own where `inputs` is not empty.
    """
    if solver.reads != "velocity":
        raise CombinationError(f"{type(solver).__name__} reads {solver.reads!r}: the adjoint is of ODEs")
    single = isinstance(x0, Tensor)
    parts: Parts = (x0,) if single else tuple(x0)

    def of_parts(t: Any, state: Parts) -> Parts:
        return (f(t, state[0]),) if single else tuple(f(t, state))

    end = _Adjoint.apply(_Problem(solver, of_parts, tuple(times), len(parts)), *parts, *inputs)
    return end[0] if single else end


class _Problem(NamedTuple):
    solver: Solver
    f: Callable[[Any, Parts], Parts]
    times: tuple[float, ...]
    size: int  # of the state: the tensors after it are the other inputs


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: _Problem, *tensors: Tensor) -> Parts:
        x0, inputs = tensors[: problem.size], tensors[problem.size :]
        end = problem.solver.solve(problem.f, x0, problem.times).final
        ctx.problem = problem
        ctx.save_for_backward(*end, *inputs)
        return end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        problem: _Problem = ctx.problem
        n, rows = problem.size, len(slopes[0])
        end, inputs = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        # A solver's state has a row for each sample: the gradient of the inputs is laid out in that many rows.
        lay = _Layout(inputs, rows)

        def augmented(t: Any, state: Parts) -> Parts:
            if inputs:
                _check_one_time(t, problem.solver)
            with torch.enable_grad():
                x = tuple(part.detach().requires_grad_() for part in state[:n])
                velocity = problem.f(t, x)
                pulled = _pull(velocity, state[n : 2 * n], (*x, *inputs))
            back = tuple(-part for part in pulled[:n])
            return (*(v.detach() for v in velocity), *back, *lay.pack([-part for part in pulled[n:]]))

        begin = (*end, *slopes, *lay.pack([torch.zeros_like(part) for part in inputs]))
        final = problem.solver.solve(augmented, begin, problem.times[:: 1 - len(problem.times)]).final
        return (None, *final[n : 2 * n], *lay.unpack(final[2 * n :]))


def _pull(outputs: Parts, slopes: Parts, inputs: Parts) -> Parts:
    """slopes^T d outputs/d inputs; zeros for what the outputs do not depend on."""
    live = [(out, slope.to(out.dtype)) for out, slope in zip(outputs, slopes, strict=True) if out.requires_grad]
    if not live:
        return tuple(torch.zeros_like(part) for part in inputs)
    out, slope = zip(*live, strict=True)
    return torch.autograd.grad(out, inputs, slope, allow_unused=True, materialize_grads=True)


def _check_one_time(t: Any, solver: Solver) -> None:
    if isinstance(t, Tensor) and t.numel() > 1 and not bool((t == t.flatten()[0]).all()):
        raise CombinationError(
            f"{type(solver).__name__} gives each sample steps of its own, and the gradient of the weights is one sum "
            "over all samples at one time; use another solver, or gradients through the steps (differentiable=True)"
        )


class _Layout:
    """Tensors of any shape as one part `(rows, n)` of a state, or none where there are no tensors."""

    def __init__(self, like: Sequence[Tensor], rows: int) -> None:
        self.shapes, self.dtypes = [part.shape for part in like], [part.dtype for part in like]
        self.sizes = [part.numel() for part in like]
        self.rows, self.width = rows, math.ceil(sum(self.sizes) / rows)

    def pack(self, parts: Sequence[Tensor]) -> Parts:
        if not parts:
            return ()
        dtype = torch.float32
        for kind in self.dtypes:
            dtype = torch.promote_types(dtype, kind)
        flat = torch.cat([part.reshape(-1).to(dtype) for part in parts])
        return (torch.nn.functional.pad(flat, (0, self.rows * self.width - len(flat))).reshape(self.rows, -1),)

    def unpack(self, packed: Parts) -> Parts:
        if not packed:
            return ()
        pieces = packed[0].reshape(-1)[: sum(self.sizes)].split(self.sizes)
        return tuple(
            piece.reshape(shape).to(dtype) for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        )
