"""The one time loop of every fixed-step method.

A method is `init`, the memory it begins with, and `step`, which advances a state by dt. Memory is passed along, never
stored on the solver, so a solver can be shared and a step can be tried without being taken.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from fmkit.errors import ArgumentError
from fmkit.solvers.base import Function, Solution, Solver, State, Watched, check_problem, check_steps, finished, widened
from fmkit.solvers.grids import TimeGrid, UniformGrid


class FixedStep(Solver):
    """The base class of fixed-step methods. A subclass implements `step`, and `init` if it has memory.

    `steps` lie between the first time and the last, whatever times are asked for in between: an intermediate time off
    the grid is reached by a step beside the trajectory, from the grid point before it, at its own cost in NFE, and the
    end does not move.

    Args:
        steps: number of steps, >= 1.
        grid: where they lie; equal steps by default.

    Raises:
        ArgumentError: if steps is not a positive integer.
    """

    order: ClassVar[int]
    between: ClassVar[bool] = True  # whether a step may be taken beside the trajectory (a random one may not)

    def __init__(self, steps: int = 100, grid: TimeGrid | None = None) -> None:
        super().__init__()
        self.steps = check_steps(steps)
        self.grid = UniformGrid() if grid is None else grid

    def init(self, x: State, generator: torch.Generator | None) -> Any:
        """The memory the first step gets."""
        return None

    @abc.abstractmethod
    def step(self, f: Function, t: float, dt: float, x: State, memory: Any) -> tuple[State, Any]:
        """The state at t + dt (dt is negative backward), and the memory for the next step."""

    def solve(
        self, f: Function, x0: State, times: Sequence[float], *, generator: torch.Generator | None = None
    ) -> Solution:
        times = check_problem(f, x0, times, generator)
        watched = Watched(f, times, x0)
        grid = _snap(self.grid.times(times[0], times[-1], self.steps), times)
        x = widened(x0)
        memory = self.init(x, generator)
        states, wanted = [x0], list(times[1:])
        for t, t_next in itertools.pairwise(grid):
            while abs(wanted[0] - t) < abs(t_next - t):
                states.append(self._beside(watched, t, wanted.pop(0), x, memory))
            x, memory = self.step(watched, t, t_next - t, x, memory)
            if wanted[0] == t_next:
                states.append(x)
                wanted.pop(0)
        return finished(self, times, states, x0, watched.calls, self.steps)

    def _beside(self, f: Function, t: float, wanted: float, x: State, memory: Any) -> State:
        if not self.between:
            raise ArgumentError(
                f"{type(self).__name__} can only stop at its grid points, and t = {wanted:g} is none of its "
                f"{self.steps} steps'; choose steps so that it is"
            )
        return self.step(f, t, wanted - t, x, memory)[0]


def _snap(grid: list[float], times: tuple[float, ...]) -> list[float]:
    """The grid with its points moved by rounding onto the times asked for."""
    near = 1e-9 * abs(grid[-1] - grid[0])
    return [next((w for w in times if abs(w - t) <= near), t) for t in grid]
