"""scipy's `solve_ivp` as double-precision references: the batch is one system of B times D equations.

The arithmetic of the solver is float64 whatever the field's precision. No gradients pass through; Radau and LSODA build
a dense Jacobian of the whole batch, so keep it small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fmkit.errors import CombinationError, SolverError
from fmkit.solvers.base import Function, Solution, Solver, State, Watched, check_times, count
from fmkit.solvers.torchdiffeq import check_tolerances


class Scipy(Solver):
    """The base class of scipy's methods. A subclass names its `method`.

    Args:
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0.

    Raises:
        ArgumentError: if a tolerance is not positive.
    """

    method: ClassVar[str]

    def __init__(self, rtol: float = 1e-8, atol: float = 1e-8) -> None:
        super().__init__()
        check_tolerances(rtol, atol)
        self.rtol, self.atol = rtol, atol

    def solve(
        self, f: Function, x0: State, times: Sequence[float], *, generator: torch.Generator | None = None
    ) -> Solution:
        from scipy.integrate import solve_ivp  # here: it takes long to import, and most programs never need it

        times = check_times(times)
        parts = x0 if isinstance(x0, tuple) else (x0,)
        if torch.is_grad_enabled() and any(p.requires_grad for p in parts):
            raise CombinationError(f"no gradient passes through {type(self).__name__}; use an own method of fmkit's")
        watched = Watched(f, times)

        def flat(t: float, y: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return _ravel(watched(t, _unravel(y, x0)))

        dense = len(times) > 2
        result = solve_ivp(
            flat,
            (times[0], times[-1]),
            _ravel(x0),
            method=self.method,
            rtol=self.rtol,
            atol=self.atol,
            dense_output=dense,
        )
        if not result.success or not np.isfinite(result.y[:, -1]).all():
            raise SolverError(
                f"{type(self).__name__} stopped at t = {result.t[-1]:g} of {times[-1]:g}: "
                f"{result.message if not result.success else 'the state is not finite'}"
            )
        inner = [_unravel(result.sol(t), x0) for t in times[1:-1]] if dense else []
        states = (x0, *inner, _unravel(result.y[:, -1], x0))
        return Solution(times, states, count(x0, watched.calls), count(x0, len(result.t) - 1), count(x0, 0))


class DOP853(Scipy):
    """Dormand-Prince 8(5,3): the reference for smooth fields."""

    method = "DOP853"


class Radau(Scipy):
    """Implicit Runge-Kutta of order 5: for stiff fields."""

    method = "Radau"


class LSODA(Scipy):
    """Adams and BDF with automatic switching between non-stiff and stiff."""

    method = "LSODA"


def _ravel(x: State) -> np.ndarray:
    parts = x if isinstance(x, tuple) else (x,)
    return torch.cat([p.detach().to("cpu", torch.float64).reshape(-1) for p in parts]).numpy()


def _unravel(y: np.ndarray, like: State) -> State:
    if isinstance(like, Tensor):
        return torch.from_numpy(y.copy()).reshape(like.shape).to(like)
    pieces = np.split(y, np.cumsum([p.numel() for p in like])[:-1])
    return tuple(_unravel(piece, p) for piece, p in zip(pieces, like, strict=True))
