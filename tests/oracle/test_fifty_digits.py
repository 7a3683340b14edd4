"""The oracle against fifty digits, by another way.

Nothing of fmkit's algebra is used. A component k and the latents are jointly Gaussian, so given x_t = x the mean of a
view is read off its covariance with x, solved by mpmath's LU (the oracle goes along eigenvectors); the schedules and
their rates are written from the papers' formulas and differentiated by mpmath.
"""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

import fmkit
from fmkit import paths, registry
from fmkit.paths import AffinePath
from fmkit.sources import Gaussian

mp.mp.dps = 50
D64 = torch.float64

SCHEDULES = {  # alpha, sigma, gamma, each a function of an mpf
    "condot": (lambda t: t, lambda t: 1 - t, None),
    "cosine": (lambda t: mp.sin(mp.pi * t / 2), lambda t: mp.cos(mp.pi * t / 2), None),
    "polynomial": (lambda t: t**2, lambda t: 1 - t**2, None),
    "linear-vp": (lambda t: t, lambda t: mp.sqrt(1 - t**2), None),
    "vp": (lambda t: mp.exp(-_vp(t) / 2), lambda t: mp.sqrt(1 - mp.exp(-_vp(t))), None),
    "ve": (lambda t: mp.mpf(1), lambda t: mp.mpf(0.01) * (50 / mp.mpf(0.01)) ** (1 - t), None),
    "icfm": (lambda t: t, lambda t: 1 - t, lambda t: mp.mpf(0.1)),
    "schrodinger-bridge": (lambda t: t, lambda t: 1 - t, lambda t: mp.sqrt(t * (1 - t))),
}


def _vp(t):
    """The integral of beta from 0 to s = 1 - t, beta(s) = 0.1 + s (20 - 0.1)."""
    low, s = mp.mpf(0.1), 1 - t
    return low * s + (20 - low) * s**2 / 2


def exact(x):
    """A float64 tensor, digit by digit."""
    return [exact(row) for row in x] if x.ndim else mp.mpf(x.item())


class Law:
    """The posterior at one time and one point, in fifty digits."""

    def __init__(self, schedule, t, x, means, weights, covariances, mean, std):
        t, s2 = mp.mpf(t), mp.mpf(std) ** 2
        row = [mp.mpf(0) if f is None else f(t) for f in schedule]
        rate = [mp.mpf(0) if f is None else mp.diff(f, t, h=mp.mpf(10) ** -20) for f in schedule]
        d, point = len(x), mp.matrix(x)
        self.logs, self.velocity_k, self.data_k, self.noise_k, self.score_k = [], [], [], [], []
        for mu, w, cov in zip(means, weights, covariances, strict=True):
            mu, cov, eye = mp.matrix(mu), mp.matrix(cov), mp.eye(d)
            total = row[0] ** 2 * cov + (row[1] ** 2 * s2 + row[2] ** 2) * eye
            away = point - row[0] * mu - row[1] * mp.mpf(mean) * mp.ones(d, 1)
            solved = mp.lu_solve(total, away)
            log_det = mp.log(mp.det(total))
            self.logs.append(mp.log(w) - ((away.T * solved)[0] + log_det + d * mp.log(2 * mp.pi)) / 2)
            data = mu + row[0] * cov * solved
            noise = mp.mpf(mean) * mp.ones(d, 1) + row[1] * s2 * solved
            self.data_k.append(data)
            self.noise_k.append(noise)
            self.velocity_k.append(rate[0] * data + rate[1] * noise + rate[2] * row[2] * solved)
            self.score_k.append(-solved)
        top = max(self.logs)
        shares = [mp.exp(log - top) for log in self.logs]
        self.log_prob = top + mp.log(sum(shares))
        self.responsibilities = [share / sum(shares) for share in shares]

    def mean(self, view):
        parts = getattr(self, view + "_k")
        return [sum(r * p[i] for r, p in zip(self.responsibilities, parts, strict=True)) for i in range(len(parts[0]))]


def mixture(d, kind, g):
    """Means, weights and covariances `(K, ...)` of a mixture that is hard in one way."""
    k = 3
    means = torch.randn(k, d, generator=g, dtype=D64)
    weights = torch.rand(k, generator=g, dtype=D64) + 0.1
    a = torch.randn(k, d, d, generator=g, dtype=D64) / math.sqrt(d)
    covariances = a @ a.mT + 0.1 * torch.eye(d, dtype=D64)
    match kind:
        case "nearly singular":
            a[:, :, 0] *= 1e-5
            covariances = a @ a.mT + 1e-10 * torch.eye(d, dtype=D64)
        case "a tiny weight":
            weights[0] = 1e-12
        case "far apart":
            means *= 30
        case "points":
            covariances = torch.zeros(k, d, d, dtype=D64)
    return means, weights, (covariances + covariances.mT) / 2


def times(path, points, g):
    low, high = path.interval
    ends = [1e-4, 1e-2, 1 - 1e-2, 1 - 1e-4] if not points else [1e-3, 1e-2, 1 - 1e-2, 1 - 1e-3]
    inner = torch.rand(3, generator=g, dtype=D64).tolist()
    return [low + (high - low) * u for u in (*ends, *inner)]


KINDS = ("usual", "nearly singular", "a tiny weight", "far apart", "points")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_view_to_what_its_conditioning_allows(name, kind, seeded):
    """Inputs are rounded to eps relative; an answer may be off by that times its sensitivity, which is what
    the largest component's pull V^-1 (x - c) and the spread of the exponents tell."""
    path, eps = registry.load("fmkit.paths", name)(), torch.finfo(D64).eps
    for d in (1, 2, 3):
        g = seeded(1000 * d + KINDS.index(kind))
        means, weights, covariances = mixture(d, kind, g)
        source = Gaussian() if d < 3 else Gaussian(1.5, 0.25)
        given = {"covariances": covariances} if kind != "points" else {"std": 0.0}
        oracle = fmkit.MixtureOracle(path, means, weights, source=source, **given)
        laws = [exact(v) for v in (means, weights / weights.sum(), covariances)]
        for t in times(path, kind == "points", g):
            at = torch.tensor([t], dtype=D64)
            k = int(torch.randint(3, (), generator=g))
            x0 = source.sample((1, d), generator=g, dtype=D64)
            x = path.sample(at, x0, means[k : k + 1] + 0.1 * (kind != "points"), generator=g).x
            want = Law(SCHEDULES[name], t, exact(x[0]), *laws, source.mean, source.std)
            # How far the logarithms move for a rounding of x, of the means or of the time.
            pull = max(float(mp.norm(s)) for s, r in zip(want.score_k, want.responsibilities, strict=True) if r > 1e-30)
            reach = float(x.abs().max() + means.abs().max() + 1)
            stiff = max(1.0, pull * reach) * max(1.0, 1 / min(t, 1 - t) * 1e-2)
            kappa = _condition(path, at, covariances)
            loss = 1e3 * eps * stiff * kappa
            assert abs(float(want.log_prob) - oracle.log_prob(t, x).item()) < loss * (1 + abs(float(want.log_prob)))
            for got, wanted in zip(oracle.responsibilities(t, x)[0], want.responsibilities, strict=True):
                assert abs(got.item() - float(wanted)) < loss
            for view in ("velocity", "data", "noise", "score"):
                wanted = torch.tensor([float(v) for v in want.mean(view)], dtype=D64)
                spread = max(float(mp.norm(p, mp.inf)) for p in getattr(want, view + "_k"))
                error = (oracle.view(view, t, x)[0] - wanted).abs().max().item()
                assert error < loss * (spread + 1), (view, t, d, error, loss * spread)


def _condition(path, t, covariances):
    """The condition number of alpha² Sigma + noise, the matrix that is inverted."""
    at = path.coefficients(t)
    noise = at.sigma**2 + (0 if at.gamma is None else at.gamma**2)
    values = torch.linalg.eigvalsh(at.alpha**2 * covariances) + noise
    return (values.amax() / values.amin().clamp_min(1e-300)).clamp(1, 1e12).item()


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_the_flow_of_one_gaussian(name, seeded):
    """c(t1) + V(t1)^(1/2) V(t0)^(-1/2) (x - c(t0)), with mpmath's roots of matrices: Sigma's axes are kept in time."""
    path, g = registry.load("fmkit.paths", name)(), seeded(5)
    mean, a = torch.randn(1, 2, generator=g, dtype=D64), torch.randn(2, 2, generator=g, dtype=D64)
    cov = (a @ a.T + 0.01 * torch.eye(2, dtype=D64))[None]
    x = torch.randn(1, 2, generator=g, dtype=D64)
    oracle = fmkit.MixtureOracle(path, mean, covariances=cov)
    low, high = path.interval
    for u, v in ((1e-3, 1 - 1e-3), (0.9, 0.2)):
        t0, t1 = low + (high - low) * u, low + (high - low) * v
        rows = [[mp.mpf(0) if f is None else f(mp.mpf(t)) for f in SCHEDULES[name]] for t in (t0, t1)]
        sigma, mu = mp.matrix(exact(cov[0])), mp.matrix(exact(mean[0]))
        roots = [mp.sqrtm(r[0] ** 2 * sigma + (r[1] ** 2 + r[2] ** 2) * mp.eye(2)) for r in rows]
        want = rows[1][0] * mu + roots[1] * mp.lu_solve(roots[0], mp.matrix(exact(x[0])) - rows[0][0] * mu)
        torch.testing.assert_close(
            oracle.flow_map(x, t0, t1)[0],
            torch.tensor([float(mp.re(v)) for v in want], dtype=D64),
            rtol=1e-11,
            atol=1e-11,
        )


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_single_precision_is_honest(name, seeded):
    """float32 points are worked on in float64: the answer is that of the rounded points, to float32's last digits."""
    path, g = registry.load("fmkit.paths", name)(), seeded(9)
    means, weights, covariances = mixture(2, "usual", g)
    oracle = fmkit.MixtureOracle(path, means, weights, covariances=covariances)
    laws = [exact(v) for v in (means, weights / weights.sum(), covariances)]
    t, x = 0.625, torch.randn(1, 2, generator=g)
    want = Law(SCHEDULES[name], t, exact(x[0].double()), *laws, 0.0, 1.0)
    for view in ("velocity", "data", "noise", "score"):
        got = oracle.view(view, t, x)[0]
        assert got.dtype == torch.float32
        wanted = torch.tensor([float(v) for v in want.mean(view)], dtype=D64)
        torch.testing.assert_close(got.double(), wanted, rtol=2e-7, atol=1e-9)


def test_every_affine_path_has_its_formula():
    own = [e for e in registry.entries("fmkit.paths") if e.package == "fmkit" and issubclass(e.load(), AffinePath)]
    assert {e.name for e in own} == set(SCHEDULES)


X = np.linspace(-9, 9, 1801)  # the trapezoid rule, which is exact to the last digits for sums of Gaussians


@pytest.mark.parametrize("objective", ["velocity", "data", "noise", "score", "scoreflow"])
def test_floors_by_quadrature(objective, seeded):
    """In one dimension: E w(t) Var[target | x_t] over the objective's interval, integrated in x and in t."""
    part, path = registry.load("fmkit.objectives", objective)(), paths.Cosine()
    oracle = fmkit.MixtureOracle(path, [[-1.0], [1.5]], [0.3, 0.7], std=[0.4, 0.8])
    components = [(0.3, -1.0, 0.4), (0.7, 1.5, 0.8)]
    low, high = (float(v) for v in part.interval(path))

    def inside(t):
        """At one time: what E[target²] leaves when the square of the mean given x is taken off."""
        a, s = math.sin(math.pi / 2 * t), math.cos(math.pi / 2 * t)
        da, ds = math.pi / 2 * s, -math.pi / 2 * a
        row = {"velocity": (da, ds), "data": (1, 0), "noise": (0, 1)}.get(objective) or (0, -1 / s)
        weight = {"score": s**2, "scoreflow": 2 * s * (da * s - a * ds) / max(a, 1e-300)}.get(objective, 1)
        total, first, second = np.zeros_like(X), np.zeros_like(X), np.zeros_like(X)
        for w, m, std in components:
            v = a**2 * std**2 + s**2
            p = w * np.exp(-((X - a * m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
            gain = (row[0] * a * std**2 + row[1] * s) / v
            mean = row[0] * m + gain * (X - a * m)
            left = row[0] ** 2 * std**2 + row[1] ** 2 - gain**2 * v
            total, first, second = total + p, first + p * mean, second + p * (left + mean**2)
        spread = second - np.divide(first**2, total, out=np.zeros_like(X), where=total > 0)
        return weight * trapezoid(spread, X)

    panels = [low, *(low + (high - low) * u for u in (1e-3, 0.01, 0.1, 0.5, 0.9, 0.99)), high]
    want = float(mp.quad(lambda t: mp.mpf(float(inside(float(t)))), panels, maxdegree=4)) / (high - low)
    found = oracle.loss_floor(part, 40_000, seeded(3))
    assert found.standard_error < 0.03 * want
    assert abs(found.value - want) < 4 * found.standard_error
