"""What every metric promises: a law run over all that are registered."""

import pytest
import torch

from fmkit import registry, specs
from fmkit.errors import ArgumentError
from fmkit.metrics import Metric, SlicedWasserstein, Wasserstein
from fmkit.metrics.base import squared_distances

NAMES = ("sliced-wasserstein", "wasserstein", "energy-distance", "mmd", "frechet")


def gaussian(n, *event, seed=0, mean=0.0):
    return mean + torch.randn(n, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=NAMES)
def metric(request):
    return specs.build(Metric, request.param, "metric")


def test_these_are_the_registered_ones():
    assert {e.name for e in registry.entries("fmkit.metrics") if e.package == "fmkit"} == set(NAMES)


class TestEveryMetric:
    def test_is_symmetric(self, metric):
        if type(metric).__name__ == "MMD":
            metric = type(metric)(bandwidth=1.0)  # by default the reference sets the bandwidth
        x, y = gaussian(60, 3), gaussian(60, 3, seed=1, mean=0.5)
        assert metric(x, y) == pytest.approx(metric(y, x), rel=1e-9)

    def test_does_not_depend_on_order_shape_or_place(self, metric):
        x, y = gaussian(60, 2, 3), gaussian(60, 2, 3, seed=1, mean=0.5)
        expected = metric(x, y)
        assert metric(x.flip(0), y.roll(7, 0)) == pytest.approx(expected, rel=1e-9)
        assert metric(x.flatten(1), y.flatten(1)) == expected
        assert metric(x + 1e4, y + 1e4) == pytest.approx(expected, rel=1e-6)

    def test_grows_with_the_distance_of_two_laws(self, metric):
        x, y = gaussian(100, 3), gaussian(100, 3, seed=1)
        values = [metric(x, y + shift) for shift in (0.0, 1.0, 2.0)]
        assert values[0] < values[1] < values[2]

    def test_sees_a_change_of_spread_alone(self, metric):
        x, y = gaussian(100, 3), gaussian(100, 3, seed=1)
        assert metric(x, 3 * y) > 4 * abs(metric(x, y))

    def test_follows_from_the_generator(self, metric):
        x, y = gaussian(60, 3), gaussian(60, 3, seed=1)
        state = torch.random.get_rng_state()
        assert metric(x, y) == metric(x, y)
        assert metric(x, y, torch.Generator().manual_seed(3)) == metric(x, y, torch.Generator().manual_seed(3))
        assert metric.floor(x) == metric.floor(x)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_floor_is_a_distance_between_disjoint_halves(self, metric):
        # Two clusters of 50: between random halves the distance is far below that of the clusters themselves.
        x = torch.cat([gaussian(50, 2), gaussian(50, 2, seed=1, mean=10.0)])
        assert metric.floor(x) < 0.3 * metric(x[:50], x[50:])
        # Were a point in both halves, or missing from both, 0 and 100 would not be set apart.
        pair = torch.tensor([[0.0], [0.0], [100.0], [100.0]]) + gaussian(4, 1)
        assert metric.floor(pair) != 0

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            (torch.zeros(5, 2), torch.zeros(5, 3), r"samples have events \(2,\) and the reference \(3,\)"),
            (torch.zeros(1, 2), torch.zeros(5, 2), "samples has shape .* at least two points"),
            (torch.zeros(5), torch.zeros(5, 2), "samples has shape"),
            (torch.zeros(5, 2), torch.full((5, 2), torch.nan), "reference has 10 non-finite values"),
            (torch.zeros(5, 2, dtype=torch.int64), torch.zeros(5, 2), "samples has dtype torch.int64"),
        ],
    )
    def test_mistakes_are_refused(self, metric, x, y, message):
        with pytest.raises(ArgumentError, match=message):
            metric(x, y)

    def test_a_floor_needs_two_halves(self, metric):
        with pytest.raises(ArgumentError, match="reference has 3 points, expected at least 4"):
            metric.floor(torch.zeros(3, 1))


@pytest.mark.parametrize("metric", [Wasserstein(), SlicedWasserstein()], ids=lambda m: type(m).__name__)
def test_floor_falls_as_the_reference_grows(metric):
    # In one dimension W2² of two n-point samples falls about as 1/n: a factor 16 in n is a factor 4 in W2.
    floors = [sum(metric.floor(gaussian(n, 1, seed=s)) for s in range(20)) for n in (100, 1600)]
    assert 2.5 < floors[0] / floors[1] < 6


def test_squared_distances_keep_their_digits_far_from_the_origin():
    x, y = gaussian(30, 4), gaussian(20, 4, seed=1)
    exact = (x[:, None] - y).square().sum(2)
    torch.testing.assert_close(squared_distances(x, y), exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(squared_distances(x + 1e6, y + 1e6), exact, rtol=1e-8, atol=1e-8)
