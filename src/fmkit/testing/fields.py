"""The laws of a field. They are tried on a copy in evaluation mode, in float64, with its weights shaken:
a network often begins as zero, and zero keeps every law."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import Stochastic, VectorField
from fmkit.testing.randomness import Globals, preserved, seeded, stir
from fmkit.testing.report import Laws, Measured, NotChecked, Report, faults

LAWS = Laws("field")


@dataclass
class Trial:
    """A field, points it takes, and a condition for each."""

    field: VectorField
    x: Tensor
    cond: Any

    @staticmethod
    @preserved()
    def of(field: VectorField, x: Tensor | None = None, cond: Any = None) -> Trial:
        if not isinstance(field, VectorField):
            raise ArgumentError(f"got a {type(field).__name__}, expected a VectorField")
        copied = copy.deepcopy(field).eval().double()
        with torch.no_grad():
            for i, p in enumerate(copied.parameters()):
                p.add_(0.2 * torch.randn(p.shape, generator=seeded(i), dtype=p.dtype))
        points = (
            torch.randn(6, *_event_shape(field), generator=seeded(0), dtype=torch.float64) if x is None else x.double()
        )
        return Trial(copied, points, cond)

    @property
    def t(self) -> Tensor:
        low, high = self.field.interval
        return low + (high - low) * torch.linspace(0.15, 0.85, len(self.x), dtype=torch.float64)

    def __call__(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        with torch.no_grad():
            return self.field(t, x, cond)


def _event_shape(field: VectorField) -> tuple[int, ...]:
    shapes = (getattr(m, "event_shape", None) for m in field.modules())
    return next((tuple(s) for s in shapes if isinstance(s, list | tuple)), (2,))


def check_field(field: VectorField, *, x: Tensor | None = None, cond: Any = None) -> Report:
    """Try every law of a field, on a copy; the field itself is left alone.

    Args:
        field: the field.
        x: `(B, *event)` points it takes, B >= 2; standard normal ones by default, with the `event_shape` of the field
            or of the first network in it that has one.
        cond: a tensor of conditions `(B, ...)`, for a field that takes any.

    Raises:
        ArgumentError: if this is no field.

    Examples:
        >>> from fmkit.fields import MLP
        >>> from fmkit.testing import check_field
        >>> check_field(MLP(2, width=8, depth=1)).ok
        True
    """
    return LAWS.report(field, Trial.of(field, x, cond))


@LAWS("shape", "it returns a finite velocity of the shape and precision of x, at both ends of its interval too")
def _shape(trial: Trial) -> Measured:
    wrong, (low, high) = [], trial.field.interval
    if not 0 <= low < high <= 1:
        wrong.append(f"the interval is [{low:g}, {high:g}], expected a part of [0, 1]")
    for dtype in (torch.float32, torch.float64):
        field, x = copy.deepcopy(trial.field).to(dtype), trial.x.to(dtype)
        for t in (low, (low + high) / 2, high):
            with torch.no_grad():
                out = field(torch.full((len(x),), t, dtype=torch.float64), x)
            if (out.shape, out.dtype) != (x.shape, dtype):
                wrong.append(f"{out.dtype} {tuple(out.shape)} for x {dtype} {tuple(x.shape)}")
            elif not bool(torch.isfinite(out).all()):
                wrong.append(f"not finite at t = {t:g}")
    return faults(wrong)


@LAWS("rows", "rows of a batch are independent of each other")
def _rows(trial: Trial) -> Measured:
    x, t, cond = trial.x, trial.t, trial.cond
    whole, worst, where = trial(t, x, cond), 0.0, ""
    tries: dict[str, Callable[[int], Tensor]] = {
        "when it is alone": lambda i: trial(t[i : i + 1], x[i : i + 1], None if cond is None else cond[i : i + 1])[0],
        "with other points in the other rows": lambda i: trial(t, _other(x, i), cond)[i],
        "with other times in the other rows": lambda i: trial(_other(t, i, 0.9), x, cond)[i],
    }
    for name, alone in tries.items():
        for i in range(len(x)):
            error = ((whole[i] - alone(i)).abs().max() / (1e-3 + whole.abs().max())).item()
            if not error <= worst:
                worst, where = error, f"of row {i} {name}"
    return Measured(worst, 1e-9, "change", where)


def _other(x: Tensor, row: int, scale: float = -1.3) -> Tensor:
    """x with every row but one scaled (times shrink towards the middle of [0, 1], points turn round)."""
    changed = x * scale if scale < 0 else x + (0.5 - x) * scale
    changed[row] = x[row]
    return changed


@LAWS("condition", "conditions belong to their rows, and None is the same as none")
def _condition(trial: Trial) -> Measured:
    x, t, cond = trial.x, trial.t, trial.cond
    with torch.no_grad():
        free = (trial.field(t, x) - trial.field(t, x, None)).abs().max().item()
    if not free <= 1e-12:
        return Measured(free, 1e-12, "change", "between cond=None and no condition")
    if cond is None:
        try:
            trial(t, x, torch.zeros(len(x), dtype=torch.int64))
        except Exception:
            return Measured(free, 1e-12, "change", "between cond=None and no condition; a condition is refused")
        raise NotChecked("it takes conditions, and none were handed over")
    order = torch.arange(len(x)).flip(0)
    error = (trial(t, x, cond)[order] - trial(t[order], x[order], cond[order])).abs().max().item()
    return Measured(error, 1e-9, "change", "when rows and conditions are turned round together")


@LAWS("seeds", "in evaluation it draws nothing")
def _seeds(trial: Trial) -> Measured:
    before = Globals()
    first = trial(trial.t, trial.x, trial.cond)
    wrong = before.touched()
    stir(1)
    if not torch.equal(first, trial(trial.t, trial.x, trial.cond)):
        wrong.append("two evaluations at the same points differ")
    return faults(wrong)


@LAWS("offers", "every protocol it offers is a method of that name, and `velocity` is what forward computes")
def _offers(trial: Trial) -> Measured:
    field, x, t, wrong = trial.field, trial.x, trial.t, []
    wrong += [f"{p!r} is offered and is no method" for p in field.offers if not callable(getattr(field, p, None))]
    if "velocity" in field.offers and not torch.equal(field.velocity(t, x), field(t, x)):
        wrong.append("velocity(t, x) is not forward(t, x)")
    try:
        at = field.stochastic(t, x)
    except CombinationError:
        if "stochastic" in field.offers:
            wrong.append("'stochastic' is offered and refused")
    else:
        wrong += _stochastic(trial, at)
    return faults(wrong)


def _stochastic(trial: Trial, at: Stochastic) -> list[str]:
    if "stochastic" not in trial.field.offers:
        return ["stochastic(t, x) answers and is not offered"]
    wrong = []
    if at.noise.shape != trial.x.shape or not bool((at.std >= 0).all()):
        wrong.append("the noise has not the shape of x, or its standard deviation is negative")
    if not torch.allclose(at.velocity, trial(trial.t, trial.x), rtol=1e-9, atol=1e-12):
        wrong.append("the velocity of 'stochastic' is not forward's")
    return wrong
