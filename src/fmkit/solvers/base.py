"""A solver: integrates dx/dt = f(t, x) from the first time to the last, forward or backward.

A state is a point `(B, *event)`, or a tuple: the point and integrals beside it (a likelihood carries its log-density).
`f` is a plain function of (t, state), with t a float, a 0-d or a `(B,)` tensor; a flow widens it. A solver that reads a
protocol of two times calls f(s, t, state).
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from fmkit.arguments import check_count, check_generator, shown
from fmkit.errors import ArgumentError, SolverError
from fmkit.parts import Part
from fmkit.shapes import check_batch, time_dtype

# A Tensor, or a tuple of them: a union would have to be taken apart at every addition, so the type says Any.
State = Any
Function = Callable[..., State]  # (t, state) -> d state/dt


@dataclass(frozen=True)
class Solution:
    """What a solver returns.

    Attributes:
        times: the T times asked for.
        states: the state at each, the given one first; a state has the structure of x0.
        nfe: `(B,)` evaluations of f that each sample took part in.
        accepted: `(B,)` steps that counted, for each sample.
        rejected: `(B,)` steps tried again, by solvers that do; zeros by default.
        status: "success"; a solver that does not reach its end raises a SolverError.
    """

    times: tuple[float, ...]
    states: tuple[State, ...]
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: str = "success"

    @property
    def final(self) -> State:
        """The state at the last time."""
        return self.states[-1]


class Solver(Part):
    """The base class of every solver. A subclass implements `solve`.

    Attributes:
        reads: the protocol of a field that f must follow: "velocity" for ODEs, "stochastic" for SDEs.
    """

    group: ClassVar[str] = "fmkit.solvers"
    reads: ClassVar[str] = "velocity"

    @abc.abstractmethod
    def solve(
        self, f: Function, x0: State, times: Sequence[float], *, generator: torch.Generator | None = None
    ) -> Solution:
        """The states at `times`, beginning with x0 at `times[0]` and landing exactly on `times[-1]`.

        f is never evaluated outside [min(times), max(times)].

        Args:
            f: the right-hand side, `(t, state) -> d state/dt`.
            x0: the state at the first time.
            times: two or more, strictly increasing or strictly decreasing.
            generator: the randomness of a stochastic solver.

        Raises:
            ArgumentError: if the times are not as said, x0 is not finite, or f does not answer with its like;
                `check_problem` and `Watched` look at that.
            SolverError: if the integration does not reach its end.
        """


HALVES = (torch.bfloat16, torch.float16)


class Watched:
    """A function under watch: counts its evaluations, and keeps its times inside those of the integration.

    The clamp takes away what rounding adds (t + c dt may miss the end by an ulp) and what a foreign solver oversteps.
    Given x0, states reach the function in the precision of x0, and its slopes come back in at least float32.
    """

    def __init__(self, f: Function, times: Sequence[float], x0: State = None) -> None:
        self.f, self.calls = f, 0
        self.low, self.high = min(times), max(times)
        self.x0 = x0 if x0 is not None and point_of(x0).dtype in HALVES else None

    def __call__(self, *arguments: Any) -> State:
        self.calls += 1
        times, x = [self._inside(t) for t in arguments[:-1]], arguments[-1]
        slope = self.f(*times, x) if self.x0 is None else widened(self.f(*times, _like(x, self.x0)))
        if self.calls == 1:
            check_slope(slope, x)
        return slope

    def _inside(self, t: Any) -> Any:
        if isinstance(t, Tensor):  # to float64 first: a float32 clamp would round the bounds outwards
            return t.to(time_dtype(t.device)).clamp(self.low, self.high)
        return min(max(t, self.low), self.high)


def check_slope(slope: Any, x: State) -> None:
    """Refuse an answer of f that is not like the state; a record of a protocol's own is for its solver to read.

    Raises:
        ArgumentError: naming what f returned.
    """
    if isinstance(slope, tuple) and hasattr(slope, "_fields"):
        return
    if isinstance(x, tuple) != isinstance(slope, tuple) or (isinstance(x, tuple) and len(x) != len(slope)):
        raise ArgumentError(f"f returned {shown(slope)}, expected a slope for each part of the state")
    for k, part in zip(slope, x, strict=True) if isinstance(x, tuple) else [(slope, x)]:
        if not isinstance(k, Tensor) or k.shape != part.shape or not k.is_floating_point():
            raise ArgumentError(f"f returned {shown(k)}, expected floating-point numbers of shape {tuple(part.shape)}")


def check_times(times: Sequence[float]) -> tuple[float, ...]:
    """The times as floats, if they are two or more, finite and strictly monotone; otherwise an ArgumentError."""
    if isinstance(times, str) or not isinstance(times, Iterable) or (isinstance(times, Tensor) and times.ndim != 1):
        raise ArgumentError(f"times are {shown(times)}, expected a sequence of two or more numbers")
    times = tuple(_time(t) for t in times)
    if len(times) < 2:
        raise ArgumentError(f"times are {list(times)}, expected two or more: where to begin and where to end")
    if not all(math.isfinite(t) for t in times):
        raise ArgumentError(f"times are {list(times)}, expected finite numbers")
    if any(0 < abs(b - a) < 1e-12 * max(1.0, abs(a)) for a, b in itertools.pairwise(times)):
        raise ArgumentError(f"times are {list(times)}, expected ones further apart than rounding")
    signs = {math.copysign(1, b - a) if a != b else 0 for a, b in itertools.pairwise(times)}
    if signs not in ({1}, {-1}):
        raise ArgumentError(f"times are {list(times)}, expected strictly increasing or strictly decreasing ones")
    return times


def _time(t: Any) -> float:
    t = t.item() if isinstance(t, Tensor) and t.ndim == 0 and t.device.type != "meta" else t
    if isinstance(t, bool) or not isinstance(t, Real):
        raise ArgumentError(f"a time is {shown(t)}, expected a number")
    return float(t)


def check_problem(
    f: Function, x0: State, times: Sequence[float], generator: torch.Generator | None = None
) -> tuple[float, ...]:
    """The times as floats, if this is something a solver can solve; every solver's first line.

    Raises:
        ArgumentError: if f is no function, x0 no non-empty, finite floating-point state, the times are not two or more
            and strictly monotone, or the generator is none.
    """
    if not callable(f):
        raise ArgumentError(f"f is {shown(f)}, expected a function (t, state) -> slope")
    if isinstance(x0, tuple) and not x0:
        raise ArgumentError("x0 is an empty tuple, expected a point and integrals beside it")
    for i, part in enumerate(x0 if isinstance(x0, tuple) else (x0,)):
        check_batch(part, f"x0[{i}]" if isinstance(x0, tuple) else "x0")
    check_generator(generator)
    return check_times(times)


def check_steps(steps: int) -> int:
    """`steps` itself, if it is a positive integer; otherwise an ArgumentError."""
    return check_count("steps", steps)


def point_of(x: State) -> Tensor:
    """The point of a state, without the integrals beside it."""
    return x[0] if isinstance(x, tuple) else x


def widened(x: State) -> State:
    """The state in at least float32: a thousand steps of 0.001 in bfloat16 stop half way."""
    if isinstance(x, tuple):
        return tuple(widened(part) for part in x)
    return x.float() if x.dtype in HALVES else x


def finished(
    solver: Solver,
    times: tuple[float, ...],
    states: Sequence[State],
    x0: State,
    nfe: int,
    accepted: int,
    rejected: int = 0,
) -> Solution:
    """The solution of a solver whose batch shares its steps, in the precision of x0.

    Raises:
        SolverError: if the end is not finite.
    """
    last = states[-1] if isinstance(states[-1], tuple) else (states[-1],)
    wrapped = any(torch._C._functorch.is_functorch_wrapped_tensor(part) for part in last)
    if not wrapped and not all(bool(torch.isfinite(part).all()) for part in last):
        bad = torch.stack([(~torch.isfinite(part)).reshape(len(part), -1).any(1) for part in last]).any(0)
        raise SolverError(
            f"{type(solver).__name__} reached t = {times[-1]:g} with {int(bad.sum())} of {len(bad)} samples "
            f"not finite, the first in row {int(bad.nonzero()[0])}; more steps, or a look at the field, may help"
        )
    return Solution(
        times, tuple(_like(s, x0) for s in states), count(x0, nfe), count(x0, accepted), count(x0, rejected)
    )


def _like(x: State, x0: State) -> State:
    if isinstance(x, tuple):
        return tuple(_like(part, part0) for part, part0 in zip(x, x0, strict=True))
    return x.to(x0.dtype)


def count(x: State, calls: int) -> Tensor:
    """`calls` for each row: the figure of a solver whose batch shares its steps."""
    return torch.full((point_of(x).shape[0],), calls, dtype=torch.int64)


def advance(x: State, dt: float, weights: Sequence[float], slopes: Sequence[State]) -> State:
    """x + dt * sum of weight * slope, over a state's parts; weights of zero cost nothing."""
    if isinstance(x, tuple):
        return tuple(advance(part, dt, weights, [s[i] for s in slopes]) for i, part in enumerate(x))
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = torch.add(x, slope, alpha=dt * weight)
    return x
