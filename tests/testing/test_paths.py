"""Wrong paths fail with the right law named; right ones, however unusual, pass."""

import math

import numpy as np
import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.paths import ICFM, AffinePath, Coefficients, CondOT, GaussianPath, PathSample, ProbabilityPath
from fmkit.paths import VarianceExploding as VE
from fmkit.shapes import check_points, widen
from fmkit.sources import Gaussian
from fmkit.testing import check_path


def broken(path, **options):
    return {f.id.removeprefix("path.") for f in check_path(path, **options).failed}


class Straight(ProbabilityPath):
    """x = t x1 + (1 - t) x0, for wrong paths to start from."""

    def sample(self, t, x0, x1, *, generator=None):
        t, x0, x1 = check_points(t, x0, x1, self.interval)
        return self.change(PathSample(t, widen(t, x1) * x1 + widen(1 - t, x0) * x0, x0, x1, x1 - x0), generator)

    def change(self, point, generator):
        return point


class WrongSign(Straight):
    def change(self, point, generator):
        return point._replace(velocity=-point.velocity)


class OnePercent(Straight):
    def change(self, point, generator):
        return point._replace(velocity=1.01 * point.velocity)


class OneInTenThousandLate(VE):
    """Off where the path is slow: an error relative to the fastest row would not see it."""

    def rates(self, t):
        alpha, sigma, _ = super().rates(t)
        return Coefficients(alpha, sigma * (1 + 1e-2 * (t > 0.8)))


class IgnoresTheSeed(Straight):
    def change(self, point, generator):
        z = torch.randn(point.x.shape, dtype=point.x.dtype)
        return point._replace(x=point.x + 0.1 * z, z=z)


class OneSeedForAll(Straight):
    def change(self, point, generator):
        z = torch.randn(point.x.shape, dtype=point.x.dtype, generator=torch.Generator().manual_seed(3))
        return point._replace(x=point.x + 0.1 * z, z=z)


class DrawsFromNumpy(Straight):
    def change(self, point, generator):
        np.random.rand()
        return point


class MixesRows(Straight):
    def change(self, point, generator):
        return point._replace(velocity=point.velocity + 1e-3 * point.velocity.mean(0))


class TakesAnyTime(ProbabilityPath):
    def sample(self, t, x0, x1, *, generator=None):
        return Straight().sample(torch.as_tensor(t).clamp(0, 1).nan_to_num(0), x0, x1)


class TakesAnyShape(ProbabilityPath):
    def sample(self, t, x0, x1, *, generator=None):
        t = torch.as_tensor(t, dtype=torch.float64).expand(len(x1))
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ArgumentError("outside")
        return PathSample(t, widen(t, x1) * x1 + widen(1 - t, x1) * x0, x0, x1, x1 - x0)


class Widens(Straight):
    def change(self, point, generator):
        return point._replace(velocity=point.velocity.double())


class Jumps(Straight):
    """The derivative is right at every time but two."""

    def change(self, point, generator):
        return point._replace(x=point.x + 0.2 * widen(((point.t > 0.43) & (point.t < 0.77)).double(), point.x))


class StaysShort(AffinePath):
    def alpha(self, t):
        return 0.8 * t

    def sigma(self, t):
        return 1 - t


class StartsElsewhere(VE):
    def start(self, source, t0=None):
        return source


class WrongConversion(CondOT):
    def convert(self, t, x, want, **given):
        return super().convert(t, x, want, **given) * (1.0001 if want == "data" and "data" not in given else 1)


class WrongRates(CondOT):
    def rates(self, t):
        return Coefficients(-torch.ones_like(t), -torch.ones_like(t))


class LeavesTheInterval(Straight):
    @property
    def interval(self):
        return (0.0, 1.2)


@pytest.mark.parametrize(
    ("path", "laws"),
    [
        (WrongSign(), {"velocity", "continuity"}),
        (OnePercent(), {"velocity", "continuity"}),
        (OneInTenThousandLate(), {"velocity", "continuity", "rates"}),
        (IgnoresTheSeed(), {"seeds"}),
        (OneSeedForAll(), {"seeds"}),
        (DrawsFromNumpy(), {"seeds"}),
        (MixesRows(), {"rows"}),
        (TakesAnyTime(), {"interval"}),
        (TakesAnyShape(), {"shapes"}),
        (Widens(), {"dtype"}),
        (Jumps(), {"continuity"}),
        (StaysShort(), {"end"}),
        (StartsElsewhere(), {"start"}),
        (WrongConversion(), {"conversions"}),
        (WrongRates(), {"velocity", "continuity", "rates"}),
        (LeavesTheInterval(), {"interval"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ProbabilityPath) else "",
)
def test_a_wrong_path_breaks_the_laws_it_breaks_and_no_other(path, laws):
    found = broken(path)
    assert found
    assert found <= laws
    assert found >= laws - {"continuity", "start", "end"} or len(laws) == 1


def test_by_how_much_a_velocity_is_off_is_said():
    (finding,) = [f for f in check_path(OnePercent()).failed if f.id == "path.velocity"]
    assert 0.008 < finding.measured < 0.0101
    assert "the velocity is the time derivative of the point" in finding.line
    assert "row" in finding.line
    assert "t = " in finding.line


class TurnsBack(AffinePath):
    """Both schedules rise and fall on the way."""

    def alpha(self, t):
        return t + 0.3 * torch.sin(2 * math.pi * t)

    def sigma(self, t):
        return torch.cos(math.pi / 2 * t) + 0.2 * torch.sin(3 * math.pi * t)


class Kinked(AffinePath):
    """It arrives half way, and waits; its source still fades."""

    def alpha(self, t):
        return torch.clamp(2 * t, max=1.0)

    def sigma(self, t):
        return 1 - t


class Latent(AffinePath):
    """Latent noise of its own, by forward mode throughout."""

    def alpha(self, t):
        return t**2

    def sigma(self, t):
        return (1 - t) ** 2

    def gamma(self, t):
        return torch.sqrt(2 * t * (1 - t) + 0.01)


class Curved(GaussianPath):
    def mean(self, t, x1):
        return t * x1 + torch.sin(math.pi * t) * x1.flip(-1) ** 2

    def std(self, t, x1):
        return (1 - t) * (1 + t * torch.tanh(x1))


class HandMadeNoise(ProbabilityPath):
    """Latent noise in a path that is not affine."""

    def sample(self, t, x0, x1, *, generator=None):
        t, x0, x1 = check_points(t, x0, x1, self.interval)
        z, s = torch.randn(x1.shape, generator=generator, dtype=x1.dtype), widen(t, x1)
        x = s * x1 + (1 - s) * x0 + s * (1 - s) * z * torch.cos(x1)
        return PathSample(t, x, x0, x1, x1 - x0 + (1 - 2 * s) * z * torch.cos(x1), z)


class Slerp(ProbabilityPath):
    """Great circles, written without any package for manifolds; it does not say that it is one."""

    def sample(self, t, x0, x1, *, generator=None):
        t, x0, x1 = check_points(t, x0, x1, self.interval)
        if not torch.allclose(x0.norm(dim=1), torch.ones(len(x0), dtype=x0.dtype), atol=1e-4):
            raise ArgumentError("x0 is off the sphere")
        angle, s = torch.acos((x0 * x1).sum(1, keepdim=True).clamp(-1, 1)), widen(t, x1)
        a, b = torch.sin((1 - s) * angle), torch.sin(s * angle)
        x = (a * x0 + b * x1) / torch.sin(angle)
        da, db = torch.cos((1 - s) * angle), torch.cos(s * angle)
        return PathSample(t, x, x0, x1, angle * (db * x1 - da * x0) / torch.sin(angle))


@pytest.mark.parametrize(
    "path",
    [
        Straight(),
        TurnsBack(),
        Kinked(),
        Latent(),
        Curved(),
        HandMadeNoise(),
        Slerp(),
        ICFM(0.0),
        ICFM(1.5),
        CondOT(0.1),
    ],
    ids=lambda path: type(path).__name__,
)
def test_a_right_path_passes_however_unusual(path):
    check_path(path).raise_if_failed()


@pytest.mark.parametrize("manifold", ["Sphere", "Torus"])
def test_a_geodesic_passes_with_its_own_points_and_with_the_kits(manifold):
    riemannian = pytest.importorskip("fmkit_riemannian")
    where = getattr(riemannian, manifold)()
    path = riemannian.GeodesicPath(where, TurnsBack() if manifold == "Torus" else None)

    def pairs(n, generator):
        return tuple(where.uniform((n, 4), generator=generator, dtype=torch.float64) for _ in range(2))

    for report in (check_path(path, sample_pair=pairs), check_path(path)):
        report.raise_if_failed()
        assert {f.id for f in report.unchecked} == {"path.affine", "path.rates", "path.conversions"}


def test_a_path_that_refuses_every_point_of_the_kits_is_not_checked():
    class Films(Straight):
        def sample(self, t, x0, x1, *, generator=None):
            if x1.ndim != 5:
                raise ArgumentError("films only")
            return super().sample(t, x0, x1)

    report = check_path(Films())
    assert not report.ok
    assert not report.failed
    assert "films only); hand it a sample_pair" in report.unchecked[0].said
    check_path(
        Films(), sample_pair=lambda n, g: tuple(torch.randn(2, n, 2, 1, 2, 2, generator=g, dtype=torch.float64))
    ).raise_if_failed()
    with pytest.raises(ArgumentError, match="got a Gaussian, expected a ProbabilityPath"):
        check_path(Gaussian())


def test_the_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    check_path(IgnoresTheSeed())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
