"""What every path asks of its inputs: one time a row inside the interval, two batches of one shape, dtype and kind."""

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.paths import ICFM, CondOT, GaussianPath, LinearVP, PathSample, ProbabilityPath, SchrodingerBridge
from fmkit.shapes import check_points
from fmkit.sources import Gaussian


class Straight(GaussianPath):
    def mean(self, t, x1):
        return t * x1

    def std(self, t, x1):
        return 1 - t


class Turning(ProbabilityPath):
    """A path that is not affine: x1 turned about the origin, which implements `sample` alone."""

    euclidean = False

    def sample(self, t, x0, x1, *, generator=None):
        t, x0, x1 = check_points(t, x0, x1, self.interval)
        return PathSample(t, x1, x0, x1, torch.zeros_like(x1))


PATHS = [CondOT(), ICFM(), Straight(), Turning()]
x = torch.zeros(8, 2)
MISTAKES = {
    "silent broadcasting": ((0.5, x, x[:1]), r"x0 has shape \(8, 2\) and x1 \(1, 2\)"),
    "time per column": ((torch.full((2,), 0.5), x, x), r"t has shape \(2,\), expected \(8,\)"),
    "time with a column": ((torch.full((8, 1), 0.5), x, x), r"t has shape \(8, 1\), expected \(8,\)"),
    "one time in a tensor of one": ((torch.full((1,), 0.5), x, x), r"t has shape \(1,\), expected \(8,\)"),
    "t after the end": ((2.0, x, x), r"t ranges over \[2, 2\], expected inside \[0\.0, 1\.0\]"),
    "t before the beginning": ((-0.01, x, x), r"\[-0\.01, -0\.01\], expected inside"),
    "one t of many outside": ((torch.linspace(0, 1.2, 8), x, x), r"\[0, 1\.2\], expected inside"),
    "t not a number": ((float("nan"), x, x), r"\[nan, nan\], expected inside"),
    "one t of many not a number": ((torch.tensor([0.5] * 7 + [float("nan")]), x, x), "expected inside"),
    "integer t": ((torch.ones(8, dtype=torch.int64), x, x), r"t has dtype torch\.int64, expected floating point"),
    "boolean t": ((torch.ones(8, dtype=torch.bool), x, x), r"t has dtype torch\.bool, expected floating point"),
    "integer x0": ((0.5, x.long(), x), r"x0 has dtype torch\.int64, expected floating point.*x0\.float\(\)"),
    "integer x1": ((0.5, x, x.long()), r"x1 has dtype torch\.int64, expected floating point"),
    "two dtypes": ((0.5, x, x.double()), r"x0 has dtype torch\.float32 and x1 torch\.float64"),
    "empty": ((0.5, x[:0], x[:0]), r"x0 has shape \(0, 2\), expected a non-empty"),
    "empty events": ((0.5, x[:, :0], x[:, :0]), r"x0 has shape \(8, 0\), expected a non-empty"),
    "array": ((0.5, x.numpy(), x), r"x0 is a ndarray, expected a torch tensor"),
}


def test_a_path_that_says_nothing_else_is_euclidean_and_starts_at_its_source():
    source = Gaussian(2.0)
    assert Straight().euclidean
    assert not Turning().euclidean
    assert Turning().interval == (0.0, 1.0)
    assert Turning().start(source) is source


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_refused_with_what_was_got_and_what_would_be_right(path, mistake):
    arguments, message = MISTAKES[mistake]
    with pytest.raises(ArgumentError, match=message):
        path.sample(*arguments)


def test_the_intervals_own_ends_are_inside_even_when_rounded_to_single_precision():
    for path in (LinearVP(), SchrodingerBridge(), CondOT()):
        low, high = path.interval
        t = torch.tensor([low, high], dtype=torch.float32)
        point = path.sample(t, torch.ones(2, 1), torch.ones(2, 1), generator=torch.Generator().manual_seed(0))
        assert point.t.dtype == torch.float64
        assert low <= point.t.min() <= point.t.max() <= high
        assert torch.isfinite(point.velocity).all()


@pytest.mark.parametrize(("path", "t"), [(LinearVP(), 1.0), (SchrodingerBridge(), 0.0), (SchrodingerBridge(), 1.0)])
def test_an_end_where_the_velocity_is_infinite_is_refused(path, t):
    with pytest.raises(ArgumentError, match=r"expected inside \["):
        path.sample(t, torch.ones(2, 1), torch.ones(2, 1))


def test_a_path_starts_at_its_source_unless_it_says_otherwise():
    source = Gaussian(2.0)
    assert Turning().start(source) is source
    assert Straight().start(source) is source
