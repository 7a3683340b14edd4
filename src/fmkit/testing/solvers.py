"""The laws of a solver, measured on a flow in closed form.

    order p:  error ~ h^p;  p = log(error(n) / error(2n)) / log 2 for n and 2n steps

A solver that reads "stochastic" is given the same flow without noise, and for its noise a Gaussian's exact field, whose
marginal variance must come out whatever the strength of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fmkit.errors import FmkitError
from fmkit.fields import Stochastic
from fmkit.parts import parameters_of
from fmkit.solvers import Solution, Solver
from fmkit.testing.integrations import Trial, Watch
from fmkit.testing.problems import Problem
from fmkit.testing.randomness import Globals, seeded, stir
from fmkit.testing.report import Laws, Measured, NotChecked, Report, faults, refusals

LAWS = Laws("solver")
MISS = 0.25  # how far below its claim an order may be measured
DIGITS = 1e-8  # errors below are rounding, and tolerances too tight to say anything


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


@LAWS("order", "the error falls with the order claimed, or with the tolerance asked for")
def _order(trial: Trial) -> Measured:
    trial.x0  # noqa: B018 - refuses where there is no problem
    if not trial.stepped:
        return _tolerance(trial)
    claimed = float(getattr(trial.solver, "order", 1))
    missed, where = -math.inf, ""
    for backward in (False, True):
        found, steps, errors = _observed(trial, claimed, backward)
        if not claimed - found <= missed:
            way = "backward" if backward else "forward"
            missed = claimed - found
            where = f"order {found:.2f} of {claimed:g} {way}: errors {errors[0]:.2e}, {errors[1]:.2e} in {steps} steps"
    return Measured(missed, MISS, "orders missing:", where)


def _observed(trial: Trial, claimed: float, backward: bool) -> tuple[float, tuple[int, int], tuple[float, float]]:
    """The order seen at the finest steps whose errors stand clear of rounding."""
    steps = (40, 80, 160, 320) if claimed < 3 else (20, 40, 80) if claimed < 6 else (6, 12, 24)
    try:
        errors = [trial.error(trial.remade(steps=n), backward) for n in steps]
    except FmkitError as error:
        raise NotChecked(f"it cannot be made with other numbers of steps ({error})") from error
    last = max((i for i, e in enumerate(errors) if not e <= 1e-12), default=0)
    if last == 0 and errors[0] <= 1e-12:
        return claimed, (steps[0], steps[1]), (errors[0], errors[1])  # exact
    i = max(last, 1)
    order = math.log2(errors[i - 1] / max(errors[i], 1e-16)) if math.isfinite(errors[i]) else math.nan
    return order, (steps[i - 1], steps[i]), (errors[i - 1], errors[i])


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


@LAWS("end", "it lands exactly on its times, forward and backward")
def _end(trial: Trial) -> Measured:
    x0 = trial.x0
    worst, where = 0.0, ""
    for times in ((0.1, 0.93), (0.93, 0.1), (0.0, 1 / 3)):
        solution, clock = _clock(trial, x0, times)
        if tuple(solution.times) != times or len(solution.states) != 2:
            return faults([f"asked for {times}, it returned {len(solution.states)} states at {solution.times}"])
        miss = (clock - (times[-1] - times[0])).abs().max().item()
        if not miss <= worst:
            worst, where = (
                miss,
                f"from t = {times[0]:.4g}, sent to {times[-1]:.4g}",
            )
    return Measured(worst, 1e-6 if not trial.stepped else 1e-9, "time between its end and the one asked for", where)


def _clock(trial: Trial, x0: Tensor, times: Sequence[float]) -> tuple[Solution, Tensor]:
    """A solution, and how much time passed in it: what dx/dt = 1 integrates to."""
    if trial.standard:
        x0 = x0 + 2  # no point passes the seam of a torus
        solution = trial.solve(x0, times, slope=lambda t, x: torch.ones_like(x))
        return solution, solution.final - x0
    if trial.stochastic:
        raise NotChecked("no clock can be carried by a stochastic solver on these points")

    def slope(t: Any, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return trial.problem.field(t, state[0]), torch.ones_like(state[1])

    solution = trial.solve((x0, torch.zeros(len(x0), dtype=x0.dtype)), times, slope=slope)
    return solution, solution.final[1]


@LAWS("inside", "it never evaluates outside the times asked for")
def _inside(trial: Trial) -> Measured:
    x0 = trial.x0
    worst, where = 0.0, ""
    for begin, end in ((0.1, 0.93), (0.93, 0.1), (0.0, 1.0)):
        watch = Watch(trial.problem.field)
        trial.solve(x0, (begin, end), slope=watch)
        low, high = min(begin, end), max(begin, end)
        for t in (min(watch.times), max(watch.times)):
            over = max(low - t, t - high, 0.0)
            if not over <= worst:
                worst, where = over, f"evaluated at t = {t:.17g} between {begin:g} and {end:g}"
    return Measured(worst, 0.0, "overstepped by", where)


@LAWS("nfe", "it counts its evaluations right")
def _nfe(trial: Trial) -> Measured:
    wrong = []
    for x0 in (trial.x0[:1], trial.x0):
        watch = Watch(trial.problem.field)
        solution = trial.solve(x0, slope=watch)
        for name in ("nfe", "accepted", "rejected"):
            count = getattr(solution, name)
            if count.shape != x0.shape[:1] or count.is_floating_point() or bool((count < 0).any()):
                return faults([f"{name} is {count}, expected {len(x0)} whole numbers >= 0"])
        said, rows = int(solution.nfe.max()), int(solution.nfe.sum())
        if said != watch.calls and rows != watch.rows:
            wrong.append(f"it says {said} and was seen to make {watch.calls}, with a batch of {len(x0)}")
    return faults(wrong, "miscounts:")


@LAWS("reversible", "backward retraces forward, to the accuracy of either")
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


@LAWS("integrals", "integrals ride along beside the point, without disturbing it")
def _integrals(trial: Trial) -> Measured:
    x0, problem = trial.x0, trial.problem
    if trial.stochastic:
        raise NotChecked("a stochastic solver integrates points only")

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


@LAWS("rows", "with fixed steps, rows of a batch are independent of each other")
def _rows(trial: Trial) -> Measured:
    x0 = trial.x0
    if not trial.stepped:
        raise NotChecked("its steps may depend on the whole batch")
    whole = trial.solve(x0).final
    apart = {row: trial.solve(x0[row : row + 1]).final[0] for row in (0, len(x0) - 1)}
    errors = {row: (whole[row] - alone).abs().max().item() for row, alone in apart.items()}
    row = max(errors, key=lambda r: math.inf if math.isnan(errors[r]) else errors[r])
    return Measured(errors[row], DIGITS, "change", f"of row {row} when it is solved alone")


@LAWS("dtype", "states keep the precision, shape and device of the first")
def _dtype(trial: Trial) -> Measured:
    wrong = []
    for dtype in (torch.float32, torch.float64):
        x0 = trial.x0.to(dtype)
        for state in trial.solve(x0).states:
            if (state.dtype, state.shape, state.device) != (dtype, x0.shape, x0.device):
                wrong.append(f"{state.dtype} {tuple(state.shape)} for {dtype} {tuple(x0.shape)}")
    return faults(wrong)


@LAWS("times", "times that are not two or more, finite and strictly monotone are refused")
def _times(trial: Trial) -> Measured:
    x0 = trial.x0
    cases: tuple[tuple[float, ...], ...] = (
        (), (0.0,), (0.0, 0.0), (0.0, 1.0, 0.5), (0.0, 0.5, 0.5), (0.0, math.nan), (0.0, math.inf),
    )  # fmt: skip
    return refusals((f"times {list(times)}", lambda times=times: trial.solve(x0, times)) for times in cases)  # type: ignore[misc]


@LAWS("between", "states at intermediate times are right, and asking for them does not move the end")
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
    allowed = DIGITS if trial.stepped else slack
    if not moved <= allowed:
        return Measured(moved, allowed, "the end moved by")
    errors = [(s - trial.problem.flow(t, x0)).abs().max().item() for t, s in zip(times, solution.states, strict=True)]
    return Measured(max(errors), min(slack, 0.2), "error at an intermediate time")


@LAWS("seeds", "the generator is the only randomness there is")
def _seeds(trial: Trial) -> Measured:
    x0 = trial.x0
    f = _gaussian_field() if trial.stochastic and trial.standard else trial.f(trial.problem.field)
    before = Globals()
    first = trial.solver.solve(f, x0, (0.0, 1.0), generator=seeded(1)).final
    wrong = before.touched()
    stir(1)
    again, other = (trial.solver.solve(f, x0, (0.0, 1.0), generator=seeded(s)).final for s in (1, 2))
    if not torch.equal(first, again):
        wrong.append("two solutions from one seed differ")
    if trial.stochastic and trial.standard and getattr(trial.solver, "lam", True) and torch.equal(first, other):
        wrong.append("two seeds give the same noise: the generator is not used")
    return faults(wrong)


MEAN, STD = 0.7, 0.5  # of the Gaussian data whose exact field drives the noise


def _gaussian_field() -> Callable[[Any, Tensor], Stochastic]:
    """x_t ~ N(t m, V), V = t² s² + (1 - t)²: data N(m, s²) on the straight path from N(0, 1)."""

    def f(t: Any, x: Tensor) -> Stochastic:
        time = torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        variance = time**2 * STD**2 + (1 - time) ** 2
        away = (x - time * MEAN) / variance
        velocity = MEAN + (time * STD**2 - (1 - time)) * away
        return Stochastic(velocity, (1 - time) * away, (1 - time).expand_as(x))

    return f


@LAWS("marginals", "with any strength of noise, the marginals are those of the flow")
def _marginals(trial: Trial) -> Measured:
    trial.x0  # noqa: B018 - refuses where there is no problem
    if not trial.stochastic:
        raise NotChecked("it has no noise")
    if not trial.standard:
        raise NotChecked("no closed form on these points")
    n, f, worst = 8_000, _gaussian_field(), Measured(0.0, 6.0, "standard errors apart:")
    strengths: list[dict[str, Any]] = [{}]
    if "lam" in parameters_of(type(trial.solver)):
        strengths = [{"lam": 0.0}, {"lam": 1.0}]
    for changed in strengths:
        more = {"steps": 100} if trial.stepped else {}
        solver = trial.remade(**changed, **more)
        for begin, end in ((0.0, 1.0), (1.0, 0.2)):
            # From the quantiles of the marginal, so that a flow without noise has no error of sampling.
            u = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
            x = solver.solve(f, begin * MEAN + _spread(begin) * u, (begin, end), generator=seeded(0)).final
            want, noise = _spread(end), 1 / math.sqrt(2 * n)
            for name, got, miss in (
                ("standard deviation", x.std().item(), (x.std().item() / want - 1) / (noise + 2e-3)),
                ("mean", x.mean().item(), (x.mean().item() - end * MEAN) / want / (noise + 2e-3)),
            ):
                if not abs(miss) <= worst.value:
                    shown = "".join(f", {k} = {v:g}" for k, v in changed.items())
                    where = f"the {name} at t = {end:g} from {begin:g}{shown} is {got:.4g}"
                    worst = worst._replace(value=abs(miss), where=where)
    return worst


def _spread(t: float) -> float:
    return math.sqrt(t**2 * STD**2 + (1 - t) ** 2)
