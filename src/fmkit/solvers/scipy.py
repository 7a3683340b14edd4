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

from fmkit.errors import ArgumentError, CombinationError, SolverError
from fmkit.solvers.base import Function, Solution, Solver, State, Watched, check_problem, finished
from fmkit.solvers.torchdiffeq import check_tolerances


class Scipy(Solver):
    """The base class of scipy's methods. A subclass names its `method`.

    Args:
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0.
        max_nfe: give up after as many evaluations.

    Raises:
        ArgumentError: if a tolerance is not positive, or max_nfe below 1.
    """

    method: ClassVar[str]

    def __init__(self, rtol: float = 1e-8, atol: float = 1e-8, max_nfe: int = 1_000_000) -> None:
        super().__init__()
        check_tolerances(rtol, atol)
        if max_nfe < 1:
            raise ArgumentError(f"max_nfe is {max_nfe}, expected at least 1")
        self.rtol, self.atol, self.max_nfe = rtol, atol, max_nfe

    def solve(
        self, f: Function, x0: State, times: Sequence[float], *, generator: torch.Generator | None = None
    ) -> Solution:
        from scipy.integrate import solve_ivp  # here: it takes long to import, and most programs never need it

        times = check_problem(f, x0, times, generator)
        watched, y0, with_gradients = Watched(f, times), _ravel(x0), torch.is_grad_enabled()
        progress = _Progress(times, patience=2000 + 10 * len(y0))

        def flat(t: float, y: np.ndarray) -> np.ndarray:
            first = not watched.calls
            if watched.calls >= self.max_nfe or progress.stuck(t, watched.calls):
                raise SolverError(f"{self._name} is at t = {t:g} of {times[-1]:g} after {watched.calls} evaluations")
            with torch.set_grad_enabled(first and with_gradients):
                slope = watched(t, _unravel(y, x0))
            if first:
                self._refuse_gradients(x0, slope)
            flat_slope = _ravel(slope)
            if not np.isfinite(flat_slope).all():  # scipy would go on shrinking its step for ever
                raise SolverError(f"{self._name} met a field that is not finite at t = {t:g} of {times[-1]:g}")
            return flat_slope

        dense = len(times) > 2
        span = (times[0], times[-1])
        result = solve_ivp(flat, span, y0, method=self.method, rtol=self.rtol, atol=self.atol, dense_output=dense)
        if not result.success:
            raise SolverError(f"{self._name} stopped at t = {result.t[-1]:g} of {times[-1]:g}: {result.message}")
        inner = [_unravel(result.sol(t), x0) for t in times[1:-1]] if dense else []
        states = (x0, *inner, _unravel(result.y[:, -1], x0))
        return finished(self, times, states, x0, watched.calls, len(result.t) - 1)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _refuse_gradients(self, *states: State) -> None:
        """Refuse rather than lose the gradient of a state, or of a field's weights."""
        parts = [p for state in states for p in (state if isinstance(state, tuple) else (state,))]
        if torch.is_grad_enabled() and any(p.requires_grad for p in parts):
            raise CombinationError(f"no gradient passes through {self._name}; use one of fmkit's own solvers")


class _Progress:
    """Whether an integration still moves: at a pole scipy's steps shrink and shrink, and never end."""

    def __init__(self, times: tuple[float, ...], patience: int) -> None:
        self.least, self.patience = 1e-9 * abs(times[-1] - times[0]), patience
        self.t, self.calls = times[0], 0

    def stuck(self, t: float, calls: int) -> bool:
        """Whether t has hardly moved within the last `patience` evaluations."""
        if calls - self.calls < self.patience:
            return False
        moved, self.t, self.calls = abs(t - self.t), t, calls
        return moved < self.least


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
