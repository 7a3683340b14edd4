"""The laws of a solver, measured on a flow in closed form.

    order p:  error ~ h^p;  p = log(error(n) / error(2n)) / log 2 for n and 2n steps

A solver that reads "stochastic" is given the same flow without noise, and for its noise a Gaussian's exact field, whose
marginal variance must come out whatever the strength of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fmkit.parts import parameters_of
from fmkit.solvers import Solution, Solver, TimeGrid
from fmkit.solvers.fixed_step import FixedStep
from fmkit.testing.integrations import Trial, Watch
from fmkit.testing.problems import Problem
from fmkit.testing.randomness import seeded
from fmkit.testing.report import Measured, NotChecked, Report, faults
from fmkit.testing.solver_inputs import DIGITS, LAWS, MEAN, gaussian_field, spread

MISS = 0.25  # how far below its claim an order may be measured
ON_TIME = 1e-9  # what rounding leaves of the time between an end and the one asked for
MANNERS = ("dtype", "first", "seeds", "rows")  # without these nothing below can be measured


def check_solver(solver: Solver, *, problem: Problem | None = None) -> Report:
    """Try every law of a solver.

    Args:
        solver: the solver, with steps or tolerances as it will be used.
        problem: a flow in closed form with points that the solver takes, on [0, 1]; by default the logistic equation,
            or a flow on the unit sphere for a solver that refuses its points.

    Raises:
        ArgumentError: if this is no solver.

    Examples:
        >>> from fmkit.solvers import Euler
        >>> from fmkit.testing import check_solver
        >>> class Improved(Euler):
        ...     order = 2
        >>> [finding.id for finding in check_solver(Improved()).failed]
        ['solver.order']
    """
    return LAWS.report(solver, Trial.of(solver, problem))


@LAWS("end", "it lands exactly on its times, forward and backward", MANNERS)
def _end(trial: Trial) -> Measured:
    x0 = trial.x0
    worst, where = 0.0, ""
    for times in ((0.1, 0.93), (0.93, 0.1), (0.0, 1 / 3)):
        solution, clock = _clock(trial, x0, times)
        if tuple(solution.times) != times or len(solution.states) != 2:
            return faults([f"asked for {times}, it returned {len(solution.states)} states at {solution.times}"])
        miss = (clock - (times[-1] - times[0])).abs().max().item()
        if not miss <= worst and not (trial.stepped and _vanishes(trial, x0, times, miss)):
            worst, where = (
                miss,
                f"from t = {times[0]:.4g}, sent to {times[-1]:.4g}",
            )
    return Measured(worst, 1e-6 if not trial.stepped else ON_TIME, "time between its end and the one asked for", where)


def _vanishes(trial: Trial, x0: Tensor, times: Sequence[float], miss: float) -> bool:
    """Whether a clock goes wrong by its rate, not by its end: in as many shorter steps the rate is right.

    A method with a linear part of its own (exponential integrators) is exact on none of the kit's fields, and its rate
    is wrong by a power of the step. One that stops early, by a time or by a part of a step, misses as great a share of
    a short time as of a long one.
    """
    begin, way = times[0], times[-1] - times[0]
    while not miss <= ON_TIME:
        way = way / 16
        clock = _clock(trial, x0, (begin, begin + way))[1]
        missed = (clock - (begin + way - begin)).abs().max().item()
        if not 16 * missed <= miss / 8:
            return False
        miss = missed
    return True


def _clock(trial: Trial, x0: Tensor, times: Sequence[float]) -> tuple[Solution, Tensor]:
    """A solution, and how much time passed in it: what dx/dt = 1 integrates to."""
    if trial.standard:
        x0 = x0 + 2  # no point passes the seam of a torus
        solution = trial.solve(x0, times, slope=lambda *at: torch.ones_like(at[-1]))
        return solution, solution.final - x0
    if trial.stochastic or trial.averaging:
        raise NotChecked("no clock can be carried by this solver on these points")

    def slope(t: Any, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return trial.problem.field(t, state[0]), torch.ones_like(state[1])

    solution = trial.solve((x0, torch.zeros(len(x0), dtype=x0.dtype)), times, slope=slope)
    return solution, solution.final[1]


@LAWS("inside", "it never evaluates outside the times asked for", MANNERS)
def _inside(trial: Trial) -> Measured:
    x0 = trial.x0
    worst, where = 0.0, ""
    for begin, end in ((0.1, 0.93), (0.93, 0.1), (0.0, 1.0)):
        watch = Watch(trial.rhs)
        trial.solve(x0, (begin, end), slope=watch)
        low, high = min(begin, end), max(begin, end)
        for t in (min(watch.times), max(watch.times)):
            over = max(low - t, t - high, 0.0)
            if not over <= worst:
                worst, where = over, f"evaluated at t = {t:.17g} between {begin:g} and {end:g}"
    return Measured(worst, 1e-12, "overstepped by", where)  # an ulp is rounding


@LAWS("nfe", "it counts its evaluations right", MANNERS)
def _nfe(trial: Trial) -> Measured:
    wrong = []
    cases: dict[str, tuple[Tensor, tuple[float, ...]]] = {
        "one point": (trial.x0[:1], (0.0, 1.0)),
        "": (trial.x0, (0.0, 1.0)),
        "time going backward": (trial.x0, (0.9, 0.1)),
    }
    if not trial.stochastic:
        cases["a state asked for in between"] = (trial.x0, (0.0, 0.337, 1.0))
    for what, (x0, times) in cases.items():
        watch, shown = Watch(trial.rhs), f", with {what}" if what else ""
        solution = trial.solve(x0, times, slope=watch)
        for name in ("nfe", "accepted", "rejected"):
            count = getattr(solution, name)
            whole = isinstance(count, Tensor) and not count.is_floating_point() and count.shape == x0.shape[:1]
            if not whole or bool((count < 0).any()):
                return faults([f"{name} is {count}, expected {len(x0)} whole numbers >= 0"], "miscounts:")
        most, least, rows = int(solution.nfe.max()), int(solution.nfe.min()), int(solution.nfe.sum())
        shared = most == watch.calls and (least == most if trial.stepped else least > 0)
        if not shared and rows != watch.rows:
            said = f"{most}" if least == most else f"{least} to {most}"
            wrong.append(f"it says {said} and was seen to make {watch.calls} for {len(x0)} points{shown}")
        if isinstance(trial.solver, FixedStep) and bool((solution.accepted != trial.solver.steps).any()):
            wrong.append(f"it says {int(solution.accepted.max())} steps and was to take {trial.solver.steps}{shown}")
    return faults(wrong, "miscounts:")


@LAWS("order", "the error falls with the order claimed, or with the tolerance asked for", MANNERS)
def _order(trial: Trial) -> Measured:
    trial.x0  # noqa: B018 - refuses where there is no problem
    claimed = float(getattr(trial.solver, "order", 1))
    finer = {"": trial.refinements(claimed)}
    if not finer[""]:
        return _tolerance(trial)
    if isinstance(trial.solver, FixedStep) and "grid" in parameters_of(type(trial.solver)):
        finer[" on uneven steps"] = [(n, trial.remade(steps=n, grid=Uneven())) for n, _ in finer[""]]
    missed, where = -math.inf, ""
    for way, backward in (("forward", False), ("backward", True)):
        for grid, solvers in finer.items():
            found, steps, errors = _observed(trial, claimed, solvers, backward)
            if not claimed - found <= missed:
                missed = claimed - found
                seen = f"errors {errors[0]:.2e}, {errors[1]:.2e} in {steps[0]}, {steps[1]} steps"
                where = f"order {found:.2f} of {claimed:g} {way}{grid}: {seen}"
    return Measured(missed, MISS, "orders missing:", where)


class Uneven(TimeGrid):
    """Steps by turns short and long: where a memory of equal steps loses its order."""

    def fractions(self, steps: int) -> list[float]:
        lengths = [1.0 if i % 2 else 0.6 for i in range(steps)]
        return [sum(lengths[:i]) / sum(lengths) for i in range(steps)] + [1.0]


def _observed(
    trial: Trial, claimed: float, solvers: list[tuple[int, Solver]], backward: bool
) -> tuple[float, tuple[int, int], tuple[float, float]]:
    """The order seen at the finest steps whose errors stand clear of rounding.

    The last steps are taken only if those before miss the claim: errors of either sign may meet at coarse ones.
    """
    steps, errors = [n for n, _ in solvers], [trial.error(solver, backward) for _, solver in solvers[:-1]]
    if errors[0] <= 1e-12 and errors[1] <= 1e-12:
        return claimed, (steps[0], steps[1]), (errors[0], errors[1])  # exact
    order, i = _finest(errors)
    if not claimed - order <= MISS and i == len(errors) - 1:
        errors.append(trial.error(solvers[-1][1], backward))
        order, i = _finest(errors)
    return order, (steps[i - 1], steps[i]), (errors[i - 1], errors[i])


def _finest(errors: list[float]) -> tuple[float, int]:
    """The order between the last two errors above rounding, and the place of the second."""
    i = max((i for i, e in enumerate(errors) if i and not e <= 1e-12), default=1)
    return (math.log2(errors[i - 1] / max(errors[i], 1e-16)) if math.isfinite(errors[i]) else math.nan), i


def _tolerance(trial: Trial) -> Measured:
    """Without steps: the error shrinks with the tolerance, and is small at a small one."""
    try:
        loose, tight = (trial.remade(rtol=tol, atol=tol) for tol in (1e-3, 1e-5))
    except NotChecked:
        error = max(trial.error(trial.solver, backward) for backward in (False, True))
        return Measured(error, 2e-2, "error as it stands", "steps and tolerances cannot be changed")
    errors = [max(trial.error(s, backward) for backward in (False, True)) for s in (loose, tight)]
    if not errors[1] <= max(0.3 * errors[0], DIGITS):
        return Measured(errors[1], 0.3 * errors[0], "error at a tolerance of 1e-5", f"at 1e-3 it is {errors[0]:.2e}")
    return Measured(errors[1], 2e-2, "error at a tolerance of 1e-5")


@LAWS("reversible", "backward retraces forward, to the accuracy of either", [*MANNERS, "end"])
def _reversible(trial: Trial) -> Measured:
    x0 = trial.x0
    there = trial.solve(x0).final
    back = trial.solve(there, (1.0, 0.0)).final
    # What the way there missed by, grown on the way back, and what the way back misses by alone.
    forward, backward = trial.error(trial.solver), trial.error(trial.solver, backward=True)
    bound = min(20 * forward + 3 * backward + _slack(trial), 0.2)
    return Measured((back - x0).abs().max().item(), bound, "distance from where it began")


def _slack(trial: Trial) -> float:
    """What an error may be where the solution itself happens to be better: some hundred tolerances."""
    return max(DIGITS, 100 * max(getattr(trial.solver, "rtol", 0.0), getattr(trial.solver, "atol", 0.0)))


@LAWS("integrals", "integrals ride along beside the point, without disturbing it", [*MANNERS, "end"])
def _integrals(trial: Trial) -> Measured:
    x0, problem = trial.x0, trial.problem
    if trial.stochastic:
        raise NotChecked("a stochastic solver integrates points only")
    if trial.averaging:
        raise NotChecked("an average velocity says nothing of integrals")

    def slope(t: Any, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        velocity, weight = problem.field(t, state[0]), state[0].flatten(1)
        return velocity, 2 * (weight * velocity.flatten(1)).sum(1)  # the rate of |x|²

    alone = trial.solve(x0).final
    point, integral = trial.solve((x0, torch.zeros(len(x0), dtype=x0.dtype)), slope=slope).final
    slack = 20 * (alone - problem.flow(1.0, x0)).abs().max().item() + _slack(trial)
    want = (problem.flow(1.0, x0).square() - x0.square()).flatten(1).sum(1)
    if integral.shape != (len(x0),):
        return faults([f"the integral has shape {tuple(integral.shape)}, expected ({len(x0)},)"])
    moved = (point - alone).abs().max().item()
    allowed = DIGITS if trial.stepped else slack
    if not moved <= allowed:
        return Measured(moved, allowed, "change", "of the point by the integral beside it")
    error = (integral - want).abs().max().item()
    return Measured(error, min(3 * slack, 0.5), "error", "of the integral of d|x|²/dt")


@LAWS("between", "states at intermediate times are right, and asking for them does not move the end", [*MANNERS, "end"])
def _between(trial: Trial) -> Measured:
    x0 = trial.x0
    if trial.stochastic:
        raise NotChecked("a random step cannot be taken beside the trajectory")
    times = (0.0, 0.337, 0.71, 1.0)
    alone, solution = trial.solve(x0), trial.solve(x0, times)
    if len(solution.states) != 4 or not torch.equal(solution.states[0], x0):
        return faults([f"asked for 4 times, it returned {len(solution.states)} states, or another beginning"])
    slack = 20 * (alone.final - trial.problem.flow(1.0, x0)).abs().max().item() + max(1e-5, _slack(trial))
    moved = (solution.final - alone.final).abs().max().item()
    allowed = DIGITS if isinstance(trial.solver, FixedStep) else slack  # others may spread their steps anew
    if not moved <= allowed:
        return Measured(moved, allowed, "the end moved by")
    errors = [(s - trial.problem.flow(t, x0)).abs().max().item() for t, s in zip(times, solution.states, strict=True)]
    return Measured(max(errors), min(slack, 0.2), "error at an intermediate time")


@LAWS("marginals", "with any strength of noise, the marginals are those of the flow", [*MANNERS, "end"])
def _marginals(trial: Trial) -> Measured:
    trial.x0  # noqa: B018 - refuses where there is no problem
    if not trial.stochastic:
        raise NotChecked("it has no noise")
    if not trial.standard:
        raise NotChecked("no closed form on these points")
    n, f, worst = 8_000, gaussian_field(), Measured(0.0, 6.0, "standard errors apart:")
    strengths: list[dict[str, Any]] = [{}]
    if "lam" in parameters_of(type(trial.solver)):
        strengths = [{"lam": 0.0}, {"lam": 1.0}]
    for changed in strengths:
        more = {"steps": 100} if trial.stepped else {}
        solver = trial.remade(**changed, **more)
        for begin, end in ((0.0, 1.0), (1.0, 0.2)):
            # From the quantiles of the marginal, so that a flow without noise has no error of sampling.
            u = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
            x = solver.solve(f, begin * MEAN + spread(begin) * u, (begin, end), generator=seeded(0)).final
            want, noise = spread(end), 1 / math.sqrt(2 * n)
            for name, got, miss in (
                ("standard deviation", x.std().item(), (x.std().item() / want - 1) / (noise + 2e-3)),
                ("mean", x.mean().item(), (x.mean().item() - end * MEAN) / want / (noise + 2e-3)),
            ):
                if not abs(miss) <= worst.value:
                    shown = "".join(f", {k} = {v:g}" for k, v in changed.items())
                    where = f"the {name} at t = {end:g} from {begin:g}{shown} is {got:.4g}"
                    worst = worst._replace(value=abs(miss), where=where)
    return worst
