"""Wrong parts that are easily missed, and right ones that are easily wronged: the first law named is the one broken."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from fmkit import objectives, solvers
from fmkit.couplings import Coupling
from fmkit.couplings.base import check_batches
from fmkit.errors import ArgumentError, CombinationError
from fmkit.fields import PredictionField, Stochastic, VectorField
from fmkit.objectives import DataPrediction, NoisePrediction, ScoreMatching, VelocityMatching
from fmkit.parts import Part
from fmkit.paths import (
    ICFM,
    AffinePath,
    Coefficients,
    CondOT,
    Cosine,
    GaussianPath,
    PathSample,
    Polynomial,
    ProbabilityPath,
    SchrodingerBridge,
)
from fmkit.paths import VarianceExploding as VE
from fmkit.shapes import check_points, widen
from fmkit.solvers import RK4, Heun, Midpoint, Solver
from fmkit.solvers.base import check_times, finished
from fmkit.sources import Gaussian
from fmkit.testing import check

WRONG: list[tuple[Part, str]] = []
RIGHT: list[Part] = []


def wrong(law, *arguments):
    """Registers a part whose first broken law is this."""

    def add(cls):
        WRONG.append((cls(*arguments), law))
        return cls

    return add


def right(cls):
    RIGHT.append(cls())
    return cls


# -- paths ------------------------------------------------------------------------------------------------------------


class Straight(ProbabilityPath):
    """x = t x1 + (1 - t) x0, and what a subclass makes of it."""

    def sample(self, t, x0, x1, *, generator=None):
        t, x0, x1 = check_points(t, x0, x1, self.interval)
        point = PathSample(t, widen(t, x1) * x1 + widen(1 - t, x0) * x0, x0, x1, x1 - x0)
        return self.change(point, generator)

    def change(self, point, generator):
        return point


class OffWhere(Straight):
    """A velocity off by 1 % at some times only."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def change(self, point, generator):
        off = widen((point.t >= self.low) & (point.t <= self.high), point.x)
        return point._replace(velocity=point.velocity * (1 + 0.01 * off))


for where in ((0.99, 1), (0, 0.01), (0.999, 1), (0, 0.001), (0, 0), (1, 1), (0.5, 0.502)):
    WRONG.append((OffWhere(*where), "path.velocity"))


@wrong("path.velocity")
class OffInOneCoordinate(Straight):
    def change(self, point, generator):
        return point._replace(velocity=point.velocity * torch.tensor([1.0, 1.01, 1.0]).to(point.x.dtype))


@wrong("path.velocity")
class HalfOfGammasRate(SchrodingerBridge):
    def rates(self, t):
        alpha, sigma, gamma = super().rates(t)
        return Coefficients(alpha, sigma, gamma / 2)


@wrong("path.velocity")
class WidthStandsStill(GaussianPath):
    """Theorem 3 without sigma'."""

    def mean(self, t, x1):
        return t * x1

    def std(self, t, x1):
        return 1 - t

    def sample(self, t, x0, x1, *, generator=None):
        return super().sample(t, x0, x1)._replace(velocity=x1)


@wrong("path.affine")
class AnotherPathsSamples(CondOT):
    def sample(self, t, x0, x1, *, generator=None):
        return Polynomial().sample(t, x0, x1)


@wrong("path.start", 0.05)
class BlurForgotten(ICFM):
    def start(self, source, t0=None):
        return source


@wrong("path.start")
class OnePercentWide(VE):
    def start(self, source, t0=None):
        return Gaussian(50.5 * source.std)


@wrong("path.start")
class IgnoresTheSource(CondOT):
    def start(self, source, t0=None):
        return Gaussian()


@wrong("path.rows")
class NoiseOfItsOwnSeed(Straight):
    """And it does not say that it has noise."""

    def change(self, point, generator):
        z = np.random.default_rng(0).standard_normal(point.x.shape)
        return point._replace(x=point.x + 0.1 * torch.from_numpy(z).to(point.x.dtype))


@wrong("path.single")
class OffInFloat32(Straight):
    """Nothing is wrong in double precision, which the mathematics is looked at in."""

    def sample(self, t, x0, x1, *, generator=None):
        point = super().sample(t, x0, x1, generator=generator)
        return point._replace(velocity=1.01 * point.velocity) if x1.dtype == torch.float32 else point


@wrong("path.seeds")
class UnseededNumpy(Straight):
    def change(self, point, generator):
        z = torch.from_numpy(np.random.default_rng().standard_normal(point.x.shape)).to(point.x.dtype)
        return point._replace(x=point.x + 0.1 * z, z=z)


@wrong("path.dtype")
class RoundsInside(Straight):
    def change(self, point, generator):
        return point._replace(x=point.x.float().to(point.x.dtype))


@wrong("path.dtype")
class SingleOnly(Straight):
    def sample(self, t, x0, x1, *, generator=None):
        if x1.dtype != torch.float32:
            raise ArgumentError("float32, please")
        return super().sample(t, x0, x1)


@wrong("path.dtype")
class AFloat32Constant(Straight):
    def change(self, point, generator):
        return point._replace(x=point.x @ torch.eye(3))


@wrong("path.record")
class HandsBackOtherEnds(Straight):
    def change(self, point, generator):
        return point._replace(x1=point.x1.flip(0))


@wrong("path.record")
class WritesIntoItsEnds(Straight):
    def sample(self, t, x0, x1, *, generator=None):
        point = super().sample(t, x0, x1)
        x1.copy_(point.x)
        return point


@wrong("path.times")
class OneNumberIsAnotherTime(Straight):
    def sample(self, t, x0, x1, *, generator=None):
        point = super().sample(t, x0, x1)
        return point if isinstance(t, torch.Tensor) else point._replace(velocity=1.01 * point.velocity)


@wrong("path.interval")
class RunsBackwards(Straight):
    @property
    def interval(self):
        return (1.0, 0.0)


@wrong("path.interval")
class ClaimsAnEndItRefuses(Straight):
    def sample(self, t, x0, x1, *, generator=None):
        return super().sample(check_points(t, x0, x1, (0.05, 1.0))[0], x0, x1)


@wrong("path.end")
class TwoPercentShort(AffinePath):
    def alpha(self, t):
        return 0.98 * t

    def sigma(self, t):
        return 1 - t


@wrong("path.conversions")
class ConvertsLateTimesWrong(CondOT):
    def convert(self, t, x, want, **given):
        found = super().convert(t, x, want, **given)
        late = widen((torch.as_tensor(t) > 0.95).double(), x) * (want == "data" and "data" not in given)
        return found * (1 + 0.01 * late)


@right
class Dips(AffinePath):
    def alpha(self, t):
        return t + 0.4 * torch.sin(2 * math.pi * t)

    def sigma(self, t):
        return 1 - t


@right
class StandsStill(AffinePath):
    """For a fifth of the way, with a kink on either side."""

    def alpha(self, t):
        return torch.where(t < 0.4, 1.25 * t, torch.where(t < 0.6, 0.5, 1 - 1.25 * (1 - t)))

    def sigma(self, t):
        return 1 - self.alpha(t)


@right
class InnerTimesOnly(AffinePath):
    @property
    def interval(self):
        return (0.05, 0.95)

    def alpha(self, t):
        return t**3

    def sigma(self, t):
        return 1 - t


@right
class SteepAtItsEnd(CondOT):
    def sigma(self, t):
        return torch.sqrt(1 - t)

    def rates(self, t):
        return AffinePath.rates(self, t)

    @property
    def interval(self):
        return (0.0, 1 - 1e-5)


class Only(Straight):
    """Points of one kind; anything else is refused."""

    def takes(self, x):
        raise NotImplementedError

    def sample(self, t, x0, x1, *, generator=None):
        if not (self.takes(x0) and self.takes(x1)):
            raise ArgumentError(f"expected other points than {tuple(x1.shape)}")
        return super().sample(t, x0, x1)


@right
class Numbers(Only):
    def takes(self, x):
        return x.ndim == 1


@right
class Matrices(Only):
    def takes(self, x):
        return x.ndim == 3 and x.shape[1] == x.shape[2]


@right
class Photographs(Only):
    def takes(self, x):
        return x.shape[1:] == (3, 32, 32)


@right
class UnitCube(Only):
    def takes(self, x):
        return bool(((x >= 0) & (x <= 1)).all())

    def start(self, source, t0=None):
        if isinstance(source, Gaussian):
            raise CombinationError("a Gaussian leaves the cube")
        return source


@right
class Simplex(Only):
    def takes(self, x):
        return bool((x >= 0).all()) and torch.allclose(x.sum(-1), torch.ones_like(x[..., 0]), atol=1e-4)


@right
class Circle(ProbabilityPath):
    """Angles, taken modulo 2 pi without a word."""

    def sample(self, t, x0, x1, *, generator=None):
        t, x0, x1 = check_points(t, x0, x1, self.interval)
        way = torch.remainder(x1 - x0 + math.pi, 2 * math.pi) - math.pi
        return PathSample(t, torch.remainder(x0 + widen(t, x1) * way, 2 * math.pi), x0, x1, way)


@right
class Rotations(ProbabilityPath):
    """SO(2), as matrices."""

    @property
    def euclidean(self):
        return False

    def sample(self, t, x0, x1, *, generator=None):
        t, x0, x1 = check_points(t, x0, x1, self.interval)
        if x1.shape[1:] != (2, 2) or not torch.allclose(x1 @ x1.mT, torch.eye(2).to(x1.dtype).expand_as(x1), atol=1e-4):
            raise ArgumentError("expected rotations (B, 2, 2)")
        between = x0.mT @ x1
        angle = torch.atan2(between[:, 1, 0], between[:, 0, 0])
        cos, sin = torch.cos(t.to(x1.dtype) * angle), torch.sin(t.to(x1.dtype) * angle)

        def matrix(a, b):
            return torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], -2)

        return PathSample(t, x0 @ matrix(cos, sin), x0, x1, widen(angle, x1) * (x0 @ matrix(-sin, cos)))


@right
class Hyperboloid(ProbabilityPath):
    @property
    def euclidean(self):
        return False

    def sample(self, t, x0, x1, *, generator=None):
        t, x0, x1 = check_points(t, x0, x1, self.interval)

        def inner(a, b):
            return (a[..., 1:] * b[..., 1:]).sum(-1, keepdim=True) - a[..., :1] * b[..., :1]

        if not torch.allclose(inner(x0, x0), -torch.ones_like(x0[..., :1]), atol=1e-3):
            raise ArgumentError("x0 is off the hyperboloid")
        far, s = torch.acosh(-inner(x0, x1)), widen(t, x1)
        x = (torch.sinh((1 - s) * far) * x0 + torch.sinh(s * far) * x1) / torch.sinh(far)
        slope = (torch.cosh(s * far) * x1 - torch.cosh((1 - s) * far) * x0) * far / torch.sinh(far)
        return PathSample(t, x, x0, x1, slope)


@right
class WithoutVelocity(Straight):
    """A state that jumps."""

    def change(self, point, generator):
        u = torch.rand(point.x.shape, generator=generator, dtype=torch.float64)
        return point._replace(x=torch.where(u < widen(point.t, u), point.x1, point.x0), velocity=None)


# -- solvers ----------------------------------------------------------------------------------------------------------


class Counted(RK4):
    """What a subclass makes of a solution."""

    def solve(self, f, x0, times, *, generator=None):
        found = super().solve(f, x0, times)
        return dataclasses.replace(found, **self.change(found, times))


@wrong("solver.nfe")
class CountsTheFirstRow(Counted):
    def change(self, found, times):
        return {"nfe": found.nfe.where(torch.arange(len(found.nfe)) == 0, 1)}


@wrong("solver.nfe")
class MiscountsBackward(Counted):
    def change(self, found, times):
        return {"nfe": found.nfe + (times[-1] < times[0])}


@wrong("solver.nfe")
class ForgetsTheSideSteps(Counted):
    def change(self, found, times):
        return {"nfe": torch.full_like(found.nfe, 4 * self.steps)}


@wrong("solver.nfe")
class OneStepTooMany(Counted):
    def change(self, found, times):
        return {"accepted": found.accepted + 1}


@wrong("solver.dtype")
class RoundsItsStates(Counted):
    def change(self, found, times):
        if isinstance(found.final, tuple) or found.final.dtype != torch.float64:
            return {}
        return {"states": (found.states[0], *(s.float().double() for s in found.states[1:]))}


@wrong("solver.first")
class SolvesInPlace(Heun):
    def solve(self, f, x0, times, *, generator=None):
        found = super().solve(f, x0.clone() if isinstance(x0, torch.Tensor) else x0, times)
        if isinstance(x0, torch.Tensor):
            x0.copy_(found.final)
        return found


@wrong("solver.order")
class EqualStepsOnly(solvers.FixedStep):
    """Two-step Adams-Bashforth with the weights of equal steps."""

    order = 2

    def step(self, f, t, dt, x, memory):
        slope = f(t, x)
        before = slope if memory is None else memory
        if isinstance(x, tuple):
            return tuple(a + dt * (1.5 * b - 0.5 * c) for a, b, c in zip(x, slope, before, strict=True)), slope
        return x + dt * (1.5 * slope - 0.5 * before), slope


class OwnSteps(Solver):
    """Steps of a length of its own, by another method."""

    order = 2

    def __init__(self, length: float = 0.01) -> None:
        super().__init__()
        self.length = length

    method = Midpoint

    def solve(self, f, x0, times, *, generator=None):
        times = check_times(times)
        return self.method(max(1, round(abs(times[-1] - times[0]) / self.length))).solve(f, x0, times)


right(OwnSteps)


@wrong("solver.order")
class FirstOrderOfAnyLength(OwnSteps):
    method = solvers.Euler


@right
class SpreadsItsSteps(Solver):
    """Fixed-point iterations of the implicit midpoint rule, with its steps laid out anew for every stretch."""

    order = 2

    def __init__(self, steps: int = 40) -> None:
        super().__init__()
        self.steps = steps

    def solve(self, f, x0, times, *, generator=None):
        times, states, x, calls = check_times(times), [x0], x0, 0
        for a, b in itertools.pairwise(times):
            n = max(1, round(self.steps * abs((b - a) / (times[-1] - times[0]))))
            for k in range(n):
                slope = f(a + k * (b - a) / n, x)
                for _ in range(8):
                    slope = f(a + (k + 0.5) * (b - a) / n, self.plus(x, (b - a) / n / 2, slope))
                x, calls = self.plus(x, (b - a) / n, slope), calls + 9
            states.append(x)
        return finished(self, times, states, x0, calls, self.steps)

    def plus(self, x, h, slope):
        if isinstance(x, tuple):
            return tuple(a + h * b for a, b in zip(x, slope, strict=True))
        return x + h * slope


@right
class OneStepOfTheAverage(Solver):
    """A few-step model's solver: x + (t - s) u(s, t, x)."""

    reads = "average"

    def solve(self, f, x0, times, *, generator=None):
        times, states = check_times(times), [x0]
        for s, t in itertools.pairwise(times):
            states.append(states[-1] + (t - s) * f(s, t, states[-1]))
        return finished(self, times, states, x0, len(times) - 1, len(times) - 1)


@wrong("solver.end")
class HalfOfTheAverage(OneStepOfTheAverage):
    def solve(self, f, x0, times, *, generator=None):
        return super().solve(lambda s, t, x: f(s, t, x) / 2, x0, times)


# -- couplings --------------------------------------------------------------------------------------------------------


class Shuffled(Coupling):
    """A random pairing, and what a subclass makes of it."""

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        check_batches(x0, x1)
        n = len(x1)
        return self.change(torch.randperm(n, generator=generator), torch.arange(n), x1, cond1, generator)

    def change(self, i0, i1, x1, cond1, generator):
        return i0, i1


@wrong("coupling.marginals")
class RarelyDoubles(Shuffled):
    def change(self, i0, i1, x1, cond1, generator):
        rare = torch.rand((), generator=generator) < 0.03
        return i0.where(~rare | (i0 > 0), 1 % len(i0)), i1


@wrong("coupling.indices")
class WholeBlocksOnly(Shuffled):
    def change(self, i0, i1, x1, cond1, generator):
        n = len(i1) if len(i1) < 64 else len(i1) // 64 * 64
        return i0[:n], i1[:n]


@wrong("coupling.marginals")
class EqualRowsAreOne(Shuffled):
    def change(self, i0, i1, x1, cond1, generator):
        return i0, (torch.cdist(x1.flatten(1), x1.flatten(1)) == 0).int().argmax(1)


@wrong("coupling.indices")
class PairsTheConditions(Shuffled):
    def change(self, i0, i1, x1, cond1, generator):
        return i0, i1, cond1


@wrong("coupling.conditions")
class DoublesWithinClasses(Shuffled):
    def change(self, i0, i1, x1, cond1, generator):
        return (i0 if cond1 is None else i0 // 2 * 2), i1


@wrong("coupling.prepare")
class ScalesTheData(Shuffled):
    def prepare(self, source, x1, cond=None, *, seed=0):
        x1 /= x1.std()
        yield 1.0


@right
class NeedsLabels(Shuffled):
    """And only labels: by class."""

    def change(self, i0, i1, x1, cond1, generator):
        if cond1 is None or cond1.is_floating_point():
            raise ArgumentError("conditions are the classes of x1")
        return i0, cond1.argsort(stable=True)


@right
class Deranged(Shuffled):
    """Nobody keeps his own, but for a batch of one."""

    def change(self, i0, i1, x1, cond1, generator):
        return i1.roll(1 if len(i1) < 3 else 1 + int(torch.randint(len(i1) - 1, (), generator=generator))), i1


# -- objectives -------------------------------------------------------------------------------------------------------


@wrong("objective.minimiser")
class OffInOneColumn(DataPrediction):
    def target(self, path, point):
        return point.x1 * torch.tensor([1.0, 1.01]).to(point.x1.dtype)


@wrong("objective.value")
class WeighsOtherwise(ScoreMatching):
    """It says sigma², and weighs by sigma."""

    def loss(self, network, path, batch, **options):
        loss = super().loss(network, path, batch, **options)
        return loss._replace(value=loss.value / path.coefficients(loss.t).sigma.to(loss.value.dtype))


@wrong("objective.value")
class NotSquared(VelocityMatching):
    def loss(self, network, path, batch, **options):
        loss = super().loss(network, path, batch, **options)
        return loss._replace(value=loss.value.sqrt())


@wrong("objective.rows")
class DividesByTheBatch(VelocityMatching):
    def loss(self, network, path, batch, **options):
        loss = super().loss(network, path, batch, **options)
        return loss._replace(value=loss.value / loss.value.mean().detach())


@wrong("objective.field")
class FieldBeyondItsEnd(DataPrediction):
    def field(self, network, path, *, source=None, coupling=None):
        return PredictionField(network, path, "data", (0.0, 1.0))


@wrong("objective.shape")
class ChangesTheBatch(VelocityMatching):
    def loss(self, network, path, batch, **options):
        batch[1].mul_(0.5)
        return super().loss(network, path, batch, **options)


@right
class SumOverTheEvent(VelocityMatching):
    def loss(self, network, path, batch, **options):
        loss = super().loss(network, path, batch, **options)
        return loss._replace(value=loss.value * batch[1][0].numel())


@right
class ClippedRatio(NoisePrediction):
    """Min-SNR weights, at times that lean."""

    def __init__(self) -> None:
        super().__init__(objectives.LogitNormal(0.5, 0.8))

    def weight(self, path, t):
        at = path.coefficients(t)
        return (at.alpha / at.sigma).square().clamp(1e-3, 5.0)


# -- fields -----------------------------------------------------------------------------------------------------------


class Decay(VectorField):
    def forward(self, t, x, cond=None):
        return -x * widen(1 + t, x)


@wrong("field.shape")
class RoundedField(Decay):
    def forward(self, t, x, cond=None):
        return super().forward(t, x).float().to(x.dtype)


@wrong("field.seeds")
class CountsItsCalls(Decay):
    calls = 0

    def forward(self, t, x, cond=None):
        self.calls += 1
        return super().forward(t, x) * self.calls


@wrong("field.seeds")
class NegatesInPlace(Decay):
    def forward(self, t, x, cond=None):
        return x.neg_()


class Averaging(Decay):
    @property
    def offers(self):
        return frozenset({"velocity", "average"})

    def average(self, s, t, x, cond=None):
        return self((s + t) / 2, x)


right(Averaging)


@wrong("field.offers")
class AverageOfAnother(Averaging):
    def average(self, s, t, x, cond=None):
        return 2 * self(s, x)


@wrong("field.offers")
class RoundedNoise(Decay):
    @property
    def offers(self):
        return frozenset({"velocity", "stochastic"})

    def stochastic(self, t, x, cond=None):
        return Stochastic(self(t, x), x.float(), widen(1 - t, x))


@right
class ImagesOnly(Decay):
    def forward(self, t, x, cond=None):
        if x.ndim != 4:
            raise ArgumentError("expected images")
        return super().forward(t, x)


@right
class NeedsACondition(Decay):
    def forward(self, t, x, cond=None):
        if cond is None:
            raise ArgumentError("expected labels (B,)")
        return super().forward(t, x) * widen(1 + cond, x)


@right
class FiveNumbers(Decay):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(5, 5)

    def forward(self, t, x, cond=None):
        return super().forward(t, self.layer(x))


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "law"), WRONG, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_the_first_law_named_is_the_one_broken(part, law):
    report = check(part)
    assert report.failed, "nothing was found wrong"
    assert report.failed[0].id == law


@pytest.mark.parametrize("part", RIGHT, ids=lambda part: type(part).__name__)
def test_a_right_part_is_not_wronged(part):
    report = check(part)
    report.raise_if_failed()
    assert len(report.passed) >= 4


def test_a_law_waits_for_those_it_needs():
    report = check(UnseededNumpy())
    assert [f.id for f in report.failed] == ["path.seeds"]
    waiting = {f.id: f.said for f in report.unchecked}
    assert waiting["path.velocity"] == "path.seeds is broken, and has to be repaired first"
    assert waiting["path.rows"] == waiting["path.velocity"]


def test_the_late_schedule_of_a_built_in_path_is_looked_at():
    class Late(Cosine):
        def rates(self, t):
            alpha, sigma, _ = super().rates(t)
            return Coefficients(alpha, torch.where(t > 0.995, 1.01 * sigma, sigma))

    assert [f.id for f in check(Late()).failed] == ["path.velocity", "path.rates"]
