"""Time grids: where a fixed-step solver puts its steps. Positions are fractions of the way, 0 to 1."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

from fmkit.arguments import check_count, check_number
from fmkit.errors import ArgumentError
from fmkit.parts import Part


class TimeGrid(Part):
    """The base class of every grid. A subclass implements `fractions`."""

    group: ClassVar[str] = "fmkit.time_grids"

    @abc.abstractmethod
    def fractions(self, steps: int) -> list[float]:
        """steps + 1 strictly increasing numbers, the first 0 and the last 1.

        Raises:
            ArgumentError: if steps is no whole number of at least 1.
        """

    def times(self, begin: float, end: float, steps: int) -> list[float]:
        """The grid from `begin` to `end` (either may be the greater); both are hit exactly.

        A grid is laid in time, not along the way: backward integration retraces the forward steps.

        Raises:
            ArgumentError: if begin and end are not two finite numbers, or steps is no whole number of at least 1.
        """
        begin, end = check_number("begin", begin), check_number("end", end)
        if begin == end:
            raise ArgumentError(f"begin and end are both {begin}, expected two times")
        fractions = self.fractions(steps)
        if end < begin:
            fractions = [1.0 - u for u in reversed(fractions)]
        inner = [begin + (end - begin) * u for u in fractions[1:-1]]
        return [begin, *inner, end]


class UniformGrid(TimeGrid):
    """Steps of equal length."""

    def fractions(self, steps: int) -> list[float]:
        steps = check_count("steps", steps)
        return [i / steps for i in range(steps + 1)]


class ShiftedGrid(TimeGrid):
    """Equal steps shifted towards the noise: tau -> s tau / (1 + (s-1) tau) with tau = 1 - u (arXiv 2403.03206).

    Args:
        shift: s > 0; above 1 shorter steps near the noise, longer ones near the data.

    Raises:
        ArgumentError: if the shift is not positive and finite.
    """

    def __init__(self, shift: float = 3.0) -> None:
        super().__init__()
        if not 0 < shift < math.inf:
            raise ArgumentError(f"shift is {shift}, expected a positive number")
        self.shift = shift

    def fractions(self, steps: int) -> list[float]:
        steps = check_count("steps", steps)
        taus = [1 - i / steps for i in range(steps + 1)]
        return [1 - self.shift * tau / (1 + (self.shift - 1) * tau) for tau in taus]


class HalvedGrid(TimeGrid):
    """Another grid with every step cut in two.

    Args:
        grid: the other grid.

    Raises:
        ArgumentError: if the solver's steps are odd.
    """

    def __init__(self, grid: TimeGrid) -> None:
        super().__init__()
        self.grid = grid

    def fractions(self, steps: int) -> list[float]:
        if check_count("steps", steps) % 2:
            raise ArgumentError(f"the solver has {steps} steps, expected twice those of the halved grid")
        coarse = self.grid.fractions(steps // 2)
        middles = [(a + b) / 2 for a, b in itertools.pairwise(coarse)]
        return [coarse[0], *itertools.chain.from_iterable(zip(middles, coarse[1:], strict=True))]


class ListedGrid(TimeGrid):
    """The user's own fractions; the number of steps follows from them.

    Args:
        positions: strictly increasing from 0 to 1.

    Raises:
        ArgumentError: if they are not, or if the solver asks for another number of steps.
    """

    def __init__(self, positions: Sequence[float]) -> None:
        super().__init__()
        self.positions = [float(u) for u in positions]
        rising = all(a < b for a, b in zip(self.positions, self.positions[1:], strict=False))
        if len(self.positions) < 2 or not rising or (self.positions[0], self.positions[-1]) != (0.0, 1.0):
            raise ArgumentError(f"positions are {self.positions}, expected strictly increasing ones from 0 to 1")

    def fractions(self, steps: int) -> list[float]:
        if check_count("steps", steps) != len(self.positions) - 1:
            raise ArgumentError(f"the solver has {steps} steps, the listed grid {len(self.positions) - 1}")
        return self.positions
