"""A solver on trial: with a problem whose answer is known, and a right-hand side under watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fmkit.errors import ArgumentError, CombinationError, FmkitError
from fmkit.fields import Stochastic
from fmkit.parts import parameters_of
from fmkit.solvers import Solution, Solver
from fmkit.testing.problems import Problem, logistic, sphere
from fmkit.testing.randomness import preserved, seeded
from fmkit.testing.report import NotChecked

READS = ("velocity", "stochastic", "average")  # the protocols that the kit can speak
STEPS = 40  # for a solver whose number of steps is free


@dataclass
class Watch:
    """A right-hand side that notes when it was evaluated, and on how many rows."""

    f: Callable[[Any, Any], Any]
    times: list[float] = field(default_factory=list)
    rows: int = 0
    calls: int = 0

    def __call__(self, *arguments: Any) -> Any:
        *times, state = arguments
        self.calls += 1
        self.rows += len(state[0] if isinstance(state, tuple) else state)
        for t in times:
            self.times += torch.as_tensor(t, dtype=torch.float64).reshape(-1).tolist()
        return self.f(*arguments)


@dataclass
class Trial:
    """A solver, and a problem it can be tried on."""

    solver: Solver
    problem: Problem
    standard: bool
    refusal: str = ""

    @staticmethod
    @preserved()
    def of(solver: Solver, problem: Problem | None = None) -> Trial:
        """On the problem given, or else on the first the solver takes: in space, or on the sphere."""
        if not isinstance(solver, Solver):
            raise ArgumentError(f"got a {type(solver).__name__}, expected a Solver")
        if problem is not None:
            return Trial(solver, problem, False)
        if solver.reads not in READS:
            return Trial(solver, logistic(), True, f"it reads {solver.reads!r}, which the kit has no problem for")
        refused = []
        for candidate, standard in ((logistic(), True), (sphere(), False)):
            trial = Trial(solver, candidate, standard)
            try:
                trial.solve(candidate.x0)
            except (ArgumentError, CombinationError) as error:  # these are not its points
                refused.append(str(error))
                continue
            except Exception:  # the laws will tell
                return trial
            return trial
        return Trial(solver, logistic(), True, f"it refuses the kit's points ({refused[0]}); hand it a problem")

    def __post_init__(self) -> None:
        """Few steps where their number is free: the laws hold for any, and the kit is to be fast."""
        if self.stepped:
            try:
                self.solver = self.remade(steps=STEPS)
            except FmkitError:
                return

    @property
    def x0(self) -> Tensor:
        if self.refusal:
            raise NotChecked(self.refusal)
        return self.problem.x0

    @property
    def stochastic(self) -> bool:
        return self.solver.reads == "stochastic"

    @property
    def stepped(self) -> bool:
        return "steps" in parameters_of(type(self.solver))

    @property
    def averaging(self) -> bool:
        return self.solver.reads == "average"

    @property
    def rhs(self) -> Callable[..., Any]:
        """The problem's right-hand side, of one time or of two."""
        return self.problem.average if self.averaging else self.problem.field

    def f(self, slope: Callable[..., Any]) -> Callable[..., Any]:
        """`slope` in the protocol that the solver reads, without noise."""
        if not self.stochastic:
            return slope

        def still(t: Any, x: Tensor) -> Stochastic:
            return Stochastic(slope(t, x), torch.zeros_like(x), torch.zeros_like(x))

        return still

    def solve(
        self, x0: Any, times: Sequence[float] = (0.0, 1.0), solver: Solver | None = None, slope: Any = None
    ) -> Solution:
        f = self.f(self.rhs if slope is None else slope)
        return (solver or self.solver).solve(f, x0, times, generator=seeded(0))

    def remade(self, **changed: Any) -> Solver:
        """The solver with other arguments.

        Raises:
            NotChecked: if it does not take them.
        """
        cls = type(self.solver)
        if missing := sorted(set(changed) - set(parameters_of(cls))):
            raise NotChecked(f"{cls.__name__} has no parameter {' or '.join(missing)}")
        return cls(**{**self.solver.arguments, **changed})

    def refinements(self, claimed: float) -> list[tuple[int, Solver]]:
        """The solver with ever more steps, and how many (or how many times as many), if there is a way to ask for them.

        The argument is `steps`, or any number of which twice (or half) makes twice as many evaluations.

        Raises:
            NotChecked: if it cannot be made with other numbers of steps.
        """
        counts = (40, 80, 160, 320, 640) if claimed < 4 else (20, 40, 80, 160) if claimed < 6 else (6, 12, 24, 48)
        if self.stepped:
            try:
                return [(n, self.remade(steps=n)) for n in counts]
            except FmkitError as error:
                raise NotChecked(f"it cannot be made with other numbers of steps ({error})") from error
        calls = self._calls(self.solver)
        for name, parameter in parameters_of(type(self.solver)).items():
            value = self.solver.arguments.get(name, parameter.default)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            factors = (1, 2, 4, 8, 16) if isinstance(value, int) else (1, 0.5, 0.25, 0.125, 0.0625)
            try:
                tries = [(2**i, self.remade(**{name: value * k})) for i, k in enumerate(factors)]
                if all(0.9 < self._calls(s) / (k * calls) < 1.1 for k, s in tries[1:]):
                    return tries
            except Exception:  # not an argument that can be scaled
                continue
        return []

    def _calls(self, solver: Solver) -> int:
        watch = Watch(self.rhs)
        self.solve(self.x0, (0.0, 1.0), solver, watch)
        return watch.calls

    def error(self, solver: Solver, backward: bool = False) -> float:
        """The greatest error at the end."""
        begin, want = self.x0, self.problem.flow(1.0, self.x0)
        if backward:
            return (self.solve(want, (1.0, 0.0), solver).final - begin).abs().max().item()
        return (self.solve(begin, (0.0, 1.0), solver).final - want).abs().max().item()
