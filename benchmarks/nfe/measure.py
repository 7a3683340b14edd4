"""Every ODE solver that fmkit registers, at a ladder of numbers of evaluations or of tolerances."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.nfe.problems import Problem
from benchmarks.nfe.results import Row
from fmkit import registry
from fmkit.errors import SolverError
from fmkit.parts import parameters_of
from fmkit.solvers import LSODA, FixedStep, Radau, ShiftedGrid, Solver, TimeGrid, UniformGrid

SHIFTS = (1.0, 0.5, 0.3, 3.0)  # of the time grid; 1 is the uniform one
BUDGETS = (5, 10, 20, 50, 100)
BETWEEN = (7, 14, 30, 70, 200)  # for the curves, on the uniform grid
FINE = (400, 800)  # beyond any use, for the orders of convergence
TOLERANCES = tuple(10.0**-k for k in range(1, 11))
ENOUGH = 400  # an adaptive solver goes down the ladder until it needs more evaluations than this
AT_LEAST = 4  # rungs, all the same
SMALL = 8  # samples for implicit methods of scipy, which take the whole batch as one system


@dataclass(frozen=True)
class Ladder:
    """What is asked of the solvers: evaluations for those of fixed steps, tolerances for the others.

    Attributes:
        shifts: of the time grids.
        budgets: evaluations, on every grid.
        uniform: evaluations on the uniform grid alone.
        tolerances: relative and absolute alike.
    """

    shifts: Sequence[float] = SHIFTS
    budgets: Sequence[int] = BUDGETS
    uniform: Sequence[int] = (*BETWEEN, *FINE)
    tolerances: Sequence[float] = TOLERANCES


def solvers(names: Iterable[str] | None = None) -> dict[str, type[Solver]]:
    """fmkit's own ODE solvers by their registered names, or those of them that are named."""
    entries = [e for e in registry.entries(Solver.group) if e.package == "fmkit" and (names is None or e.name in names)]
    found = {e.name: registry.load(Solver.group, e.qualified) for e in entries}
    own_first = sorted(found.items(), key=lambda item: not issubclass(item[1], FixedStep))
    return {name: cls for name, cls in own_first if cls.reads == "velocity"}


def measure(problem: Problem, names: Iterable[str] | None = None, ladder: Ladder | None = None) -> Iterator[Row]:
    """What each solver does on a problem, one row for each setting."""
    ladder = Ladder() if ladder is None else ladder
    for name, cls in solvers(names).items():
        if "steps" in parameters_of(cls):
            yield from _fixed(problem, name, cls, ladder)
        else:
            yield from _adaptive(problem, name, cls, ladder)


def _fixed(problem: Problem, name: str, cls: type[Solver], ladder: Ladder) -> Iterator[Row]:
    for shift in ladder.shifts if issubclass(cls, FixedStep) else (1.0,):  # torchdiffeq's take the same steps
        budgets = (*ladder.budgets, *(ladder.uniform if shift == 1.0 else ()))
        for steps in sorted({most_steps(cls, budget) for budget in budgets} - {0}):
            if row := _row(problem, name, cls(steps, grid_of(shift)), steps=steps, shift=shift):
                yield row


def _adaptive(problem: Problem, name: str, cls: type[Solver], ladder: Ladder) -> Iterator[Row]:
    for rung, tolerance in enumerate(ladder.tolerances, start=1):
        row = _row(problem, name, cls(tolerance, tolerance), tolerance=tolerance)
        if row:
            yield row
            if row.nfe > ENOUGH and rung >= AT_LEAST:
                return


def _row(problem: Problem, name: str, solver: Solver, **setting: Any) -> Row | None:
    x0 = problem.x0[:SMALL] if isinstance(solver, Radau | LSODA) else problem.x0
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torchdiffeq's implicit method, whose iteration wants shorter steps
        try:
            solution = solver.solve(problem.f, x0, problem.times)
        except SolverError:  # it did not reach the end at this setting
            return None
    return Row(
        problem.kind,
        problem.path,
        problem.data,
        name,
        **setting,
        samples=len(x0),
        nfe=int(solution.nfe.max()),
        error=problem.error(solution.final),
        law_error=problem.law_error(solution.final),
    )


def grid_of(shift: float) -> TimeGrid:
    """The grid of that shift."""
    return UniformGrid() if shift == 1.0 else ShiftedGrid(shift)


def most_steps(cls: Callable[..., Solver], budget: int) -> int:
    """The most steps that take no more than `budget` evaluations; 0 if there are none."""
    start = 10  # beyond the first few steps, each costs the same
    if budget < evaluations(cls, start):
        return max((n for n in range(1, start) if evaluations(cls, n) <= budget), default=0)
    each = (evaluations(cls, 2 * start) - evaluations(cls, start)) / start
    return start + int((budget - evaluations(cls, start)) / each)


@functools.cache
def evaluations(cls: Callable[..., Solver], steps: int) -> int:
    """What so many steps cost at the least: on a field that is zero, where an implicit step is done at once."""
    return int(cls(steps).solve(lambda t, x: torch.zeros_like(x), torch.zeros(1, 1), (0.0, 1.0)).nfe[0])
