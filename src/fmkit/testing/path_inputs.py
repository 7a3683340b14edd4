"""The laws of a path's manners: what it takes, what it refuses, and that nothing else has a say in what it returns.

The laws of its mathematics, in `paths`, need these.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.paths import AffinePath, PathSample
from fmkit.shapes import widen
from fmkit.testing.points import Trial
from fmkit.testing.precision import has_float32s_digits
from fmkit.testing.randomness import Globals, stir
from fmkit.testing.report import Laws, Measured, NotChecked, faults, refusals

LAWS = Laws("path")


@LAWS("interval", "times outside the interval are refused, and all of it can be evaluated")
def _interval(trial: Trial) -> Measured:
    low, high = trial.path.interval
    if not 0 <= low < high <= 1:
        return faults([f"the interval is [{low:g}, {high:g}], expected a part of [0, 1]"])
    x0, x1 = trial.points(4)
    wrong = []
    for t in (low, high):
        try:
            point = trial.sample(t, x0, x1)
        except ArgumentError as error:
            return faults([f"t = {t:g}, an end of the interval, is refused: {error}"])
        except Exception as error:
            if trial.fails():
                raise NotChecked("it raises at other times too") from error
            raise
        if not torch.isfinite(point.x).all():
            wrong.append(f"the point is not finite at t = {t:g}")
        elif point.velocity is not None and not torch.isfinite(point.velocity).all():
            wrong.append(f"the velocity is not finite at t = {t:g}")
    if wrong:
        return faults(wrong)
    step = 0.01 * (high - low)
    bad = torch.full((4,), trial.middle, dtype=torch.float64)
    bad[2] = high + step
    cases = {f"t = {t:g}": t for t in (low - step, high + step, high + 1, math.nan)} | {"one time of four outside": bad}
    return refusals((name, lambda t=t: trial.sample(t, x0, x1)) for name, t in cases.items())  # type: ignore[misc]


@LAWS("dtype", "point and velocity keep shape, precision and device of the data; times are float64", ["interval"])
def _dtype(trial: Trial) -> Measured:
    wrong = []
    for dtype in (torch.float32, torch.float64):
        x0, x1 = (x.to(dtype) for x in trial.points(5))
        try:
            point = trial.sample(trial.middle, x0, x1)
        except Exception as error:
            wrong.append(f"{dtype} data raises {type(error).__name__}: {error}")
            continue
        for name in ("x", "x0", "x1", "velocity", "z"):
            value = getattr(point, name)
            if value is None:
                continue
            if (value.dtype, value.device, value.shape) != (dtype, x1.device, x1.shape):
                wrong.append(f"{name} is {value.dtype} {tuple(value.shape)} for {dtype} {tuple(x1.shape)}")
            elif dtype == torch.float64 and has_float32s_digits(value):
                wrong.append(f"{name} has the digits of float32 only, for float64 data")
        if point.t.dtype != torch.float64 or point.t.shape != (5,):
            wrong.append(f"t is {point.t.dtype} {tuple(point.t.shape)}, expected float64 (5,)")
    return faults(wrong)


@LAWS("record", "the sample holds the ends and times it was given, and leaves them as they were", ["dtype"])
def _record(trial: Trial) -> Measured:
    (x0, x1), t = trial.points(5), trial.times(5)
    given = {"t": t.clone(), "x0": x0.clone(), "x1": x1.clone()}
    point, wrong = trial.sample(t, x0, x1), []
    for name, now in {"t": t, "x0": x0, "x1": x1}.items():
        if not torch.equal(now, given[name]):
            wrong.append(f"{name} was changed in place")
        elif not torch.allclose(getattr(point, name).double(), given[name].double(), rtol=1e-6, atol=1e-6):
            wrong.append(f"{name} of the sample is not the one given")
    return faults(wrong)


@LAWS("seeds", "the generator is the only randomness there is", ["dtype", "record"])
def _seeds(trial: Trial) -> Measured:
    (x0, x1), t = trial.points(8), trial.times(8)
    before = Globals()
    first = trial.sample(t, x0, x1, seed=1)
    wrong = before.touched()
    stir(1)
    again, other = trial.sample(t, x0, x1, seed=1), trial.sample(t, x0, x1, seed=2)
    if not torch.equal(first.x, again.x) or not _same(first.velocity, again.velocity):
        wrong.append("two samples from one seed differ")
    noisy = first.z is not None or (isinstance(trial.path, AffinePath) and trial.path.has_latent)
    if noisy and torch.equal(first.x, other.x) and _speaks(trial):
        wrong.append("two seeds give the same noise: the generator is not used")
    if first.z is not None and bool((first.z == first.z[:1]).all()):
        wrong.append("all rows of a batch have the same noise")
    return faults(wrong)


def _speaks(trial: Trial) -> bool:
    """Whether an affine path's noise has any strength (a strength of 0 is allowed)."""
    if not isinstance(trial.path, AffinePath):
        return True
    gamma = trial.path.coefficients(trial.times(8)).gamma
    return gamma is not None and bool((gamma != 0).any())


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))


@LAWS("times", "one number, a 0-d tensor, and one time for each row mean the same", ["seeds"])
def _times(trial: Trial) -> Measured:
    (x0, x1), t = trial.points(5), float(torch.tensor(trial.middle, dtype=torch.float32))
    cases = {
        "a number": t,
        "a 0-d tensor": torch.tensor(t, dtype=torch.float64),
        "a float32 tensor": torch.full((5,), t),
    }
    whole, worst, where = trial.sample(torch.full((5,), t, dtype=torch.float64), x0, x1), 0.0, ""
    for name, time in cases.items():
        point = trial.sample(time, x0, x1)
        for what, a, b in (("point", whole.x, point.x), ("velocity", whole.velocity, point.velocity)):
            error = 0.0 if a is None or b is None else ((a - b).abs().max() / (1 + a.abs().max())).item()
            if not error <= worst:
                worst, where = error, f"of the {what} where t is {name}, not (B,)"
    return Measured(worst, 1e-9, "change", where)


@LAWS("rows", "rows of a batch are independent of each other, and of their place in it", ["seeds"])
def _rows(trial: Trial) -> Measured:
    n = 6
    (x0, x1), t = trial.points(n), trial.times(n)
    (y0, y1), s = trial.points(n, 7), trial.times(n, seed=11).flip(0)
    whole = trial.sample(t, x0, x1)
    worst, where = 0.0, ""
    for row in range(n):
        only = torch.arange(n) == row
        wide = only.reshape(n, *[1] * (x0.ndim - 1))
        part = trial.sample(torch.where(only, t, s), torch.where(wide, x0, y0), torch.where(wide, x1, y1))
        for name, a, b in (("point", whole.x, part.x), ("velocity", whole.velocity, part.velocity)):
            if a is None or b is None:
                continue
            error = ((a[row] - b[row]).abs().max() / (1 + a[row].abs().max())).item()
            if not error <= worst:
                worst, where = error, f"the {name} of row {row} changes with the other rows"
    if worst <= 1e-9 and torch.equal(whole.x, trial.sample(t, x0, x1, seed=2).x):  # there is no noise
        turned = trial.sample(t.flip(0), x0.flip(0), x1.flip(0)).x.flip(0)
        error = ((whole.x - turned).abs().max() / (1 + whole.x.abs().max())).item()
        if not error <= worst:
            worst, where = (
                error,
                "with the rows in another order, whatever the seed: a noise that is always the same",
            )
    return Measured(worst, 1e-9, "change", where)


@LAWS("shapes", "points and times that do not fit each other are refused", ["dtype"])
def _shapes(trial: Trial) -> Measured:
    (x0, x1), t = trial.points(4), trial.times(4)
    cases: dict[str, tuple[Any, Tensor, Tensor]] = {
        "x0 with a row less": (trial.middle, x0[:-1], x1),
        "one row of x0 for all": (trial.middle, x0[:1], x1),
        "x0 in another precision": (trial.middle, x0.float(), x1),
        "whole numbers": (trial.middle, x0.long(), x1.long()),
        "empty batches": (trial.middle, x0[:0], x1[:0]),
        "t with a row less": (t[:-1], x0, x1),
        "t of shape (B, 1)": (t[:, None], x0, x1),
    }
    return refusals((name, lambda c=case: trial.sample(*c)) for name, case in cases.items())  # type: ignore[misc]


@LAWS("single", "float32 data gets the point and velocity that float64 data gets, but for rounding", ["times", "rows"])
def _single(trial: Trial) -> Measured:
    x0, x1 = (x.float() for x in trial.points(64))
    t = trial.times(64)
    point = trial.sample(t, x0, x1)
    want = _in_double(trial, t, x0.double(), x1.double(), point)
    scale = _norms((x1 - x0).double())
    worst, where = 0.0, ""
    for name, expected in want.items():
        error = _norms(getattr(point, name).double() - expected)
        error = error / (_norms(expected) + scale).clamp_min(1e-9)
        row = int(error.nan_to_num(math.inf).argmax())
        if not error[row].item() <= worst:
            worst, where = error[row].item(), f"of the {name} in row {row}, t = {t[row].item():.6g}"
    return Measured(worst, 1e-3, "relative difference", where)


def _in_double(trial: Trial, t: Tensor, x0: Tensor, x1: Tensor, point: PathSample) -> dict[str, Tensor]:
    """Point and velocity in float64; the noise of a draw is another in another precision, so it is put in by hand."""
    if point.z is None:
        double = trial.sample(t, x0, x1)
        known = {"x": double.x, "velocity": double.velocity}
        return {name: value for name, value in known.items() if value is not None}
    if not isinstance(trial.path, AffinePath):
        raise NotChecked("its noise is another in another precision")
    rows = {"x": trial.path.coefficients(t), "velocity": trial.path.rates(t)}
    latents = (x1, x0, point.z.double())
    return {
        name: sum((widen(c, v) * v for c, v in zip(row, latents, strict=True) if c is not None), torch.zeros_like(x1))
        for name, row in rows.items()
    }


def _norms(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).norm(dim=1)
