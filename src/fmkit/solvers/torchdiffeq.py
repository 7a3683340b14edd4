"""torchdiffeq's methods as solvers (Chen, 2018), kept inside the interval.

Left alone, the adaptive ones overstep the end and interpolate back; a `step_t` at the end makes the last step land on
it. Their error norm is one root mean square over the whole batch, so a sample's steps depend on its neighbours.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch

from fmkit.arguments import is_number
from fmkit.errors import ArgumentError, SolverError
from fmkit.shapes import time_dtype
from fmkit.solvers.base import (
    Function,
    Solution,
    Solver,
    State,
    Watched,
    check_problem,
    check_steps,
    finished,
    point_of,
    widened,
)
from fmkit.solvers.grids import TimeGrid, UniformGrid


class Adaptive(Solver):
    """The base class of torchdiffeq's adaptive methods. A subclass names its `method`.

    Args:
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0.
        max_steps: give up after as many steps, accepted or not.

    Raises:
        ArgumentError: if a tolerance is not positive, or max_steps below 1.
    """

    method: ClassVar[str]

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000) -> None:
        super().__init__()
        check_tolerances(rtol, atol)
        if max_steps < 1:
            raise ArgumentError(f"max_steps is {max_steps}, expected at least 1")
        self.rtol, self.atol, self.max_steps = rtol, atol, max_steps

    def solve(
        self, f: Function, x0: State, times: Sequence[float], *, generator: torch.Generator | None = None
    ) -> Solution:
        times = check_problem(f, x0, times, generator)
        watched = _Counted(f, times, x0)
        device = point_of(x0).device
        at = torch.tensor(times, dtype=time_dtype(device), device=device)
        options = {"step_t": at[-1:], "max_num_steps": self.max_steps, "dtype": at.dtype}
        states = _odeint(self, watched, widened(x0), at, options)
        return finished(self, times, (x0, *states[1:]), x0, watched.calls, watched.accepted, watched.rejected)


class _Counted(Watched):
    accepted = rejected = 0

    def callback_accept_step(self, t, x, dt) -> None:
        self.accepted += 1

    def callback_reject_step(self, t, x, dt) -> None:
        self.rejected += 1


class Dopri5(Adaptive):
    """Dormand-Prince 5(4): the paper's solver, at its tolerance of 1e-5."""

    method = "dopri5"


class Dopri8(Adaptive):
    """Dormand-Prince 8(7): fewer evaluations at tight tolerances."""

    method = "dopri8"


class Bosh3(Adaptive):
    """Bogacki-Shampine 3(2)."""

    method = "bosh3"


class Fehlberg2(Adaptive):
    """Runge-Kutta-Fehlberg 2(1): its error estimate is small, and its errors far above its tolerance."""

    method = "fehlberg2"


class AdaptiveHeun(Adaptive):
    """Heun-Euler 2(1)."""

    method = "adaptive_heun"


class FixedGrid(Solver):
    """The base class of torchdiffeq's fixed-step methods. A subclass names its `method`.

    Intermediate times are interpolated (cubic), at one evaluation each; the end does not move.

    Args:
        steps: number of steps, >= 1.
        grid: where they lie; equal steps by default.

    Raises:
        ArgumentError: if steps is not a positive integer.
    """

    method: ClassVar[str]
    highest: ClassVar[int | None] = None  # of Adams methods: torchdiffeq's own limit, 12, is unstable at usual steps

    def __init__(self, steps: int = 100, grid: TimeGrid | None = None) -> None:
        super().__init__()
        self.steps = check_steps(steps)
        self.grid = UniformGrid() if grid is None else grid

    def solve(
        self, f: Function, x0: State, times: Sequence[float], *, generator: torch.Generator | None = None
    ) -> Solution:
        times = check_problem(f, x0, times, generator)
        watched = Watched(f, times, x0)
        device = point_of(x0).device
        at = torch.tensor(times, dtype=time_dtype(device), device=device)
        laid = torch.tensor(self.grid.times(times[0], times[-1], self.steps), dtype=at.dtype, device=device)
        options: dict[str, Any] = {"grid_constructor": lambda f, x, t: laid}
        if len(times) > 2:
            options["interp"] = "cubic"
        if self.highest is not None:
            options["max_order"] = self.highest
        states = _odeint(self, watched, widened(x0), at, options)
        return finished(self, times, (x0, *states[1:]), x0, watched.calls, self.steps)


class TorchdiffeqEuler(FixedGrid):
    """Euler's method, by torchdiffeq."""

    method, order = "euler", 1


class TorchdiffeqMidpoint(FixedGrid):
    """The midpoint method, by torchdiffeq."""

    method, order = "midpoint", 2


class TorchdiffeqHeun2(FixedGrid):
    """Heun's method of order 2, by torchdiffeq."""

    method, order = "heun2", 2


class TorchdiffeqHeun3(FixedGrid):
    """Heun's method of order 3, by torchdiffeq."""

    method, order = "heun3", 3


class TorchdiffeqRK4(FixedGrid):
    """The 3/8 rule of order 4, which torchdiffeq calls rk4."""

    method, order = "rk4", 4


class TorchdiffeqExplicitAdams(FixedGrid):
    """Adams-Bashforth of order 4, by torchdiffeq."""

    order, method, highest = 4, "explicit_adams", 5  # which is of order 4, as measured


class TorchdiffeqImplicitAdams(FixedGrid):
    """Adams-Bashforth-Moulton of order 4, by torchdiffeq; it warns of steps too long for its iteration."""

    method, highest = "implicit_adams", 4  # no `order`: below 1e-9 its iteration's own tolerance is all one sees


def check_tolerances(rtol: float, atol: float) -> None:
    """Refuse tolerances that are not positive and finite."""
    if not (is_number(rtol) and is_number(atol) and 0 < rtol < math.inf and 0 < atol < math.inf):
        raise ArgumentError(f"rtol is {rtol} and atol {atol}, expected positive numbers")


def _odeint(solver: Solver, f: Watched, x0: State, at: torch.Tensor, options: dict) -> tuple[State, ...]:
    from torchdiffeq import odeint  # here: it brings scipy.integrate, which takes long to import

    tolerances = {"rtol": solver.rtol, "atol": solver.atol} if isinstance(solver, Adaptive) else {}
    try:
        with _iteration_warnings(solver) as caught:
            out = odeint(f, x0, at, method=solver.method, options=options, **tolerances)
    except AssertionError as error:  # torchdiffeq's way of giving up
        raise SolverError(
            f"{type(solver).__name__} did not reach t = {at[-1].item():g} after {f.calls} evaluations: {error}; "
            "a field this stiff wants looser tolerances, an implicit solver, or a look for non-finite values"
        ) from error
    states = tuple(tuple(part[i] for part in out) for i in range(len(at))) if isinstance(x0, tuple) else tuple(out)
    if caught and bool(torch.isfinite(point_of(states[-1])).all()):  # a non-finite end is about to say worse
        warnings.warn(f"{caught[-1]} ({type(solver).__name__}; take more steps)", stacklevel=3)
    return states


@contextlib.contextmanager
def _iteration_warnings(solver: Solver) -> Iterator[list[str]]:
    """What torchdiffeq's implicit method says of its iteration; all other warnings pass as they are."""
    said: list[str] = []
    if not isinstance(solver, TorchdiffeqImplicitAdams):
        yield said
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    for warning in caught:
        text = str(warning.message)
        if text.startswith("Functional iteration"):
            said.append(text)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
