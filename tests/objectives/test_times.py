"""Time samplers: their distribution functions (Kolmogorov-Smirnov, false alarm 1e-4), the shift, the interval."""

import math

import pytest
import torch

from fmkit.errors import ArgumentError
from fmkit.objectives import LogitNormal, UniformTime, UShaped

N = 100_000
normal = torch.distributions.Normal(0.0, 1.0)


def u_shaped(u, a=4.0):
    """The integral of a cosh(a (u - 1/2)) / (2 sinh(a/2))."""
    return 0.5 + torch.sinh(a * (u - 0.5)) / (2 * math.sinh(a / 2))


LAWS = {
    "uniform": (UniformTime, {}, lambda u: u),
    "logit-normal": (LogitNormal, {}, lambda u: normal.cdf(torch.logit(u))),
    "logit-normal moved": (LogitNormal, {"mean": 0.8, "std": 0.5}, lambda u: normal.cdf((torch.logit(u) - 0.8) / 0.5)),
    "u-shaped": (UShaped, {}, u_shaped),
    "u-shaped steep": (UShaped, {"a": 9.0}, lambda u: u_shaped(u, 9.0)),
}


def distance(u, cdf):
    u = u.sort().values
    exact, steps = cdf(u), torch.arange(len(u) + 1, dtype=torch.float64) / len(u)
    return max((exact - steps[:-1]).max().item(), (steps[1:] - exact).max().item())


def unshift(u, shift):
    """The inverse of tau -> s tau / (1 + (s-1) tau) on tau = 1 - u."""
    tau = 1 - u
    return 1 - tau / (shift - (shift - 1) * tau)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 0.4])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.7)])
def test_the_distribution(name, shift, interval, seeded):
    cls, arguments, cdf = LAWS[name]
    t = cls(**arguments, shift=shift).sample(N, interval, generator=seeded(0))
    assert t.shape == (N,)
    assert t.dtype == torch.float64
    assert interval[0] <= t.min() <= t.max() <= interval[1]
    u = ((t - interval[0]) / (interval[1] - interval[0])).clamp(1e-12, 1 - 1e-12)
    assert distance(u, lambda v: cdf(unshift(v, shift))) < 2.23 / math.sqrt(N)
    # and the test can tell: the same times are not those of another sampler
    other = LAWS["u-shaped" if name != "u-shaped" else "uniform"][2]
    assert distance(u, lambda v: other(unshift(v, shift))) > 0.02


def test_a_shift_above_one_goes_to_the_noise(seeded):
    """With s = 3 the median of uniform times is u = 1/4."""
    assert UniformTime(3.0).sample(N, generator=seeded(0)).median().item() == pytest.approx(0.25, abs=0.01)
    assert UniformTime(1 / 3).sample(N, generator=seeded(0)).median().item() == pytest.approx(0.75, abs=0.01)


def test_draw_is_the_inverse_of_the_distribution_function():
    p = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    for cls, arguments, cdf in LAWS.values():
        torch.testing.assert_close(cdf(cls(**arguments).draw(p)), p, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampler", [UniformTime(), LogitNormal(), UShaped(), LogitNormal(shift=3.0)], ids=repr)
def test_the_ends_of_the_uniform_numbers_are_times(sampler):
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    t = sampler.draw(ends)
    assert ((t >= 0) & (t <= 1)).all()
    assert t[0] < 1e-3
    assert t[1] > 0.999


@pytest.mark.parametrize("sampler", [UniformTime(), LogitNormal(), UShaped()], ids=repr)
def test_seeded_by_the_generator_alone(sampler, seeded):
    before = torch.get_rng_state()
    first, again, other = (sampler.sample(9, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformTime(0.0), r"shift is 0\.0, expected a positive number"),
        (lambda: UniformTime(math.nan), "shift is nan"),
        (lambda: LogitNormal(std=0.0), r"mean is 0\.0 and std 0\.0"),
        (lambda: LogitNormal(mean=math.inf), "mean is inf"),
        (lambda: UShaped(0.0), r"a is 0\.0, expected a number in \(0, 100\)"),
        (lambda: UShaped(shift=-1.0), "shift is -1"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("sampler", [UniformTime(), LogitNormal(0.3, 0.8), UShaped(2.0), UniformTime(3.0)], ids=repr)
def test_stratified_times_are_one_in_each_part_of_the_probability(sampler, seeded):
    """Each lies between the quantiles k/n and (k + 1)/n, evenly over many draws; unstratified ones need not."""
    n = 8
    edges = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    edges = sampler.draw(edges)
    tau = 1 - edges
    edges = 1 - sampler.shift * tau / (1 + (sampler.shift - 1) * tau)
    draws = torch.stack([sampler.sample(n, generator=seeded(s), stratified=True) for s in range(200)])
    assert draws.dtype == torch.float64
    assert ((edges[:-1] <= draws) & (draws <= edges[1:])).all()
    free = torch.stack([sampler.sample(n, generator=seeded(s)) for s in range(20)])
    assert not ((edges[:-1] <= free) & (free <= edges[1:])).all()
    if isinstance(sampler, UniformTime) and sampler.shift == 1.0:
        within = draws * n - torch.arange(n)
        assert within.mean().item() == pytest.approx(0.5, abs=0.03)
        assert within.var().item() == pytest.approx(1 / 12, rel=0.1)


@pytest.mark.parametrize("sampler", [UniformTime, LogitNormal, UShaped])
def test_there_is_no_shift_unless_said_and_any_positive_one_is_taken(sampler, seeded):
    assert torch.equal(sampler().sample(9, generator=seeded()), sampler(shift=1.0).sample(9, generator=seeded()))
    assert not torch.equal(sampler().sample(9, generator=seeded()), sampler(shift=2.0).sample(9, generator=seeded()))
    with pytest.raises(ArgumentError, match="shift is inf"):
        sampler(shift=math.inf)


def test_any_spread_is_taken_that_is_positive_and_finite():
    assert UShaped(0.5).a == 0.5
    for make in (lambda: LogitNormal(std=math.inf), lambda: UShaped(100.0), lambda: UShaped(100)):
        with pytest.raises(ArgumentError, match="expected"):
            make()


def test_rounding_leaves_no_time_outside():
    """0.1 + (0.7 - 0.1) 1 is above 0.7 by an ulp, and 0.9 + (0.2 - 0.9) 1 below 0.2."""

    class Ends(UniformTime):
        def draw(self, uniform):
            return torch.ones_like(uniform)

    for low in torch.linspace(0.0, 0.5, 101).tolist():
        for high in torch.linspace(0.6, 1.0, 41).tolist():
            assert low <= Ends().sample(1, (low, high)).item() <= high
