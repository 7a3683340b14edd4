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
from fmkit.testing.precision import has_float32s_digits
from fmkit.testing.randomness import Globals, preserved, seeded, stir
from fmkit.testing.report import Laws, Measured, NotChecked, Report, faults

LAWS = Laws("field")
# What a field may insist on: the kit's points are of the first of these events that it takes.
EVENTS: tuple[tuple[int, ...], ...] = (
    *((n,) for n in (2, 1, 3, 4, 5, 6, 8)), (), (2, 2), (1, 4, 4), (1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 32, 32),
)  # fmt: skip
ROWS = 6


@dataclass
class Trial:
    """A field, points it takes, and a condition for each; `free` says whether it answers without one."""

    field: VectorField
    x: Tensor
    cond: Any
    free: bool = True
    refusal: str = ""

    @staticmethod
    @preserved()
    def of(field: VectorField, x: Tensor | None = None, cond: Any = None) -> Trial:
        """With the points and conditions given, or else the first of the kit's that the field answers to."""
        if not isinstance(field, VectorField):
            raise ArgumentError(f"got a {type(field).__name__}, expected a VectorField")
        copied = copy.deepcopy(field).eval().double()
        with torch.no_grad():
            for i, p in enumerate(copied.parameters()):
                p.add_(0.2 * torch.randn(p.shape, generator=seeded(i), dtype=p.dtype))
        if x is not None:
            free = Trial(copied, x.double(), None)._answers() == ""
            return Trial(copied, x.double(), cond, free or cond is None)
        said, shape = "", _event_shape(field)
        conditions = [None, torch.arange(ROWS) % 2, torch.randn(ROWS, 4, generator=seeded(1), dtype=torch.float64)]
        for known in conditions if cond is None else [cond]:
            for event in EVENTS if shape is None else (shape,):
                points = torch.randn(ROWS, *event, generator=seeded(0), dtype=torch.float64)
                trial = Trial(copied, points, known, free=known is None)
                if not (answer := trial._answers()):
                    trial.free = trial.free or Trial(copied, points, None)._answers() == ""
                    return trial
                said = said or answer
        return Trial(
            copied, torch.zeros(ROWS, 2), cond, refusal=f"it takes none of the kit's points ({said}); hand it x"
        )

    def _answers(self) -> str:
        """What it says against its points and conditions; nothing where it answers."""
        try:
            self(self.t, self.x, self.cond)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    @property
    def t(self) -> Tensor:
        low, high = self.field.interval
        return low + (high - low) * torch.linspace(0.15, 0.85, len(self.x), dtype=torch.float64)

    def need(self) -> None:
        if self.refusal:
            raise NotChecked(self.refusal)

    def __call__(self, t: Tensor, x: Tensor, cond: Any = None) -> Tensor:
        with torch.no_grad():
            return self.field(t, x, cond)


def _event_shape(field: VectorField) -> tuple[int, ...] | None:
    for module in field.modules():
        shape = getattr(module, "event_shape", None)
        if isinstance(shape, list | tuple):
            return tuple(shape)
        if isinstance(shape, int):
            return (shape,)
    return None


def check_field(field: VectorField, *, x: Tensor | None = None, cond: Any = None) -> Report:
    """Try every law of a field, on a copy; the field itself is left alone.

    Args:
        field: the field.
        x: `(B, *event)` points it takes, B >= 2; standard normal ones by default, with the `event_shape` of the field
            or of the first network in it that has one, or else of the first shape in use that it takes.
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
    trial.need()
    wrong, (low, high) = [], trial.field.interval
    if not 0 <= low < high <= 1:
        wrong.append(f"the interval is [{low:g}, {high:g}], expected a part of [0, 1]")
    for dtype in (torch.float32, torch.float64):
        field, x = copy.deepcopy(trial.field).to(dtype), trial.x.to(dtype)
        for t in (low, (low + high) / 2, high):
            with torch.no_grad():
                out = field(torch.full((len(x),), t, dtype=torch.float64), x, trial.cond)
            if (out.shape, out.dtype) != (x.shape, dtype):
                wrong.append(f"{out.dtype} {tuple(out.shape)} for x {dtype} {tuple(x.shape)}")
            elif dtype == torch.float64 and t not in (low, high) and has_float32s_digits(out):
                wrong.append("it has the digits of float32 only, for float64")
            elif not bool(torch.isfinite(out).all()):
                wrong.append(f"not finite at t = {t:g}")
    return faults(wrong)


@LAWS("seeds", "in evaluation it draws nothing, and leaves the points as they were", ["shape"])
def _seeds(trial: Trial) -> Measured:
    before, x = Globals(), trial.x.clone()
    first = trial(trial.t, x, trial.cond)
    wrong = before.touched()
    if not torch.equal(x, trial.x):
        return faults(["the points were changed in place"])
    stir(1)
    if not torch.equal(first, trial(trial.t, trial.x, trial.cond)):
        wrong.append("two evaluations at the same points differ")
    return faults(wrong)


@LAWS("rows", "rows of a batch are independent of each other", ["seeds"])
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


@LAWS("condition", "conditions belong to their rows, and None is the same as none", ["rows"])
def _condition(trial: Trial) -> Measured:
    x, t, cond = trial.x, trial.t, trial.cond
    free = 0.0
    if trial.free:
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


@LAWS("offers", "every protocol it offers is a method of that name, and `velocity` is what forward computes", ["rows"])
def _offers(trial: Trial) -> Measured:
    field, x, t, cond, wrong = trial.field, trial.x, trial.t, trial.cond, list[str]()
    wrong += [f"{p!r} is offered and is no method" for p in field.offers if not callable(getattr(field, p, None))]
    if "velocity" in field.offers and not torch.equal(field.velocity(t, x, cond), field(t, x, cond)):
        wrong.append("velocity(t, x) is not forward(t, x)")
    if "average" in field.offers and not wrong:
        wrong += _average(trial)
    try:
        at = field.stochastic(t, x, cond)
    except CombinationError:
        if "stochastic" in field.offers:
            wrong.append("'stochastic' is offered and refused")
    else:
        wrong += _stochastic(trial, at)
    return faults(wrong)


def _average(trial: Trial) -> list[str]:
    """An average over no time at all is the velocity."""
    s, x = trial.t, trial.x
    with torch.no_grad():
        still, onwards = (trial.field.average(s, t, x, trial.cond) for t in (s, s + 0.01))  # type: ignore[operator]
    for mean in (still, onwards):
        if (mean.shape, mean.dtype) != (x.shape, x.dtype):
            return [f"the average is {mean.dtype} {tuple(mean.shape)} for x {x.dtype} {tuple(x.shape)}"]
    if not torch.allclose(still, trial(s, x, trial.cond), rtol=1e-6, atol=1e-9):
        return ["the average from t to t is not the velocity at t"]
    return []


def _stochastic(trial: Trial, at: Stochastic) -> list[str]:
    if "stochastic" not in trial.field.offers:
        return ["stochastic(t, x) answers and is not offered"]
    wrong = []
    if not isinstance(at, Stochastic):
        return [f"'stochastic' returns a {type(at).__name__}, expected a Stochastic"]
    if (at.noise.shape, at.noise.dtype) != (trial.x.shape, trial.x.dtype) or not bool((at.std >= 0).all()):
        wrong.append("the noise has not the shape and precision of x, or its standard deviation is negative")
    if not torch.allclose(at.velocity, trial(trial.t, trial.x, trial.cond), rtol=1e-9, atol=1e-12):
        wrong.append("the velocity of 'stochastic' is not forward's")
    return wrong
