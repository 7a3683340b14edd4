"""A solver made finer, for estimates of its error: every step cut in two, or tolerances as tight as dopri5's own."""

from __future__ import annotations

import copy
from typing import Any

from fmkit.arguments import check_instance
from fmkit.solvers.base import Solver
from fmkit.solvers.grids import HalvedGrid, TimeGrid

# A hundredth of a loose tolerance may be met by the very same steps, where a method underestimates its error.
TIGHT = 1e-5


def refined(solver: Solver) -> Solver | None:
    """The same method with less error, or None for a solver that has neither steps nor tolerances.

    Raises:
        ArgumentError: if it is no solver.
    """
    check_instance("solver", solver, Solver)
    finer: Any = copy.copy(solver)
    if isinstance(steps := getattr(solver, "steps", None), int):
        finer.steps = 2 * steps
        if isinstance(grid := getattr(solver, "grid", None), TimeGrid):
            finer._modules = {**solver._modules, "grid": HalvedGrid(grid)}
        return finer
    if hasattr(solver, "rtol") and hasattr(solver, "atol"):
        finer.rtol, finer.atol = min(finer.rtol, TIGHT), min(finer.atol, TIGHT)
        return finer
    return None
