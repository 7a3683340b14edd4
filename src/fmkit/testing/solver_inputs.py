"""The laws of a solver's manners: what it takes, what it refuses, and that nothing else has a say in its states.

The laws of its mathematics, in `solvers`, need these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmkit.fields import Stochastic
from fmkit.testing.integrations import Trial
from fmkit.testing.precision import has_float32s_digits
from fmkit.testing.randomness import Globals, seeded, stir
from fmkit.testing.report import Laws, Measured, NotChecked, faults, refusals

LAWS = Laws("solver")
DIGITS = 1e-8  # errors below are rounding, and tolerances too tight to say anything


@LAWS("dtype", "states keep the precision, shape and device of the first")
def _dtype(trial: Trial) -> Measured:
    wrong = []
    for dtype in (torch.float32, torch.float64):
        x0 = trial.x0.to(dtype)
        for state in trial.solve(x0).states:
            if (state.dtype, state.shape, state.device) != (dtype, x0.shape, x0.device):
                wrong.append(f"{state.dtype} {tuple(state.shape)} for {dtype} {tuple(x0.shape)}")
            elif dtype == torch.float64 and has_float32s_digits(state) and not torch.equal(state, x0):
                wrong.append("a state has the digits of float32 only, for float64")
    return faults(wrong)


@LAWS("first", "the first state is the one given, which is left as it was", ["dtype"])
def _first(trial: Trial) -> Measured:
    given = trial.x0
    x0 = given.clone()
    first = trial.solve(x0).states[0]
    wrong = [] if torch.equal(x0, given) else ["the state given was changed in place"]
    return faults(wrong if torch.equal(first, given) else [*wrong, "the first state is another"])


@LAWS("seeds", "the generator is the only randomness there is", ["dtype", "first"])
def _seeds(trial: Trial) -> Measured:
    x0 = trial.x0
    f = gaussian_field() if trial.stochastic and trial.standard else trial.f(trial.rhs)
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


@LAWS("rows", "with fixed steps, rows of a batch are independent of each other", ["seeds"])
def _rows(trial: Trial) -> Measured:
    x0 = trial.x0
    if not trial.stepped:
        raise NotChecked("its steps may depend on the whole batch")
    whole = trial.solve(x0).final
    apart = {row: trial.solve(x0[row : row + 1]).final[0] for row in (0, len(x0) - 1)}
    errors = {row: (whole[row] - alone).abs().max().item() for row, alone in apart.items()}
    row = max(errors, key=lambda r: math.inf if math.isnan(errors[r]) else errors[r])
    return Measured(errors[row], DIGITS, "change", f"of row {row} when it is solved alone")


@LAWS("times", "times that are not two or more, finite and strictly monotone are refused")
def _times(trial: Trial) -> Measured:
    x0 = trial.x0
    cases: tuple[tuple[float, ...], ...] = (
        (), (0.0,), (0.0, 0.0), (0.0, 1.0, 0.5), (0.0, 0.5, 0.5), (0.0, math.nan), (0.0, math.inf),
    )  # fmt: skip
    return refusals((f"times {list(times)}", lambda times=times: trial.solve(x0, times)) for times in cases)  # type: ignore[misc]


MEAN, STD = 0.7, 0.5  # of the Gaussian data whose exact field drives the noise


def gaussian_field() -> Callable[[Any, Tensor], Stochastic]:
    """The exact field of x_t ~ N(t m, V), V = t² s² + (1 - t)²: data N(m, s²) on the straight path from N(0, 1)."""

    def f(t: Any, x: Tensor) -> Stochastic:
        time = torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        variance = time**2 * STD**2 + (1 - time) ** 2
        away = (x - time * MEAN) / variance
        velocity = MEAN + (time * STD**2 - (1 - time)) * away
        return Stochastic(velocity, (1 - time) * away, (1 - time).expand_as(x))

    return f


def spread(t: float) -> float:
    """The standard deviation of its marginal."""
    return math.sqrt(t**2 * STD**2 + (1 - t) ** 2)
