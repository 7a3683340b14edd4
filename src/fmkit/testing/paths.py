"""The laws of a path.

    u = d x_t / dt                     along frozen ends and noise
    d/dt E phi(x_t) = E grad phi(x_t) . u      for every phi: the continuity equation, in its weak form

The second follows from the first where x_t has no jumps; both hold for any path, on a manifold too.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmkit.errors import CombinationError
from fmkit.paths import AffinePath, ProbabilityPath
from fmkit.shapes import widen
from fmkit.sources import Empirical, Gaussian
from fmkit.testing.points import SamplePair, Trial, normal_pair
from fmkit.testing.randomness import Globals, seeded, stir
from fmkit.testing.report import Laws, Measured, NotChecked, Report, faults, refusals

LAWS = Laws("path")


def check_path(path: ProbabilityPath, *, sample_pair: SamplePair | None = None) -> Report:
    """Try every law of a path.

    Args:
        path: the path.
        sample_pair: `(n, generator) -> (x0, x1)`, float64 points `(n, *event)` that are valid on the path; by default
            standard normal ones, or those of the unit sphere or of a torus for a path that refuses them or is not
            Euclidean.

    Raises:
        ArgumentError: if this is no path.

    Examples:
        >>> import fmkit
        >>> from fmkit.testing import check_path
        >>> class Slow(fmkit.paths.CondOT):
        ...     def rates(self, t):
        ...         return fmkit.paths.Coefficients(0.99 * (0 * t + 1), 0 * t - 1)
        >>> [finding.id for finding in check_path(Slow()).failed]
        ['path.velocity', 'path.continuity', 'path.rates']
    """
    return LAWS.report(path, Trial.of(path, sample_pair))


@LAWS("velocity", "the velocity is the time derivative of the point, its ends and noise held")
def _velocity(trial: Trial) -> Measured:
    n, low, high = 128, *trial.path.interval
    (x0, x1), t, h = trial.points(n), trial.times(n), 1e-4 * (high - low)
    velocity = trial.velocity(trial.sample(t, x0, x1)).flatten(1)

    def difference(step: float) -> Tensor:
        return (trial.at(t + step, x0, x1) - trial.at(t - step, x0, x1)).flatten(1) / (2 * step)

    def onwards(step: float) -> Tensor:
        here, near, far = (trial.at(t + k * step, x0, x1).flatten(1) for k in range(3))
        return (4 * near - 3 * here - far) / (2 * step)

    slope = (4 * difference(h / 2) - difference(h)) / 3  # without the error of order h²
    # A schedule may have a kink, and a torus a seam: where one lies within the step, one side of t is free of it.
    sides = torch.stack([slope, onwards(h / 10), onwards(-h / 10)])
    best = (velocity - sides).norm(dim=2).nan_to_num(math.inf).argmin(0)
    slope = sides[best, torch.arange(n)]
    error = (velocity - slope).norm(dim=1) / (slope.norm(dim=1) + 0.1 * (x1 - x0).flatten(1).norm(dim=1)).clamp_min(
        1e-9
    )
    row = int(error.nan_to_num(math.inf).argmax())
    got, want = velocity[row, 0].item(), slope[row, 0].item()
    where = f"row {row}, t = {t[row].item():.4g}, where its first number is {got:.6g} and the derivative {want:.6g}"
    return Measured(error[row].item(), 1e-5, "relative error", where)


@LAWS("continuity", "the marginals obey the continuity equation, d/dt E phi(x) = E grad phi(x) . velocity")
def _continuity(trial: Trial) -> Measured:
    n, panels, margin = 256, 24, 0.02
    (x0, x1), (low, high) = trial.points(n, 1), trial.path.interval
    # Chebyshev-like panels: short where the velocity of many paths is steep. Gauss' rule within each.
    edges = low + (high - low) * (margin + (1 - 2 * margin) * (1 - np.cos(np.pi * np.linspace(0, 1, panels + 1))) / 2)
    nodes, weights = np.polynomial.legendre.leggauss(6)
    size = max(trial.at(float(t), x0, x1).flatten(1).std().item() for t in edges)
    dim = x0[0].numel()
    # Whole frequencies have no seam on a torus; only a path that reaches far from the origin needs lower ones.
    waves = torch.randint(-1, 2, (dim, 6), generator=seeded(2)).double() / max(1.0, size / 4)
    waves[:, 0] = 1 / max(1.0, size / 4)
    waves = waves / max(1.0, dim / 64)
    phases = torch.arange(6, dtype=torch.float64)

    def phi(t: float) -> Tensor:
        return torch.cos(trial.at(t, x0, x1).flatten(1) @ waves + phases).mean(0)

    worst = Measured(0.0, 5e-3, "relative error")
    values = [phi(float(t)) for t in edges]
    for (a, b), (before, after) in zip(itertools.pairwise(edges), itertools.pairwise(values), strict=True):
        flow, way = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        for node, weight in zip(nodes, weights, strict=True):
            point = trial.sample(float((a + b) / 2 + (b - a) / 2 * node), x0, x1)
            slope = -torch.sin(point.x.flatten(1) @ waves + phases) * (trial.velocity(point).flatten(1) @ waves)
            flow += weight * (b - a) / 2 * slope.mean(0)
            way += weight * (b - a) / 2 * slope.abs().mean(0)
        error = ((after - before - flow).abs() / way.clamp_min(5e-3)).max().item()
        if not error <= worst.value:
            worst = worst._replace(value=error, where=f"between t = {a:.4g} and {b:.4g}")
    return worst


@LAWS("start", "the path begins at the law that `start` gives")
def _start(trial: Trial) -> Measured:
    n, path, low = 20_000, trial.path, trial.path.interval[0]
    x0, x1 = trial.points(n, 3)
    plain = trial.pair is normal_pair
    if plain:
        x1 = torch.zeros_like(x1)  # the data's part of the beginning is left out
    start = path.start(Gaussian() if plain else Empirical(x0)).sample(x0.shape, generator=seeded(4), dtype=x0.dtype)
    begin = trial.at(low, x0, x1)
    if isinstance(path, AffinePath):
        alpha = path.coefficients(torch.tensor([low], dtype=torch.float64)).alpha
        begin = begin - alpha.item() * x1
    errors = []
    for name, f in {"mean": lambda x: x, "mean square": lambda x: x**2, "mean absolute value": torch.abs}.items():
        a, b = f(begin).flatten(1), f(start).flatten(1)
        scale = 1e-3 * b.abs().mean() + torch.sqrt((a.var(0) + b.var(0)) / n)
        score = ((a.mean(0) - b.mean(0)).abs() / scale.clamp_min(1e-12)).max().item()
        errors.append((score, f"the {name} at t = {low:g} is {a.mean().item():.4g}, of start {b.mean().item():.4g}"))
    score, where = max(errors, key=lambda e: math.inf if math.isnan(e[0]) else e[0])
    return Measured(score, 6.0, "standard errors apart:", where)


@LAWS("end", "the path ends at the data, but for a centred blur narrower than its beginning")
def _end(trial: Trial) -> Measured:
    repeats, (low, high) = 1000, trial.path.interval
    x1 = trial.points(8, 5)[1].repeat_interleave(repeats, 0)
    x0 = trial.points(len(x1), 6)[0]

    def given_data(t: float) -> Tensor:
        return (trial.at(t, x0, x1) - x1).flatten(1).reshape(8, repeats, -1)

    end, begin = given_data(high), given_data(low)
    blur, width = end.std(1).mean().item(), begin.std(1).mean().item()
    error = (end.mean(1).abs() - 6 * end.std(1) / math.sqrt(repeats)).clamp_min(0).max().item()
    error /= x1.flatten(1).std(0).mean().item()
    if not blur <= 0.95 * width + 1e-9:
        return Measured(blur, 0.95 * width, "blur", f"at t = {high:g}, around the data")
    return Measured(error, 0.05, "distance from the data, in units of its spread,", f"at t = {high:g}")


@LAWS("interval", "times outside the interval are refused, and all of it can be evaluated")
def _interval(trial: Trial) -> Measured:
    (x0, x1), (low, high) = trial.points(4), trial.path.interval
    if not 0 <= low < high <= 1:
        return faults([f"the interval is [{low:g}, {high:g}], expected a part of [0, 1]"])
    wrong = []
    for t in (low, high):
        point = trial.sample(t, x0, x1)
        if not torch.isfinite(point.x).all() or not torch.isfinite(trial.velocity(point)).all():
            wrong.append(f"point or velocity is not finite at t = {t:g}")
    if wrong:
        return faults(wrong)
    step = 0.01 * (high - low)
    bad = torch.full((4,), trial.middle, dtype=torch.float64)
    bad[2] = high + step
    cases = {f"t = {t:g}": t for t in (low - step, high + step, high + 1, math.nan)} | {"one time of four outside": bad}
    return refusals((name, lambda t=t: trial.sample(t, x0, x1)) for name, t in cases.items())  # type: ignore[misc]


@LAWS("seeds", "the generator is the only randomness there is")
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


@LAWS("rows", "rows of a batch are independent of each other")
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
    return Measured(worst, 1e-9, "change", where)


@LAWS("dtype", "point and velocity keep shape, precision and device of the data; times are float64")
def _dtype(trial: Trial) -> Measured:
    wrong = []
    for dtype in (torch.float32, torch.float64):
        x0, x1 = (x.to(dtype) for x in trial.points(5))
        point = trial.sample(trial.middle, x0, x1)
        for name in ("x", "x0", "x1", "velocity", "z"):
            value = getattr(point, name)
            if value is None:
                continue
            if (value.dtype, value.device, value.shape) != (dtype, x1.device, x1.shape):
                wrong.append(f"{name} is {value.dtype} {tuple(value.shape)} for {dtype} {tuple(x1.shape)}")
        if point.t.dtype != torch.float64 or point.t.shape != (5,):
            wrong.append(f"t is {point.t.dtype} {tuple(point.t.shape)}, expected float64 (5,)")
    return faults(wrong)


@LAWS("shapes", "points and times that do not fit each other are refused")
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


@LAWS("rates", "an affine path's rates are the derivatives of its functions")
def _rates(trial: Trial) -> Measured:
    path, t = _affine(trial), trial.times(200, 0.005)
    worst = Measured(0.0, 1e-7, "relative error")
    for name, closed, derived in zip(
        ("alpha'", "sigma'", "gamma'"), path.rates(t), AffinePath.rates(path, t), strict=True
    ):
        if (closed is None) != (derived is None):
            return faults([f"{name} is {'missing' if closed is None else 'given, but the path has no gamma'}"])
        if closed is None or derived is None:
            continue
        error = (closed - derived).abs() / (derived.abs() + 0.01 * derived.abs().mean()).clamp_min(1e-9)
        row = int(error.nan_to_num(math.inf).argmax())
        if not error[row] <= worst.value:
            worst = worst._replace(value=error[row].item(), where=f"{name} at t = {t[row].item():.4g}")
    return worst


@LAWS("conversions", "an affine path's conversions take every view to every other")
def _conversions(trial: Trial) -> Measured:
    path, n = _affine(trial), 65
    (x0, x1), t = trial.points(n), trial.times(n, 0.05)
    point = trial.sample(t, x0, x1)
    views = {"velocity": trial.velocity(point), "data": x1, "noise": x0}
    at = path.coefficients(t)
    if at.gamma is not None and point.z is not None:
        views["latent"], views["score"] = point.z, -point.z / widen(at.gamma, point.z)
    else:
        views["score"] = -x0 / widen(at.sigma, x0)
    views = {name: view for name, view in views.items() if bool(torch.isfinite(view).all())}  # no noise, no score
    worst, pairs = Measured(0.0, 1e-6, "relative error"), 2 if path.has_latent else 1
    for given in itertools.combinations(views, pairs):
        for want in views:
            try:
                got = path.convert(t, point.x, want, **{name: views[name] for name in given})
            except CombinationError:
                continue  # these views say the same here
            error = (got - views[want]).flatten(1).norm(dim=1) / (1e-3 + views[want].flatten(1).norm(dim=1))
            # At single times a schedule that turns back determines less: most rows decide.
            typical = error.nan_to_num(math.inf).median().item()
            if not typical <= worst.value:
                worst = worst._replace(value=typical, where=f"{want} from {' and '.join(given)}")
    return worst


def _affine(trial: Trial) -> AffinePath:
    if not isinstance(trial.path, AffinePath):
        raise NotChecked("the path is not affine")
    return trial.path
