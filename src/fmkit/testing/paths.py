"""The laws of a path.

    u = d x_t / dt                     along frozen ends and noise
    d/dt E phi(x_t) = E grad phi(x_t) . u      for every phi: the continuity equation, in its weak form

The second follows from the first where x_t has no jumps; both hold for any path, on a manifold too.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fmkit.errors import CombinationError, FmkitError
from fmkit.paths import AffinePath, ProbabilityPath
from fmkit.shapes import widen
from fmkit.sources import Empirical, Gaussian, Source
from fmkit.testing.path_inputs import LAWS
from fmkit.testing.points import SamplePair, Trial, normal_pair
from fmkit.testing.randomness import seeded
from fmkit.testing.report import Measured, NotChecked, Report, faults

MANNERS = ("interval", "dtype", "record", "times", "seeds", "rows")  # without these nothing below can be measured


def check_path(path: ProbabilityPath, *, sample_pair: SamplePair | None = None) -> Report:
    """Try every law of a path.

    Args:
        path: the path.
        sample_pair: `(n, generator) -> (x0, x1)`, float64 points `(n, *event)` that are valid on the path; by default
            the first that fit of standard normal ones, those of the unit sphere, of a torus, and of a dozen other
            shapes and spaces in use (not standard normal ones for a path that says it is not Euclidean).

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


@LAWS("velocity", "the velocity is the time derivative of the point, its ends and noise held", MANNERS)
def _velocity(trial: Trial) -> Measured:
    low, high = trial.path.interval
    near, away = trial.near_ends(32)
    inner = trial.times(trial.rows(448))
    t = torch.cat([inner, near, torch.tensor([low, high], dtype=torch.float64)])
    n = len(t)
    # An end may be singular, so the steps shrink towards it.
    h = torch.cat([torch.full((len(inner),), 1e-4 * (high - low)), (away / 16).clamp_max(1e-4 * (high - low))])
    x0, x1 = trial.points(n)
    velocity = _flat(trial.velocity(trial.sample(t, x0, x1)))
    slopes = torch.cat([_inside(trial, t[:-2], h, x0, x1), _at_ends(trial, t, x0, x1)], 1)
    best = (velocity - slopes).norm(dim=2).nan_to_num(math.inf).argmin(0)
    slope = slopes[best, torch.arange(n)]
    size = slope.norm(dim=1) + 0.1 * _flat(x1 - x0).norm(dim=1)
    error = (velocity - slope).norm(dim=1) / size.clamp_min(1e-9)
    error[-2:] = error[-2:].nan_to_num(0.0)  # an end with no derivative of its own, as of a square root
    row = int(error.nan_to_num(math.inf).argmax())
    at = int((velocity[row] - slope[row]).abs().argmax())
    got, want = velocity[row, at].item(), slope[row, at].item()
    where = f"row {row}, t = {t[row].item():.6g}, where number {at} is {got:.6g} and the derivative {want:.6g}"
    return Measured(error[row].item(), 1e-5, "relative error", where)


def _inside(trial: Trial, t: Tensor, h: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """Derivatives `(3, n, D)` at times inside the interval: from both sides, and from either."""
    x0, x1, wide = x0[: len(t)], x1[: len(t)], h[:, None]
    # The noise of a row depends on its place in the batch, so every batch has as many rows as the one compared with.
    pad = torch.cat([torch.arange(len(t)), torch.zeros(2, dtype=torch.int64)])

    def at(time: Tensor) -> Tensor:
        return _flat(trial.at(time[pad], x0[pad], x1[pad])[: len(t)])

    def difference(scale: float) -> Tensor:
        return (at(t + scale * h) - at(t - scale * h)) / (2 * scale * wide)

    def onwards(scale: float) -> Tensor:
        here, near, far = (at(t + k * scale * h) for k in range(3))
        return (4 * near - 3 * here - far) / (2 * scale * wide)

    both = (4 * difference(0.5) - difference(1.0)) / 3  # without the error of order h²
    # A schedule may have a kink, and a torus a seam: where one lies within the step, one side of t is free of it.
    return torch.stack([both, onwards(0.1), onwards(-0.1)])


def _at_ends(trial: Trial, t: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """One-sided derivatives `(3, 2, D)` at the two ends; NaN where they do not settle as the step shrinks."""
    low, high = trial.path.interval
    way = torch.tensor([1.0, -1.0], dtype=torch.float64) * (high - low)

    def onwards(h: float) -> Tensor:
        points = []
        for k in range(4):
            moved = t.clone()
            moved[-2:] += k * h * way
            points.append(_flat(trial.at(moved, x0, x1)[-2:]))
        a, b, c, d = points
        return (18 * b - 11 * a - 9 * c + 2 * d) / (6 * h * way[:, None])

    coarse, fine = onwards(1e-4), onwards(5e-5)
    settled = (coarse - fine).norm(dim=1) <= 1e-6 * (1e-3 + fine.norm(dim=1))
    return torch.where(settled[:, None], fine, math.nan).expand(3, *fine.shape)


@LAWS("continuity", "the marginals obey the continuity equation, d/dt E phi(x) = E grad phi(x) . velocity", MANNERS)
def _continuity(trial: Trial) -> Measured:
    n, panels, margin = trial.rows(256), 24, 0.02
    (x0, x1), (low, high) = trial.points(n, 1), trial.path.interval
    # Chebyshev-like panels: short where the velocity of many paths is steep.
    edges = low + (high - low) * (margin + (1 - 2 * margin) * (1 - np.cos(np.pi * np.linspace(0, 1, panels + 1))) / 2)
    size = max(trial.at(float(t), x0, x1).std().item() for t in edges)
    dim = x0[0].numel()
    # Whole frequencies have no seam on a torus; only a path that reaches far from the origin needs lower ones.
    waves = torch.randint(-1, 2, (dim, 6), generator=seeded(2)).double() / max(1.0, size / 4)
    waves[:, 0] = 1 / max(1.0, size / 4)
    waves = waves / max(1.0, dim / 64)
    phases = torch.arange(6, dtype=torch.float64)

    def phi(t: float) -> Tensor:
        return torch.cos(_flat(trial.at(t, x0, x1)) @ waves + phases).mean(0)

    def rate(t: float) -> tuple[Tensor, Tensor]:
        point = trial.sample(t, x0, x1)
        slope = -torch.sin(_flat(point.x) @ waves + phases) * (_flat(trial.velocity(point)) @ waves)
        return slope.mean(0), slope.abs().mean(0)

    worst = Measured(0.0, 5e-3, "relative error")
    values = [phi(float(t)) for t in edges]
    for (a, b), (before, after) in zip(itertools.pairwise(edges), itertools.pairwise(values), strict=True):
        for pieces in (1, 32):  # many only where few do not do, as around a kink
            flow, way = _integrals(rate, np.linspace(a, b, pieces + 1))
            error = ((after - before - flow).abs() / way.clamp_min(5e-3)).max().item()
            if error <= worst.bound:
                break
        if not error <= worst.value:
            worst = worst._replace(value=error, where=f"between t = {a:.4g} and {b:.4g}")
        if not error <= worst.bound:
            break
    return worst


def _integrals(rate: Callable[[float], tuple[Tensor, Tensor]], edges: np.ndarray) -> tuple[Tensor, Tensor]:
    """The integrals of both figures that `rate` returns, by Gauss' rule in each piece."""
    nodes, weights = np.polynomial.legendre.leggauss(6)
    flow, way = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for a, b in itertools.pairwise(edges):
        for node, weight in zip(nodes, weights, strict=True):
            slope, size = rate(float((a + b) / 2 + (b - a) / 2 * node))
            flow += weight * (b - a) / 2 * slope
            way += weight * (b - a) / 2 * size
    return flow, way


@LAWS("start", "the path begins at the law that `start` gives", MANNERS)
def _start(trial: Trial) -> Measured:
    path, low = trial.path, trial.path.interval[0]
    x0, x1 = trial.points(trial.rows(20_000), 3)
    if trial.pair is normal_pair:
        x0, x1 = 1.3 * x0 + 0.4, torch.zeros_like(x1)  # the data's part of the beginning is left out
    source, law = _law_of_start(trial, x0)
    if isinstance(path, AffinePath) and isinstance(source, Gaussian) and isinstance(law, Gaussian):
        return _gaussian_start(path, source, law)
    start = law.sample(x0.shape, generator=seeded(4), dtype=x0.dtype)
    begin = trial.at(low, x0, x1)
    if isinstance(path, AffinePath):
        alpha = path.coefficients(torch.tensor([low], dtype=torch.float64)).alpha
        begin = begin - alpha.item() * x1
    errors = []
    for name, f in {"mean": lambda x: x, "mean square": lambda x: x**2, "mean absolute value": torch.abs}.items():
        a, b = _flat(f(begin)), _flat(f(start))
        scale = 1e-3 * b.abs().mean() + torch.sqrt((a.var(0) + b.var(0)) / len(x0))
        score = ((a.mean(0) - b.mean(0)).abs() / scale.clamp_min(1e-12)).max().item()
        errors.append((score, f"the {name} at t = {low:g} is {a.mean().item():.4g}, of start {b.mean().item():.4g}"))
    score, where = max(errors, key=lambda e: math.inf if math.isnan(e[0]) else e[0])
    return Measured(score, 6.0, "standard errors apart:", where)


def _law_of_start(trial: Trial, x0: Tensor) -> tuple[Source, Source]:
    """The source of x0, and where the path says it then begins."""
    if trial.pair is normal_pair:
        with contextlib.suppress(FmkitError):  # a path may want another source
            return Gaussian(1.3, 0.4), trial.path.start(Gaussian(1.3, 0.4))
    return Empirical(x0), trial.path.start(Empirical(x0))


def _gaussian_start(path: AffinePath, source: Gaussian, law: Gaussian) -> Measured:
    """In closed form: sigma x0 + gamma z has the mean sigma m, and the variance sigma² s² + gamma²."""
    low = path.interval[0]
    at = path.coefficients(torch.tensor([low], dtype=torch.float64))
    sigma, gamma = at.sigma.item(), 0.0 if at.gamma is None else at.gamma.item()
    mean, std = sigma * source.mean, math.hypot(sigma * source.std, gamma)
    error = max(abs(law.mean - mean), abs(law.std - std)) / max(std, 1e-12)
    got, want = f"N({law.mean:.6g}, {law.std:.6g}²)", f"N({mean:.6g}, {std:.6g}²)"
    return Measured(error, 1e-6, "relative error", f"from {source} it says {got}; at t = {low:g} the path has {want}")


@LAWS("end", "the path ends at the data, but for a centred blur narrower than its beginning", MANNERS)
def _end(trial: Trial) -> Measured:
    repeats, (low, high) = trial.rows(8000) // 8, trial.path.interval
    x1 = trial.points(8, 5)[1].repeat_interleave(repeats, 0)
    x0 = trial.points(len(x1), 6)[0]

    def given_data(t: float) -> Tensor:
        return (trial.at(t, x0, x1) - x1).reshape(8, repeats, -1)

    end, begin = given_data(high), given_data(low)
    blur, width = end.std(1).mean().item(), begin.std(1).mean().item()
    error = (end.mean(1).abs() - 6 * end.std(1) / math.sqrt(repeats)).clamp_min(0).max().item()
    error /= _flat(x1).std(0).mean().item()
    if not blur <= 0.95 * width + 1e-9:
        return Measured(blur, 0.95 * width, "blur", f"at t = {high:g}, around the data")
    bound = 5e-3 + 12 * (1 - high)  # a path that stops before t = 1 has some way to go
    return Measured(error, bound, "distance from the data, in units of its spread,", f"at t = {high:g}")


@LAWS("affine", "an affine path's points and velocities are those of its alpha, sigma and gamma", MANNERS)
def _is_affine(trial: Trial) -> Measured:
    path, t = _affine(trial), torch.cat([trial.times(32), trial.near_ends(8)[0]])
    x0, x1 = trial.points(len(t))
    point, worst = trial.sample(t, x0, x1), Measured(0.0, 1e-6, "relative error")
    if path.has_latent != (point.z is not None):
        return faults(
            [f"gamma is {'given' if path.has_latent else 'None'} and z {'missing' if path.has_latent else 'not'}"]
        )
    z = torch.zeros_like(x0) if point.z is None else point.z
    for name, at, got in (("point", path.coefficients(t), point.x), ("velocity", path.rates(t), trial.velocity(point))):
        want = widen(at.alpha, x1) * x1 + widen(at.sigma, x0) * x0
        want = want if at.gamma is None else want + widen(at.gamma, z) * z
        error = _flat(got - want).norm(dim=1) / (1e-3 + _flat(want).norm(dim=1))
        row = int(error.nan_to_num(math.inf).argmax())
        if not error[row] <= worst.value:
            worst = worst._replace(value=error[row].item(), where=f"the {name} at t = {t[row].item():.4g}")
    return worst


@LAWS("rates", "an affine path's rates are the derivatives of its functions", ["interval"])
def _rates(trial: Trial) -> Measured:
    path, t = _affine(trial), torch.cat([trial.times(200, 0.005), trial.near_ends(16)[0]])
    try:
        derivatives = AffinePath.rates(path, t)
    except (RuntimeError, NotImplementedError) as error:
        raise NotChecked(f"its functions have no derivative in forward mode ({error})") from error
    worst = Measured(0.0, 1e-7, "relative error")
    for name, closed, derived in zip(("alpha'", "sigma'", "gamma'"), path.rates(t), derivatives, strict=True):
        if (closed is None) != (derived is None):
            return faults([f"{name} is {'missing' if closed is None else 'given, but the path has no gamma'}"])
        if closed is None or derived is None:
            continue
        off = (closed - derived).abs() / (derived.abs() + 0.01 * derived.abs().mean()).clamp_min(1e-9)
        row = int(off.nan_to_num(math.inf).argmax())
        if not off[row] <= worst.value:
            worst = worst._replace(value=off[row].item(), where=f"{name} at t = {t[row].item():.6g}")
    return worst


@LAWS("conversions", "an affine path's conversions take every view to every other", [*MANNERS, "affine"])
def _conversions(trial: Trial) -> Measured:
    path, n = _affine(trial), 96
    (x0, x1), t = trial.points(n), trial.times(n, 0.01)
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
                moved = path.convert(t, point.x, want, **{name: (1 + 1e-6) * views[name] for name in given})
            except CombinationError:
                continue  # these views say the same here
            size = 1e-3 + _flat(views[want]).norm(dim=1)
            error = _flat(got - views[want]).norm(dim=1) / size
            # Where a schedule turns back, or waits, views nearly say the same: rounding is all that comes of them.
            told = _flat(moved - got).norm(dim=1) <= 1e-2 * size
            error = torch.where(told, error.nan_to_num(math.inf), 0.0)
            row = int(error.argmax())
            if not error[row] <= worst.value:
                where = f"{want} from {' and '.join(given)} at t = {t[row].item():.4g}"
                worst = worst._replace(value=error[row].item(), where=where)
    return worst


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)


def _affine(trial: Trial) -> AffinePath:
    if not isinstance(trial.path, AffinePath):
        raise NotChecked("the path is not affine")
    return trial.path
